"""What do κ and ν do to Γ along training, and to W with and without projection?

    python -m benchmarks kappa_nu --data-dir DIR [--budget cpu] [--share K/N]

Table 2 of the harness: Fig. 3, 4, 6, 8 and Tables 2 to 5 of the ICLR text. Along one DessiLBI run:
the density of Γ (share of the weights in its support), and the test accuracy of W and of W
projected on that support. `learning_rate` is κα in this library; it is the same for all κ.

λ is fixed for a network, as in the paper, so that κ and ν move the density and not λ with them.
Where the paper has no λ for a network, it is what `dl.auto` finds at κ = 1, ν = 100 for the
density named in the configuration, rounded to two digits, with its factors between filters and
single weights, whose norms are of different sizes; seed 0. As prox is homogeneous, Γ is
prox of κV at κλ: at a fixed rate, κ does what κ times as large a λ would do.

LeNet-300-100 has one weight a group and every pair of κ and ν; LeNet-5 one filter a group in
convolutions and one weight elsewhere, every κ at ν = 100 and every ν at κ = 1, at rate 0.01 (at
0.05 it diverges); 3 seeds each. On a GPU (`--budget gpu`): VGG-16 and ResNet-56 on CIFAR-10 by
filter, with the optimizer and λ of the papers' Fig. 5 (`rivals.papers`). Stops and goes on where it
was.
"""

import dataclasses
import functools
import re
import time
from typing import Any, NamedTuple

import optax

import dessilbi_jax as dl
from benchmarks.harness import cells, masks, options, results
from benchmarks.harness.cells import Cell, Runs
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import papers
from dessilbi_jax.train.devices.allocator import keep_memory

COST = {
    "smoke": "seconds",
    "cpu": "1 hour of one core",
    "gpu": "about 2e18 FLOPs of training; not measured",
}
KAPPAS = (1.0, 2.0, 5.0, 10.0)
NUS = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
KAPPA, NU = 1.0, 100.0  # where λ is chosen, and where the two arms cross
CROSS = tuple((kappa, nu) for nu in NUS for kappa in KAPPAS)
ARMS = tuple((kappa, nu) for kappa, nu in CROSS if kappa == KAPPA or nu == NU)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of the table.

    Attributes:
        setting: network, data and schedule.
        structure: of Γ, by name.
        lam: λ; None: chosen for `density`.
        density: what `dl.auto` aims at where λ is chosen.
        pairs: (κ, ν).
        seeds: how many.
        points: measurements an epoch; below 1, epochs between two of them are 1/points.
        published: whether the optimizer is `papers.optimizer`.
    """

    setting: Setting
    structure: str
    lam: float | None = None
    density: float | None = None
    pairs: tuple[tuple[float, float], ...] = CROSS
    seeds: int = 1
    points: float = 2.0
    published: bool = False

    @property
    def key(self) -> str:
        """All that a run depends on but κ, ν, λ and the seed."""
        return f"{self.setting.key} {self.structure}{' published' if self.published else ''}"


def _small(network: str, widths: tuple[int, ...], **case: Any) -> Case:
    setting = Setting(network, "mnist", epochs=2, rate=0.02, batch=16, widths=widths)
    return Case(setting, points=1.0, **case)


def _published(run: papers.Published) -> Case:
    return Case(run.setting, run.structure, run.lam, seeds=3, points=0.2, published=True)


BUDGETS = {
    "smoke": (
        _small("lenet300", (32, 16), structure="weights", density=0.5, pairs=CROSS[12:14]),
        _small("lenet5", (4, 6, 12), structure="filters", density=0.5, pairs=CROSS[12:13]),
    ),
    "cpu": (
        Case(Setting("lenet300", "mnist", 4, 0.05), "weights", density=0.5, seeds=3),
        Case(Setting("lenet5", "mnist", 2, 0.01), "filters", density=0.5, pairs=ARMS, seeds=3),
    ),
    "gpu": tuple(_published(run) for run in papers.FIGURE_5 if run.structure == "filters"),
}


class Lam(NamedTuple):
    """A constant λ.

    Attributes:
        value: λ, of kernels that `factors` does not name.
        factors: path and factor of kernels that have their own multiple of it.
    """

    value: float
    factors: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.value:g}" + "".join(f" {path}×{f:g}" for path, f in self.factors)


@functools.lru_cache(8)
def optimizer(
    case: Case, rate: optax.Schedule, kappa: float, nu: float, lam: Lam | None, steps: int
) -> optax.GradientTransformation:
    """DessiLBI with λ as it is, or found for the case's density."""
    if case.published and lam is not None:
        return papers.optimizer(rate, case.setting.momentum, case.structure, kappa, nu, lam.value)
    structure: Any = getattr(dl, case.structure)
    chosen: dict[str, Any] = {"lam": dl.auto(density=case.density, steps=steps)}
    if lam is not None:
        chosen = {"lam": lam.value}
        own = [(f"^{re.escape(path)}$", structure, {"lam": lam.value * factor})
               for path, factor in lam.factors]  # fmt: skip
        structure = [*own, (".*kernel$", structure)]
    return dl.dessilbi(
        rate, kappa, nu, structure=structure, momentum=case.setting.momentum, **chosen
    )


