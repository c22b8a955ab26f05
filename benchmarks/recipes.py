"""Ways to a ticket of LeNet-300-100, shared by `tickets`, `tickets_search` and `moments`.

Densities are shares of the 266 200 weights in the three kernels; biases are never pruned. All
masks are exact: round(density · 266 200) weights.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks.placement import PEAK

# Rounds of iterative pruning up to each density: 20 % of what is left in each, spaced so that
# the densities are met exactly (19.5 %, 19.7 % and 20.6 % a round).
ROUNDS = {0.06: 13, 0.02: 18, 0.01: 21}
# Choices are made on this many training images, with seeds from this one on.
HELD_OUT = 10_000
OTHER_SEEDS = 100


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One DessiLBI run and how its ticket is read.

    Attributes:
        variant, nu, kappa, at: as for `dl.dessilbi`.
        opened: share of the weights that Γ is to hold at `at`; 0 for a Γ that never opens.
        rank: "path" (order of entry, then ‖V‖/λ), "v" (|V| at the end), "w" (|W| at the end),
            "support" (weights in the support of Γ by |W|, then the others by |V|).
        share: length of the run in dense runs.
    """

    variant: Literal["paper", "toolbox"] = "toolbox"
    nu: float = 20.0
    opened: float = 0.19
    at: float = 1.0
    rank: str = "v"
    kappa: float = 1.0
    share: float = 1.0


