"""PyTorch's weights: the files, read without PyTorch, and the networks they are put into."""

import functools
import io
import itertools
import struct
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save_file

from dessilbi_jax import models
from dessilbi_jax.models import _statedict
from dessilbi_jax.models.pretrained import load_torch, torch_shapes

SMALL = {
    "resnet18": {"input_shape": (40, 48, 3), "classes": 7, "widths": (2, 3, 4, 5)},
    "resnet50": {"input_shape": (32, 32, 3), "classes": 7, "widths": (1, 2, 3, 4)},
    "vgg16-imagenet": {
        "input_shape": (32, 96, 3),  # of which the poolings leave 1 x 3
        "classes": 7,
        "widths": (2, 3, 2, 3, 4, 2, 3, 2, 4, 3, 2, 3, 4, 6, 5),
    },
}


# --- files as torch.save writes them, put together by hand ---------------------------------

STORAGES = {
    "float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool",
}  # fmt: skip
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<i", len(value.encode())) + value.encode()


def whole(n):
    return b"K" + bytes([n]) if 0 <= n < 256 else b"J" + struct.pack("<i", n)


def several(*parts):
    return b"(" + b"".join(parts) + b"t"


def tensor(key, kind, count, offset, size, stride, legacy=False):
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())."""
    view = [b"N"] if legacy else []
    storage = several(
        text("storage"), f"ctorch\n{kind}Storage\n".encode(), text(key), text("cpu"), whole(count),
        *view,
    )  # fmt: skip
    args = several(
        storage + b"Q", whole(offset), several(*map(whole, size)), several(*map(whole, stride)),
        b"\x89", ORDERED_DICT,
    )  # fmt: skip
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R"


def mapping(items):
    """An OrderedDict of pickled values, with the _metadata that PyTorch puts beside them."""
    filled = b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"
    return ORDERED_DICT + filled + b"}" + text("_metadata") + ORDERED_DICT + b"sb"


def pickled(value):
    return b"\x80\x02" + value + b"."


def contiguous(arrays, legacy=False):
    """Each array in a storage of its own."""
    items = {}
    for key, (name, array) in enumerate(arrays.items()):
        steps = tuple(step // array.itemsize for step in np.array(array, order="C").strides)
        kind = STORAGES[array.dtype.name]
        items[name] = tensor(str(key), kind, array.size, 0, array.shape, steps, legacy)
    return items


def write_zip(file, content, storages, order=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", order)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", b"3\n")


def raw_storages(arrays):
    return {str(i): np.ascontiguousarray(a).tobytes() for i, a in enumerate(arrays.values())}


def save_pth(arrays, file, outer=lambda items: items):
    write_zip(file, pickled(outer(mapping(contiguous(arrays)))), raw_storages(arrays))


def save_legacy(arrays, file, outer=lambda items: items):
    """Five pickles, then the length and the numbers of each storage."""
    magic = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    system = b"}(" + text("little_endian") + b"\x88" + text("protocol_version") + whole(1) + b"u"
    content = outer(mapping(contiguous(arrays, legacy=True)))
    keys = b"](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e"
    with open(file, "wb") as stream:
        for part in (magic, whole(1001), system, content, keys):
            stream.write(pickled(part))
        for array in arrays.values():
            stream.write(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes())


SAVE = {"safetensors": save_file, "pth": save_pth, "legacy.pth": save_legacy}


def weights(name, seed=0):
    """Random arrays with torchvision's names and shapes."""
    draw = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: models.build(name, **SMALL[name]))
    arrays = {}
    for key, shape in torch_shapes(model).items():
        fan_in = max(int(np.prod(shape[1:])), 1)
        values = draw.normal(0, (2 / fan_in) ** 0.5 if len(shape) > 1 else 0.3, shape)
        if len(shape) == 1 and not key.endswith(("bias", "running_mean")):
            values = draw.uniform(0.5, 1.5, shape)
        arrays[key] = values.astype(np.float32)
        if key.endswith("running_var"):
            arrays[key.replace("running_var", "num_batches_tracked")] = np.array(9, np.int64)
    return arrays


def state_of(model):
    return {
        "/".join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def run(graph, state, x):
    return nnx.merge(graph, state)(x)


def logits(model, images):
    """Of images [N, channels, rows, columns], in evaluation mode."""
    model.eval()
    return run(*nnx.split(model), jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))


# --- the networks in NumPy, in PyTorch's layout -------------------------------------------


