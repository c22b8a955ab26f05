"""One network, one seed, one budget: training, retraining and accuracy, with their cost counted."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness import images, kept, masks
from benchmarks.harness.cost import Cost
from dessilbi_jax import models
from dessilbi_jax.train import schedules
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Resident, pick_rows
from dessilbi_jax.train.step import (
    Network,
    TrainState,
    itself,
    make_evaluate,
    make_step,
    nothing,
    split_network,
    started,
)
from dessilbi_jax.train.stepper import Stepper

Tree = Any
# Of what `kept` keeps: one more whenever a method computes something else than before.
VERSION = 1
Split = Literal["test", "held_out"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What every method of a table is given alike.

    Attributes:
        network, dataset: their names.
        epochs: of one run.
        rate: the peak of the learning rate.
        batch, momentum: of SGD.
        schedule: "half": constant for half of the run, then a cosine to zero; "steps": divided by
            10 after 30, 60 and 90 % of it; "cosine": to zero from the start.
        images: training images used; None for all.
        held_out: training images kept apart, to choose by.
        augment: whether images are moved and mirrored.
        widths: of the network, where not the published ones.
        dtype: what the network computes in.
    """

    network: str
    dataset: str
    epochs: int
    rate: float
    batch: int = 128
    momentum: float = 0.9
    schedule: Literal["half", "steps", "cosine"] = "half"
    images: int | None = None
    held_out: int = 0
    augment: bool = False
    widths: tuple[int, ...] | None = None
    dtype: str = "float32"

    @property
    def key(self) -> str:
        """All that differs from the defaults, in words that fit a result's key."""
        told = [f"{self.network} {self.dataset}"]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                told.append(f"{field.name}={value}")
        return " ".join(told)


class Trained(NamedTuple):
    """What a run ends with: what was trained, batch statistics, the optimizer's state."""

    params: Tree
    stats: Tree
    state: Tree


@functools.cache  # one object for one schedule: what is compiled for it is found again
def schedule(kind: str, peak: float, steps: int) -> optax.Schedule:
    """A schedule of `Setting`."""
    if kind == "steps":
        return schedules.schedule("step", peak, steps, drop_at=(0.3, 0.6, 0.9))
    return schedules.schedule(kind, peak, steps)


class Kind(NamedTuple):
    """What a network's channel groups depend on."""

    network: str
    widths: tuple[int, ...] | None
    shape: tuple[int, ...]
    classes: int


@functools.cache
def channel_groups(kind: Kind) -> dl.ChannelGroups:
    """The groups of a network, and the floating-point operations of one image."""
    model = models.build(
        kind.network, input_shape=kind.shape, widths=kind.widths, classes=kind.classes
    )
    model.eval()
    return dl.channel_groups(model, jnp.zeros((1, *kind.shape)))


