"""The commands that train and describe."""

import argparse
import math
import os
import shlex
from pathlib import Path
from typing import Any

from dessilbi_jax import files, run_files
from dessilbi_jax.cli.parser import given_options
from dessilbi_jax.train.config import REMOVABLE
from dessilbi_jax.train.presets import get_preset, with_options


def train(args: argparse.Namespace, words: list[str]) -> None:
    """Trains, and prints a summary."""
    if args.preset is None:
        _take_from_run(args)
        config = with_options(args.config, given_options(args))
    else:
        preset = get_preset(args.preset)
        config = with_options(preset.config, given_options(args))
        args.mesh = args.mesh or preset.mesh
    out = Path(args.out or f"runs/{args.preset}")
    command = shlex.join(["dessilbi", *words])
    if config.dataset == "text" and args.text is None:
        raise ValueError(f"{args.preset} trains on a text: give the file with --text FILE")
    _join(args)

    from dessilbi_jax.train.devices import processes
    from dessilbi_jax.train.loop import fit
    from dessilbi_jax.train.progress import Progress

    if args.resume and (out / run_files.RESULT).exists():
        state = "is finished already, there is nothing to resume"
    else:
        state = "is finished"
    result = fit(
        config,
        out,
        preset=args.preset,
        command=command,
        callbacks=_callbacks(args),
        data_dir=args.data_dir,
        text=args.text,
        tokenizer=args.tokenizer,
        init=args.init,
        mesh=args.mesh,
        checkpoint_steps=args.checkpoint_steps,
        keep=args.keep,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=Progress(lines=not args.quiet),
    )
    if not processes.is_first():
        return
    print(f"The run in {out} {state}.")
    print(summary(result))
    if result.get("settled") and config.structure in REMOVABLE and not args.distributed:
        _cut(out, args, command)
    print(f"  report     {out / run_files.REPORT}")
    cut_out = (out / run_files.SLIM).exists()
    after = ["evaluate", str(out / run_files.SLIM)] if cut_out else ["ticket", str(out)]
    if (out / run_files.TICKET).exists() and not cut_out:
        after = ["retrain", str(out / run_files.TICKET)]
    if result["density"]:  # else there is no ticket to take, as has been said
        print(f"  next       {shlex.join(['dessilbi', *after])}")


def _callbacks(args: argparse.Namespace) -> list[Any]:
    """Returns what else is told of each record."""
    from dessilbi_jax.train.callbacks import Csv, TensorBoard

    made: list[Any] = [] if args.csv is None else [Csv(args.csv)]
    return made if args.tensorboard is None else [*made, TensorBoard(args.tensorboard)]


def _take_from_run(args: argparse.Namespace) -> None:
    """Takes what was not said from the run that is to go on.

    Raises:
        ValueError: no preset, and no run to go on with.
        FileNotFoundError: there is no run in the folder.
    """
    if not args.resume or not args.out:
        raise ValueError(
            "the following arguments are required: PRESET (see dessilbi train --help); a run goes "
            "on with --resume --out DIR alone"
        )
    from dessilbi_jax.train.finished.trained import read_run

    run = Path(args.out)
    if not (run / run_files.CONFIG).exists():
        raise FileNotFoundError(f"nothing to resume: there is no run in {run}")
    args.preset, args.config, facts = read_run(run)
    then = files.read_json(run / run_files.CONFIG).get("options") or {}
    for name, value in (
        ("data_dir", facts.data_dir), ("text", facts.text), ("tokenizer", facts.tokenizer),
        ("mesh", then.get("mesh", "auto")), ("checkpoint_steps", then.get("checkpoint_steps")),
    ):  # fmt: skip
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.keep = then.get("keep") or args.keep


def _cut(run: Path, args: argparse.Namespace, command: str) -> None:
    """Cuts the channels that a settled run has left empty, where that has not been done."""
    from dessilbi_jax import report
    from dessilbi_jax.train.finished.make_slim import make_slim
    from dessilbi_jax.train.finished.take_ticket import take_ticket

    slim = run / run_files.SLIM
    if not slim.exists():
        result = files.read_json(run / run_files.RESULT)
        last = int((result.get("cut") or {"step": result["steps"]})["step"])
        where = {"data_dir": args.data_dir, "overwrite": True, "command": command}
        _, ticket = take_ticket(run, size={"at": last}, **where)
        made = make_slim(ticket, out=slim, **where)
        report.write(run)
    else:
        made = files.read_json(slim / run_files.RESULT)
    dense, small = (made["networks"][name] for name in ("dense", "slim"))
    print(
        f"  slim       {small['parameters']:,} of {dense['parameters']:,} parameters "
        f"({percent(small['parameters'] / dense['parameters'])}), {small['flops']:,} of "
        f"{dense['flops']:,} FLOPs, in {slim}"
    )
    print(f"  load it    dl.load_slim({str(slim)!r})")


