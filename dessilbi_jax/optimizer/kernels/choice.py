"""The step of one structured leaf in a single pass over memory, as a Pallas kernel.

    d  = W − Γ                with Γ = factor_g · S_t(V) rebuilt from V, never read
    u  = g + strength · d     the coupled update
    V' = V + pace · d         where d is finite; other entries stay and are counted

and in the same pass the partial sums of V'² that the new group norms are made of. W, g and V are
read once; u and V' are written once, over g and V. A stored Γ' is written in the same pass for
single elements whose λ is known; a group needs its finished norm first, so there Γ' is XLA's
elementwise pass over V' behind the kernel. The momentum is no part of it: XLA fuses it by itself.

**Which leaves take it.** Where "xla" is `taking` none; with "auto" none, except on the backends
listed in `MEASURED_FASTER`; with "pallas" all that can, compiled by Mosaic for TPUs and by Triton
for GPUs (which JAX 0.12 still has, with a DeprecationWarning), interpreted elsewhere. The XLA form,
which computes the same, serves every leaf

- that is dense or empty, whose W or g is not float32, bfloat16 or float16, or whose V is not
  float32 (float64 and complex parameters);
- with groups under `freeze`, or under `dl.auto` and a penalty that mixes in single elements;
- on a mesh with axes other than Explicit ones (inside the user's own `jax.shard_map`, or under
  `jax.set_mesh` with Auto axes), or with groups that end inside a shard.

On Explicit meshes the kernel runs under `jax.shard_map`, and the sums of groups that lie on
several devices are added by `psum`. Auto axes of a mesh that is not set in the context cannot
be seen while a step is traced: "auto" then takes the XLA form wherever there is more than one
device, "pallas" relies on parameters that are not sharded.

Outside `jax.jit` the XLA form of the coupling is computed beside the kernel's; compiled, it is
dead code.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from dessilbi_jax.optimizer.kernels import layout
from dessilbi_jax.optimizer.kernels.layout import view
from dessilbi_jax.optimizer.kernels.pallas_call import Plan, call
from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.prox.shrink import Shrink, apply_shrink
from dessilbi_jax.structure.leaf import LeafGroups

Kernel: TypeAlias = Literal["auto", "xla", "pallas"]
# (platform, "lean" or "full") where benchmarks/accelerator.py found the kernel faster than XLA.
# Empty: no accelerator was measured yet.
MEASURED_FASTER: frozenset[tuple[str, str]] = frozenset()
_taken: Kernel = "auto"
_NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)


class Arrays(NamedTuple):
    """What the kernel reads of one leaf: W, the update g that is to be coupled, and V."""

    w: jax.Array
    g: jax.Array
    v: jax.Array


class Numbers(NamedTuple):
    """The scalars of one leaf's step, numbers or arrays.

    Attributes:
        strength: factor of W − Γ in the update.
        pace: factor of W − Γ in V.
        lam: the λ of Γ', or None where it will be made from V'.
        kappa: κ.
    """

    strength: Any
    pace: Any
    lam: Any
    kappa: Any


class Made(NamedTuple):
    """What the kernel computes for one leaf.

    Attributes:
        update: the coupled update.
        v: V'.
        gamma: Γ', or None where it has to be made from V' yet.
        square: sums of squares over the groups, in their shape, of V' or, where the penalty
            mixes in single elements, of S_t(V'); None for single elements.
        failed: entries of V left as they were, int32.
    """

    update: jax.Array
    v: jax.Array
    gamma: jax.Array | None
    square: jax.Array | None
    failed: jax.Array


@contextlib.contextmanager
def taking(kernel: Kernel) -> Iterator[None]:
    """Context in which what is traced takes the form named; for measuring and for tests.

    Raises:
        ValueError: there is no such form.

    Example:
        >>> with taking("pallas"):
        ...     wanted(lean=True)
        True
    """
    global _taken
    if kernel not in ("auto", "xla", "pallas"):
        raise ValueError(f"kernel must be 'auto', 'xla' or 'pallas', got {kernel!r}")
    before, _taken = _taken, kernel
    try:
        yield
    finally:
        _taken = before


def wanted(lean: bool) -> bool:
    """Whether kernels are taken at all, where they can be."""
    measured = (jax.default_backend(), "lean" if lean else "full") in MEASURED_FASTER
    return _taken == "pallas" or (_taken == "auto" and measured)


def step(
    leaf: LeafGroups,
    penalty: Penalty,
    arrays: Arrays,
    numbers: Numbers,
    shrink: Shrink,
    lean: bool,
) -> Made | None:
    """The step of one structured leaf, or None where it takes the XLA form.

    Args:
        leaf: its groups.
        penalty: Ω of the leaf.
        arrays, numbers: see there.
        shrink: how Γ follows from V.
        lean: whether no Γ is stored.
    """
    w, g, v = arrays
    if leaf.counts is None or v.size == 0 or v.dtype != jnp.float32:
        return None
    if w.dtype not in _NARROW or g.dtype not in _NARROW:
        return None
    mix = 1.0 if leaf.elementwise else penalty.mix
    if numbers.lam is None and mix and not leaf.elementwise:
        return None
    plan = Plan(
        counts=leaf.counts,
        elementwise=leaf.elementwise,
        soft=shrink.threshold.dtype != bool,
        gamma=leaf.elementwise and not lean and numbers.lam is not None,
        block=tuple(layout.BLOCK.items()),
        interpreted=layout.INTERPRETED,
    )
    placed = _placed(plan, arrays)
    if placed is None:
        return None
    strength = shrink.strength
    if placed.mesh is not None and not plan.elementwise:
        where = jax.sharding.NamedSharding(placed.mesh, _group_spec(placed, leaf.counts))
        strength = jax.sharding.reshard(strength, where)
    scalars = [
        numbers.strength,
        numbers.pace,
        0.0 if numbers.lam is None else mix * numbers.lam,
        numbers.kappa / (1 + numbers.kappa * penalty.mu),
        jnp.sum(shrink.threshold),  # of a single number
        jnp.sum(shrink.scale),
    ]
    table = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
    made: Made = _everywhere(placed, leaf.counts, table, strength, *arrays)
    return made


def _placed(plan: Plan, arrays: Sequence[jax.Array]) -> Plan | None:
    """The plan of one shard, or None where shards cannot be computed on their own."""
    shardings = [jax.typeof(x).sharding for x in arrays]
    mesh, spec = shardings[0].mesh, shardings[0].spec
    kinds = {*mesh.axis_types, *jax.sharding.get_abstract_mesh().axis_types}
    if kinds - {AxisType.Explicit}:
        return None
    if mesh.empty:
        return plan if _taken == "pallas" or jax.device_count() == 1 else None
    if any(s.mesh != mesh or s.spec != spec for s in shardings):
        return None
    placed = plan._replace(mesh=mesh, spec=spec)
    pieces = _pieces(placed)
    if any(c > 1 and c % k for c, k in zip(plan.counts, pieces, strict=True)):
        return None
    counts = tuple(max(c // k, 1) for c, k in zip(plan.counts, pieces, strict=True))
    return placed._replace(counts=counts)


def _names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _pieces(plan: Plan) -> list[int]:
    """Into how many shards each axis is cut."""
    return [math.prod(plan.mesh.shape[name] for name in _names(entry)) for entry in plan.spec]


def _group_spec(plan: Plan, counts: tuple[int, ...]) -> Any:
    """Where the groups lie: as their leaf does, along the axes that index them."""
    entries = zip(plan.spec, counts, strict=True)
    return jax.P(*(None if c == 1 else entry for entry, c in entries))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _everywhere(plan: Plan, counts: tuple[int, ...], *arrays: Any) -> Made:
    """The kernel of a leaf on all devices that hold a piece of it; `counts` are the leaf's own."""
    if plan.mesh is None:
        return _shard(plan, *arrays)
    names = [_names(entry) for entry in plan.spec]
    all_names = [name for some in names for name in some]
    summed = [name for some, c in zip(names, counts, strict=True) if c == 1 for name in some]

    def shard(*arrays: Any) -> Made:
        made = _shard(plan, *arrays)
        square, failed = made.square, made.failed
        if square is not None and summed:
            square = jax.lax.psum(square, summed)
        if all_names:
            failed = jax.lax.psum(failed, all_names)
        return made._replace(square=square, failed=failed)

    like, one = plan.spec, jax.P()
    groups = one if plan.elementwise else _group_spec(plan, counts)
    made: Any = (like, like, like, groups, one)
    return jax.shard_map(
        shard,
        mesh=plan.mesh,
        in_specs=(one, groups, like, like, like),
        out_specs=Made(*made),
        check_vma=False,
    )(*arrays)


def _shard(
    plan: Plan,
    table: jax.Array,
    strength: jax.Array,
    w: jax.Array,
    g: jax.Array,
    v: jax.Array,
) -> Made:
    """The kernel of what lies on one device, as its platform runs it."""
    shape = w.shape
    seen = view(shape, plan.counts, plan.elementwise)
    inputs = [x.reshape(seen.shape) for x in (w, g, v)]
    if not plan.elementwise:
        # What is left of a one: scale · max(0, 1 − 1/strength).
        groups = Shrink(strength, jnp.zeros((), bool), table[-1])
        inputs.append(seen.spread(apply_shrink(jnp.ones(plan.counts, jnp.float32), groups)))

    def on(platform: str, interpret: bool) -> Callable[..., list[jax.Array]]:
        def run(table: jax.Array, *inputs: jax.Array) -> list[jax.Array]:
            # Platforms differ in their blocks, of which each gives sums of its own.
            *out, failed = call(plan, seen, platform, interpret, table, *inputs)
            if not plan.elementwise:
                out[-1] = seen.gather(out[-1], plan.counts)
            return [*out, jnp.sum(failed.astype(jnp.int32))]

        return run

    gpu, other = on("gpu", False), on(plan.interpreted, True)
    by_platform = {"tpu": on("tpu", False), "cuda": gpu, "rocm": gpu}
    out = jax.lax.platform_dependent(table, *inputs, **by_platform, default=other)
    failed = out.pop()
    square = None if plan.elementwise else out.pop()
    full = [x.reshape(shape) for x in out]
    gamma = full.pop() if plan.gamma else None
    update, moved = full
    return Made(update, moved, gamma, square, failed)
