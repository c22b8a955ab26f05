"""What DessiLBI adds to the traffic between devices, against Adam under the same sharding.

    python -m benchmarks.collectives [--networks resnet20 gpt-mini] [--meshes data=8 fsdp=8 ...]

Reads the collectives of a whole training step (gradients, update, new state) from the program that
XLA compiles for eight virtual CPU devices; nothing is run. `bytes` are those that a device holds
of the results of a step's collectives; `sent` is what it sends when they go round a ring (twice
(n − 1)/n of an all-reduce of n devices, (n − 1)/n of what is gathered). Beside them stands what
the norms of groups need: where an axis that a norm is summed along is divided, the squares of
each device are added up, 4 bytes a group (XLA adds those of heads column by column, 4 bytes a
column). Besides these a structured leaf that is divided has one number: whether all of it is
finite. What an automatic λ needs when it is estimated, a few
times in a run, stands in branches of the program and is counted apart.

The second table holds the batch of each device fixed while there are more of them (weak scaling).
"""

import argparse
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness.results import write
from dessilbi_jax import models
from dessilbi_jax.structure.rules import as_structure, resolve
from dessilbi_jax.train.devices.mesh import by_rows, make_mesh, param_specs, shardings
from dessilbi_jax.train.prepare import placed_state
from dessilbi_jax.train.step import placed_step, split_network

COST = {"cpu": "12 minutes on two cores, all of it compilation"}

