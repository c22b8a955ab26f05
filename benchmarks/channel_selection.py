"""Channels selected during training, cut out, retrained: as good as dense, better than fresh?

    python -m benchmarks.channel_selection --data-dir DIR [--networks lenet5 vgg-small]

LeNet-5 on MNIST and the library's small VGG on CIFAR-10, at the sizes of `SETTINGS` (subsets and
few epochs: what two cores do in half an hour; the numbers compare with each other, not with the
best that is known). For each seed, with the same schedule, batches and number of epochs:

- dense: the whole network by SGD with momentum;
- end: `dl.dessilbi` on the channels (`dl.channels`) for the first epochs, λ automatic; the ticket
  of the path that leaves a quarter of the FLOPs; cut out by `dl.slim`, momentum and all, and
  trained on for the other epochs;
- init: the same ticket cut out of the run's first weights, and trained for all epochs;
- fresh: the smaller network with the ticket's widths, freshly initialised, for all epochs: the
  control that channel selection has to beat to be worth anything;
- fresh_long: the same for as many epochs as cost the FLOPs of "init", the search included;
- random: as "end", with as many channels of each layer drawn at random.

Which of "end" and "init" is to be judged was chosen once on held-out images, with a seed of its
own (`--choose`), as was LeNet-5's learning rate (0.02 ends the dense run at chance). Test images
are touched once, at the end of a run. Resumable.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from benchmarks.harness.cells import Runs
from benchmarks.harness.images import arrays
from benchmarks.harness.results import RESULTS, spread, write
from benchmarks.harness.work import rows_of, training_step
from dessilbi_jax import models
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Resident
from dessilbi_jax.train.step import itself, make_evaluate, nothing, split_network, started
from dessilbi_jax.train.stepper import Stepper

COST = {"cpu": "35 minutes on two cores"}

MOMENTUM = 0.9
HELD_OUT = 2000
CHOOSING_SEED = 100
WAYS = ("end", "init", "fresh", "random", "dense")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one network is trained with.

    Attributes:
        dataset: its name.
        widths: of the dense network.
        images: how many training images are used.
        epochs: of every run.
        selecting: of these, those with DessiLBI before the cut.
        batch, rate: batch size, and the learning rate until the cut; a cosine to zero follows.
        nu: ν.
        group_density: share of the channels that Γ is to hold at the cut.
        flops: share of the FLOPs that the ticket leaves.
        retraining: from where, as chosen on held-out images.
    """

    dataset: str
    widths: tuple[int, ...]
    images: int
    epochs: int
    selecting: int
    batch: int
    rate: float
    nu: float
    group_density: float
    flops: float
    retraining: str


SETTINGS = {
    "lenet5": Setting("mnist", (20, 50, 500), 10000, 4, 2, 64, 0.01, 20.0, 0.5, 0.25, "init"),
    "vgg-small": Setting(
        "cifar10", (16, 16, 32, 32, 64, 64), 4096, 5, 3, 64, 0.05, 20.0, 0.5, 0.25, "init"
    ),
}


def schedule(setting: Setting) -> optax.Schedule:
    """Constant until the cut, then a cosine to zero; the same for every run."""
    steps = setting.images // setting.batch
    before, after = setting.selecting * steps, (setting.epochs - setting.selecting) * steps
    falling = optax.cosine_decay_schedule(setting.rate, after)
    return optax.join_schedules([optax.constant_schedule(setting.rate), falling], [before])


