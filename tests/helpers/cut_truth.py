"""A cut held against the network that the user has: W under only the ticket's masks."""

import jax
import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax.tree import leaf_paths


def ticket_masks(groups, params, gone):
    """Masks as a ticket over `dl.channels(groups)` has them, without the groups that are gone."""
    return dl.channels(groups).masks(params, ~gone)


def half_of_each(groups, seed=0):
    """Which groups go: half of each set, at random."""
    rng = np.random.default_rng(seed)
    gone = np.zeros(groups.count, bool)
    for each in groups.sets:
        gone[rng.permutation(each.groups)[: len(each.groups) // 2]] = True
    return gone


def projected(params, masks):
    """`dl.project` with masks by path."""
    tree = jax.tree.unflatten(
        jax.tree.structure(params), [jnp.asarray(masks[p]) for p, _ in leaf_paths(params)]
    )
    return dl.project(params, tree)


def check_cut(net, params, inputs, expected):
    """As many groups as expected, and without half of them the masked network's outputs."""
    groups = dl.channel_groups(net, params, *inputs)
    assert groups.count == expected, str(groups)
    assert not groups.unknown
    gone = half_of_each(groups)
    masks = ticket_masks(groups, params, gone)
    small = dl.slim(params, masks, *inputs, fn=net, groups=groups)
    np.testing.assert_array_equal(groups.kept_by(small.plan), ~gone)
    run = jax.jit(net)  # operation by operation, each would be compiled for itself
    want, got = run(projected(params, masks), *inputs), run(small.model, *inputs)
    assert float(jnp.abs(want).max()) > 1e-3
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    again = dl.channel_groups(net, small.model, *inputs)
    assert small.flops[1] == again.flops()
    assert small.params[1] == sum(x.size for x in jax.tree.leaves(small.model))
    return small
