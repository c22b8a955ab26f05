"""The step of one structured leaf in a single pass over memory, as a Pallas kernel.

    d  = W − Γ                with Γ = factor_g · S_t(V) rebuilt from V, never read
    m' = τ m + g + …          the momentum of `dessilbi`, where it has one
    u  = … + strength · d     the coupled update, before it is multiplied by −learning_rate
    V' = V + pace · d         where d is finite; other entries stay and are counted

and in the same pass the partial sums of V'² that the new group norms are made of. W, g, m and V
are read once; u, m' and V' are written once, over g, m and V. A stored Γ' is written in the same
pass for single elements whose λ is known; a group needs its finished norm first, so there Γ' is
XLA's elementwise pass over V' behind the kernel. Optax's protocol asks for the update, not
for W', so adding it to W is another pass of XLA's; where the coupling is inside the momentum and
that is not Nesterov's, u is m' and is not written apart.

**Which leaves take it.** With kernel="xla" none; with "auto" none, except on the backends listed in
`MEASURED_FASTER`; with "pallas" all that can, compiled by Mosaic for TPUs and by Triton for GPUs
(which JAX 0.12 still has, with a DeprecationWarning), interpreted elsewhere. The XLA form, which
computes the same, serves every leaf

- that is dense or empty, whose W, g or m is not float32, bfloat16 or float16, or whose V is not
  float32 (float64 and complex parameters);
- with groups under `freeze`, or under lam="auto" and a penalty that mixes in single elements;
- on a mesh with axes other than Explicit ones (inside the user's own `jax.shard_map`, or under
  `jax.set_mesh` with Auto axes), or with groups that end inside a shard.

On Explicit meshes the kernel runs under `jax.shard_map`, and the sums of groups that lie on
several devices are added by `psum`. Auto axes of a mesh that is not set in the context cannot
be seen while a step is traced: "auto" then takes the XLA form wherever there is more than one
device, "pallas" relies on parameters that are not sharded.

Outside `jax.jit` the XLA form of the coupling and of the momentum is computed beside the kernel's;
compiled, it is dead code.
"""

import functools
import math
from collections.abc import Callable, Sequence
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
# (platform, "lean" or "full") where benchmarks/kernel_step.py found the kernel faster than XLA.
# Empty: no accelerator was measured yet.
MEASURED_FASTER: frozenset[tuple[str, str]] = frozenset()
_NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)


class Momentum(NamedTuple):
    """The momentum of `dessilbi`, to be advanced inside the kernel.

    Attributes:
        decay: τ.
        nesterov: as in `optax.trace`.
        coupled: whether the coupling is accumulated too (variant "paper").
        weight_decay: of W, or None; it is part of the kernel unless `coupled`.
        mask: which leaves are decayed, as for `optax.add_decayed_weights`.
    """

    decay: Any
    nesterov: bool
    coupled: bool
    weight_decay: Any = None
    mask: Any = None

    def decays(self, updates: Any) -> list[Any]:
        """The weight decay of each leaf as part of the kernel, or None."""
        if self.coupled or self.weight_decay is None:
            return [None] * len(jax.tree.leaves(updates))
        mask = self.mask(updates) if callable(self.mask) else self.mask
        decayed = jax.tree.leaves(jax.tree.broadcast(mask, updates))
        return [self.weight_decay if yes else None for yes in decayed]


class Arrays(NamedTuple):
    """What the kernel reads of one leaf: W, g, m (None without a momentum) and V.

    Where the momentum is not part of the kernel, g is the update that the coupling is added to.
    `update` is the dtype of the coupled update.
    """

    w: jax.Array
    g: jax.Array
    m: jax.Array | None
    v: jax.Array
    update: Any


class Numbers(NamedTuple):
    """The scalars of one leaf's step, numbers or arrays.

    Attributes:
        strength: factor of W − Γ in the update.
        pace: factor of W − Γ in V.
        weight_decay: factor of W in the gradient, or None.
        lam: the λ of Γ', or None where it will be made from V'.
        kappa: κ.
    """

    strength: Any
    pace: Any
    weight_decay: Any
    lam: Any
    kappa: Any


class Made(NamedTuple):
    """What the kernel computes for one leaf.

    Attributes:
        update: the coupled update, behind the momentum where that is part of the kernel.
        trace: the new momentum, or None.
        v: V'.
        gamma: Γ', or None where it has to be made from V' yet.
        square: sums of squares over the groups, in their shape, of V' or, where the penalty
            mixes in single elements, of S_t(V'); None for single elements.
        failed: entries of V left as they were, int32.
    """

    update: jax.Array
    trace: jax.Array | None
    v: jax.Array
    gamma: jax.Array | None
    square: jax.Array | None
    failed: jax.Array


