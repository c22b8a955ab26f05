"""The convolutional networks of the zoo against their publications, and cut by their channels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cut_truth import projected
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import models
from dessilbi_jax.dependency import Reason
from dessilbi_jax.frameworks import as_network
from dessilbi_jax.models.densenet import DenseNet
from dessilbi_jax.models.mobilenet import MobileNetV2
from dessilbi_jax.models.vgg import VGG
from dessilbi_jax.models.wide_resnet import WideResNet

# name: (parameters, billions of multiply-accumulates for one image, digits of the latter or its
# relative tolerance). Products and convolutions are counted, without biases and normalisation.
TORCHVISION = {  # num_params and _ops of its weights' metadata
    "alexnet": (61_100_840, 0.714, 3),
    "vgg16-imagenet": (138_365_992, 15.470, 3),
    "vgg19-imagenet": (143_678_248, 19.632, 3),
    "resnet18": (11_689_512, 1.814, 3),
    "resnet34": (21_797_672, 3.664, 3),
    "resnet50": (25_557_032, 4.089, 3),
    "resnet101": (44_549_160, 7.801, 3),
    "densenet121": (7_978_856, 2.834, 3),
    "mobilenet-v2": (3_504_872, 0.301, 3),
}
CIFAR = {
    # Li et al. (2017), Table 1: 3.13e8, with 14.98 M of a head of 512 units; its 13 convolutions
    # have 14,710,464 weights, to which 8,448 of the normalisation and 5,130 of the head come
    "vgg16": (14_710_464 + 8_448 + 5_130, 0.313, 0.005),
    # 20.04 M and 0.40 G with biases: 5,504 of them, and 11,008 of the normalisation
    "vgg19": (20_018_880 + 11_008 + 5_130, 0.40, 0.01),
    # He et al. (2016), Table 6, count 0.27, 0.46, 0.66, 0.85 and 1.7 M without projections:
    # 269,722 and 97,216 for every three blocks more. Projections add 512 + 2048 + 64 + 128 =
    # 2,752 (Table 1 of Idelbayev's implementation, and pytorchcv, have the sums). FLOPs: He et
    # al. (2018), Soft filter pruning, Table 1 for 20 and 32; Li et al. (2017) for 56 and 110.
    "resnet20": (272_474, 0.0406, 0.01),
    "resnet32": (466_906, 0.0689, 0.01),
    "resnet44": (661_338, 0.0970, 0.01),
    "resnet56": (855_770, 0.125, 0.01),
    "resnet110": (1_730_714, 0.253, 0.01),
    # pytorchcv (osmr/imgclsmob), which counts normalisation and ReLU too: 5246.98 and 298.45 M
    "wide-resnet-28-10": (36_479_194, 5.247, 0.005),
    "densenet-bc-100-12": (769_162, 0.29845, 0.04),
}
SMALL = {
    # Han et al. (2015), Tables 3 and 4: 267 K and 431 K; 532 K and 4586 K FLOPs, two a
    # multiplication
    "lenet300": (266_610, 532e-6 / 2, 0.005),
    "lenet5": (431_080, 4586e-6 / 2, 0.0005),
    # Frankle & Carbin (2019), Figure 2: 4.3 M and 2.4 M; for Conv-6 it says 1.7 M, but the widths
    # in the same table give 1.1 M in convolutions and 1.1 M in dense layers, as open_lth has them
    "conv2": (4_301_642, 0.04378, 3e-4),
    "conv4": (2_425_930, 0.09831, 3e-4),
    "conv6": (2_262_602, 0.15388, 3e-4),
    # 1024 pixels of 864 + 9216 weights, 256 of 18432 + 36864, 64 of 73728 + 147456, head 1280
    "vgg-small": (288_746, 1e-9 * (1024 * 10080 + 256 * 55296 + 64 * 221184 + 1280), 1e-12),
    # 1024 pixels of 432 + 4608, 256 of 13824 + 512, 64 of 55296 + 2048, head 640
    "resnet-small": (78_042, 1e-9 * (1024 * 5040 + 256 * 14336 + 64 * 57344 + 640), 1e-12),
}
PUBLISHED = {**TORCHVISION, **CIFAR, **SMALL}
NAMES = tuple(PUBLISHED)


def shapes(model):
    """Shapes of the parameters by their paths."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


class OneKey:
    """The same random key for every layer: a counter is traced slowly, as often as it is read."""

    def params(self):
        return jax.random.key(0)


