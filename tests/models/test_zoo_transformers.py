"""ViT and GPT: published sizes, the computation, and removal of heads and hidden units."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

import dessilbi_jax as dl
from dessilbi_jax import models
from dessilbi_jax.models import GPT, ViT

TINY = {
    "vit-tiny": {"input_shape": (8, 12, 3), "classes": 5, "widths": (12, 2, 3, 10)},
    "gpt-mini": {"input_shape": (6,), "classes": 11, "widths": (12, 2, 3, 10)},
}
HEAD = {"vit-tiny": 64, "gpt-mini": 32}
QUICK = {"xla_backend_optimization_level": 0}  # to compile; nothing here runs for long
NAMES = pytest.mark.parametrize("name", TINY)


@functools.cache
def tiny(name, **settings):
    """A small network with random numbers in all leaves, drawn by NumPy: nothing is compiled."""
    model = nnx.eval_shape(lambda: models.build(name, **TINY[name] | settings))
    draw = np.random.default_rng(1)
    drawn = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        deviation = 0.3 if path[-1] in ("bias", "scale") else 0.2
        values = (path[-1] == "scale") + draw.normal(0, deviation, leaf.shape)
        drawn[path] = jnp.asarray(values, jnp.float32)
    nnx.update(model, nested(drawn))
    return model


def nested(flat):
    tree = {}
    for (*parents, last), value in flat.items():
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = value
    return tree


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _run(graph, state, x):
    return nnx.merge(graph, state)(x)


def run(model, x):
    """Logits, compiled quickly."""
    return _run(*nnx.split(model), x)


def traced(model, x):
    graph, state = nnx.split(model)
    return jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, x)


def inputs(name, batch=2):
    draw = np.random.default_rng(2)
    shape = (batch, *TINY[name]["input_shape"])
    if name == "gpt-mini":
        return jnp.asarray(draw.integers(0, 11, shape), jnp.int32)
    return jnp.asarray(draw.normal(size=shape), jnp.float32)


def leaves(model):
    return {
        "/".join(map(str, path)): leaf
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


@functools.cache
def abstract(name):
    """A network of the published size, in shapes only, and its channel groups."""
    model = nnx.eval_shape(lambda: models.build(name))
    return model, dl.channel_groups(model, models.example_input(model))


# Touvron et al. (2021), Table 1, and Dosovitskiy et al. (2021), Table 1; Radford et al. (2019)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit-tiny", 5_717_416),
        ("vit-small", 22_050_664),
        ("vit-base", 86_567_656),
        ("gpt2-small", 124_439_808),
        ("gpt-mini", 842_496),
    ],
)
def test_published_parameters(name, parameters):
    model, groups = abstract(name)
    assert sum(leaf.size for leaf in leaves(model).values()) == parameters
    assert groups.params() == parameters


@pytest.mark.parametrize(
    ("name", "billions"), [("vit-tiny", 1.3), ("vit-small", 4.6), ("vit-base", 17.6)]
)
def test_published_multiplications(name, billions):
    assert round(abstract(name)[1].flops() / 2e9, 1) == billions


@pytest.mark.parametrize("name", ["gpt2-small", "gpt-mini"])
def test_operations_of_a_decoder(name):
    model, groups = abstract(name)
    features, *pairs = models.widths(model)
    blocks, (context,) = len(pairs) // 2, model.input_shape
    vocabulary = model.token_embed.embedding.shape[0]
    products = 2 * (12 * blocks * features**2 + vocabulary * features)
    assert groups.flops() == context * (products + 4 * blocks * context * features)


@pytest.mark.parametrize("name", ["vit-tiny", "vit-small", "vit-base", "gpt2-small", "gpt-mini"])
def test_every_head_and_hidden_unit_of_the_published_can_be_removed(name):
    model, groups = abstract(name)
    assert not groups.unknown
    assert groups.count == sum(models.widths(model)[1:])


@pytest.mark.parametrize(("side", "patch"), [(28, 4), (124, 4), (128, 16)])
def test_patches_follow_the_image(side, patch):
    shape = (side, side, 1)
    model = nnx.eval_shape(
        lambda: models.build("vit-tiny", input_shape=shape, widths=(192, 1, 3, 768))
    )
    assert model.patch_embed.kernel.shape == (patch, patch, 1, 192)
    assert model.pos_embed.shape == (1, 1 + (side // patch) ** 2, 192)


@NAMES
def test_leaf_names(name):
    """Kernels are `kernel`; embeddings, the images' too, stay dense in built-in structures."""
    params = nnx.to_pure_dict(nnx.state(tiny(name), nnx.Param))
    structured = {leaf.path for leaf in dl.weights.resolve(params) if leaf.counts is not None}
    layers = ("attn/query", "attn/key", "attn/value", "attn/out", "fc1", "fc2")
    expected = {f"block{i}/{layer}/kernel" for i, layer in itertools.product((1, 2), layers)}
    assert structured == expected | ({"head/kernel"} if name == "vit-tiny" else set())
    for path, leaf in leaves(tiny(name)).items():
        assert leaf.dtype == jnp.float32, path
        assert (path.split("/")[-1] in ("kernel", "bias", "scale")) != (
            "embed" in path and not path.startswith("patch_embed")
        )