def conv(p, name, x, stride=1, padding=0):
    kernel = p[f"{name}.weight"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
    y = np.einsum("ncijhw,ochw->noij", windows[:, :, ::stride, ::stride], kernel)
    return y + p.get(f"{name}.bias", np.zeros(len(kernel)))[:, None, None]


def norm(p, name, x):
    names = ("weight", "bias", "running_mean", "running_var")
    scale, bias, mean, var = (p[f"{name}.{part}"][:, None, None] for part in names)
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def pool(x, size, stride, padding=0):
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, around, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].max((-2, -1))


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def numpy_resnet(p, x):
    x = pool(relu(norm(p, "bn1", conv(p, "conv1", x, 2, 3))), 3, 2, 1)
    for layer, block in itertools.product(range(1, 5), range(20)):
        at = f"layer{layer}.{block}"
        if f"{at}.conv1.weight" not in p:
            continue
        stride = 2 if layer > 1 and block == 0 else 1
        if f"{at}.conv3.weight" in p:
            y = relu(norm(p, f"{at}.bn1", conv(p, f"{at}.conv1", x)))
            y = relu(norm(p, f"{at}.bn2", conv(p, f"{at}.conv2", y, stride, 1)))
            y = norm(p, f"{at}.bn3", conv(p, f"{at}.conv3", y))
        else:
            y = relu(norm(p, f"{at}.bn1", conv(p, f"{at}.conv1", x, stride, 1)))
            y = norm(p, f"{at}.bn2", conv(p, f"{at}.conv2", y, 1, 1))
        if f"{at}.downsample.0.weight" in p:
            x = norm(p, f"{at}.downsample.1", conv(p, f"{at}.downsample.0", x, stride))
        x = relu(x + y)
    return linear(p, "fc", x.mean((2, 3)))


