"""A whole run, from the configuration to result.json and report.html."""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import dessilbi_jax as dl
from dessilbi_jax import files, report, run_files
from dessilbi_jax.train import cutting, initial, said
from dessilbi_jax.train import growth as growing
from dessilbi_jax.train.callbacks import Callback, told
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.cutting import Stage
from dessilbi_jax.train.data_facts import Where
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.devices.mesh import describe, make_mesh
from dessilbi_jax.train.feeds import Rows, evaluation_size, make_feed
from dessilbi_jax.train.going_on import Begun, go_on
from dessilbi_jax.train.interrupt import Interrupted, Signals
from dessilbi_jax.train.order import used_in_order
from dessilbi_jax.train.prepare import prepare
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder import folder, outcome
from dessilbi_jax.train.run_folder.checkpoints import (
    KEPT,
    Checkpoints,
    Snapshot,
)
from dessilbi_jax.train.run_folder.disk_told import disk_told
from dessilbi_jax.train.run_folder.lock import alone
from dessilbi_jax.train.run_folder.records import Records, record_steps
from dessilbi_jax.train.run_folder.weights import save_weights
from dessilbi_jax.train.step import Evaluate, TrainState, make_evaluate, make_step
from dessilbi_jax.train.stepper import Stepper

# How often the loop waits for the device, to see whether the loss is still finite; and with
# several processes how often they ask each other whether a signal has come.
_LOOK_EVERY, _AGREE_EVERY = 50, 10