def rows_of(arrays: Any, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The images and labels of some rows."""
    images, labels = arrays
    return images[rows], labels[rows]


@functools.lru_cache(8)
def training_step(
    network: Network,
    tx: optax.GradientTransformation,
    view: Callable[[Tree], Tree],
    penalty: Callable[[Tree], Any],
    augment: bool,
) -> Callable[[TrainState, Any], TrainState]:
    """The step of `dessilbi train`, compiled once for as long as the same objects are used."""
    pick = functools.partial(pick_rows, rows_of=rows_of, augment=augment)
    return make_step(network, tx, pick, view=view, penalty=penalty)


@functools.lru_cache(8)
def _sgd(rate: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum)


@functools.lru_cache(4)
def _masked_sgd(rate: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    """Training under a mask that is only known from the state: compiled once for all masks."""
    return optax.chain(optax.sgd(rate, momentum), dl.keep_support(masks.everything))


class Work:
    """One seed's network and data under a setting; counts what is trained with them.

    Args:
        setting: shared by all methods of a table.
        seed: of the initialisation and of the order of the images.
        data_dir: as for `images.load`.
        folder: where `kept` keeps what several methods use; None: nowhere.

    Attributes:
        params, stats: the network before any training.
        cost: of all training so far.
    """

    def __init__(
        self, setting: Setting, seed: int, data_dir: str | None = None, folder: Path | None = None
    ) -> None:
        self.setting, self.seed, self.data_dir, self.folder = setting, seed, data_dir, folder
        self.arrays = images.arrays(setting.dataset, data_dir, setting.images, setting.held_out)
        self.shape = self.arrays["test_x"].shape[1:]
        self.classes = int(self.arrays["test_y"].max()) + 1
        model = models.build(
            setting.network, input_shape=self.shape, seed=seed, widths=setting.widths,
            dtype=setting.dtype, classes=self.classes,
        )  # fmt: skip
        # Images are normalised beforehand.
        self.network, self.params, self.stats = split_network(model, (), ())
        self.batch = min(setting.batch, len(self.arrays["train_y"]) // 2)
        self.cost = Cost()

    @property
    def kind(self) -> Kind:
        """What it has in common with other seeds."""
        return Kind(self.setting.network, self.setting.widths, self.shape, self.classes)

    @property
    def groups(self) -> dl.ChannelGroups:
        """What can be removed of the network."""
        return channel_groups(self.kind)

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of one image's forward pass: convolutions and products."""
        return self.groups.flops()

    def steps(self, epochs: float | None = None) -> int:
        """Updates in so many epochs, or in the whole run."""
        each = len(self.arrays["train_y"]) // self.batch
        return max(1, round((self.setting.epochs if epochs is None else epochs) * each))

    def rate(self, steps: int | None = None, peak: float | None = None) -> optax.Schedule:
        """The learning rate of a run of so many updates, or of the setting's."""
        return schedule(self.setting.schedule, peak or self.setting.rate, steps or self.steps())

    def time(self, last: int | None = None) -> float:
        """Sum of the learning rates of the setting's run, or of its updates up to the last one.

        What acts on weights beside the gradient, such as decay, acts for as long as this.
        """
        count = self.steps() if last is None else last
        return float(jnp.sum(jax.vmap(self.rate())(jnp.arange(count))))

    def sgd(self, steps: int | None = None) -> optax.GradientTransformation:
        """The setting's optimizer, without decay."""
        return _sgd(self.rate(steps), self.setting.momentum)

    def train(
        self,
        tx: optax.GradientTransformation,
        params: Tree = None,
        stats: Tree = None,
        state: Tree = None,
        *,
        first: int = 0,
        steps: int | None = None,
        watch: Callable[[int, Tree, Tree, Tree], None] | None = None,
        every: int | None = None,
        view: Callable[[Tree], Tree] = itself,
        penalty: Callable[[Tree], Any] = nothing,
    ) -> Trained:
        """Trains from the first update to the last one.

        Args:
            tx: the optimizer. What is compiled is found again for the same object: make it in a
                function under `functools.lru_cache`.
            params: what is trained, None for the initialisation. Any tree if `view` is given.
            stats: batch statistics, None for the initial ones.
            state: the optimizer's, None for `tx.init`'s.
            first: number of the first update; the order of images is that of the whole run.
            steps: number of the last update, None for the setting's run.
            watch: called as watch(step, params, stats, state) after every `every` updates and
                after the last one; step counts updates done. What it is given is gone afterwards.
            every: between two calls of `watch`; None: four times an epoch.
            view: the network's parameters from what is trained.
            penalty: added to the mean cross-entropy, of what is trained.
        """
        x, y = self.arrays["train_x"], self.arrays["train_y"]
        start = (self.params if params is None else params, self.stats if stats is None else stats)
        params, stats = jax.tree.map(jnp.copy, start)
        last = self.steps() if steps is None else steps
        each = len(y) // self.batch
        every = max(1, each // 4) if every is None else every
        wall, cpu = time.time(), time.process_time()
        augment = self.setting.augment
        take = training_step(self.network, tx, view, penalty, augment)
        # Copies: a step donates what it is given.
        state = jax.jit(tx.init)(params) if state is None else jax.tree.map(jnp.copy, state)
        feed = Resident(
            (x, y), rows_of, rows=len(y), batch=self.batch, seed=self.seed, augment=augment,
            mesh=make_mesh("one"),
        )  # fmt: skip
        stepper = Stepper(take, feed, started(params, stats, state, first))
        while stepper.step < last:
            now = stepper.advance()
            if watch is not None and (stepper.step % every == 0 or stepper.step == last):
                watch(stepper.step, now.params, now.stats, now.opt_state)
        _, params, stats, state, *_ = stepper.state
        jax.block_until_ready(params)
        self.count(last - first, time.time() - wall, time.process_time() - cpu)
        return Trained(params, stats, state)

    def count(self, steps: float, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        """Adds training, in full steps, to the cost."""
        flops = 3.0 * self.forward_flops * self.batch * steps
        self.cost += Cost(steps, flops, seconds, cpu_seconds)

    def in_runs(self, cost: Cost) -> float:
        """A cost as a multiple of the setting's run."""
        return round(cost.flops / (3.0 * self.forward_flops * self.batch * self.steps()), 4)

    def dense(self) -> dict[str, Tree]:
        """The "params" and "stats" of the setting's run, made once for all who begin with it."""

        def make() -> dict[str, Tree]:
            run = self.train(self.sgd())
            return {"params": run.params, "stats": run.stats}

        return self.kept("dense", make)

    def retrained(
        self, mask: Tree, params: Tree = None, stats: Tree = None, *, first: int = 0
    ) -> Trained:
        """The dense run's training with the weights outside the mask held at zero.

        Args:
            mask: True where a weight is kept.
            params, stats: where it starts, None for the initialisation.
            first: its first update: k, if it starts from the weights after k updates.
        """
        start = dl.project(self.params if params is None else params, mask)
        tx = _masked_sgd(self.rate(), self.setting.momentum)
        state = optax.chain(optax.sgd(self.rate(), self.setting.momentum), dl.keep_support(mask))
        fresh = state.init(start)
        if first:  # the schedule goes on where the weights were
            fresh = optax.tree_utils.tree_set(fresh, count=jnp.asarray(first, jnp.int32))
        return self.train(tx, start, stats, fresh, first=first)

    def accuracy(self, params: Tree, stats: Tree = None, split: Split = "test") -> float:
        """Percent of a split classified rightly."""
        x, y = self.arrays[f"{split}_x"], self.arrays[f"{split}_y"]
        parts = ((x[i : i + 1000], y[i : i + 1000]) for i in range(0, len(y), 1000))
        stats = self.stats if stats is None else stats
        return round(100 * make_evaluate(self.network)(params, stats, parts)[0], 4)

    def kept(self, name: str, make: Callable[[], Tree]) -> Tree:
        """What `make` returns, made once for this setting and seed; its cost is counted each time.

        Kept as a file, so that a run that was stopped goes on from there.

        Args:
            name: names all else that it depends on.
            make: returns a nested dict of arrays.
        """
        if self.folder is None:
            return make()
        full = f"{VERSION} {self.setting} {self.data_dir is None} seed={self.seed} {name}"
        file = self.folder / f"{hashlib.sha256(full.encode()).hexdigest()[:24]}.npz"
        if file.exists():
            tree, spent = kept.read(file)
            self.cost += spent
            return tree
        before = self.cost
        tree = make()
        kept.write(file, full, tree, self.cost - before)
        return tree
