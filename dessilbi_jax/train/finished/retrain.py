"""Training the network of a ticket from rewound parameters."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import data, files, models, provenance, run_files
from dessilbi_jax.dependency import Reason
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts, Where
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Rows, make_feed
from dessilbi_jax.train.finished.trained import (
    RETRAINED,
    Trained,
    closed_masks,
    digest,
    find_run,
    is_retrained,
    load_run,
    on_one_device,
    target_of,
    ticket_facts,
    with_head,
)
from dessilbi_jax.train.finished.unfinished import REQUEST, Unfinished, snapshot_of
from dessilbi_jax.train.interrupt import Interrupted, Signals
from dessilbi_jax.train.optim import make_retraining, trace_channels
from dessilbi_jax.train.prepare import placed_state
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.lock import locked
from dessilbi_jax.train.run_folder.weights import NAME, step_of, write_weights
from dessilbi_jax.train.said import resuming
from dessilbi_jax.train.step import Batch, TrainState, make_evaluate, make_step
from dessilbi_jax.train.stepper import Stepper
from dessilbi_jax.tree import leaf_paths


def retrain(
    file: str | Path,
    *,
    start: str = "init",
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    run: str | Path | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains the network of a ticket, all else at zero, and writes it into a folder.

    The optimizer is that of the run without Γ. Weights outside the ticket stay at zero, and with
    them all of each channel that the ticket empties. The held-out images are those of the run.
    With another data set the layer that gives the outputs starts anew.

    The folder gets weights.safetensors and result.json, at once or, on any error, not at all. While
    it goes on a folder of the same name with the ending .unfinished holds checkpoints, one at the
    end of each epoch and one when a signal comes, from which it goes on as if it had not been
    stopped; it is deleted at the end.

    Args:
        file: a ticket of `dessilbi ticket`.
        start: "init", "end", or the number of an epoch whose parameters the run keeps.
        epochs: by default those of the run.
        learning_rate: by default that of the run.
        seed: of the order of the batches, augmentation, and a new head; by default the run's.
        out: the folder, by default `retrained` beside the ticket.
        run: the run's folder, where it has moved.
        dataset: another data set.
        data_dir: as `data.load` has it; by default where the run found its images.
        resume: go on with the retraining into `out` that was stopped; of one that has ended, its
            result is returned.
        overwrite: replace a folder that this wrote, and a retraining that was stopped.
        command: the command line, kept in result.json.
        progress: what to print.

    Returns:
        What result.json holds; among it `held_out` and `test`, each with the accuracies `dense`
        (of the run), `projected` (on the ticket, without retraining) and `retrained`.

    Raises:
        FileNotFoundError: no ticket, run or images.
        FileExistsError: the folder is there, or a retraining that was stopped.
        ValueError: a ticket that does not fit, a start of which no parameters are kept, or `resume`
            of what was asked for otherwise.
        FloatingPointError: the loss is no longer finite; nothing is left.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was written.
    """
    file, progress = Path(file), progress or Progress()
    ticket = dl.Ticket.load(file)
    folder_of_run = find_run(ticket, file, run)
    target = target_of(file, out)
    if resume and overwrite:
        raise ValueError("--resume goes on and --overwrite starts anew: give one of the two")
    ended = load_run(folder_of_run)
    step = step_of(folder_of_run, start, ended.facts.steps_per_epoch)
    begun = load_run(folder_of_run, step)
    given: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        "dataset": dataset,
    }
    given = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(ended.config, **given)
    request = {
        "ticket": digest(ticket.masks),
        "run": str(folder_of_run.resolve()),
        "from": start,
        "config": config.to_json(),
    }
    unfinished = Unfinished(target)
    if resume and not unfinished.place.exists() and is_retrained(target):
        return files.read_json(target / run_files.RESULT)
    goes_on = unfinished.check(request, resume=resume, overwrite=overwrite)
    # What is replaced at the end was agreed upon when it began.
    replaces = files.read_json(unfinished.place / REQUEST)["overwrite"] if goes_on else overwrite
    ours: dict[str, Any] = {"kind": RETRAINED, "own": run_files.RETRAINED_FILES}
    folder.check_target(target, overwrite=replaces, **ours)
    began = time.monotonic()

    head: list[str] = []
    same = config.dataset == ended.config.dataset
    if same:
        source, facts = ended.facts.load(data_dir), ended.facts
        trained, own = begun._replace(config=config), ticket
    else:
        assert config.dataset is not None
        where = Where(data_dir or ended.facts.data_dir)
        source = data.load(config.dataset, data_dir=where.data_dir, image_size=config.image_size)
        facts = DataFacts.of(source, config, where)
        trained, head = _transferred(begun, config, facts)
        own = with_head(ticket, trained.params, head)
    masks = closed_masks(own, trained.channels(), trained.params)
    training, held_part = facts.split(source)
    held = on_one_device(held_part, source, config)
    evaluate = make_evaluate(trained.network())
    with locked(unfinished.place):
        if not goes_on:
            unfinished.begin({**request, "overwrite": overwrite})
        try:
            state, history, earlier = _train(
                trained, masks, training, held, evaluate, progress, unfinished, goes_on, command
            )
        except FloatingPointError:
            unfinished.remove()
            raise

    test = on_one_device(source.test_part(), source, config)
    measured = {}
    for split, batches in (("held_out", held), ("test", test)):
        after = evaluate(state.params, state.stats, batches)[0]
        before: dict[str, float | None] = {"dense": None, "projected": None}
        if same:
            projected = dl.project(ended.params, masks)
            before = {
                name: evaluate(params, ended.stats, batches)[0]
                for name, params in (("dense", ended.params), ("projected", projected))
            }
        measured[split] = {**before, "retrained": after}
    result = {
        "kind": RETRAINED,
        "preset": ended.preset,
        "run": str(folder_of_run.resolve()),
        "config": config.to_json(),
        "data": facts.to_json(),
        "from": start,
        "step": step,
        "head": head,
        "ticket": ticket_facts(ticket, file),
        **measured,
        "epochs": history,
        "steps": int(state.step),
        "seconds": earlier + time.monotonic() - began,
        "command": command,
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    with folder.written_at_once(target, overwrite=replaces, **ours) as part:
        write_weights(part / NAME, state.params, state.stats)
        files.write_json(part / run_files.RESULT, result)
    unfinished.remove()
    return result


def _transferred(
    begun: Trained, config: TrainConfig, facts: DataFacts
) -> tuple[Trained, list[str]]:
    """Returns the network for other images, and the leaves of its head, which start anew."""
    fresh = facts.build(config)
    groups = trace_channels(fresh)
    reasons = groups.reasons.items()
    head = sorted({path for (path, _), why in reasons if why.reason is Reason.OUTPUT})
    new = begun._replace(config=config, facts=facts)
    network_leaves = dict(leaf_paths(_params(fresh)))
    kept = dict(leaf_paths(begun.params))
    for path, leaf in network_leaves.items():
        if path not in head and kept[path].shape != leaf.shape:
            raise ValueError(
                f"the network does not go with {facts.dataset}: {path} would have shape "
                f"{tuple(leaf.shape)} for its images, the ticket's has {kept[path].shape}"
            )
    leaves = [leaf if path in head else kept[path] for path, leaf in network_leaves.items()]
    params = jax.tree.unflatten(jax.tree.structure(_params(fresh)), leaves)
    return new._replace(params=params), head


def _params(model: models.Network) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _train(
    trained: Trained,
    masks: Any,
    training: data.Source,
    held: Rows,
    evaluate: Callable[[Any, Any, Iterable[Batch]], tuple[float, float]],
    progress: Progress,
    unfinished: Unfinished,
    goes_on: bool,
    command: str,
) -> tuple[TrainState, list[dict[str, Any]], float]:
    """Trains under masks; returns the last state, a line an epoch, and the time of earlier starts.

    Raises:
        FloatingPointError: the loss is no longer finite.
        Interrupted: a signal came; a checkpoint was written.
    """
    config, per_epoch, mesh = trained.config, trained.facts.steps_per_epoch, make_mesh("one")
    tx = make_retraining(config, config.epochs * per_epoch, masks)
    state = placed_state(dl.project(trained.params, masks), trained.stats, tx, mesh)
    history: list[dict[str, Any]] = []
    earlier, began, steps = 0.0, time.monotonic(), config.epochs * per_epoch
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(contextlib.closing(make_feed(training, config, mesh)))
        if goes_on and (found := unfinished.restore(state, progress)):
            (state, _, earlier, position, *_), history = found
            feed.set_state(position)
        signals = stack.enter_context(Signals())
        kept = stack.enter_context(unfinished.keeping())
        take = make_step(trained.network(), tx, feed.pick, skip=config.nonfinite == "skip")
        stepper = Stepper(take, feed, state)
        progress.begin(stepper.step)
        while stepper.step < steps:
            state, step = stepper.advance(), stepper.step
            stopping = signals.received
            if step % per_epoch == 0:
                accuracy, held_loss = evaluate(state.params, state.stats, held)
                loss, bad = state.mean_loss()
                if bad >= 0 or not math.isfinite(loss + held_loss):
                    at = bad if bad >= 0 else step
                    raise FloatingPointError(
                        f"the loss is not finite at step {at} of the retraining; nothing was "
                        "written. Try a smaller --learning-rate than "
                        f"{config.learning_rate:g}"
                    )
                epoch = step // per_epoch
                line = {"step": step, "epoch": epoch, "loss": loss, "accuracy": accuracy}
                history.append(line)
                stepper.state = state = state.recorded()
                progress.epoch(line, config.epochs)
            if step < steps and (stopping or step % per_epoch == 0):
                seconds = earlier + time.monotonic() - began
                kept.save(snapshot_of(state, history, seconds, feed.get_state()))
            if stopping and step < steps:
                kept.wait()
                raise Interrupted(
                    f"stopped at step {step} of {steps} of the retraining; go on with: "
                    f"{resuming(command)}",
                    stopping,
                )
    return stepper.state, history, earlier
