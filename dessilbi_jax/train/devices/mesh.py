"""How a run lies on its devices: a mesh by name, and where each array of it goes.

The axes of every mesh are `data` (each device has rows of the batch and all of the network),
`fsdp` (rows of the batch and a part of every parameter and of its optimizer state; Rajbhandari et
al., 2020) and `tensor` (a part of every kernel, the same rows; Shoeybi et al., 2019). The compiler
finds the collectives.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dessilbi_jax.tree import leaf_paths

AXES = ("data", "fsdp", "tensor")
_ROWS = ("data", "fsdp")
# The second kernel of a pair, such as the one behind attention or the hidden units of a
# transformer, is split along its inputs: what the first leaves on each device is what it reads.
_SECOND = re.compile(r"(^|/)(out|proj|fc2|mlp_out)/kernel$")


def make_mesh(text: str = "auto") -> Mesh:
    """Returns the mesh that a few words describe.

    Args:
        text: "auto": all devices along `data`, on CPUs of a single process only one; "one": one
            device; or axes with their sizes, as in "data=2,fsdp=4" or "fsdp=4,tensor=2". One axis
            may go without a size and takes the devices that the others leave: "data,tensor=2".

    Raises:
        ValueError: an unknown axis, a size that is no positive number, or devices that the sizes
            do not fit.

    Example:
        >>> dict(make_mesh("data=1").shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices()
    if text == "auto":
        text = "one" if jax.process_count() == 1 and devices[0].platform == "cpu" else "data"
    if text == "one":
        text = "data=1"
    sizes = _sizes(text, len(devices))
    used = math.prod(sizes)
    if used > len(devices) or (jax.process_count() > 1 and used != len(devices)):
        raise ValueError(
            f"mesh {text!r} is of {used} devices, there are {len(devices)} "
            f"({jax.process_count()} processes): give sizes whose product is {len(devices)}"
        )
    return jax.make_mesh(sizes, AXES, devices=devices[:used], axis_types=(AxisType.Auto,) * 3)


def _sizes(text: str, devices: int) -> tuple[int, ...]:
    """Returns the size of each axis; one that is named without a size takes what is left."""
    sizes: dict[str, int] = {}
    rest = None
    for part in text.split(","):
        name, equals, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in sizes or name == rest:
            raise ValueError(
                f"mesh {text!r}: {name!r} is no axis or named twice; give auto, one, or axes of "
                f"{', '.join(AXES)} with sizes, such as data=2,fsdp=4"
            )
        if equals:
            if not size.isdecimal() or int(size) < 1:
                raise ValueError(
                    f"mesh {text!r}: the size of {name} must be a whole number, got {size!r}"
                )
            sizes[name] = int(size)
        elif rest is not None:
            raise ValueError(f"mesh {text!r}: only one axis may go without a size")
        else:
            rest = name
    if rest is not None:
        given = math.prod(sizes.values())
        if devices % given:
            raise ValueError(
                f"mesh {text!r}: {devices} devices cannot be divided by {given} to give {rest}"
            )
        sizes[rest] = devices // given
    return tuple(sizes.get(name, 1) for name in AXES)


def describe(mesh: Mesh) -> str:
    """Returns the mesh in words that `make_mesh` takes.

    Example:
        >>> describe(make_mesh("one"))
        'data=1'
    """
    sizes = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1]
    return ",".join(sizes) or "data=1"


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of an array whose `axis` are the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _ROWS))


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[name] for name in _ROWS)


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """Returns (shard, shards): which part of the rows of a batch this process has to bring.

    Processes that differ along `tensor` only bring the same rows.

    Raises:
        ValueError: the rows of this process's devices are not one part of equal parts.
    """
    parts = row_shards(mesh)
    where = by_rows(mesh).addressable_devices_indices_map((parts,))
    mine = sorted({index[0].indices(parts)[0] for index in where.values() if index is not None})
    first, count = mine[0], len(mine)
    if mine != list(range(first, first + count)) or parts % count or first % count:
        raise ValueError(
            f"the devices of process {jax.process_index()} hold parts {mine} of {parts} of a "
            "batch, which are no even share: choose a mesh whose last axes fit on one process"
        )
    return first // count, parts // count


def param_specs(params: Any, mesh: Mesh) -> Any:
    """Returns a tree like `params` of how each parameter is divided among the devices.

    Along `tensor`, a kernel is divided along its first axis of outputs (the last but one of three,
    which are heads), or of inputs for the second kernel of a pair; along `fsdp`, each leaf of two
    axes or more along the largest other axis. Axes that cannot be divided evenly are left whole.

    Args:
        params: tree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: of `make_mesh`.

    Example:
        >>> params = {"fc1": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}
        >>> [tuple(spec) for spec in jax.tree.leaves(param_specs(params, make_mesh("one")))]
        [(None, None)]
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    specs = []
    for path, leaf in leaf_paths(params):
        axes: list[str | None] = [None] * len(leaf.shape)
        if tensor > 1 and len(axes) >= 2 and path.endswith("kernel"):
            heads = len(axes) == 3
            wanted = 0 if heads else len(axes) - 2
            if not _SECOND.search(path):
                wanted = 1 if heads else len(axes) - 1
            if leaf.shape[wanted] % tensor == 0:
                axes[wanted] = "tensor"
        free = [i for i, name in enumerate(axes) if name is None and leaf.shape[i] % fsdp == 0]
        if fsdp > 1 and len(axes) >= 2 and free:
            axes[max(free, key=lambda i: leaf.shape[i])] = "fsdp"
        specs.append(PartitionSpec(*axes))
    return jax.tree.unflatten(jax.tree.structure(params), specs)


def place_params(params: Any, mesh: Mesh) -> Any:
    """Returns the parameters on the devices, divided as `param_specs` says."""
    return jax.tree.map(
        lambda p, spec: place(p, NamedSharding(mesh, spec)), params, param_specs(params, mesh)
    )


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with all of it on every device; arrays that lie on the mesh stay as is."""
    target = everywhere(mesh)

    def put(x: Any) -> jax.Array:
        # One device may hold an array that knows of no mesh.
        if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
            return x
        return place(x, target)

    return jax.tree.map(put, tree)


def place(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array that every process has whole, divided among the devices of all.

    The result owns its memory, so that it can be donated.
    """
    host = np.asarray(x)
    made = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    return made.copy()


def shardings(tree: Any) -> Any:
    """Returns the sharding of each array of a tree."""
    return jax.tree.map(lambda x: x.sharding, tree)


def gathered(params: Any, where: Sequence[Any]) -> Any:
    """Returns the parameters whole along `fsdp`, as the network is to compute with them.

    To be called inside a compiled step. Left alone, XLA may divide activations along `fsdp` too;
    where that met `data` and `tensor` it gave wrong gradients and no error, as on a mesh of
    data=2,fsdp=2,tensor=2 with JAX 0.10 and 0.12 (openxla/xla issue 40034).

    Args:
        params: tree of arrays.
        where: the sharding of each of them outside the step; None for what knows none.
    """

    def whole(x: jax.Array, sharding: Any) -> jax.Array:
        if not isinstance(sharding, NamedSharding) or "fsdp" not in sharding.spec:
            return x
        spec = PartitionSpec(*(None if name == "fsdp" else name for name in sharding.spec))
        return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))

    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, map(whole, leaves, where))