def measure(case: Case, kappa: float, nu: float, lam: Lam, seed: int, data_dir: Any) -> Any:
    """Density of Γ, and accuracy of W and of W on Γ's support, along one run."""
    work = Work(case.setting, seed, data_dir)
    tx = optimizer(case, work.rate(), kappa, nu, lam, work.steps())
    points = []

    def watch(step: int, params: Any, stats: Any, state: Any) -> None:
        support = dl.support(state)
        points.append(
            {
                "step": step,
                "density": round(masks.density(support), 5),
                "dense": work.accuracy(params, stats),
                "projected": work.accuracy(dl.project(params, support), stats),
            }
        )

    work.train(tx, watch=watch, every=max(1, round(work.steps(1) / case.points)))
    told = {"kappa": kappa, "nu": nu, "lam": lam.value, "seed": seed}
    return {"network": case.setting.network, **told, "points": points}


def find_lam(case: Case, data_dir: str | None) -> dict[str, Any]:
    """λ that opens Γ to the case's density by the end of a run at κ = 1, ν = 100; two digits."""
    work = Work(case.setting, 0, data_dir)
    tx = optimizer(case, work.rate(), KAPPA, NU, None, work.steps())
    ran = work.train(tx)
    state = dl.get_state(ran.state)
    paths = [leaf.path for leaf in dl.describe(ran.params, getattr(dl, case.structure)).rows
             if leaf.counts is not None]  # fmt: skip
    factors = [(path, float(f"{float(scale):.1e}"))
               for path, scale in zip(paths, state.auto.scale, strict=True)]  # fmt: skip
    return {
        "lam": float(f"{float(state.lam):.1e}"),
        "factors": [each for each in factors if each[1] != 1],
        "reached": round(masks.density(dl.support(ran.state)), 5),
        "dense": work.accuracy(ran.params, ran.stats),
    }


def table(case: Case, lam: Lam, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of each pair, point by point."""
    out = []
    for kappa, nu in case.pairs:
        runs = [row["points"] for row in rows if (row["kappa"], row["nu"]) == (kappa, nu)]
        points = [
            {
                "step": at[0]["step"],
                "density_percent": results.spread([100 * p["density"] for p in at]),
                "dense": results.spread([p["dense"] for p in at]),
                "projected": results.spread([p["projected"] for p in at]),
            }
            for at in zip(*runs, strict=True)
        ]
        told = {"network": case.setting.network, "kappa": kappa, "nu": nu, "lam": lam.value}
        out.append({**told, "seeds": len(runs), "points": points})
    return out


def show(lines: list[dict[str, Any]]) -> None:
    """Half way and at the end, line by line."""
    print(f"{'network':10}{'κ':>4}{'ν':>6}{'λ':>9}   {'Γ, W, W on Γ: half way':30}at the end")
    for line in lines:
        points = line["points"]
        parts = [
            f"{p['density_percent']['mean']:6.2f} % {p['dense']['mean']:7.2f} "
            f"{p['projected']['mean']:7.2f}"
            for p in (points[(len(points) - 1) // 2], points[-1])
        ]
        head = f"{line['network']:10}{line['kappa']:4g}{line['nu']:6g}{line['lam']:9.2g}"
        print(f"{head}   {'       '.join(parts)}")


def main() -> None:
    """Makes the table."""
    args = options.parsed(options.parser(__doc__, tuple(BUDGETS)))
    started = time.time()
    keep_memory()
    cases, name = BUDGETS[args.budget], options.name(args, "kappa_nu")
    runs = Runs(options.place(args, name))
    lams: list[Lam] = []
    chosen: list[dict[str, Any]] = []
    for case in cases:
        found: dict[str, Any] = {"lam": case.lam, "factors": [], "reached": None}
        if case.lam is None:
            key = f"lam {case.key} density={case.density:g} kappa={KAPPA:g} nu={NU:g}"
            found = runs.get(key, functools.partial(find_lam, case, args.data_dir))
        lams.append(Lam(found["lam"], tuple((path, f) for path, f in found["factors"])))
        chosen.append({key: found[key] for key in ("lam", "factors", "reached")})

    def cell(case: Case, lam: Lam, kappa: float, nu: float, seed: int) -> Cell:
        return Cell(
            f"{case.key} kappa={kappa:g} nu={nu:g} lam={lam} seed={seed}",
            functools.partial(measure, case, kappa, nu, lam, seed, args.data_dir),
            case.setting.epochs * (1.0 if case.setting.network == "lenet300" else 20.0),
        )

    wanted = [
        [cell(case, lam, *pair, seed) for pair in case.pairs for seed in range(case.seeds)]
        for case, lam in zip(cases, lams, strict=True)
    ]
    rows = cells.run(runs, [one for part in wanted for one in part], args.share)
    if rows is None:
        return
    lines = []
    for case, lam, part in zip(cases, lams, wanted, strict=True):
        keys = {one.key for one in part}
        lines += table(case, lam, [row for row in rows if row["key"] in keys])
    show(lines)
    result = {
        "config": {
            "cases": [dataclasses.asdict(case) | {"chosen": c}
                      for case, c in zip(cases, chosen, strict=True)],
            **cells.made_on(rows),
        },
        "table": lines,
    }  # fmt: skip
    print(results.write(name, result, started, options.folder(args)))


if __name__ == "__main__":
    main()
