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
    find_run,
    load_run,
    on_one_device,
    target_of,
    ticket_facts,
    with_head,
)
from dessilbi_jax.train.optim import make_retraining, trace_channels
from dessilbi_jax.train.prepare import placed_state
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.weights import NAME, step_of, write_weights
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
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains the network of a ticket, all else at zero, and writes it into a folder.

    The optimizer is that of the run without Γ. Weights outside the ticket stay at zero, and with
    them all of each channel that the ticket empties. The held-out images are those of the run.
    With another data set the layer that gives the outputs starts anew.

    The folder gets weights.safetensors and result.json, at once or, on any error, not at all.

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
        overwrite: replace a folder that this wrote.
        command: the command line, kept in result.json.
        progress: what to print.

    Returns:
        What result.json holds; among it `held_out` and `test`, each with the accuracies `dense`
        (of the run), `projected` (on the ticket, without retraining) and `retrained`.

    Raises:
        FileNotFoundError: no ticket, run or images.
        FileExistsError: the folder is there.
        ValueError: a ticket that does not fit, or a start of which no parameters are kept.
        FloatingPointError: the loss is no longer finite.
    """
    file, progress = Path(file), progress or Progress()
    ticket = dl.Ticket.load(file)
    folder_of_run = find_run(ticket, file, run)
    target = target_of(file, out)
    folder.check_target(target, overwrite=overwrite, kind=RETRAINED)
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
    began = time.monotonic()

    head: list[str] = []
    same = config.dataset == ended.config.dataset
    if same:
        source, facts = ended.facts.load(data_dir), ended.facts
        trained, own = begun._replace(config=config), ticket
    else:
        where = Where(data_dir or ended.facts.data_dir)
        source = data.load(config.dataset, data_dir=where.data_dir, image_size=config.image_size)
        facts = DataFacts.of(source, config, where)
        trained, head = _transferred(begun, config, facts)
        own = with_head(ticket, trained.params, head)
    masks = closed_masks(own, trained.channels(), trained.params)
    training, held_part = facts.split(source)
    held = on_one_device(held_part, source, config)
    evaluate = make_evaluate(trained.network())
    state, history = _train(trained, masks, training, held, evaluate, progress)

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
        "seconds": time.monotonic() - began,
        "command": command,
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    with folder.written_at_once(target, overwrite=overwrite, kind=RETRAINED) as part:
        write_weights(part / NAME, state.params, state.stats)
        files.write_json(part / run_files.RESULT, result)
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
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Trains under masks; returns the last state and a line an epoch."""
    config, per_epoch, mesh = trained.config, trained.facts.steps_per_epoch, make_mesh("one")
    tx = make_retraining(config, config.epochs * per_epoch, masks)
    state = placed_state(dl.project(trained.params, masks), trained.stats, tx, mesh)
    history = []
    progress.begin(0)
    with contextlib.closing(make_feed(training, config, mesh)) as feed:
        take = make_step(trained.network(), tx, feed.pick, skip=config.nonfinite == "skip")
        stepper = Stepper(take, feed, state)
        for epoch in range(1, config.epochs + 1):
            state = stepper.advance(per_epoch)
            accuracy, held_loss = evaluate(state.params, state.stats, held)
            loss, bad = state.mean_loss()
            if bad >= 0 or not math.isfinite(loss + held_loss):
                at = bad if bad >= 0 else stepper.step
                raise FloatingPointError(
                    f"the loss is not finite at step {at} of the retraining; nothing was written. "
                    f"Try a smaller --learning-rate than {config.learning_rate:g}"
                )
            line = {"step": stepper.step, "epoch": epoch, "loss": loss, "accuracy": accuracy}
            history.append(line)
            progress.epoch(line, config.epochs)
            stepper.state = state.recorded()
    return stepper.state, history