def wanted(kernel: Kernel, lean: bool) -> bool:
    """Whether kernels are taken at all, where they can be."""
    measured = (jax.default_backend(), "lean" if lean else "full") in MEASURED_FASTER
    return kernel == "pallas" or (kernel == "auto" and measured)


def step(
    kernel: Kernel,
    leaf: LeafGroups,
    penalty: Penalty,
    momentum: Momentum | None,
    arrays: Arrays,
    numbers: Numbers,
    shrink: Shrink,
    lean: bool,
) -> Made | None:
    """The step of one leaf, or None where it takes the XLA form.

    Args:
        kernel: "auto" or "pallas", once `wanted`.
        leaf: its groups.
        penalty: Ω of the leaf.
        momentum: None where it is not part of the kernel.
        arrays, numbers: see there.
        shrink: how Γ follows from V.
        lean: whether no Γ is stored.
    """
    *read, v, update = arrays
    dtypes = [x.dtype for x in read if x is not None]
    if leaf.counts is None or v.size == 0 or v.dtype != jnp.float32:
        return None
    if any(dtype not in _NARROW for dtype in [*dtypes, update]):
        return None
    mix = 1.0 if leaf.elementwise else penalty.mix
    if numbers.lam is None and mix and not leaf.elementwise:
        return None
    coupled, nesterov = (momentum.coupled, momentum.nesterov) if momentum else (None, False)
    plan = Plan(
        counts=leaf.counts,
        elementwise=leaf.elementwise,
        coupled=coupled,
        nesterov=nesterov,
        shared=bool(coupled) and not nesterov and dtypes[-1] == update,
        decayed=numbers.weight_decay is not None,
        soft=shrink.threshold.dtype != bool,
        gamma=leaf.elementwise and not lean and numbers.lam is not None,
        update=jnp.dtype(update),
        block=tuple(layout.BLOCK.items()),
        interpreted=layout.INTERPRETED,
    )
    placed = _placed(kernel, plan, [x for x in (*read, v) if x is not None])
    if placed is None:
        return None
    strength = shrink.strength
    if placed.mesh is not None and not plan.elementwise:
        where = jax.sharding.NamedSharding(placed.mesh, _group_spec(placed, leaf.counts))
        strength = jax.sharding.reshard(strength, where)
    scalars = [
        numbers.strength,
        numbers.pace,
        0.0 if momentum is None else momentum.decay,
        0.0 if numbers.weight_decay is None else numbers.weight_decay,
        0.0 if numbers.lam is None else mix * numbers.lam,
        numbers.kappa / (1 + numbers.kappa * penalty.mu),
        jnp.sum(shrink.threshold),  # of a single number
        jnp.sum(shrink.scale),
    ]
    table = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
    return _everywhere(placed, leaf.counts, table, strength, *read, v)


def _placed(kernel: Kernel, plan: Plan, arrays: Sequence[jax.Array]) -> Plan | None:
    """The plan of one shard, or None where shards cannot be computed on their own."""
    shardings = [jax.typeof(x).sharding for x in arrays]
    mesh, spec = shardings[0].mesh, shardings[0].spec
    kinds = {*mesh.axis_types, *jax.sharding.get_abstract_mesh().axis_types}
    if kinds - {AxisType.Explicit}:
        return None
    if mesh.empty:
        return plan if kernel == "pallas" or jax.device_count() == 1 else None
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
    made: Any = (like, like, like, like, groups, one)
    return jax.shard_map(
        shard,
        mesh=plan.mesh,
        in_specs=(one, groups, like, like, like, like),
        out_specs=Made(*made),
        check_vma=False,
    )(*arrays)


def _shard(
    plan: Plan,
    table: jax.Array,
    strength: jax.Array,
    w: jax.Array,
    g: jax.Array,
    m: jax.Array | None,
    v: jax.Array,
) -> Made:
    """The kernel of what lies on one device, as its platform runs it."""
    shape = w.shape
    seen = view(shape, plan.counts, plan.elementwise)
    inputs = [x.reshape(seen.shape) for x in (w, g, m, v) if x is not None]
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
    moved = full.pop()
    trace = None if m is None else full.pop()
    update = trace if trace is not None and plan.shared else full.pop()
    return Made(update, trace, moved, gamma, square, failed)