DEVICES = 8
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {"input_shape": (32, 32, 3)},
    "gpt-mini": {"input_shape": (64,), "widths": (128, 2, 4, 512)},
}
MESHES = ("data=8", "fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
GROWING = ("data", "fsdp")  # axes along which devices are added
ROWS = 8  # of a batch, on each device
GROUPS: dict[str, Any] = {
    "resnet20": dl.filters,
    "gpt-mini": [
        ("(query|key|value)/kernel", dl.heads(4)),
        ("kernel", dl.neurons),
        ("embedding", dl.rows),
    ],
}
# Kernels may be compiled badly: it is what goes between the devices that is looked at.
QUICK = {"xla_backend_optimization_level": 0}
_OPS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(rf"= (\(?[^=]*?) ({'|'.join(_OPS)})(-start)?\(")
_COMMENT = re.compile(r"/\*.*?\*/")  # XLA numbers the entries of long tuples
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


class Collective(NamedTuple):
    """One collective of a compiled program.

    Attributes:
        op: as XLA names it.
        bytes: of its result on each device.
        devices: how many take part in it together.
        always: whether every step does it; False inside branches and loops.
    """

    op: str
    bytes: int
    devices: int
    always: bool

    @property
    def sent(self) -> float:
        """Bytes that each device sends when the devices stand in a ring."""
        share = (self.devices - 1) / self.devices
        if self.op == "all-reduce":
            return 2 * share * self.bytes
        if self.op == "reduce-scatter":
            return share * self.devices * self.bytes
        return self.bytes if self.op == "collective-permute" else share * self.bytes


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a compiled program.

    Example:
        >>> collectives('''ENTRY %main {
        ...   %sum = f32[4,2]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
        ... }''')
        [Collective(op='all-reduce', bytes=32, devices=2, always=True)]
    """
    found, always = [], False
    for line in program.splitlines():
        if line and not line[0].isspace():
            always = line.startswith("ENTRY")
        if not (match := _LINE.search(_COMMENT.sub("", line))):
            continue
        shapes = [_bytes(*shape) for shape in _SHAPE.findall(match[1])]
        # What starts a gathering gives its operands beside its results.
        size = max(shapes) if match[3] and match[2] != "all-reduce" else sum(shapes)
        found.append(Collective(match[2], size, _devices(line), always))
    return [each for each in found if each.devices > 1]


def _bytes(dtype: str, sizes: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype.replace("bf", "")))
    return bits // 8 * math.prod(int(n) for n in sizes.split(",") if n)


def _devices(line: str) -> int:
    if match := _COUNTED.search(line):
        return int(match[2])
    if match := _LISTED.search(line):
        return match[1].count(",") + 1
    return DEVICES  # no groups are named: all of them


def optimizers(groups: Any) -> dict[str, tuple[optax.GradientTransformation, Any]]:
    """The rivals by name, each with its structure."""

    def ours(structure: Any, **kw: Any) -> tuple[optax.GradientTransformation, Any]:
        tx = dl.dessilbi(0.1, nu=100.0, momentum=0.9, structure=structure, **({"lam": 0.05} | kw))
        return tx, structure

    auto: dict[str, Any] = {"lam": dl.auto(density=0.05, steps=10**4)}
    return {
        "adam": (optax.adam(1e-3), None),
        "weights": ours(dl.weights),
        "weights, lean": ours(dl.weights, lean=True),
        "groups": ours(groups),
        "groups, lean": ours(groups, lean=True),
        "groups, lean, automatic λ": ours(groups, lean=True, **auto),
    }


def norm_bytes(structure: Any, params: Any, mesh: jax.sharding.Mesh) -> int:
    """Bytes of the sums of squares that devices have to add up for the norms of their groups."""
    if structure is None:
        return 0
    total = 0
    specs = jax.tree.leaves(param_specs(params, mesh))
    for leaf, spec in zip(resolve(as_structure(structure), params), specs, strict=True):
        if leaf.counts is None or leaf.elementwise:
            continue
        summed, mine = False, math.prod(leaf.counts)
        for count, size, name in zip(leaf.counts, leaf.shape, spec, strict=True):
            parts = 1 if name is None else mesh.shape[name]
            if parts > 1 and count % parts == 0:
                mine //= parts  # whole groups on each device
            elif parts > 1 and count < size:
                summed = True
        total += 4 * mine if summed else 0
    return total


def compiled_step(
    model: Any, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, rows: int
) -> Any:
    """The compiled training step of a network on a mesh, with so many rows on each device."""
    network, params, stats = split_network(model, *_pixels(model))
    state = placed_state(params, stats, tx, mesh)
    step = placed_step(network, tx, lambda given, _: given, shardings(state))
    count = rows * mesh.shape["data"] * mesh.shape["fsdp"]
    example = models.example_input(model, count)
    tokens = jnp.issubdtype(example.dtype, jnp.integer)
    given = (
        jax.ShapeDtypeStruct(
            example.shape, example.dtype if tokens else jnp.uint8, sharding=by_rows(mesh)
        ),
        jax.ShapeDtypeStruct(
            example.shape if tokens else example.shape[:1], jnp.int32, sharding=by_rows(mesh)
        ),
    )
    return step.lower(state, given).compile(QUICK)


def _pixels(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that pixels are normalised with; nothing for tokens."""
    channels = model.input_shape[2] if len(model.input_shape) == 3 else 0
    return (0.5,) * channels, (0.25,) * channels


def measure(
    model: Any, tx: optax.GradientTransformation, structure: Any, mesh: str, rows: int
) -> dict[str, Any]:
    """The collectives of one step: how many of each kind, their bytes, and what norms need."""
    devices = make_mesh(mesh)
    found = collectives(compiled_step(model, tx, devices, rows).as_text())
    every = [each for each in found if each.always]
    return {
        "count": dict(sorted(Counter(each.op for each in every).items())),
        "bytes": sum(each.bytes for each in every),
        "sent": round(sum(each.sent for each in every)),
        "bytes_in_branches": sum(each.bytes for each in found if not each.always),
        "count_in_branches": len(found) - len(every),
        "bytes_of_norms": norm_bytes(structure, split_network(model, *_pixels(model))[1], devices),
    }


def compare(name: str, mesh: str, rows: int, which: Sequence[str]) -> dict[str, Any]:
    """What each optimizer's step exchanges, and what it adds to Adam's."""
    model = models.build(name, **NETWORKS[name])
    table = {
        key: measure(model, tx, structure, mesh, rows)
        for key, (tx, structure) in optimizers(GROUPS[name]).items()
        if key in which
    }
    for row in table.values():
        row["bytes_beyond_adam"] = row["bytes"] - table["adam"]["bytes"]
    return table


def show(table: dict[str, Any]) -> None:
    for name, row in table.items():
        counts = ", ".join(f"{n} {op}" for op, n in row["count"].items()) or "none"
        print(
            f"  {name:26s} {row['bytes']:11,d} B  sent {row['sent']:11,d} B  beyond Adam "
            f"{row['bytes_beyond_adam']:8,d} B (norms {row['bytes_of_norms']:6,d} B)  in branches "
            f"{row['bytes_in_branches']:9,d} B  {counts}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--meshes", nargs="*", default=list(MESHES))
    parser.add_argument("--rows", type=int, default=ROWS, help="of a batch, on each device")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    started = time.time()
    result: dict[str, Any] = {"rows_on_each_device": args.rows, "networks": {}}
    for name in args.networks:
        result["networks"][name] = {"meshes": {}, "weak_scaling": {}}
        for mesh in args.meshes:
            table = compare(name, mesh, args.rows, list(optimizers(dl.weights)))
            result["networks"][name]["meshes"][mesh] = table
            print(f"{name}, {mesh}")
            show(table)
        for axis in GROWING:
            for count in (1, 2, 4, 8):
                mesh = f"{axis}={count}"
                # As it is above, where the mesh is the same.
                table = result["networks"][name]["meshes"].get(mesh)
                if table is None:
                    table = compare(name, mesh, args.rows, ("adam", "groups, lean"))
                kept = {key: table[key] for key in ("adam", "groups, lean")}
                result["networks"][name]["weak_scaling"][mesh] = kept
                print(f"{name}, {mesh}, {args.rows} rows on each device")
                show(kept)
    print(f"written to {write('collectives', result, started)}")


if __name__ == "__main__":
    main()
