"""How long does it take to find the channels of a network?

    python -m benchmarks.channel_tracing

`dl.channel_groups` on the zoo's larger networks and, where the packages are installed, on models of
Equimo (Equinox) and Haiku: the time beside that of `jax.make_jaxpr` alone, the number of groups,
and how far a cut to half of each set is from the network under only the ticket's masks.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from benchmarks.harness.results import write
from dessilbi_jax import models
from dessilbi_jax.frameworks import as_network
from dessilbi_jax.tree import leaf_paths

COST = {"cpu": "2 min"}
ZOO = ("resnet50", "mobilenet-v2", "densenet121", "vit-small", "gpt2-small")
EQUIMO = ("vit_tiny_patch16_224", "convnext_t", "mobilenetv3_small")
SIDE = {"vit_tiny_patch16_224": 224}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", nargs="*", help="only these")
    args = parser.parse_args()
    started, rows = time.time(), []
    for name, build in candidates():
        if not args.networks or name in args.networks:
            rows.append({"network": name, **measured(*build(), args.repeats, args.seed)})
            print(rows[-1], flush=True)
    print(write("channel_tracing", {"seed": args.seed, "rows": rows}, started))


def candidates() -> Iterator[tuple[str, Callable[[], tuple[Any, Any, tuple[Any, ...]]]]]:
    """(name, what makes (model, function, inputs)) of all that is installed."""
    for name in ZOO:
        if name in models.names():
            yield name, lambda name=name: of_zoo(name)
    if importlib.util.find_spec("equimo"):
        for name in EQUIMO:
            yield f"equimo {name}", lambda name=name: of_equimo(name)
    if importlib.util.find_spec("haiku"):
        yield "haiku ResNet18", of_haiku


def of_zoo(name: str) -> tuple[Any, Any, tuple[Any, ...]]:
    model = models.build(name)
    shape = models.example_input(model)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return model, None, (jnp.arange(shape.size).reshape(shape.shape) % 50,)
    return model, None, (jax.random.normal(jax.random.key(0), shape.shape),)


def of_equimo(name: str) -> tuple[Any, Any, tuple[Any, ...]]:
    module, key = importlib.import_module("equimo.models"), jax.random.key(0)
    side = SIDE.get(name, 64)
    image = jax.random.normal(key, (3, side, side))
    return (
        getattr(module, name)(num_classes=10, key=key),
        lambda model, x: model(x, key=key, inference=True),
        (image,),
    )


def of_haiku() -> tuple[Any, Any, tuple[Any, ...]]:
    hk = importlib.import_module("haiku")
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    def net(x: Any, training: bool) -> Any:
        return hk.nets.ResNet18(10)(x, is_training=training)

    made = hk.without_apply_rng(hk.transform_with_state(net))
    params, state = made.init(jax.random.key(0), image, True)
    return (
        {"params": params, "state": state},
        lambda v, x: made.apply(v["params"], v["state"], x, False)[0],
        (image,),
    )


def measured(model: Any, fn: Any, inputs: tuple[Any, ...], repeats: int, seed: int) -> Any:
    """Times, groups, and what a cut to half of each set comes to."""
    network = as_network(model, fn)
    times: dict[str, list[float]] = {"seconds": [], "make_jaxpr_seconds": []}
    groups = None
    for _ in range(repeats):
        jax.clear_caches()
        begin = time.perf_counter()
        jax.make_jaxpr(network.fn)(network.tree, *inputs)
        times["make_jaxpr_seconds"].append(time.perf_counter() - begin)
        jax.clear_caches()
        begin = time.perf_counter()
        groups = dl.channel_groups(network.fn, network.tree, *inputs)
        times["seconds"].append(time.perf_counter() - begin)
    assert groups is not None
    out: dict[str, Any] = {name: round(statistics.median(t), 2) for name, t in times.items()}
    out |= {"groups": groups.count, "sets": len(groups.sets), "unknown": list(groups.unknown)}
    gone = np.zeros(groups.count, bool)
    rng = np.random.default_rng(seed)
    for each in groups.sets:
        gone[rng.permutation(each.groups)[: len(each.groups) // 2]] = True
    masks = dl.channels(groups).masks(network.tree, ~gone)
    try:
        small = dl.slim(model, masks, *inputs, fn=fn, groups=groups)
    except (TypeError, ValueError) as error:
        return {**out, "refused": str(error).split("\n")[0]}
    masked = dl.project(
        network.tree,
        jax.tree.unflatten(
            jax.tree.structure(network.tree),
            [jnp.asarray(masks[path]) for path, _ in leaf_paths(network.tree)],
        ),
    )
    narrow = as_network(small.model, fn)
    want = jax.tree.leaves(network.fn(masked, *inputs))
    got = jax.tree.leaves(narrow.fn(narrow.tree, *inputs))
    apart = max(
        float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(want, got, strict=True)
    )
    left = groups.kept_by(small.plan)
    return {
        **out, "parameters": small.params, "difference": apart, "notes": list(small.notes),
        "cut_of_asked": [int((~left).sum()), int(gone.sum())],
    }  # fmt: skip


if __name__ == "__main__":
    main()
