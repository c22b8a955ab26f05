"""What a run says where it ends otherwise than hoped for, each time with what to do."""

import shlex
from pathlib import Path

import jax

from dessilbi_jax import run_files
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.prepare import Setup
from dessilbi_jax.train.run_folder.checkpoints import newest


def started(run: Setup, config: TrainConfig, out: Path) -> str:
    """Returns the line with which a run begins: what is trained on what, where, and how long."""
    return (
        f"training {config.network or 'own network'} on {run.source.name}: "
        f"{run.training.train_size:,} rows, {run.facts.steps_per_epoch} steps an epoch, "
        f"{config.epochs} epochs, {sum(x.size for x in jax.tree.leaves(run.state.params)):,} "
        f"parameters, on {jax.device_count()} {jax.default_backend()} device(s), into {out}"
    )


def diverged(
    step: int, what: str, config: TrainConfig, out: Path, per_epoch: int
) -> FloatingPointError:
    """Returns the error that says where a run went wrong, what is left of it, and what to try."""
    return FloatingPointError(
        f"the {what} is not finite at step {step} (epoch {step / per_epoch:.2f}); last good "
        f"checkpoint: {newest(out / run_files.CHECKPOINTS) or 'none yet'}. Try a smaller learning "
        f"rate than {config.learning_rate:g} or a larger nu than {config.nu:g}"
    )


def never_opened(config: TrainConfig, lam: float | None, steps: int) -> str:
    """Returns what is to be said of a run that ended with nothing selected.

    Example:
        >>> config = TrainConfig(
        ...     network="lenet300", dataset="digits", epochs=1, lam=9.0, density=None)
        >>> never_opened(config, 9.0, 10)
        'nothing was selected in 10 steps: Γ never opened at λ = 9, nu 20 and kappa 1, so that there
        is no ticket to take; let λ be set, --lam auto, or train longer'
    """
    given = "none" if lam is None else f"{lam:.3g}"
    way = "ask for a larger --density" if config.lam == "auto" else "let λ be set, --lam auto"
    return (
        f"nothing was selected in {steps} steps: Γ never opened at λ = {given}, nu {config.nu:g} "
        f"and kappa {config.kappa:g}, so that there is no ticket to take; {way}, or train longer"
    )


def resuming(command: str) -> str:
    """Returns the command that goes on with what `command` began.

    Example:
        >>> resuming("dessilbi train demo --epochs 9 --out runs/a --overwrite")
        'dessilbi train --resume --out runs/a'
        >>> resuming("dessilbi retrain runs/a/ticket.npz --overwrite")
        'dessilbi retrain runs/a/ticket.npz --resume'
        >>> resuming("")
        'resume=True'
    """
    words = [w for w in shlex.split(command) if w not in ("--resume", "--overwrite")]
    if not words:
        return "resume=True"
    # All else is in the run's folder, but where the other processes are.
    if words[1:2] in (["train"], ["demo"]) and "--distributed" not in words:
        alone = [*words[:1], "train", "--resume", "--out"]
        if "--out" in words[:-1]:
            return shlex.join([*alone, words[words.index("--out") + 1]])
        named = [w for w in words if w.startswith("--out=")]
        preset = "demo" if words[1] == "demo" else words[2]
        return shlex.join([*alone, named[0].removeprefix("--out=") if named else f"runs/{preset}"])
    return shlex.join([*words, "--resume"])