# The same networks in NumPy, in float64, from the formulas.


def normalised(p, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]
    )


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def attention(p, x, size, causal):
    query, key, value = (linear(p[name], x) for name in ("query", "key", "value"))
    tokens, heads = x.shape[1], query.shape[-1] // size
    out = np.zeros_like(query)
    for n, head in itertools.product(range(len(x)), range(heads)):
        part = slice(head * size, (head + 1) * size)
        scores = query[n, :, part] @ key[n, :, part].T / size**0.5
        if causal:
            scores[np.triu_indices(tokens, 1)] = -np.inf
        out[n, :, part] = special.softmax(scores, axis=1) @ value[n, :, part]
    return linear(p["out"], out)


def blocks(p, x, size, causal, epsilon, gelu):
    for i in (1, 2):
        q = p[f"block{i}"]
        x = x + attention(q["attn"], normalised(q["norm1"], x, epsilon), size, causal)
        x = x + linear(q["fc2"], gelu(linear(q["fc1"], normalised(q["norm2"], x, epsilon))))
    return normalised(p["norm"], x, epsilon)


def numpy_vit(p, images):
    n, height, width, channels = images.shape
    patches = images.reshape(n, height // 4, 4, width // 4, 4, channels).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(n, -1, 16 * channels)
    kernel = p["patch_embed"]["kernel"].reshape(16 * channels, -1)
    first = np.repeat(p["class_embed"], n, axis=0)
    x = np.concatenate([first, patches @ kernel + p["patch_embed"]["bias"]], axis=1)
    x = blocks(p, x + p["pos_embed"], 64, False, 1e-6, lambda x: x * special.ndtr(x))
    return linear(p["head"], x[:, 0])


def numpy_gpt(p, ids):
    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    table = p["token_embed"]["embedding"]
    return blocks(p, table[ids] + p["pos_embed"][: ids.shape[1]], 32, True, 1e-5, gelu) @ table.T


@NAMES
def test_logits_are_those_of_the_formulas(name):
    model, x = tiny(name), inputs(name)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = {"vit-tiny": numpy_vit, "gpt-mini": numpy_gpt}[name](params, np.asarray(x))
    logits = run(model, x)
    assert logits.dtype == jnp.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
    assert np.std(expected, axis=-1).min() > 0.01 * scale  # or there would be nothing to compare


def test_a_token_changes_nothing_before_it():
    model, x = tiny("gpt-mini"), inputs("gpt-mini", batch=1)
    before = np.asarray(run(model, x))
    for t in range(x.shape[1]):
        after = np.asarray(run(model, x.at[0, t].set((x[0, t] + 3) % 11)))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after - before)[:, t:].max(-1) > 1e-4).all()


def test_a_short_text_gives_the_first_logits_of_a_long_one():
    model, x = tiny("gpt-mini"), inputs("gpt-mini")
    np.testing.assert_allclose(run(model, x[:, :4]), run(model, x)[:, :4], rtol=1e-4, atol=1e-5)


@NAMES
def test_remat_changes_no_result(name):
    x = inputs(name)

    def value_and_gradients(model):
        graph, state = nnx.split(model)

        def loss(state):
            return (nnx.merge(graph, state)(x) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(state)

    one = (12, 3, 10)
    value, gradients = value_and_gradients(tiny(name, widths=one))
    again, recomputed = value_and_gradients(tiny(name, widths=one, remat=True))
    np.testing.assert_allclose(value, again, rtol=1e-6)
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(recomputed), strict=True))
    largest = max(float(jnp.abs(a).max()) for a, _ in pairs)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
    blocks = [eqn for eqn in traced(tiny(name, remat=True), x).eqns if "prevent_cse" in eqn.params]
    assert len(blocks) == 2


