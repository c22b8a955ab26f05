"""Where should the coupling stand: before the momentum (the paper) or behind it (the toolbox)?

    python -m benchmarks.placement --data-dir DIR [--epochs 6] [--seeds 5] [--density 0.05]

LeNet-300-100 on MNIST, ν in 20, 100, 500, λ automatic. For each run: held-out accuracy of the
dense weights W, of W projected on the support of Γ, and of the 5 % ticket of its path retrained
from the same initialisation for as many epochs. Chosen on held-out training images; the test
images are not touched. Stops and goes on where it was.
"""

import argparse
import functools
import time
from typing import Any

import optax

import dessilbi_jax as dl
from benchmarks.harness import cells
from benchmarks.harness.results import RESULTS, spread, write
from benchmarks.harness.work import Setting, Work

COST = {"cpu": "25 minutes on two cores"}

PEAK = 0.05
HELD_OUT = 5000
NUS = (20.0, 100.0, 500.0)
VARIANTS = ("paper", "toolbox")


def selecting(
    work: Work, nu: float, density: float, variant: str = "toolbox", at: float = 1.0
) -> optax.GradientTransformation:
    """DessiLBI on single weights for a run of `work`, with λ automatic."""
    return _selecting(work.rate(), work.setting.momentum, work.steps(), nu, density, variant, at)


@functools.lru_cache(8)  # one object for one setting: what is compiled for it is found again
def _selecting(
    rate: Any, momentum: float, steps: int, nu: float, density: float, variant: Any, at: float
) -> optax.GradientTransformation:
    return dl.dessilbi(
        rate, nu=nu, lam=dl.auto(density=density, steps=steps, at=at), momentum=momentum,
        variant=variant, structure=dl.weights,
    )  # fmt: skip


def run(
    setting: Setting, data_dir: str, variant: str, nu: float, seed: int, density: float
) -> dict[str, Any]:
    """One run and the retraining of its ticket, judged on held-out images."""
    work = Work(setting, seed, data_dir)
    path = dl.SolutionPath()
    params, _, state = work.train(
        selecting(work, nu, density, variant), every=work.steps(1),
        watch=lambda step, params, stats, state: path.record(step, state),
    )  # fmt: skip
    ticket = work.retrained(path.ticket(density=density).mask(params))

    def held_out(params: Any) -> float:
        return work.accuracy(params, split="held_out")

    return {
        "variant": variant,
        "nu": nu,
        "seed": seed,
        "density_reached": float(path.density()[-1]),
        "lam": float(dl.get_state(state).lam),
        "dense": held_out(params),
        "projected": held_out(dl.project(params, dl.support(state))),
        "retrained": held_out(ticket.params),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.05)
    args = parser.parse_args()
    started = time.time()
    setting = Setting("lenet300", "mnist", args.epochs, PEAK, held_out=HELD_OUT)
    rows = cells.run(cells.Runs(RESULTS / "placement.jsonl"), [
        cells.Cell(
            f"{variant} {nu:g} {seed} {args.epochs} {args.density}",
            functools.partial(run, setting, args.data_dir, variant, nu, seed, args.density),
        )
        for seed in range(args.seeds)
        for nu in NUS
        for variant in VARIANTS
    ]) or []  # fmt: skip
    table = []
    for variant in VARIANTS:
        for nu in NUS:
            line: dict[str, Any] = {"variant": variant, "nu": nu}
            for name in ("dense", "projected", "retrained", "density_reached"):
                line[name] = spread(
                    [r[name] for r in rows if (r["variant"], r["nu"]) == (variant, nu)]
                )
            table.append(line)
            print(variant, nu, {k: v["mean"] for k, v in line.items() if isinstance(v, dict)})
    config = {"epochs": args.epochs, "seeds": args.seeds, "density": args.density, "peak": PEAK,
              "momentum": setting.momentum, "batch": setting.batch}  # fmt: skip
    print(write("placement", {"config": config, "table": table}, started))


if __name__ == "__main__":
    main()