def numpy_vgg(p, x):
    at = 0  # in torchvision's row of layers: convolution, normalisation, ReLU, or pooling
    for layer in (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"):
        if layer == "M":
            x, at = pool(x, 2, 2), at + 1
            continue
        x = relu(norm(p, f"features.{at + 1}", conv(p, f"features.{at}", x, 1, 1)))
        at += 3
    x = relu(linear(p, "classifier.0", x.reshape(len(x), -1)))
    return linear(p, "classifier.6", relu(linear(p, "classifier.3", x)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet18", "pth"), ("resnet50", "legacy.pth"), ("vgg16-imagenet", "safetensors")],
)
def test_logits_are_those_of_the_network_in_pytorch(tmp_path, name, kind):
    arrays = weights(name)
    SAVE[kind](arrays, tmp_path / kind)
    model = load_torch(tmp_path / kind, name, **SMALL[name])
    height, width, channels = SMALL[name]["input_shape"]
    images = np.random.default_rng(1).normal(size=(3, channels, height, width))
    reference = numpy_vgg if name.startswith("vgg") else numpy_resnet
    exact = {key: array.astype(np.float64) for key, array in arrays.items()}
    expected = reference(exact, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits(model, images), expected, rtol=0, atol=2e-5 * scale)
    assert np.std(expected, axis=0).max() > 0.01 * scale  # the images make a difference


@pytest.mark.parametrize("name", ["resnet18", "vgg16-imagenet"])
def test_formats_agree(tmp_path, name):
    arrays, loaded = weights(name), []
    for kind, save in SAVE.items():
        save(arrays, tmp_path / kind)
        loaded.append(state_of(load_torch(tmp_path / kind, name, **SMALL[name])))
    for other in loaded[1:]:
        jax.tree.map(np.testing.assert_array_equal, loaded[0], other)
    assert all(leaf.dtype == np.float32 for leaf in loaded[0].values())


# torchvision's state dicts without num_batches_tracked
@pytest.mark.parametrize(
    ("name", "count", "numbers", "known"),
    [
        ("resnet18", 102, 11_689_512, {"layer4.0.downsample.0.weight": (512, 256, 1, 1)}),
        ("resnet34", 182, 21_797_672, {"layer3.5.conv2.weight": (256, 256, 3, 3)}),
        ("resnet50", 267, 25_557_032, {"layer1.0.downsample.1.running_var": (256,)}),
        (
            "vgg16-imagenet",
            84,
            138_365_992,
            {
                "features.40.weight": (512, 512, 3, 3),
                "features.41.running_mean": (512,),
                "classifier.0.weight": (4096, 25088),
                "classifier.6.bias": (1000,),
            },
        ),
    ],
)
def test_names_of_torchvision(name, count, numbers, known):
    shapes = torch_shapes(nnx.eval_shape(lambda: models.build(name)))
    assert len(shapes) == count
    trained = [np.prod(shape) for key, shape in shapes.items() if "running" not in key]
    assert sum(trained) == numbers
    assert shapes.items() >= known.items()


def test_a_network_that_was_given_is_filled(tmp_path):
    save_pth(weights("resnet18"), tmp_path / "a.pth")
    model = models.build("resnet18", **SMALL["resnet18"])
    assert load_torch(tmp_path / "a.pth", model) is model
    named = load_torch(tmp_path / "a.pth", "resnet18", **SMALL["resnet18"])
    jax.tree.map(np.testing.assert_array_equal, state_of(model), state_of(named))
    with pytest.raises(TypeError, match="classes: settings are for a network given by its name"):
        load_torch(tmp_path / "a.pth", model, classes=7)


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("save", [save_pth, save_legacy])
def test_checkpoints_and_data_parallel_names(tmp_path, save, key):
    arrays = weights("resnet18")
    save_pth(arrays, tmp_path / "plain.pth")
    plain = load_torch(tmp_path / "plain.pth", "resnet18", **SMALL["resnet18"])
    arrays = {f"module.{name}": a for name, a in arrays.items() if "num_batches" not in name}
    save(arrays, tmp_path / "a.pth", outer=lambda items: (
        b"}(" + text("epoch") + whole(3) + text("rate") + b"G" + struct.pack(">d", 0.1)
        + text(key) + items + b"u"
    ))  # fmt: skip
    loaded = load_torch(tmp_path / "a.pth", "resnet18", **SMALL["resnet18"])
    jax.tree.map(np.testing.assert_array_equal, state_of(plain), state_of(loaded))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("kind", SAVE)
def test_other_floating_point_types_become_float32(tmp_path, dtype, kind):
    arrays = {name: a.astype(dtype) for name, a in weights("resnet18").items() if a.ndim}
    if kind == "safetensors" and dtype is not np.float64:  # NumPy's has no bfloat16
        save_flax({name: jnp.asarray(a) for name, a in arrays.items()}, tmp_path / kind)
    else:
        SAVE[kind](arrays, tmp_path / kind)
    state = state_of(load_torch(tmp_path / kind, "resnet18", **SMALL["resnet18"]))
    assert all(leaf.dtype == np.float32 for leaf in state.values())
    np.testing.assert_array_equal(state["fc/bias"], arrays["fc.bias"].astype(np.float32))


def test_all_that_does_not_fit_is_listed(tmp_path):
    arrays = weights("resnet18")
    del arrays["layer2.1.bn2.running_mean"], arrays["fc.weight"]
    arrays["head.weight"] = np.ones((2, 3), np.float32)
    arrays["conv1.weight"] = arrays["conv1.weight"].transpose(2, 3, 1, 0)
    arrays["fc.bias"] = np.ones(7, np.int64)
    save_pth(arrays, tmp_path / "a.pth")
    model = models.build("resnet18", **SMALL["resnet18"])
    before = state_of(model)
    with pytest.raises(ValueError, match=r"are not this network's") as caught:
        load_torch(tmp_path / "a.pth", model)
    lines = str(caught.value).split("\n")
    assert str(tmp_path / "a.pth") in lines[0]
    assert set(lines[1:5]) == {
        "  missing: layer2.1.bn2.running_mean (3,); fc.weight (7, 5)",
        "  superfluous: head.weight (2, 3)",
        "  of another shape: conv1.weight (7, 7, 3, 2), expected (2, 3, 7, 7)",
        "  no floating-point numbers: fc.bias int64",
    } or set(lines[1:5]) == {
        "  missing: fc.weight (7, 5); layer2.1.bn2.running_mean (3,)",
        "  superfluous: head.weight (2, 3)",
        "  of another shape: conv1.weight (7, 7, 3, 2), expected (2, 3, 7, 7)",
        "  no floating-point numbers: fc.bias int64",
    }
    jax.tree.map(np.testing.assert_array_equal, before, state_of(model))


def test_a_long_list_is_cut(tmp_path):
    save_pth(weights("resnet50"), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"superfluous: (.*; ){10}and 155 more\n"):
        load_torch(tmp_path / "a.pth", "resnet18", **SMALL["resnet18"])


def test_networks_without_names_in_pytorch(tmp_path):
    with pytest.raises(TypeError, match="names of a LeNet5's weights in PyTorch are not known"):
        load_torch(tmp_path / "a.pth", "lenet5")


# --- reading files ------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_pth, save_legacy])
def test_every_type_is_read(tmp_path, save):
    draw = np.random.default_rng(0)
    arrays = {kind: draw.integers(0, 2, (2, 3)).astype(jnp.dtype(kind)) for kind in STORAGES}
    arrays |= {"scalar": np.array(5, np.int64), "empty": np.zeros((0, 300), np.float32)}
    save(arrays, tmp_path / "a.pt")
    found = _statedict.read(tmp_path / "a.pt")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_views_of_one_storage(tmp_path):
    """Strides that are not contiguous, offsets, and tensors that share their numbers."""
    numbers = np.arange(300, dtype=np.float32)
    views = {
        "transposed": (0, (3, 4), (1, 3)),
        "channels_last": (10, (2, 3, 4, 5), (60, 1, 15, 3)),
        "tied": (10, (2, 3, 4, 5), (60, 1, 15, 3)),
        "every_second": (1, (5,), (2,)),
        "repeated": (7, (4, 2), (0, 1)),
        "number": (299, (), ()),
    }
    items = {name: tensor("0", "Float", 300, *view) for name, view in views.items()}
    write_zip(tmp_path / "a.pth", pickled(mapping(items)), {"0": numbers.tobytes()})
    found = _statedict.read(tmp_path / "a.pth")
    for name, (offset, size, stride) in views.items():
        places = offset + sum(
            np.arange(n).reshape(-1, *(1,) * (len(size) - i - 1)) * step
            for i, (n, step) in enumerate(zip(size, stride, strict=True))
        )
        np.testing.assert_array_equal(found[name], np.broadcast_to(numbers[places], size))


def test_other_protocols_and_parameters(tmp_path):
    """Protocol 4's opcodes, nn.Parameter, and the constructor of the oldest files."""
    storage = several(
        text("storage"), b"\x8c\x05torch\x8c\x0cFloatStorage\x93", text("0"), text("cpu"), whole(2)
    )
    old = several(storage + b"Q", whole(0), whole(2) + b"\x85", whole(1) + b"\x85")
    old = b"\x8c\x0ctorch._utils\x8c\x0f_rebuild_tensor\x93" + old + b"R"
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + several(old, b"\x88", ORDERED_DICT) + b"R"
    items = b"}\x94(\x8c\x01a" + old + b"\x94\x8c\x01b" + b"h\x01" + b"\x8c\x01c" + parameter + b"u"
    content = b"\x80\x04\x95" + struct.pack("<q", len(items) + 1) + items + b"."
    write_zip(tmp_path / "a.pth", content, {"0": np.array([1, 2], np.float32).tobytes()})
    found = _statedict.read(tmp_path / "a.pth")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: [1, 2] for name in "abc"
    }


SYSTEM = text("touch {marker}") + b"\x85R"
MALICIOUS = {
    "os.system": b"cos\nsystem\n" + SYSTEM,
    "posix.system": b"cposix\nsystem\n" + SYSTEM,
    "builtins.eval": b"cbuiltins\neval\n" + text("open({marker!r}, 'w')") + b"\x85R",
    "subprocess.call": b"\x8c\x0asubprocess\x8c\x04call\x93" + SYSTEM,
    "torch.load": b"ctorch\nload\n" + SYSTEM,
    "torch.nn.modules.linear.Linear": b"ctorch.nn.modules.linear\nLinear\n)\x81",
    "instruction INST": b"(" + text("touch {marker}") + b"ios\nsystem\n",
    "instruction OBJ": b"(ccollections\nOrderedDict\no",
    "instruction NEWOBJ": b"ccollections\nOrderedDict\n)\x81",
    "instruction EXT1": b"\x82\x01",
    "instruction PERSID": b"Ptouch\n",
    "collections.OrderedDict with": b"ccollections\nOrderedDict\n" + SYSTEM,
    "calls torch.FloatStorage": b"ctorch\nFloatStorage\n)R",
    "a dict where a Named belongs": b"})R",
    "a int where a dict belongs": b"K\x01}b",
    "a tuple where a list belongs": b")K\x01a",
}


@pytest.mark.parametrize("what", MALICIOUS)
@pytest.mark.parametrize("save", [save_pth, save_legacy])
def test_a_pickle_that_asks_for_more_is_refused(tmp_path, save, what):
    marker = tmp_path / "marker"
    command = f"touch {marker}"
    attack = MALICIOUS[what].replace(text("touch {marker}"), text(command))
    attack = attack.replace(text("open({marker!r}, 'w')"), text(f"open({str(marker)!r}, 'w')"))
    arrays = {"fc.weight": np.ones((2, 2), np.float32)}
    save(arrays, tmp_path / "a.pth", outer=lambda items: b"(" + items + attack + b"t")
    before = set(sys.modules)
    with pytest.raises(ValueError, match=rf"a\.pth: .*{what}"):
        _statedict.read(tmp_path / "a.pth")
    assert not marker.exists()
    assert "torch" not in set(sys.modules) - before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (whole(3), "holds no state dict, but int: 3"),
        (b"}", "holds no state dict, but dict"),
        (b"}" + text("epoch") + whole(3) + b"s", "one that also has: 'epoch'"),
        (b"}" + whole(3) + tensor("0", "Float", 4, 0, (4,), (1,)) + b"s", "also has: 3"),
        (tensor("0", "Float", 4, 0, (4,), (1,)), "holds no state dict, but Tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, message):
    write_zip(tmp_path / "a.pth", pickled(content), {"0": bytes(16)})
    with pytest.raises(ValueError, match=message):
        _statedict.read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (("0", "Float", 4, 1, (4,), (1,)), "a lies outside its storage of 4 numbers"),
        (("0", "Float", 4, 0, (2, 2), (4, 1)), "a lies outside its storage"),
        (("0", "Float", 4, 0, (2,), (-1,)), r"a has size \(2,\), stride \(-1,\)"),
        (("0", "Float", 4, -1, (2,), (1,)), "and offset -1"),
        (("0", "Float", 4, 0, (2, 2), (1,)), r"a has size \(2, 2\), stride \(1,\)"),
        (("0", "Float", 5, 0, (4,), (1,)), "archive/data/0 holds 16 bytes, not 5 of float32"),
        (("0", "Double", 4, 0, (4,), (1,)), "holds 16 bytes, not 4 of float64"),
        (("1", "Float", 4, 0, (4,), (1,)), "is damaged: KeyError.*data/1"),
        (("0", "Complex", 4, 0, (4,), (1,)), "names torch.ComplexStorage"),
    ],
)
def test_tensors_that_are_not_in_the_file(tmp_path, view, message):
    write_zip(tmp_path / "a.pth", pickled(mapping({"a": tensor(*view)})), {"0": bytes(16)})
    with pytest.raises(ValueError, match=message):
        _statedict.read(tmp_path / "a.pth")