@NAMES
def test_bfloat16_keeps_softmax_and_statistics_in_float32(name):
    model, x = tiny(name, dtype=jnp.bfloat16), inputs(name)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves(model).values())
    closed = traced(model, x)
    assert closed.out_avals[0].dtype == jnp.float32
    kinds = {"exp": set(), "rsqrt": set(), "dot_general": set(), "conv_general_dilated": set()}

    def look(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in kinds:
                kinds[eqn.primitive.name].add(str(eqn.invars[0].aval.dtype))
            for inner in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    look(inner)

    look(closed.jaxpr)
    assert kinds["exp"] == kinds["rsqrt"] == {"float32"}
    assert "bfloat16" in kinds["dot_general"]
    exact = run(tiny(name), x)
    rounded = run(model, x)
    assert 0 < float(jnp.abs(exact - rounded).max()) < 0.05 * float(jnp.abs(exact).max())


@NAMES
@pytest.mark.parametrize("settings", [{}, {"remat": True}, {"dtype": jnp.bfloat16}], ids=str)
def test_what_can_be_removed(name, settings):
    """Heads and hidden units, and of the residual width nothing."""
    model = nnx.eval_shape(lambda: models.build(name, **TINY[name], **settings))
    groups = dl.channel_groups(model, models.example_input(model, 2))
    assert not groups.unknown
    assert groups.count == 2 * (3 + 10)
    makes = [r"attn/(query|key|value)/(kernel|bias)", r"fc1/(kernel|bias)"]
    for path, leaf in leaves(model).items():
        for axis in range(len(leaf.shape)):
            made = any(re.search(pattern, path) for pattern in makes) and axis == leaf.ndim - 1
            read = bool(re.search("(attn/out|fc2)/kernel", path)) and axis == 0
            removable = groups.removable(path, axis)
            assert removable.all() if made or read else not removable.any(), (path, axis)


def chosen_masks(name, model):
    """Masks without head 1 of block 2 and without random hidden units, and the widths left."""
    size, masks, draw = HEAD[name], {}, np.random.default_rng(3)
    kept = {f"block{i}": draw.random(10) < 0.5 for i in (1, 2)}
    for path, leaf in leaves(model).items():
        mask = np.ones(leaf.shape, bool)
        if re.fullmatch("block2/attn/(query|key|value)/(kernel|bias)", path):
            mask[..., size : 2 * size] = False
        elif re.search("fc1/(kernel|bias)", path):
            mask[...] = kept[path.split("/")[0]]
        masks[path] = mask
    return masks, (12, 3, int(kept["block1"].sum()), 2, int(kept["block2"].sum()))


@NAMES
def test_slim_networks_are_the_same_class_with_other_widths(name):
    model, x, size = tiny(name), inputs(name), HEAD[name]
    masks, widths = chosen_masks(name, model)
    small = dl.slim(model, masks, x, check=False)
    assert type(small.model) is type(model)
    assert models.widths(small.model) == widths
    again = nnx.eval_shape(lambda: models.build(name, **TINY[name] | {"widths": widths}))
    shapes = {path: leaf.shape for path, leaf in leaves(again).items()}
    assert {path: leaf.shape for path, leaf in leaves(small.model).items()} == shapes

    # a head goes whole
    assert shapes["block2/attn/out/kernel"] == (2 * size, 12)
    kept = np.r_[:size, 2 * size : 3 * size]
    for layer in ("query", "key", "value"):
        before, after = (getattr(m.block2.attn, layer) for m in (model, small.model))
        np.testing.assert_array_equal(after.kernel[...], before.kernel[...][:, kept])

    # the masked network: whatever makes or reads a removed channel is zero
    masked, params = nnx.clone(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    plan = small.plan.mask(params)
    nnx.update(masked, jax.tree.map(lambda a, m: np.where(m, a, np.float32(0)), params, plan))
    expected = run(masked, x)
    atol = 1e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(run(small.model, x), expected, rtol=0, atol=atol)
    assert float(jnp.abs(run(model, x) - expected).max()) > 100 * atol
    assert dl.channel_groups(small.model, x).count == sum(widths[1:])  # it can be slimmed again


@NAMES
def test_a_single_head_stays_whole(name):
    model = tiny(name, widths=(12, 1, 10, 2, 10))
    groups = dl.channel_groups(model, models.example_input(model))
    assert not groups.unknown
    assert groups.count == 10 + 2 + 10
    assert not groups.removable("block1/attn/value/kernel", 1).any()


def test_widths_in_short_and_in_full():
    short = nnx.eval_shape(lambda: models.build("gpt-mini", widths=(8, 2, 3, 6)))
    full = nnx.eval_shape(lambda: models.build("gpt-mini", widths=(8, 3, 6, 3, 6)))
    assert models.widths(short) == models.widths(full) == (8, 3, 6, 3, 6)
    uneven = nnx.eval_shape(lambda: models.build("vit-tiny", widths=(8, 1, 6, 2, 5, 3, 4)))
    assert models.widths(uneven) == (8, 1, 6, 2, 5, 3, 4)
    assert uneven.block3.attn.query.kernel.shape == (8, 3 * 64)
    assert not hasattr(uneven, "block4")


def test_initialisation():
    """N(0, 0.02²); in GPT what writes to the residual stream less, by √(2 · blocks)."""
    gpt = models.build("gpt-mini", widths=(64, 2, 2, 256), seed=4)
    vit = models.build("vit-tiny", input_shape=(32, 32, 3), widths=(64, 2, 1, 256), seed=4)
    for model in (gpt, vit):
        for path, leaf in leaves(model).items():
            values = np.asarray(leaf[...], np.float64)
            if path.endswith("bias"):
                assert (values == 0).all(), path
            elif path.endswith("scale"):
                assert (values == 1).all(), path
            else:
                smaller = model is gpt and re.search("(attn/out|fc2)/kernel", path)
                z = values.ravel() / (0.02 / 2 if smaller else 0.02)
                error = 6 / np.sqrt(z.size)
                assert abs(z.mean()) < error, path
                assert abs(z.var() - 1) < np.sqrt(2) * error, path
    drawn = [leaf[...].ravel()[:64] for path, leaf in leaves(gpt).items() if "kernel" in path]
    assert len({float(values[0]) for values in drawn}) == len(drawn)


def test_large_kernels_are_drawn_like_small_ones():
    kernel = models._transformer.normal(0.5)(jax.random.key(0), (1100, 1000), jnp.float32)
    assert abs(float(kernel.std()) - 0.5) < 0.005
    assert abs(np.corrcoef(kernel[0], kernel[1])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit-tiny", {"input_shape": (30, 32, 3)}, "multiples of 4, got 30x32: resize"),
        ("vit-tiny", {"input_shape": (130, 128, 3)}, "patches of 16x16 pixels .* got 130x128"),
        ("vit-tiny", {"widths": (8, 3)}, r"must be 4 numbers, or 3, 5, 7, .* got \(8, 3\)"),
        ("gpt-mini", {"widths": (8, 3, 6, 3, 6, 3)}, "4 numbers, or 3, 5, 7"),
        ("gpt-mini", {"input_shape": (8, 8)}, r"input_shape must be \(context,\)"),
    ],
)
def test_impossible_transformers(name, settings, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **settings)


def test_a_decoder_with_images_for_input():
    with pytest.raises(ValueError, match=r"input_shape of a GPT must be \(context,\)"):
        GPT((32, 32, 3), 10, (8, 1, 1, 8), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((6,), jnp.int32, ValueError, r"shape \[batch, tokens\], at most 6 tokens, got \[6\]"),
        ((2, 7), jnp.int32, ValueError, r"got \[2, 7\]: cut the text, or build it with a longer"),
        ((2, 0), jnp.int32, ValueError, r"got \[2, 0\]"),
        ((2, 6), jnp.float32, TypeError, "takes whole numbers, the ids of tokens, got float32"),
    ],
)
def test_texts_of_the_wrong_kind(shape, dtype, error, message):
    with pytest.raises(error, match=message):
        tiny("gpt-mini")(jnp.zeros(shape, dtype))


def test_ids_may_be_bytes():
    model, x = tiny("gpt-mini"), inputs("gpt-mini")
    np.testing.assert_array_equal(run(model, x.astype(jnp.uint8)), run(model, x))


def test_images_of_the_wrong_kind():
    with pytest.raises(ValueError, match=r"images of shape \[batch, 8, 12, 3\]"):
        tiny("vit-tiny")(jnp.zeros((2, 12, 8, 3)))
    with pytest.raises(TypeError, match="floating-point images, got uint8"):
        tiny("vit-tiny")(jnp.zeros((2, 8, 12, 3), jnp.uint8))


def test_a_vit_of_other_patches():
    model = nnx.eval_shape(
        lambda: ViT((8, 8, 1), 3, (6, 1, 2, 4), head_size=3, patch=2, rngs=nnx.Rngs(0))
    )
    assert model.patch_embed.kernel.shape == (2, 2, 1, 6)
    assert model.widths == (6, 2, 4)
    assert traced(model, jnp.ones((2, 8, 8, 1))).out_avals[0].shape == (2, 3)
