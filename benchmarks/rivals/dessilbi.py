"""DessiLBI itself, as one method among the others.

One run gives the tickets of all densities and of all moments: λ is automatic, for a share `opened`
of the weights at its end.
"""

import functools
from typing import Any, Literal

import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals import stored
from benchmarks.rivals.rival import Found, Rival, spent

MOMENTS = (0.25, 0.5, 0.75, 1.0)
# Epochs after which the dense weights are kept, to start again from ("F-epoch k").
EPOCHS = (1, 2, 5)
# The first run's ticket to which the second of "DessiLBI, twice" is restricted, over the density.
WIDER = 3.0


@functools.lru_cache(4)
def _optimizer(
    rate: optax.Schedule, momentum: float, steps: int, nu: float, opened: float, within: bool
) -> optax.GradientTransformation:
    tx = dl.dessilbi(
        rate, 1.0, nu, lam=dl.auto(density=opened, steps=steps), structure=dl.weights,
        momentum=momentum,
    )  # fmt: skip
    return optax.chain(tx, dl.keep_support(masks.everything)) if within else tx


def run(work: Work, nu: float, opened: float, within: Any = None) -> dict[str, Any]:
    """One run: its path at each of `MOMENTS`, as bytes, and W at its end and after `EPOCHS`.

    `within` holds the weights outside a mask at zero; the share `opened` is of all weights.
    """
    steps = work.steps()
    moments = {max(1, round(steps * moment)): moment for moment in MOMENTS}
    epochs = {work.steps(epoch): epoch for epoch in EPOCHS if epoch <= work.setting.epochs}
    every = max(1, steps // 40)
    path = dl.SolutionPath()
    paths: dict[str, np.ndarray] = {}
    weights: dict[str, Any] = {}

    def watch(step: int, params: Any, stats: Any, state: Any) -> None:
        path.record(step, state)

    tx = _optimizer(work.rate(), work.setting.momentum, steps, nu, opened, within is not None)
    params, stats, state, first = None, None, None, 0
    if within is not None:
        params = dl.project(work.params, within)
        plain = _optimizer(work.rate(), work.setting.momentum, steps, nu, opened, False)
        state = optax.chain(plain, dl.keep_support(within)).init(params)
    for last in sorted(moments | epochs):
        params, stats, state = work.train(
            tx, params, stats, state, first=first, steps=last, watch=watch, every=every
        )
        if last in moments:
            paths[f"{moments[last]:g}"] = stored.to_array(path)
        if last in epochs:
            weights[str(epochs[last])] = {"params": params, "stats": stats}
        first = last
    return {"paths": paths, "weights": weights, "params": params, "stats": stats}


def _kept_run(work: Work, nu: float, opened: float) -> dict[str, Any]:
    return work.kept(f"dessilbi nu={nu:g} opened={opened:g}", lambda: run(work, nu, opened))


def weights_after(work: Work, epochs: int, nu: float, opened: float) -> tuple[Any, Any]:
    """(W, batch statistics) of the one run after some of `EPOCHS`, or before the first."""
    if not epochs:
        return work.params, work.stats
    kept = _kept_run(work, nu, opened)["weights"][str(epochs)]
    return kept["params"], kept["stats"]


def _mask(kept: np.ndarray, work: Work, density: float, rank: Any) -> Any:
    weights = round(density * masks.size(work.params))
    return stored.from_array(kept).ticket(weights=weights, rank=rank).mask(work.params)


def once(
    work: Work,
    density: float,
    nu: float = 20.0,
    opened: float = 0.02,
    moment: float = 1.0,
    rank: Literal["entry", "strength"] = "strength",
) -> Found:
    """The ticket of a density at a moment of one run, by strength (‖V‖/λ) or by order of entry."""
    before = work.cost
    made = _kept_run(work, nu, opened)
    cost = spent(work, before)
    mask = _mask(made["paths"][f"{moment:g}"], work, density, rank)
    if moment < 1:
        return Found(mask, moment * cost)
    return Found(mask, cost, dl.project(made["params"], mask), made["stats"])


def twice(
    work: Work, density: float, nu: float = 20.0, opened: float = 0.02, again: float = 0.5
) -> Found:
    """A second run with ν and `opened` multiplied by `again`, restricted to a ticket of the first.

    That ticket is `WIDER` times the density, of which Γ is to hold nine tenths at most: all of it
    would be open at λ = 0, which orders nothing.
    """
    wide = min(1.0, WIDER * density)
    first = once(work, wide, nu, opened)
    reached = min(again * opened, 0.9 * wide)
    before = work.cost
    made = work.kept(
        f"dessilbi nu={again * nu:g} opened={reached:g} within {wide:g} of nu={nu:g} {opened:g}",
        lambda: run(work, again * nu, reached, first.mask),
    )
    mask = _mask(made["paths"]["1"], work, density, "strength")
    cost = first.cost + spent(work, before)
    return Found(mask, cost, dl.project(made["params"], mask), made["stats"])


@functools.lru_cache(4)
def _settling(
    rate: optax.Schedule, momentum: float, steps: int, nu: float, density: float, moments: Any
) -> optax.GradientTransformation:
    opened, at, end = moments
    return dl.dessilbi(
        rate, 1.0, nu, lam=dl.auto(density=min(1.0, opened * density), steps=steps, at=at),
        structure=dl.weights, momentum=momentum, settle=dl.settle(density=density, end=end),
    )  # fmt: skip


def settled(
    work: Work,
    density: float,
    nu: float = 50.0,
    at: float = 0.75,
    end: float = 0.75,
    opened: float = 1.0,
) -> Found:
    """The network that one run ends with: its support shrinks to the density from 0.1 to `end`.

    λ is automatic, for `opened` times the density of the weights at `at`.
    """
    before = work.cost
    setting = work.setting
    tx = _settling(work.rate(), setting.momentum, work.steps(), nu, density, (opened, at, end))
    params, stats, state = work.train(tx)
    return Found(dl.support(state, params), spent(work, before), params, stats)


_SETTINGS = tuple(
    {"nu": nu, "opened": opened} for opened in (0.02, 0.1) for nu in (20.0, 10.0, 50.0, 100.0)
)
_SOURCE = "Fu et al. 2020"
DESSILBI = Rival(
    "DessiLBI",
    once,
    _SETTINGS,
    _SOURCE,
    "κ = 1; λ is automatic; weights are ranked by ‖V‖/λ at the end. This, the placement behind "
    "the momentum and the range of the trials come from earlier experiments on held-out images of "
    "the same data, about thirty runs, which no rival had.",
    nested=True,
)
TWICE = Rival(
    "DessiLBI, twice",
    twice,
    tuple({"nu": nu, "again": again} for nu in (20.0, 50.0) for again in (0.5, 0.25, 1.0, 2.0)),
    _SOURCE,
    "Not in the paper: a second run, restricted to a ticket three times as large of the first, "
    "whose ν is the trial's, with ν and λ's density scaled. It has eight trials of its own.",
)
SETTLED = Rival(
    "DessiLBI, settled",
    settled,
    (
        {"nu": 50.0},
        {"nu": 50.0, "at": 1.0},
        {"nu": 100.0},
        {"nu": 20.0},
        {"nu": 50.0, "end": 0.6},
        {"nu": 100.0, "opened": 2.0},
        {"nu": 50.0, "opened": 2.0},
        {"nu": 50.0, "at": 0.6, "end": 0.6},
    ),
    _SOURCE,
    "the allowed support shrinks inside the run, ranked by |W|, as `dl.settle` does it; its "
    "network is W at the end of the run. A dozen runs on held-out images went before the eight "
    "trials.",
)
# The same run, read otherwise: nothing is tuned anew.
READINGS = (
    Rival(
        "DessiLBI, by entry",
        functools.partial(once, rank="entry"),
        (),
        _SOURCE,
        "by order of entry into Γ",
        nested=True,
    ),
    *(
        Rival(
            f"DessiLBI at {moment:.0%}",
            functools.partial(once, moment=moment),
            (),
            _SOURCE,
            f"after {moment:.0%} of the same run",
            nested=True,
        )
        for moment in MOMENTS[:-1]
    ),
)
