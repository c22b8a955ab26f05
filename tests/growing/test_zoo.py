"""Random growths of the zoo: the same outputs, widths that build the network, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import models

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

# A network of each kind, as small as it can be.
NETWORKS = {
    "conv2": ((8, 8, 3), (3, 4, 5, 6)),
    "vgg16": ((32, 32, 3), (2,) * 13),
    "resnet20": ((8, 8, 3), (3, 4, 5)),
    "resnet18": ((32, 32, 3), (3, 4, 5, 6)),
    "mobilenet-v2": ((32, 32, 3), (4, 2, 3, 4, 5, 6, 7, 8, 9)),
    "vit-tiny": ((8, 8, 3), (8, 1, 2, 6)),
    "gpt-mini": ((8,), (8, 1, 2, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_random_growths_of_the_zoo(name):
    shape, widths = NETWORKS[name]
    model = models.build(name, input_shape=shape, widths=widths, classes=5)
    model.eval()
    rng = np.random.default_rng(len(name))
    like = models.example_input(model)
    tokens = not jnp.issubdtype(like.dtype, jnp.floating)
    draw = rng.integers(0, 5, (2, *shape)) if tokens else rng.normal(size=(2, *shape))
    x = jnp.asarray(draw, like.dtype)
    groups = dl.channel_groups(model, like)
    sizes = {each.name: len(each.groups) + int(rng.integers(0, 4)) for each in groups.sets}
    sizes[groups.sets[0].name] += 1
    wide = dl.grow(model, sizes, x, key=jax.random.key(1))
    assert wide.difference < 1e-5
    assert wide.params[1] > wide.params[0]
    assert {each.name: len(each.groups) for each in wide.groups.sets} == sizes
    # Its widths build the same network, and what is kept of it is the first one.
    anew = models.build(name, input_shape=shape, widths=models.widths(wide.model), classes=5)
    arrays = [jax.tree.leaves(nnx.to_pure_dict(nnx.state(each))) for each in (anew, wide.model)]
    assert [leaf.shape for leaf in arrays[0]] == [leaf.shape for leaf in arrays[1]]
    back = dl.slim(wide.model, wide.plan, x, check=False)
    for a, b in zip(
        *(jax.tree.leaves(nnx.to_pure_dict(nnx.state(each))) for each in (back.model, model)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