def empty(make, *args, **settings):
    """The network that `make` gives, without numbers."""
    return nnx.eval_shape(lambda: make(*args, rngs=OneKey(), **settings))


@functools.cache
def outline(name):
    """(network without numbers, channel groups for one image), in the sizes of the publication."""
    entry = models.entry(name)
    model = empty(entry.make, entry.input_shape, entry.classes, entry.widths)
    return model, dl.channel_groups(model, models.example_input(model))


def test_every_network_is_held_against_its_publication():
    convolutional = [name for name in models.names() if not name.startswith(("vit", "gpt"))]
    assert sorted(convolutional) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_published_size(name):
    parameters, billions, digits = PUBLISHED[name]
    model, groups = outline(name)
    assert sum(map(math.prod, shapes(model).values())) == parameters
    found = groups.flops() / 2e9
    if isinstance(digits, int):
        assert round(found, digits) == billions
    else:
        assert found == pytest.approx(billions, rel=digits)


def test_sizes_without_projections_are_those_of_the_residual_paper():
    for name, size in (("resnet20", 269_722), ("resnet56", 853_018), ("resnet110", 1_727_962)):
        counted = shapes(outline(name)[0])
        assert size == sum(math.prod(s) for path, s in counted.items() if "shortcut" not in path)


def test_the_head_of_two_hidden_layers():
    # 15.25 M in the implementations that have it, less 4,224 biases of the convolutions
    widths = (*models.entry("vgg16").widths, 512, 512)
    model = empty(models.entry("vgg16").make, (32, 32, 3), 10, widths)
    assert sum(map(math.prod, shapes(model).values())) == 15_253_578 - 4_224
    assert model.widths == widths


@pytest.mark.parametrize("name", NAMES)
def test_every_channel_but_those_of_inputs_and_outputs_is_removable(name):
    model, groups = outline(name)
    assert not groups.unknown
    # the network's widths are its channels, each of them a group
    assert groups.count == sum(model.widths)
    counts = models.entry(name).counts
    assert counts is None or len(model.widths) in counts
    kept = {Reason.DATA, Reason.INPUT, Reason.OUTPUT}
    assert {why.reason for why in groups.reasons.values()} <= kept, str(groups)
    head = max(path for path in shapes(model) if path.startswith("fc") and "kernel" in path)
    head = "fc/kernel" if "fc/kernel" in shapes(model) else head
    first = next(p for p in ("conv1/kernel", "fc1/kernel") if p in shapes(model))
    for path, shape in shapes(model).items():
        if path.endswith("kernel"):
            assert set(groups.removable(path, -1)) == {path != head}, path
            read = path != first and "depthwise" not in path
            assert set(groups.removable(path, -2)) == {read}, path
        else:
            assert len(shape) == 1
            assert set(groups.removable(path, 0)) == {path != head.replace("kernel", "bias")}, path


# Narrow members of each family, by name: widths, in short, and images. The other names share
# class and form with one of these.
NARROW = {
    "lenet300": ((9, 7), (8, 8, 1)),
    "lenet5": ((3, 4, 7), (16, 18, 2)),
    "conv6": ((4, 5, 6, 7, 5, 6, 9, 8), (8, 8, 3)),
    "alexnet": ((4, 5, 6, 5, 4, 9, 8), (63, 70, 3)),
    "vgg-small": ((4, 5, 6), (8, 8, 3)),
    "vgg16": ((4, 5, 6, 7) * 3 + (6, 9, 8), (32, 32, 3)),
    "vgg16-imagenet": ((4, 5, 6, 7) * 3 + (6, 9, 8), (32, 40, 3)),
    "resnet-small": ((4, 5, 6), (8, 9, 3)),
    "resnet20": ((4, 6, 8), (8, 8, 3)),
    "resnet18": ((4, 5, 6, 7), (32, 33, 3)),
    "resnet50": ((4, 5, 6, 7), (32, 33, 3)),
    "wide-resnet-28-10": ((4, 5, 6, 7), (8, 8, 3)),
    "densenet-bc-100-12": ((3,), (8, 8, 3)),
    "mobilenet-v2": ((4, 3, 4, 5, 6, 5, 4, 6, 9), (33, 32, 3)),
}


def chosen(groups, seed, share=0.4):
    """Masks that empty some channel groups, never all of a set."""
    rng = np.random.default_rng(seed)
    gone = np.append(rng.random(groups.count) < share, False)
    for each in groups.sets:
        gone[rng.choice(each.groups)] = False
    masks = {path: np.ones(shape, bool) for path, shape in groups.shapes.items()}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) not in groups.reads:
            masks[path][(slice(None),) * axis + (gone[numbers],)] = False
    return masks