def _join(args: argparse.Namespace) -> None:
    """Joins the other processes of the run, if there are any."""
    given = (args.coordinator, args.processes, args.process)
    if args.distributed:
        from dessilbi_jax.train.devices import processes
        from dessilbi_jax.train.progress import Progress

        processes.start(*given, told=Progress().note)
    elif any(value is not None for value in given):
        raise ValueError("--coordinator, --processes and --process belong to --distributed")


def summary(result: dict[str, Any]) -> str:
    """Returns the outcome of a run in a few lines, from what result.json holds.

    Example:
        >>> print(summary({"test_accuracy": 0.98, "test_projected_accuracy": 0.97,
        ...     "test_loss": 0.07,
        ...     "density": 0.048, "asked_density": 0.05, "steps": 100, "seconds": 2.5,
        ...     "layers": [{"shape": [10, 100]}]}))
          accuracy   98.0 % dense, 97.0 % projected: with all but the selected weights at zero,
                     not retrained (test data)
          loss       0.0700 dense (test data)
          density    4.8 % of 1,000 structured weights, 5.0 % asked for
          training   100 steps in 2.5 s
    """
    sizes = [math.prod(layer["shape"]) for layer in result["layers"]]
    asked = result["asked_density"]
    wanted = "λ given" if asked is None else f"{percent(asked)} asked for"
    if result.get("budget"):
        wanted = f"{run_files.budget_in_words(*result['budget'])} asked for"
    accuracy = (
        f"{percent(result['test_accuracy'])} dense, "
        f"{percent(result['test_projected_accuracy'])} projected: with all but the selected "
        "weights at zero, not retrained"
    )
    settled = result.get("settled", False)
    if settled:
        accuracy = (
            f"{percent(result['test_accuracy'])} of the sparse network that the run ends with"
        )
    cut = []
    if result.get("cut"):
        (channels, left), (flops, less) = (result["cut"][name] for name in ("channels", "flops"))
        cut = [
            f"  cut        at step {result['cut']['step']:,} to {left:,} of {channels:,} channels; "
            f"{percent(less / flops)} of the FLOPs a step"
        ]
    return "\n".join(
        [
            f"  accuracy   {accuracy} (test data)",
            f"  loss       {result['test_loss']:.4f}{'' if settled else ' dense'} (test data)",
            f"  density    {percent(result['density'])} of {sum(sizes):,} structured weights, "
            f"{wanted}",
            *cut,
            f"  training   {result['steps']:,} steps in {result['seconds']:.1f} s",
        ]
    )


def prepare(args: argparse.Namespace) -> None:
    """Prepares a data set, and says how to train on it."""
    from dessilbi_jax import data
    from dessilbi_jax.train.presets import PRESETS
    from dessilbi_jax.train.progress import Progress

    folder = data.prepare(args.name, args.data_dir, args.source, told=Progress(lines=True).line)
    print(f"{args.name} is in {folder}.")
    presets = [name for name, preset in PRESETS.items() if preset.config.dataset == args.name]
    where = "" if args.data_dir is None else f" --data-dir {shlex.quote(args.data_dir)}"
    for name in presets[:1]:
        print(f"  next       dessilbi train {name}{where}")


def describe(args: argparse.Namespace) -> None:
    """Prints a preset, its configuration, and the groups of its network."""
    preset = get_preset(args.preset)
    config = with_options(preset.config, given_options(args))

    import dessilbi_jax as dl
    from dessilbi_jax import models
    from dessilbi_jax.train.optim import make_structure
    from dessilbi_jax.train.step import split_network

    shape = preset.input_shape
    if len(shape) == 1 and config.context is not None:
        shape = (config.context,)
    assert config.network is not None  # a preset names it
    model = models.build(
        config.network,
        input_shape=shape,
        classes=preset.classes,
        seed=config.seed,
        widths=config.widths,
    )
    structure = make_structure(config, model)
    _, params, _ = split_network(model, [0.0], [1.0])
    print(preset, end="\n\n")
    for name, value in config.to_json().items():
        print(f"  {name:18}{value}")
    print()
    lam = None if config.lam == "auto" else config.lam
    print(dl.describe(params, structure, lam))
    if isinstance(structure, dl.Channels):
        print(f"\nwhat can be cut out, for one row of the batch:\n{structure.groups}")


def info() -> None:
    """Prints versions and devices."""
    import jax

    from dessilbi_jax.provenance import versions

    for package, version in versions().items():
        print(f"{package:14}{version}")
    print(f"{'devices':14}{', '.join(map(str, jax.devices()))}")
    print(f"{'cores':14}{os.cpu_count()}")


def percent(share: float) -> str:
    """Returns a share as a percentage, with enough digits for a small one."""
    return f"{share:.1%}".replace("%", " %") if share >= 0.01 else f"{share:.2%}".replace("%", " %")