def test_archives_of_another_kind(tmp_path):
    items = pickled(mapping({"a": tensor("0", "Float", 4, 0, (4,), (1,))}))
    file, storages = tmp_path / "a.pth", {"0": bytes(16)}
    write_zip(file, items, storages, order=b"big")
    with pytest.raises(ValueError, match="byte order b'big'; only little-endian"):
        _statedict.read(file)
    write_zip(file, items, storages, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        _statedict.read(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", b"hello")
    with pytest.raises(ValueError, match=r"a zip archive with 0 files \*/data.pkl"):
        _statedict.read(file)


@pytest.mark.parametrize("kind", SAVE)
def test_truncated_files(tmp_path, kind):
    file = tmp_path / kind
    SAVE[kind]({f"layer{i}.weight": np.ones((4, 5), np.float32) for i in range(6)}, file)
    content = file.read_bytes()
    for length in (0, 3, 30, 200, len(content) // 2, len(content) - 10, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=kind):
            _statedict.read(file)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_damaged_files_are_refused_or_read(tmp_path):
    """Single bytes changed anywhere: an array comes back, or a ValueError, and nothing else."""
    file, draw, refused = tmp_path / "a.pth", np.random.default_rng(0), 0
    for save in (save_pth, save_legacy):
        save({f"layer{i}.weight": np.ones((2, 3), np.float32) for i in range(2)}, file)
        content = file.read_bytes()
        for _ in range(400):
            changed = bytearray(content)
            changed[draw.integers(len(content))] = draw.integers(256)
            file.write_bytes(changed)
            try:
                _statedict.read(file)
            except ValueError as error:
                refused += 1
                told = str(error)
            else:
                continue
            assert "a.pth" in told
    assert 0 < refused < 800


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pth"):
        load_torch(tmp_path / "nowhere.pth", "resnet18")
    (tmp_path / "a.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"is neither a safetensors file nor what torch\.save"):
        load_torch(tmp_path / "a.pth", "resnet18")


def test_safetensors_not_installed(tmp_path, monkeypatch):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        _statedict.read(tmp_path / "a.safetensors")


def test_reading_goes_on_where_a_pickle_ends():
    stream = io.BytesIO(pickled(whole(1)) + pickled(text("two")))
    assert [_statedict.interpret(stream, {}) for _ in range(2)] == [1, "two"]