def train(
    model: Any, tx: optax.GradientTransformation, rows: dict[str, jax.Array], setting: Setting,
    seed: int, epochs: range, state: Any = None, path: dl.SolutionPath | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(the trained network, its optimizer's state) after these epochs; the given one stays."""
    model = nnx.clone(model)
    network, _, stats = split_network(model, (), ())
    params = nnx.state(model, nnx.Param)  # as `dl.slim` finds them in the optimizer's state
    state = jax.jit(tx.init)(params) if state is None else state
    # Copies: a step donates what it is given, and what was not cut is shared with other runs.
    start = jax.tree.map(jnp.copy, (params, stats, state))
    count = setting.images // setting.batch
    every = max(count // 4, 1)
    feed = Resident(
        (rows["train_x"], rows["train_y"]), rows_of, rows=setting.images, batch=setting.batch,
        seed=seed, augment=False, mesh=make_mesh("one"),
    )  # fmt: skip
    take = training_step(network, tx, itself, nothing, False)
    stepper = Stepper(take, feed, started(*start, epochs.start * count))
    while stepper.step < epochs.stop * count:
        now = stepper.advance()
        done = stepper.step % count
        if path is not None and (done == 0 or done % every == 0):
            path.record(stepper.step, now.opt_state)
    _, params, stats, state, *_ = stepper.state
    return nnx.merge(network.training, params, stats), state


def accuracy(model: Any, rows: dict[str, jax.Array], split: str = "test") -> float:
    """Percent of a split classified rightly, in evaluation mode."""
    network, params, stats = split_network(nnx.clone(model), (), ())
    x, y = rows[f"{split}_x"], rows[f"{split}_y"]
    parts = ((x[i : i + 500], y[i : i + 500]) for i in range(0, len(y), 500))
    return 100 * make_evaluate(network)(params, stats, parts)[0]


def going_on(tx: optax.GradientTransformation, model: Any, small_state: Any, count: int) -> Any:
    """The state of SGD with the momentum that was cut along, at a later step of its schedule."""
    state = tx.init(nnx.state(model, nnx.Param))
    return optax.tree_utils.tree_set(
        state, trace=optax.tree_utils.tree_get(small_state, "trace"), count=jnp.asarray(count)
    )


def widths_of(model: Any, name: str) -> tuple[int, ...]:
    """The widths that `models.build` would take for this network."""
    layers = ("conv1", "conv2", "fc1") if name == "lenet5" else [f"conv{i}" for i in range(1, 7)]
    return tuple(int(getattr(model, layer).kernel.shape[-1]) for layer in layers)


def drawn(groups: dl.ChannelGroups, kept: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Masks of as many channels of every layer, drawn at random."""
    draw = np.random.default_rng(seed)
    gone = np.zeros(groups.count + 1, bool)  # one more for positions of no group, −1
    for each in groups.sets:
        out = int((~kept[each.groups]).sum())
        gone[draw.choice(each.groups, out, replace=False)] = True
    masks = {path: np.ones(shape, bool) for path, shape in groups.shapes.items()}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) not in groups.reads:
            masks[path][(slice(None),) * axis + (gone[numbers],)] = False
    return masks


def long(
    data_dir: str, name: str, setting: Setting, seed: int, widths: tuple[int, ...], epochs: int
) -> dict[str, Any]:
    """A network of the ticket's widths, freshly initialised, for more epochs."""
    rows = arrays(setting.dataset, data_dir, setting.images, HELD_OUT)
    before = round(epochs * setting.selecting / setting.epochs)
    setting = dataclasses.replace(setting, epochs=epochs, selecting=before)
    shape = rows["test_x"].shape[1:]
    start = models.build(name, input_shape=shape, seed=seed + 1000, widths=widths)
    sgd = optax.sgd(schedule(setting), MOMENTUM)
    trained, _ = train(start, sgd, rows, setting, seed, range(epochs))
    return {"epochs": epochs, "fresh_long": round(accuracy(trained, rows), 3)}


def run(
    data_dir: str, name: str, setting: Setting, seed: int, ways: tuple[str, ...], held_out: bool
) -> dict[str, Any]:
    """One seed: `ways` names what is trained beside the run that selects."""
    rows = arrays(setting.dataset, data_dir, setting.images, HELD_OUT)
    judged = functools.partial(accuracy, rows=rows, split="held_out" if held_out else "test")
    shape = rows["test_x"].shape[1:]
    every, before = range(setting.epochs), range(setting.selecting)
    after = range(setting.selecting, setting.epochs)
    steps = setting.selecting * (setting.images // setting.batch)
    first = models.build(name, input_shape=shape, seed=seed, widths=setting.widths)
    example = rows["train_x"][:4]
    groups = dl.channel_groups(first, example[:1])
    rate = schedule(setting)
    sgd = optax.sgd(rate, MOMENTUM)
    tx = dl.dessilbi(
        rate, nu=setting.nu, lam=dl.auto(group_density=setting.group_density, steps=steps),
        momentum=MOMENTUM, structure=dl.channels(groups),
    )  # fmt: skip
    path = dl.SolutionPath()
    model, state = train(first, tx, rows, setting, seed, before, path=path)
    whole = groups.flops()
    ticket = path.ticket(flops=setting.flops * whole, count=groups.flops)
    small = dl.slim(model, ticket, example, opt_state=state)
    kept = groups.kept_by(small.plan)
    out: dict[str, Any] = {
        "network": name, "seed": seed, "judged_on": "held-out" if held_out else "test",
        "density_of_gamma": round(float(path.density()[-1]), 4),
        "lam": float(dl.get_state(state).lam),
        "widths": {"dense": setting.widths, "slim": widths_of(small.model, name)},
        "parameters": list(small.params),
        "flops_share": round(groups.flops_of(kept) / whole, 4),
        "slim_minus_masked": small.difference,
        "before_retraining": judged(small.model),
    }  # fmt: skip
    # Training cost in dense epochs: the run up to the cut, and what is trained of the slim one.
    part = out["flops_share"]
    out["cost"] = {
        "dense": len(every), "end": len(before) + part * len(after),
        "init": len(before) + part * len(every), "fresh": part * len(every),
    }  # fmt: skip

    def resumed(slim: dl.Slim) -> float:
        begun = going_on(sgd, slim.model, slim.opt_state, steps)
        return judged(train(slim.model, sgd, rows, setting, seed, after, begun)[0])

    def anew(start: Any) -> float:
        return judged(train(start, sgd, rows, setting, seed, every)[0])

    makers: dict[str, Callable[[], float]] = {
        "end": lambda: resumed(small),
        "init": lambda: anew(dl.slim(first, ticket, example).model),
        "fresh": lambda: anew(models.build(
            name, input_shape=shape, seed=seed + 1000, widths=out["widths"]["slim"])),
        "random": lambda: resumed(
            dl.slim(model, drawn(groups, kept, seed), example, opt_state=state)),
        "dense": lambda: anew(first),
    }  # fmt: skip
    for way in ways:
        out[way] = round(makers[way](), 3)
    return out


def row(
    data_dir: str, name: str, seed: int, ways: tuple[str, ...], held_out: bool = False
) -> dict[str, Any]:
    """One seed, from the table if it is there."""
    setting = SETTINGS[name]
    facts = {k: v for k, v in dataclasses.asdict(setting).items() if k != "retraining"}
    words = " ".join([*(f"{k}={v}" for k, v in facts.items()), f"seed={seed}"])
    runs = Runs(RESULTS / f"channel_selection_{name}.jsonl")  # a file each: made side by side
    make = functools.partial(run, data_dir, name, setting, seed, ways, held_out)
    found = runs.get(f"{words} {'held-out' if held_out else 'test'} {' '.join(ways)}", make)
    if held_out:
        return found
    widths, cost = tuple(found["widths"]["slim"]), found["cost"]["init"]
    epochs = round(cost / found["flops_share"])
    more = functools.partial(long, data_dir, name, setting, seed, widths, epochs)
    control = runs.get(f"{words} fresh_long widths={widths} epochs={epochs}", more)
    both = found["seconds"] + control["seconds"]
    return {**found, "fresh_long": control["fresh_long"], "fresh_long_epochs": epochs,
            "seconds": round(both, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choose", action="store_true",
                        help="only compare where to retrain from, on held-out images")  # fmt: skip
    args = parser.parse_args()
    started = time.time()
    result: dict[str, Any] = {"momentum": MOMENTUM, "held_out": HELD_OUT, "networks": {}}
    for name in args.networks:
        setting = SETTINGS[name]
        choice = row(args.data_dir, name, CHOOSING_SEED, ("end", "init"), held_out=True)
        if args.choose:
            continue
        rows = [row(args.data_dir, name, seed, WAYS) for seed in range(args.seeds)]
        table = {
            way: spread([r[way] for r in rows])
            for way in ("before_retraining", *WAYS, "fresh_long")
        }
        pairs = [
            ("end", "random"),
            *(
                (way, other)
                for way in ("end", "init")
                for other in ("dense", "fresh", "fresh_long")
            ),
        ]
        for one, other in pairs:
            table[f"{one}_minus_{other}"] = spread([r[one] - r[other] for r in rows])
        print(name)
        for key, value in table.items():
            print(f"  {key:22s} {value['mean']:8.3f} ± {value['std']}  {value['values']}")
        chosen = {way: choice[way] for way in ("end", "init")} | {"seed": CHOOSING_SEED}
        result["networks"][name] = {
            "setting": dataclasses.asdict(setting), "chosen_on_held_out": chosen, "table": table,
            "rows": rows,
        }  # fmt: skip
    if not args.choose:
        every = [r for table in result["networks"].values() for r in table["rows"]]
        result["seconds"] = round(sum(r["seconds"] for r in every), 1)  # also in earlier sittings
        name = "channel_selection" + ("" if len(args.networks) > 1 else f"_{args.networks[0]}")
        print(f"written to {write(name, result, started)}")


if __name__ == "__main__":
    main()