def cut(model, plan):
    """A network without numbers, with the shapes that a plan leaves."""
    graph, state = nnx.split(model)
    flat = [
        (path, leaf.replace(jax.ShapeDtypeStruct(plan.shape("/".join(map(str, path))), leaf.dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


@pytest.mark.parametrize("name", NARROW)
def test_what_is_left_is_the_same_network_with_other_widths(name):
    widths, shape = NARROW[name]
    make = functools.partial(empty, models.entry(name).make, shape, 3)
    model = make(widths)
    groups = dl.channel_groups(model, models.example_input(model))
    smaller = cut(model, groups.plan(chosen(groups, 1)))
    left = models.widths(smaller)
    assert len(left) == len(model.widths)
    assert sum(left) < sum(model.widths) == groups.count
    assert shapes(smaller) == shapes(make(left))


def test_short_networks_have_no_full_widths():
    two = nnx.eval_shape(lambda: models.build("resnet-small", widths=(4, 6)))
    with pytest.raises(ValueError, match="4 numbers are read as the channels of 4 stages"):
        models.widths(two)


# One shallow member of each family, to be computed with: (network, images).
SHALLOW = {
    "lenet300": (functools.partial(models.LeNet300, widths=(9, 7)), (8, 8, 1)),
    "lenet5": (functools.partial(models.LeNet5, widths=(3, 4, 7)), (16, 16, 1)),
    "conv2": (functools.partial(models.ConvN, widths=(4, 5, 6, 7)), (8, 8, 3)),
    "alexnet": (functools.partial(models.AlexNet, widths=(4, 5, 6, 5, 4, 9, 8)), (63, 63, 3)),
    "vgg": (
        functools.partial(
            VGG, widths=(4, 5, 6, 9, 8), pooled=(1, 3), flatten=True, use_bias=True
        ),
        (8, 8, 3),
    ),
    "resnet": (functools.partial(models.ResNet, widths=(4, 6), imagenet=True), (9, 8, 3)),
    "bottleneck": (
        functools.partial(
            models.ResNet, widths=(2, 3), blocks=(2, 1), block=models.Bottleneck, imagenet=True
        ),
        (16, 16, 3),
    ),
    "wide resnet": (
        functools.partial(WideResNet, widths=(4, 6, 5), blocks=(2, 1)), (8, 8, 3)
    ),
    "densenet": (
        functools.partial(DenseNet, widths=(3,), layers=(2, 1), imagenet=True), (16, 16, 3)
    ),
    "mobilenet": (
        functools.partial(
            MobileNetV2, widths=(4, 3, 5, 9), stages=((1, 1), (2, 2))
        ),
        (8, 8, 3),
    ),
}  # fmt: skip


def shallow(family, **settings):
    """(network with random numbers everywhere, images)."""
    make, shape = SHALLOW[family]
    rng = np.random.default_rng(3)
    graph, state = nnx.split(empty(make, shape, 3, **settings))
    flat = []
    for path, leaf in nnx.to_flat_state(state):
        numbers = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        if path[-1] in ("var", "scale"):
            numbers = rng.uniform(0.5, 1.5, leaf.shape)
        flat.append((path, leaf.replace(jnp.asarray(numbers, jnp.float32))))
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    return nnx.merge(graph, nnx.from_flat_state(flat)), x


# Others are cut in tests/slimming/test_slim.py, or are made of nothing else than these.
@pytest.mark.parametrize(
    ("family", "remat"),
    [("bottleneck", True), ("wide resnet", False), ("densenet", False), ("mobilenet", False)],
)
def test_a_slimmed_network_computes_what_the_masked_one_does(family, remat):
    model, x = shallow(family, remat=remat)
    groups = dl.channel_groups(model, x[:1])
    assert not groups.unknown
    assert groups.count == sum(model.widths)
    masks = chosen(groups, 2)
    small = dl.slim(model, masks, x)
    assert small.difference < 1e-5
    network = as_network(model)  # W under the masks alone, which is what a user has
    want = jax.jit(network.fn)(projected(network.tree, masks), x)
    narrow = as_network(small.model)
    got = jax.jit(narrow.fn)(narrow.tree, x)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    assert small.params[1] < small.params[0]
    make, shape = SHALLOW[family]
    assert shapes(empty(make, shape, 3, widths=small.model.widths)) == shapes(small.model)


def equations(jaxpr):
    """All equations of a jaxpr, those inside others too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def traced(model, x):
    """The equations of a network's logits, and what it gives."""
    graph, state = nnx.split(model)
    jaxpr, out = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x), return_shape=True)(state, x)
    return list(equations(jaxpr.jaxpr)), out


@pytest.mark.parametrize("family", SHALLOW)
def test_bfloat16_is_what_is_computed_in_and_nothing_that_is_kept(family):
    model, x = shallow(family, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    found, logits = traced(model, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    kinds = [
        eqn.outvars[0].aval.dtype
        for eqn in found
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert kinds[-1] == jnp.float32  # the logits
    assert set(kinds[:-1]) == {jnp.dtype("bfloat16")}
    for eqn in found:  # statistics of the normalisation, and the mean over the image
        if eqn.primitive.name in ("reduce_sum", "rsqrt"):
            assert eqn.outvars[0].aval.dtype == jnp.float32, eqn


def test_bfloat16_logits_are_near_those_of_float32():
    logits = [
        nnx.jit(lambda model, x: model(x))(*shallow("bottleneck", dtype=dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    scale = np.abs(logits[0]).max()
    difference = np.abs(logits[0] - logits[1]).max() / scale
    assert 1e-5 < difference < 0.1


# blocks that are computed again
REMAT = {
    "lenet300": 2, "lenet5": 3, "conv2": 3, "alexnet": 7, "vgg": 4, "resnet": 2, "bottleneck": 3,
    "wide resnet": 3, "densenet": 4, "mobilenet": 3,
}  # fmt: skip


@pytest.mark.parametrize("family", SHALLOW)
def test_remat_computes_every_block_again(family):
    found, logits = traced(*shallow(family, remat=True))
    again = [eqn for eqn in found if eqn.primitive.name in ("checkpoint", "remat2", "remat")]
    assert len(again) == REMAT[family]
    assert logits.shape == (4, 3)
    without, _ = traced(*shallow(family))
    assert not {eqn.primitive.name for eqn in without} & {"checkpoint", "remat2", "remat"}


def test_remat_gives_equal_loss_gradient_and_statistics():
    @nnx.jit
    def both(model, x):
        return nnx.value_and_grad(lambda model: jnp.sum(jnp.tanh(model(x)) ** 2))(model)

    results = []
    for remat in (False, True):
        model, x = shallow("vgg", remat=remat)
        loss, gradients = both(model, x)
        statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        results.append([loss, *jax.tree.leaves(gradients), *statistics])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv6", (7, 8, 3), "conv6 needs images of 8x8 pixels or more, got 7x8"),
        ("alexnet", (62, 64, 3), "alexnet needs images of 63x63 pixels or more, got 62x64"),
        ("vgg16-imagenet", (31, 32, 3), "needs images of 32x32 pixels or more, got 31x32"),
        ("densenet-bc-100-12", (3, 4, 3), "needs images of 4x4 pixels or more, got 3x4"),
        ("densenet121", (28, 32, 3), "needs images of 29x29 pixels or more, got 28x32"),
    ],
)
def test_images_that_are_too_small(name, shape, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, input_shape=shape)


@pytest.mark.parametrize(
    ("make", "smallest"),
    [
        (functools.partial(models.ConvN, widths=NARROW["conv6"][0]), 8),
        (functools.partial(models.AlexNet, widths=NARROW["alexnet"][0]), 63),
        (functools.partial(DenseNet, widths=(3,), layers=(1, 1, 1)), 4),
        (functools.partial(DenseNet, widths=(3,), layers=(1, 1, 1, 1), imagenet=True), 29),
    ],
)
def test_the_smallest_images(make, smallest):
    model = empty(make, (smallest, smallest, 3))
    x = jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32)
    logits = nnx.eval_shape(lambda model, x: model(x), model, x)
    assert logits.shape[0] == 1
    with pytest.raises(ValueError, match=r"its (poolings|transitions|convolutions and poolings) "):
        empty(make, (smallest, smallest - 1, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(models.ResNet, widths=(4, 5, 6, 7, 8)), "2 stages in full, 4 numbers"),
        (functools.partial(WideResNet, widths=(4, 5, 6)), "4 numbers in short or 16 in full"),
        (functools.partial(DenseNet, widths=(4, 5)), "1 number .the growth. or 99 in full"),
        (functools.partial(MobileNetV2, widths=(4, 5)), "9 numbers in short or 25 in full, got 2"),
    ],
)
def test_widths_that_fit_neither_form(make, message):
    with pytest.raises(ValueError, match=message):
        make(rngs=nnx.Rngs(0))