def fit(
    config: TrainConfig,
    out: str | Path,
    *,
    model: Any = None,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
    preset: str = "",
    command: str = "",
    data_dir: str | Path | None = None,
    text: str | Path | None = None,
    tokenizer: str | Path | None = None,
    init: str | Path | None = None,
    mesh: str = "auto",
    checkpoint_steps: int | None = None,
    keep: int = KEPT,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a network as `config` says and writes everything about it into a folder.

    The folder gets config.json, metrics.jsonl (one line a record), path.npz (the solution path),
    norms.npz, checkpoints/, weights/ (the parameters at the start, at the ends of epochs and at
    the end, to rewind to), and at the end result.json and report.html. All random choices derive
    from the seed and the step, so a run that was stopped and resumed ends with the same weights,
    bit for bit, as one that was not, on the same machine, devices and versions.

    In a run of several processes (`processes.start`) each of them calls this with the same
    arguments and a folder that all can see; the first one writes.

    Args:
        config: what to train.
        out: the run's folder; made if it is not there.
        model: a network of one's own, where `config.network` is None: a Flax NNX module that holds
            parameters and batch statistics only, from a batch of inputs to logits, with its initial
            weights. It is not changed. Of such a run tickets are drawn from its path
            (`dl.SolutionPath.load`) and cut out by `dl.slim`.
        data: one's own data, where `config.dataset` is None: (train, test), each (inputs, labels)
            as `data.from_arrays` has them, or a `data.Source`.
        callbacks: told of each record, and closed at the end, as `callbacks.Callback` has it;
            `callbacks.Csv` and `callbacks.TensorBoard` are two.
        preset: name of the run, kept in config.json.
        command: the command line, kept in config.json.
        data_dir: where prepared data sets are, as `data.load` has it.
        text: the file that the data set "text" reads.
        tokenizer: a tokenizer file for it; by default its tokens are bytes.
        init: weights to start from instead of drawing them: the folder of a run (its last ones),
            one of the files in its weights/, or a state dict of PyTorch, as `models.load_torch`
            has it. A head for another number of classes is drawn anew.
        mesh: the devices, as `make_mesh` has it: "auto", "one", "data=4,fsdp=2", … A run may be
            resumed on another mesh, though then not bit for bit.
        checkpoint_steps: write a checkpoint each so many steps, besides those at the ends of
            epochs.
        keep: how many of the last checkpoints are kept, besides the one with the best held-out
            accuracy.
        resume: go on with the run in `out`, which must have the same configuration; "auto": if
            there is one.
        overwrite: delete the run in `out` first. Only files of a run are ever deleted.
        progress: what to print; by default a `Progress`, quiet where there is no terminal.

    Returns:
        What result.json holds: `test_accuracy`, `test_projected_accuracy`, `test_loss` (the test
        rows are used here only), `density`, `asked_density`, `settled`, `parameters`, `steps`,
        `skipped`, `seconds`, `mesh`, `layers`, `cut` (None, or the step of the cut and the
        `channels`, `flops` and `params` before and after it), and `lam`, every (step, λ) in force.
        A finished run that is resumed returns its result.

    Raises:
        ValueError: `resume` with another configuration, or no good checkpoint is left; too few
            rows for a batch; a network or data set of that name is unknown; a mesh that does not
            fit the devices; `init` of another network.
        FileExistsError: `out` holds another run, or files that are not of a run, or another
            process is writing it.
        FileNotFoundError: `resume=True` and no run in `out`, or the data is not in `data_dir`.
        OSError: the disk is full or not to be written; nothing that was written before is lost.
        FloatingPointError: the loss, or what batch statistics make of it, is no longer finite; or
            with `nonfinite="skip"` every step of an epoch was skipped.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was written. It is a
            KeyboardInterrupt.

    Example:
        >>> import tempfile
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=2, widths=(8,))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     result = fit(config, out)
        >>> result["steps"], result["asked_density"]
        (20, 0.05)
    """
    out, progress = Path(out), progress or Progress()
    if not processes.is_first():
        progress = Progress(io.StringIO(), lines=False)
    for name, value in (("checkpoint_steps", checkpoint_steps), ("keep", keep)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    # A run that goes on has its weights, and needs those it began with no more.
    if init is not None or not (resume and (out / run_files.CONFIG).exists()):
        config = dataclasses.replace(config, init=None if init is None else initial.digest(init))
    config = growing.started(config)
    devices = make_mesh(mesh)
    if folder.check(out, config, resume=resume, overwrite=overwrite) == "finished":
        return _finished(out)
    run = prepare(config, Where(data_dir, text, tokenizer), devices, init, model, data)
    if run.fresh:
        progress.note(f"drawn anew, as its size is another one: {', '.join(run.fresh)}")
    per_epoch, steps = run.facts.steps_per_epoch, run.steps
    project, cut_at, stage = jax.jit(_project), cutting.moment(config, steps), Stage.first(run)
    growth = growing.begin(config, run)

    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_told(out))
        stack.enter_context(alone(out))
        # Once more: before the lock was had, another process may have been here.
        todo = folder.check(out, config, resume=resume, overwrite=overwrite)
        if todo == "finished":
            return _finished(out)
        if todo == "resume":
            folder.check_data(out, run.facts.to_json())
        feed = make_feed(run.training, config, devices)
        stack.callback(feed.close)
        state, records, earlier = run.state, Records(out, config.seed), 0.0
        processes.meet("folder seen")
        if todo == "resume":
            begun = Begun(run, stage, state, growth)
            begun, earlier = go_on(out, begun, config, feed, records, devices, progress)
            run, stage, state, growth = begun
        elif processes.is_first():
            name, facts = preset or out.resolve().name, run.facts.to_json()
            where = describe(devices)
            asked = {"mesh": mesh, "checkpoint_steps": checkpoint_steps, "keep": keep}
            used = (
                run.network, run.state.params, run.state.stats, run.facts.input_shape,
                next(iter(run.held))[0].dtype,
            )  # fmt: skip
            folder.start(
                out, config, preset=name, command=command, data=facts, mesh=where, options=asked,
                order=used_in_order(*used),
            )  # fmt: skip
        growing.write(out, growth)
        processes.meet("folder made")
        began = time.monotonic()
        telling = stack.enter_context(told(callbacks, first=processes.is_first()))
        signals = stack.enter_context(Signals())
        checkpoints = stack.enter_context(Checkpoints(out / run_files.CHECKPOINTS, keep))

        def begin(stage: Stage, state: TrainState) -> tuple[Stepper, Evaluate]:
            skip = config.nonfinite == "skip"
            take = make_step(stage.network, stage.tx, feed.pick, skip=skip)
            return Stepper(take, feed, state), make_evaluate(stage.network)

        training, evaluate = begin(stage, state)
        if training.step == 0:
            save_weights(out, 0, state.params, state.stats)
        recorded = record_steps(per_epoch, config.epochs, config.records_per_epoch)
        recorded |= set() if cut_at is None else {cut_at}
        look_every = _LOOK_EVERY if jax.process_count() == 1 else _AGREE_EVERY
        alone_here = jax.process_count() == 1

        def diverged(at: int, what: str) -> FloatingPointError:
            checkpoints.wait()
            return said.diverged(at, what, config, out, per_epoch)

        progress.line(said.started(run, config, out))
        progress.begin(training.step)
        while training.step < steps:
            if growth is not None and growing.due(config, growth, training.step, run):
                run, state, growth, plan = growing.look(run, config, growth, state, devices)
                progress.note(growing.said(growth))
                if plan is not None:
                    records.grow(state.opt_state, plan)
                    stage = Stage.first(run)
                    training, evaluate = begin(stage, state)
                    save_weights(out, training.step, state.params, state.stats)
                growing.write(out, growth)
            if training.step == cut_at and stage.plan is None:
                stage, state = cutting.cut(run, config, state, devices)
                training, evaluate = begin(stage, state)
                progress.note(cutting.said(run, stage.plan))
            state, step = training.advance(), training.step
            epoch_ends = step % per_epoch == 0
            saves = epoch_ends or (checkpoint_steps is not None and step % checkpoint_steps == 0)
            stopping, accuracy = 0, None

            if step in recorded or saves or step % look_every == 0:
                stopping = processes.any_process(signals.received)
            elif alone_here:
                stopping = signals.received
            drawn = progress.due()
            if step in recorded or saves or stopping or step % look_every == 0 or drawn:
                loss, bad = state.mean_loss()
                if bad >= 0:
                    raise diverged(bad, "loss")
                if drawn:
                    progress.live(step, steps, loss)

            if step in recorded:
                accuracy, held_loss = evaluate(state.params, state.stats, run.held)
                projected_accuracy = accuracy  # of what has been cut
                if stage.plan is None:
                    projected = project(state.params, state.opt_state)
                    projected_accuracy, _ = evaluate(projected, state.stats, run.held)
                if not math.isfinite(held_loss):
                    raise diverged(step, "held-out loss")
                skipped = int(state.skipped)
                if epoch_ends and skipped - records.skipped(step - per_epoch) == per_epoch:
                    raise diverged(step, "loss of every step of an epoch")
                record = run_files.Record(
                    step=step,
                    epoch=step / per_epoch,
                    loss=None if math.isnan(loss) else loss,
                    learning_rate=float(run.rate(step - 1)),
                    lam=outcome.lam_in_force(state),
                    accuracy=accuracy,
                    held_out_loss=held_loss,
                    projected_accuracy=projected_accuracy,
                    skipped=skipped,
                    seconds=earlier + time.monotonic() - began,
                    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                )
                seen = None if stage.plan is not None else (state.params, state.opt_state)
                record = records.add(record, seen)
                for each in telling:
                    each.record(step, record.to_json())
                training.state = state = state.recorded()
                if epoch_ends:
                    progress.epoch(record.to_json(), config.epochs)

            if step == steps or (epoch_ends and _kept(config, step // per_epoch)):
                save_weights(out, step, stage.whole(state.params), stage.whole(state.stats))
            if saves or stopping:
                if not bool(_all_finite((state.params, state.stats))):
                    raise diverged(step, "network")
                records.save()
                seconds = earlier + time.monotonic() - began
                content, at = records.content(), feed.get_state()
                grown = None if growth is None else growth.to_json()
                checkpoints.save(Snapshot(state, content, seconds, at, stage.plan, grown), accuracy)
            if stopping and step < steps:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped at step {step} of {steps}; go on with: {said.resuming(command)}",
                    stopping,
                )
        checkpoints.wait()

        if not records.path.density()[-1]:
            progress.note(said.never_opened(config, outcome.lam_in_force(state), steps))
        # The end: the test rows, once.
        test = Rows(run.source.test_part(), evaluation_size(run.source, config), devices)
        test_accuracy, test_loss = evaluate(state.params, state.stats, test)
        projected = state.params
        if stage.plan is None:
            projected = project(state.params, state.opt_state)
        result = {
            "test_accuracy": test_accuracy,
            "test_projected_accuracy": evaluate(projected, state.stats, test)[0],
            "test_loss": test_loss,
            "density": float(records.path.density()[-1]),
            "asked_density": None if config.grow and config.settle is None else config.density,
            "budget": config.budget,
            "settled": config.settle is not None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
            "steps": steps,
            "skipped": int(state.skipped),
            "seconds": earlier + time.monotonic() - began,
            "mesh": describe(devices),
            "groups": outcome.selected_groups(state)
            if stage.plan is None
            else outcome.groups_of_path(records.path),
            "growth": None if growth is None else growth.to_json(),
            "cut": None if stage.plan is None else cutting.facts(run, stage.plan, cut_at),
            "layers": outcome.layers(records.path),
            "lam": outcome.lam_estimates(state),
        }
        if processes.is_first():
            files.write_json(out / run_files.RESULT, result)
            report.write(out)
        processes.meet("result written")
    return result


def _finished(out: Path) -> dict[str, Any]:
    """Returns the result of a run that has ended, and writes its report if that was cut off."""
    result = files.read_json(out / run_files.RESULT)
    if processes.is_first() and not (out / run_files.REPORT).exists():
        report.write(out)
    return result


def _kept(config: TrainConfig, epoch: int) -> bool:
    """Returns whether the parameters at the end of an epoch are kept to rewind to."""
    return config.keep_every > 0 and epoch % config.keep_every == 0


def _project(params: Any, opt_state: Any) -> Any:
    """Returns the parameters, zero where Γ is."""
    return dl.project(params, dl.support(opt_state, params))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
