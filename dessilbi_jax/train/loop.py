"""A whole run, from the configuration to result.json and report.html."""

import math
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax import data, report
from dessilbi_jax._observe import observe
from dessilbi_jax.train import folder
from dessilbi_jax.train.checkpoint import Checkpoints, Snapshot, restore_latest
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.facts import DataFacts
from dessilbi_jax.train.interrupt import Interrupted, Signals
from dessilbi_jax.train.optim import make_optimizer, make_schedule, make_structure
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.records import Records, record_steps
from dessilbi_jax.train.step import (
    TrainState,
    device_batches,
    first_state,
    make_evaluate,
    make_step,
    split_network,
)
from dessilbi_jax.train.weights import save_weights

# How often the loop waits for the device, to see whether the loss is still finite.
_LOOK_EVERY = 50


def fit(
    config: TrainConfig,
    out: str | Path,
    *,
    preset: str = "",
    command: str = "",
    data_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a network as `config` says and writes everything about it into a folder.

    The folder gets config.json, metrics.jsonl (one line a record), path.npz (the solution path),
    norms.npz, checkpoints/, weights/ (the parameters at the start, at the ends of epochs and at
    the end, to rewind to), and at the end result.json and report.html. All random choices derive
    from the seed and the step, so a run that was stopped and resumed ends with the same weights,
    bit for bit, as one that was not, on the same machine and versions.

    Args:
        config: what to train.
        out: the run's folder; made if it is not there.
        preset: name of the run, kept in config.json.
        command: the command line, kept in config.json.
        data_dir: where prepared data sets are, as `data.load` has it.
        resume: go on with the run in `out`, which must have the same configuration.
        overwrite: delete the run in `out` first. Only files of a run are ever deleted.
        progress: what to print; by default a `Progress`, quiet where there is no terminal.

    Returns:
        What result.json holds: `test_accuracy`, `test_projected_accuracy` (the test images are
        used here only), `density`, `asked_density`, `parameters`, `steps`, `seconds`, `layers`,
        and `lam`, every (step, λ) in force. A finished run that is resumed returns its result.

    Raises:
        ValueError: `resume` with another configuration, or no good checkpoint is left; too few
            images for a batch; a network or data set of that name is unknown.
        FileExistsError: `out` holds another run, or files that are not of a run.
        FileNotFoundError: `resume` and no run is in `out`, or the data is not in `data_dir`.
        FloatingPointError: the loss, or what batch statistics make of it, is no longer finite.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written. It is a KeyboardInterrupt.

    Example:
        >>> import tempfile
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=2, widths=(8,))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     result = fit(config, out)
        >>> result["steps"], result["asked_density"]
        (20, 0.05)
    """
    out, progress = Path(out), progress or Progress()
    todo = folder.check(out, config, resume=resume, overwrite=overwrite)
    if todo == "finished":
        return folder.read_json(out / folder.RESULT)

    # Data. The test images stay on the host until the end.
    dataset = data.load(config.dataset, data_dir=data_dir)
    facts = DataFacts.of(dataset, config, data_dir)
    training, held_images, held_labels = facts.split(dataset)
    steps_per_epoch = facts.steps_per_epoch
    steps = config.epochs * steps_per_epoch
    images, labels = jnp.asarray(training.train_images), jnp.asarray(training.train_labels)
    held_batches = device_batches(held_images, held_labels)

    # Network, optimizer and their first state.
    model = facts.build(config)
    structure = make_structure(config, model)
    network, params, stats = split_network(model, dataset.mean, dataset.std)
    tx, rate = make_optimizer(config, steps, structure), make_schedule(config, steps)
    state = first_state(params, stats, tx)
    train_step = make_step(network, tx, seed=config.seed, augment=config.augment)
    evaluate, project = make_evaluate(network), jax.jit(_project)

    # The run's folder, new or as it was left.
    records, earlier = Records(out, config.seed), 0.0
    if todo == "new":
        name = preset or out.resolve().name
        folder.start(out, config, preset=name, command=command, data=facts.to_json())
    else:
        state, earlier = _restore(out, state, records, progress)
    began = time.monotonic()

    with Signals() as signals, Checkpoints(out / folder.CHECKPOINTS) as checkpoints:
        step = int(state.step)
        if step == 0:
            save_weights(out, 0, state.params, state.stats)
        recorded = record_steps(steps_per_epoch, config.epochs, config.records_per_epoch)
        progress.begin(step)
        order = None
        while step < steps:
            if order is None or step % steps_per_epoch == 0:
                order = jnp.asarray(
                    data.epoch_order(
                        config.seed, step // steps_per_epoch, len(labels), config.batch_size
                    )
                )
            state = train_step(state, images, labels, order)
            step += 1
            epoch_ends = step % steps_per_epoch == 0

            if step in recorded or step % _LOOK_EVERY == 0 or signals.received or progress.due():
                loss = _finite_loss(state, config, out, steps_per_epoch)
                if progress.due():
                    progress.live(step, steps, loss)

            if step in recorded:
                projected = project(state.params, state.opt_state)
                accuracy, held_loss = evaluate(state.params, state.stats, held_batches)
                if not math.isfinite(held_loss):
                    raise _diverged(step, "held-out loss", config, out, steps_per_epoch)
                line = {
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    "loss": loss,
                    "learning_rate": float(rate(step - 1)),
                    "lam": _lam_in_force(state),
                    "accuracy": accuracy,
                    "projected_accuracy": evaluate(projected, state.stats, held_batches)[0],
                    "seconds": earlier + time.monotonic() - began,
                }
                line = records.add(line, state.params, state.opt_state)
                state = state._replace(loss_sum=jnp.float32(0), loss_steps=jnp.int32(0))
                if epoch_ends:
                    progress.epoch(line, config.epochs)

            if step == steps or (epoch_ends and _kept(config, step // steps_per_epoch)):
                save_weights(out, step, state.params, state.stats)
            if epoch_ends or signals.received:
                records.save()
                seconds = earlier + time.monotonic() - began
                checkpoints.save(Snapshot(state, records.content(), seconds))
            if signals.received and step < steps:
                raise Interrupted(
                    f"stopped at step {step} of {steps}; go on with: {_resume(command)}",
                    signals.received,
                )

    # The end: the test images, once.
    test = device_batches(dataset.test_images, dataset.test_labels)
    projected = project(state.params, state.opt_state)
    result = {
        "test_accuracy": evaluate(state.params, state.stats, test)[0],
        "test_projected_accuracy": evaluate(projected, state.stats, test)[0],
        "density": float(records.path.density()[-1]),
        "asked_density": config.density,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "steps": steps,
        "seconds": earlier + time.monotonic() - began,
        "groups": _groups(state),
        "layers": _layers(records.path),
        "lam": _lam_estimates(state),
    }
    folder.write_json(out / folder.RESULT, result)
    report.write(out)
    return result


def _kept(config: TrainConfig, epoch: int) -> bool:
    """Returns whether the parameters at the end of an epoch are kept to rewind to."""
    return config.keep_every > 0 and epoch % config.keep_every == 0


def _restore(
    out: Path, state: TrainState, records: Records, progress: Progress
) -> tuple[TrainState, float]:
    """Returns the state a stopped run goes on from, and the time it had taken by then."""
    then, now = folder.read_json(out / folder.CONFIG).get("versions", {}), folder.versions()
    if changed := [f"{k} {then.get(k)}, now {v}" for k, v in now.items() if then.get(k) != v]:
        progress.note(f"versions have changed ({'; '.join(changed)}): not the same bit for bit")
    damage = records.damage()
    snapshot, notes = restore_latest(out / folder.CHECKPOINTS, state)
    for note in notes:
        progress.note(note)
    if snapshot is None:
        progress.note(f"no checkpoint yet in {out}: starting at the beginning")
        records.restore({})
        return state, 0.0
    if damage:
        progress.note(f"{damage}; the one kept with step {int(snapshot.state.step)} is put back")
    records.restore(snapshot.records)
    return snapshot.state, snapshot.seconds


def _project(params: Any, opt_state: Any) -> Any:
    """Returns the parameters, zero where Γ is."""
    return dl.project(params, dl.support(opt_state, params))


def _finite_loss(state: TrainState, config: TrainConfig, out: Path, steps_per_epoch: int) -> float:
    """Returns the mean training loss since the last record; raises once one was not finite."""
    bad, total, count = jax.device_get((state.bad_step, state.loss_sum, state.loss_steps))
    if bad >= 0:
        raise _diverged(int(bad), "loss", config, out, steps_per_epoch)
    return float(total) / int(count)


def _diverged(
    step: int, what: str, config: TrainConfig, out: Path, steps_per_epoch: int
) -> FloatingPointError:
    """Returns the error that says where a run went wrong, what is left of it, and what to try."""
    kept = [int(d.name) for d in (out / folder.CHECKPOINTS).glob("*") if d.name.isdecimal()]
    last = f"{out / folder.CHECKPOINTS / str(max(kept))}" if kept else "none yet"
    return FloatingPointError(
        f"the {what} is not finite at step {step} (epoch {step / steps_per_epoch:.2f}); last good "
        f"checkpoint: {last}. Try a smaller learning rate than {config.learning_rate:g} or a "
        f"larger nu than {config.nu:g}"
    )


def _resume(command: str) -> str:
    """Returns the command that resumes the run that `command` began."""
    words = [word for word in shlex.split(command) if word not in ("--resume", "--overwrite")]
    return shlex.join([*words, "--resume"]) if words else "resume=True"


def _lam_in_force(state: TrainState) -> float | None:
    """Returns λ, None before the first automatic estimate."""
    lam = float(dl.get_state(state.opt_state).lam)
    return lam if math.isfinite(lam) else None


def _lam_estimates(state: TrainState) -> list[list[float]]:
    """Returns every [step, λ]: the automatic estimates made, or [0, λ] of a λ that was given."""
    split = dl.get_state(state.opt_state)
    if isinstance(split.auto, tuple) and not split.auto:
        return [[0, float(split.lam)]]
    found = zip(split.auto.steps.tolist(), split.auto.lams.tolist(), strict=True)
    return [[step, lam] for step, lam in found if step > 0]


def _groups(state: TrainState) -> list[int]:
    """Returns how many groups are selected, and how many there are; one that spans leaves once."""
    seen = observe(dl.get_state(state.opt_state, merge=True))
    own = [chosen for path, chosen in seen.chosen.items() if path not in seen.ties]
    counts = [sum(int(chosen.sum()) for chosen in own), sum(chosen.size for chosen in own)]
    if seen.ties:
        numbers = np.concatenate([ties.ravel() for ties in seen.ties.values()])
        chosen = np.concatenate([seen.chosen[path].ravel() for path in seen.ties])
        counts[0] += np.unique(numbers[chosen]).size
        counts[1] += np.unique(numbers).size
    return counts


def _layers(path: dl.SolutionPath) -> list[dict[str, Any]]:
    """Returns what became of each structured leaf by the path's last record."""
    density = {name: float(values[-1]) for name, values in path.layer_density().items()}
    counts = {name: math.prod(units) for name, units in path.groups.items()}
    return [
        {
            "name": name,
            "shape": list(path.shapes[name]),
            "groups": counts[name],
            "selected_groups": round(density[name] * counts[name]),
            "density": density[name],
        }
        for name in path.groups
    ]