def kernels(tree: Any) -> list[jax.Array]:
    """The leaves that are pruned, in the tree's order."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]


def top(params: Any, scores: list[np.ndarray], density: float) -> Any:
    """The mask of the highest scores of all kernels together; −inf is never chosen."""
    flat = np.concatenate([np.ravel(s) for s in scores])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[: round(density * flat.size)]] = True
    pieces = iter(np.split(chosen & (flat > -np.inf), np.cumsum([s.size for s in scores])[:-1]))
    return jax.tree.map(
        lambda p: (
            jnp.asarray(next(pieces).reshape(p.shape)) if p.ndim == 2 else jnp.ones(p.shape, bool)
        ),
        params,
    )


def magnitude(params: Any, density: float, mask: Any = None) -> Any:
    """The largest weights of all kernels together, among those of `mask`."""
    scores = [np.abs(np.asarray(w)) for w in kernels(params)]
    if mask is not None:
        scores = [
            np.where(np.asarray(m), s, -np.inf) for s, m in zip(scores, kernels(mask), strict=True)
        ]
    return top(params, scores, density)


def by_layer(params: Any, density: float, mask: Any, before: float) -> Any:
    """As `magnitude`, but each kernel gives its share and the last one half of it.

    The rate of Frankle and Carbin (2019): where the others lose `1 − density/before` of their
    weights, the output layer loses half of that share.
    """
    lost = 1 - density / before
    last = min(range(3), key=lambda i: kernels(params)[i].shape[1])
    out = []
    for i, (w, m) in enumerate(zip(kernels(params), kernels(mask), strict=True)):
        score = np.where(np.asarray(m), np.abs(np.asarray(w)), -np.inf).ravel()
        keep = round(int(np.asarray(m).sum()) * (1 - (lost / 2 if i == last else lost)))
        chosen = np.zeros(score.size, bool)
        chosen[np.argsort(-score, kind="stable")[:keep]] = True
        out.append(jnp.asarray(chosen.reshape(w.shape)))
    pieces = iter(out)
    return jax.tree.map(lambda m: next(pieces) if m.ndim == 2 else m, mask)


@dataclasses.dataclass
class Work:
    """One seed's data, network and schedule: what every way to a ticket starts from."""

    arrays: dict[str, jax.Array]
    definition: Any
    start: Any
    epochs: int
    seed: int

    @classmethod
    def of(cls, data_dir: str, held_out: int, epochs: int, seed: int) -> "Work":
        return cls(bench.mnist(data_dir, held_out), *bench.initial(seed), epochs, seed)

    def steps(self, epochs: int) -> int:
        return epochs * (len(self.arrays["train_y"]) // bench.BATCH)

    def rate(self, epochs: int | None = None) -> Any:
        return bench.learning_rate(PEAK, self.steps(epochs or self.epochs))

    def dense(self) -> Any:
        return bench.train(
            self.arrays, self.definition, self.start, optax.sgd(self.rate(), bench.MOMENTUM),
            self.epochs, self.seed,
        )[0]  # fmt: skip

    def retrained(self, mask: Any, split: str) -> float:
        """Accuracy after the dense run's training from the same initialisation."""
        params = bench.retrained(
            self.arrays, self.definition, self.start, mask, self.rate(), self.epochs, self.seed
        )
        return self.accuracy(params, split)

    def accuracy(self, params: Any, split: str) -> float:
        return bench.accuracy(self.arrays, self.definition, params, split)

    def iterative(self, layerwise: bool = False) -> dict[float, Any]:
        """Masks of iterative magnitude pruning with rewinding to the initialisation."""
        masks = {}
        mask = bench.everything(self.start)
        density, done = 1.0, 0
        for target, rounds in ROUNDS.items():
            ratio = (target / density) ** (1 / (rounds - done))
            for _ in range(done, rounds):
                params = bench.retrained(
                    self.arrays, self.definition, self.start, mask, self.rate(), self.epochs,
                    self.seed,
                )  # fmt: skip
                before, density = density, density * ratio
                mask = (
                    by_layer(params, density, mask, before)
                    if layerwise
                    else magnitude(params, density, mask)
                )
            masks[target], density, done = mask, target, rounds
        return masks

    def select(
        self, recipe: Recipe, mask: Any = None, start: Any = None, watch: Any = None
    ) -> tuple[dl.SolutionPath, Any, Any]:
        """One DessiLBI run: its path, its dense weights and its optimizer state.

        `mask` holds the weights outside it at zero; `watch(step, params, state, path)` is called
        at each of the four records of an epoch.
        """
        epochs = max(1, round(self.epochs * recipe.share))
        rate = self.rate(epochs)
        lam: dict[str, Any] = {"lam": 1e9}
        if recipe.opened:
            lam = {"lam": "auto", "density": recipe.opened, "at": recipe.at,
                   "steps": self.steps(epochs)}  # fmt: skip
        tx = dl.dessilbi(
            rate, recipe.kappa, recipe.nu, structure=dl.weights, momentum=bench.MOMENTUM,
            variant=recipe.variant, **lam,
        )  # fmt: skip
        start = self.start if start is None else start
        if mask is not None:
            start = dl.project(start, mask)
            tx = optax.chain(tx, dl.keep_support(mask))
        path = dl.SolutionPath()

        def record(step: int, params: Any, state: Any) -> None:
            path.record(step, state)
            if watch is not None:
                watch(step, params, state, path)

        params, state = bench.train(
            self.arrays, self.definition, start, tx, epochs, self.seed, watch=record, records=4
        )
        return path, params, state


def ranked(run: tuple[dl.SolutionPath, Any, Any], density: float, rank: str) -> Any:
    """The mask of a run at a density by a ranking rule of `Recipe.rank`."""
    path, params, state = run
    if rank == "path":
        return path.ticket(density=density).mask(params)
    v = [np.abs(np.asarray(x)) for x in kernels(dl.get_state(state).v)]
    w = [np.abs(np.asarray(x)) for x in kernels(params)]
    if rank == "v":
        return top(params, v, density)
    if rank == "w":
        return top(params, w, density)
    if rank == "support":
        inside = [np.asarray(s) for s in kernels(dl.support(state))]
        far = max(float(x.max()) for x in v) + 1
        return top(
            params,
            [np.where(s, far + a, b) for s, a, b in zip(inside, w, v, strict=True)],
            density,
        )
    raise ValueError(f"no ranking rule {rank!r}")
