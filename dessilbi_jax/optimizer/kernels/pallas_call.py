"""The `pallas_call` of one leaf, or of one shard of it: see `kernels`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dessilbi_jax.optimizer.kernels.layout import View, block
from dessilbi_jax.prox.shrink import soft_threshold


class Plan(NamedTuple):
    """All that is known of a leaf's kernel before its numbers are."""

    counts: tuple[int, ...]  # groups along each axis of what lies on one device
    elementwise: bool
    soft: bool  # single elements have a threshold
    gamma: bool  # Γ' is written
    block: tuple[tuple[str, int], ...]  # the sizes in force: plans are kept
    interpreted: str  # as `_kernel_plan.INTERPRETED`
    mesh: Any = None  # None where the leaf is not known to lie on one
    spec: Any = None


def call(
    plan: Plan, seen: View, platform: str, interpret: bool, table: jax.Array, *inputs: jax.Array
) -> Sequence[jax.Array]:
    """The `pallas_call`: u, V', [Γ'], [sums of squares by block], failures by block."""
    # Here, since importing Pallas takes half a second.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas import triton as plgpu

    gpu = platform == "gpu"
    batch, rows, lanes = seen.shape
    tall, wide = block(seen, platform, dict(plan.block)[platform])
    grid = (batch, -(-rows // tall), -(-lanes // wide))

    main = pl.BlockSpec((None, tall, wide), lambda b, i, j: (b, i, j))
    # The last two axes of these are whole, or tiles, as TPUs want it.
    vector = pl.BlockSpec((None, tall, 1), lambda b, i, j: (b, i, 0))
    sums = pl.BlockSpec((None, None, tall, 1), lambda b, i, j: (b, j, i, 0))
    sums_shape = (batch, grid[2], rows, 1)
    if seen.by_lane:
        vector = pl.BlockSpec((None, 1, wide), lambda b, i, j: (b, 0, j))
        sums = pl.BlockSpec((None, None, 1, wide), lambda b, i, j: (b, i, 0, j))
        sums_shape = (batch, grid[1], 1, lanes)
    count = pl.BlockSpec((None, None, None, 1, 1), lambda b, i, j: (b, i, j, 0, 0))

    float32 = jnp.dtype(jnp.float32)
    out: list[tuple[pl.BlockSpec, tuple[int, ...], Any]]
    out = [(main, seen.shape, inputs[1].dtype)]
    out += [(main, seen.shape, float32)] * (1 + plan.gamma)
    out += [(sums, sums_shape, float32)] * (not plan.elementwise)
    out += [(count, (*grid, 1, 1), float32)]
    aliases = {2: 0, 3: 1}  # in place: the update over g, V' over V

    def inside(shape: tuple[int, int]) -> Any:
        """Where a block, or its first row or column, lies inside the array; None: everywhere."""
        masks = []
        for axis, length, size in ((0, rows, tall), (1, lanes, wide)):
            if length % size and shape[axis] > 1:
                first = pl.program_id(1 + axis) * size
                place = first + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
                masks.append(place < length)
        return functools.reduce(jnp.logical_and, masks) if masks else None

    def read(ref: Any) -> jax.Array:
        # TPUs fill up what lies outside by themselves; GPUs have to be told.
        mask = inside(ref.shape) if gpu else None
        x = ref[...] if mask is None else plgpu.load(ref, mask=mask, other=0.0)
        return x.astype(float32)

    def write(ref: Any, x: jax.Array) -> None:
        x = x.astype(ref.dtype)
        if gpu:
            plgpu.store(ref, x, mask=inside(ref.shape))
        else:
            ref[...] = x

    def body(numbers: Any, *refs: Any) -> None:
        given, made = list(refs[: len(inputs)]), list(refs[len(inputs) :])
        strength, pace, threshold, scale, old_threshold, old_scale = (numbers[k] for k in range(6))
        w, g, v = (read(ref) for ref in given[:3])
        factor = old_scale if plan.elementwise else read(given[-1])
        difference = w - factor * (soft_threshold(v, old_threshold) if plan.soft else v)
        write(made.pop(0), g + strength * difference)
        finite = jnp.abs(difference) < jnp.inf
        moved = v + pace * jnp.where(finite, difference, 0.0)
        write(made.pop(0), moved)
        left = soft_threshold(moved, threshold) if plan.soft else moved
        if plan.gamma:
            write(made.pop(0), scale * left)
        within = inside((tall, wide))
        if not plan.elementwise:
            square = left * left
            square = square if within is None else jnp.where(within, square, 0.0)
            write(made.pop(0), jnp.sum(square, axis=0 if seen.by_lane else 1, keepdims=True))
        bad = jnp.where(finite, float32.type(0), float32.type(1))
        bad = bad if within is None else jnp.where(within, bad, 0.0)
        made[0][...] = jnp.sum(jnp.sum(bad, axis=0, keepdims=True), axis=1, keepdims=True)

    whole = pl.BlockSpec() if gpu else pl.BlockSpec(memory_space=pltpu.SMEM)
    vectors = [] if plan.elementwise else [vector]
    made: Sequence[jax.Array] = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in out],
        grid=grid,
        in_specs=[whole, *[main] * 3, *vectors],
        out_specs=[spec for spec, _, _ in out],
        input_output_aliases=aliases,
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(num_warps=4) if gpu else None,
        name="dessilbi_step",
    )(table, *inputs)
    return made
