"""The commands on finished runs: ticket, retrain, slim, evaluate, interpret."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from dessilbi_jax import run_files
from dessilbi_jax.cli.parse_finished import SIZES
from dessilbi_jax.cli.train import percent
from dessilbi_jax.text import columns


def ticket(args: argparse.Namespace, words: list[str]) -> None:
    """Takes a ticket and prints its table."""
    from dessilbi_jax.train.finished.take_ticket import take_ticket

    size = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if "at" in size and (args.per_layer or args.minimum is not None or args.rank is not None):
        raise ValueError("--at is the support as it was: no --per-layer, --minimum or --rank")
    taken, file = take_ticket(
        args.run,
        size=size,
        per_layer=args.per_layer,
        minimum=1 if args.minimum is None else args.minimum,
        rank=args.rank or "entry",
        out=args.out,
        test=args.test,
        data_dir=args.data_dir,
        overwrite=args.overwrite,
        command=shlex.join(["dessilbi", *words]),
    )
    print(taken)
    for split, found in taken.card["accuracy"].items():
        print(
            f"accuracy: {percent(found['dense'])} dense, {percent(found['projected'])} projected "
            f"on the ticket, not retrained ({split} data)"
        )
    print(_left(taken.card["left"]))
    print(f"The ticket is in {file}.")
    _renew(Path(args.run), file)
    print(f"  next       {shlex.join(['dessilbi', 'retrain', str(file)])}")


def _left(left: dict[str, list[int]]) -> str:
    """Returns what would be left after the cut.

    Example:
        >>> print(_left({"channels": [3, 8], "params": [10, 40], "flops": [20, 100]}))
        can be cut out: 5 of 8 channels; 10 of 40 parameters (25.0 %) and 20 of 100 FLOPs are left
    """
    (channels, of), (params, of_params), (flops, of_flops) = (
        left[name] for name in ("channels", "params", "flops")
    )
    if channels == of:
        return (
            "nothing can be cut out: no channel is empty, the ticket can only mask "
            "(see --structure channels)"
        )
    return (
        f"can be cut out: {of - channels:,} of {of:,} channels; {params:,} of {of_params:,} "
        f"parameters ({percent(params / of_params)}) and {flops:,} of {of_flops:,} FLOPs are left"
    )


def retrain(args: argparse.Namespace, words: list[str]) -> None:
    """Retrains a ticket and prints what came out."""
    from dessilbi_jax.train.finished.retrain import retrain as run_retraining
    from dessilbi_jax.train.finished.trained import target_of
    from dessilbi_jax.train.progress import Progress

    out = target_of(Path(args.ticket), args.out)
    result = run_retraining(
        args.ticket,
        start=args.start,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
        out=out,
        run=args.run,
        dataset=args.dataset,
        data_dir=args.data_dir,
        resume=args.resume,
        overwrite=args.overwrite,
        command=shlex.join(["dessilbi", *words]),
        progress=Progress(lines=not args.quiet),
    )
    print(f"The retrained network is in {out}.")
    for name, split in (("held-out data", "held_out"), ("test data", "test")):
        found = result[split]
        before = ""
        if found["dense"] is not None:
            before = f"{percent(found['dense'])} dense, {percent(found['projected'])} projected, "
        print(f"  accuracy   {before}{percent(found['retrained'])} retrained ({name})")
    print(
        f"  training   {result['steps']:,} steps from {_moment(result['from'])}, at "
        f"{percent(result['ticket']['density'])} of the structured weights, in "
        f"{result['seconds']:.1f} s"
    )
    _renew(Path(result["run"]), out)
    print(f"  next       {shlex.join(_after_retraining(args, out))}")


def _after_retraining(args: argparse.Namespace, out: Path) -> list[str]:
    """Returns the command that goes on: cut the ticket out where channels are left empty."""
    import dessilbi_jax as dl

    left = dl.Ticket.load(args.ticket).card.get("left") or {}
    kept, of = left.get("channels", (0, 0))
    if kept < of and args.dataset is None:
        return ["dessilbi", "slim", args.ticket, "--params-from", str(out)]
    return ["dessilbi", "evaluate", str(out)]


def _moment(start: str) -> str:
    """Returns in words where a retraining began."""
    words = {"init": "the initial weights", "end": "the weights at the end"}
    return words.get(start, f"the weights of epoch {start}")


def slim(args: argparse.Namespace, words: list[str]) -> None:
    """Cuts a ticket out and prints the table."""
    from dessilbi_jax.train.finished.make_slim import make_slim
    from dessilbi_jax.train.finished.trained import target_of

    out = target_of(Path(args.ticket), args.out, "slim")
    result = make_slim(
        args.ticket,
        params_from=args.params_from,
        round_to=args.round_to,
        batches=args.batch,
        out=out,
        run=args.run,
        data_dir=args.data_dir,
        overwrite=args.overwrite,
        command=shlex.join(["dessilbi", *words]),
    )
    print(slim_table(result))
    print(f"The slim network is in {out}.")
    _renew(Path(result["run"]), out)
    print(f"  load it    dl.load_slim({str(out)!r})")


def slim_table(result: dict[str, Any]) -> str:
    """Returns dense, masked and slim side by side, from what result.json of a slim network holds.

    Example:
        >>> network = {"parameters": 40, "flops": 80, "bytes": 160, "test_accuracy": 0.9,
        ...     "latency": {"1": {"median": 2e-5, "low": 1e-5, "high": 3e-5}}}
        >>> small = {**network, "parameters": 10, "flops": 20, "bytes": 40}
        >>> print(slim_table({"networks": {"dense": network, "masked": network, "slim": small},
        ...     "difference": 1e-7, "compared": 144, "channels": [3, 8]}))
                         dense       masked           slim
        parameters          40           40    10 (25.0 %)
        FLOPs               80           80    20 (25.0 %)
        bytes              160          160    40 (25.0 %)
        batch 1     20 (10…30)   20 (10…30)     20 (10…30)  µs, median and quartiles
        accuracy        90.0 %       90.0 %         90.0 %  test data
        5 of 8 channels were cut out. On 144 held-out rows the outputs of slim and masked
        differ by 1.0e-07 of the largest.
    """
    networks, names = result["networks"], ("dense", "masked", "slim")
    rows: list[tuple[str, ...]] = [("", *names, "")]
    for label, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("bytes", "bytes")):
        dense, masked, small = (networks[name][key] for name in names)
        shown = f"{small:,} ({percent(small / max(dense, 1))})"
        rows.append((label, f"{dense:,}", f"{masked:,}", shown, ""))
    for batch in networks["dense"]["latency"]:
        times = [_time(networks[name]["latency"][batch]) for name in names]
        rows.append((f"batch {batch}", *times, "µs, median and quartiles"))
    rows.append(("accuracy", *(percent(networks[n]["test_accuracy"]) for n in names), "test data"))
    kept, of = result["channels"]
    return (
        f"{columns(rows, right={1, 2, 3})}\n"
        f"{of - kept:,} of {of:,} channels were cut out. On {result['compared']:,} held-out rows "
        f"the outputs of slim and masked\ndiffer by {result['difference']:.1e} of the largest."
    )


def _time(found: dict[str, float]) -> str:
    """Returns a latency in microseconds, with its quartiles.

    Example:
        >>> _time({"median": 962e-6, "low": 96.24e-6, "high": 1040e-6})
        '962 (96.2…1,040)'
    """
    median, low, high = (
        f"{us:,.3g}" if us < 999.5 else f"{us:,.0f}"
        for us in (1e6 * found[name] for name in ("median", "low", "high"))
    )
    return f"{median} ({low}…{high})"


def sweep(args: argparse.Namespace, words: list[str]) -> None:
    """Retrains tickets of several sizes and prints accuracy against density."""
    from dessilbi_jax.train.finished.sweep import sweep as run_sweep
    from dessilbi_jax.train.progress import Progress

    progress = Progress(lines=not args.quiet)
    found = run_sweep(
        args.run,
        args.density,
        start=args.start,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
        data_dir=args.data_dir,
        overwrite=args.overwrite,
        command=shlex.join(["dessilbi", *words]),
        progress=progress,
        told=progress.line,
    )
    rows: list[tuple[str, ...]] = [("density", "projected", "retrained", "dense")]
    for each in found:
        test = each["test"]
        values = (each["ticket"]["density"], test["projected"], test["retrained"], test["dense"])
        rows.append(tuple("–" if value is None else percent(value) for value in values))
    print(columns(rows, right={0, 1, 2, 3}, rule=True))
    print("Accuracies on test data; projected: all else at zero, not retrained.")
    print(f"  report     {Path(args.run) / run_files.REPORT}")


def compare(args: argparse.Namespace) -> None:
    """Prints runs side by side, and writes the page that was asked for."""
    from dessilbi_jax import report

    rows, differ = report.compare(args.runs)
    print(columns(rows, right=set(range(2, len(rows[0]))), rule=True))
    print("Accuracies on test data; projected: all but the selected weights at zero.")
    if len(differ) > 1:
        print(f"\n{columns(differ, right=set(), rule=True)}")
    if args.out:
        print(report.write_comparison(args.runs, args.out, overwrite=args.overwrite))


def _renew(run: Path, *made: Path) -> None:
    """Writes a run's report anew where something was added to its folder."""
    from dessilbi_jax import report

    if any(run.resolve() in each.resolve().parents for each in made):
        print(f"  report     {report.write(run)}")


def evaluate(args: argparse.Namespace) -> None:
    """Measures a network and prints what it found."""
    from dessilbi_jax.train.finished.evaluate import evaluate as measure

    found = measure(args.network, ticket=args.ticket, split=args.split, data_dir=args.data_dir)
    print(
        f"{found['network']}: accuracy {percent(found['accuracy'])}, loss {found['loss']:.4f} "
        f"({found['images']:,} {found['split']} rows)"
    )


def interpret(args: argparse.Namespace, words: list[str]) -> None:
    """Looks at the filters of a run, and prints what goes with what."""
    from dessilbi_jax import report
    from dessilbi_jax.train.finished.interpret import interpret as look

    found = look(
        args.run,
        layer=args.layer,
        beside=args.beside,
        images=args.image,
        epochs=args.epochs,
        filters=args.filters,
        steps=args.steps,
        seed=args.seed,
        data_dir=args.data_dir,
        command=shlex.join(["dessilbi", *words]),
    )
    print(correlations(found))
    print(f"The filters are in {report.write(args.run)}.")


def correlations(found: dict[str, Any]) -> str:
    """Returns the rank correlations of a first layer, from what interpretation.npz says.

    Example:
        >>> row = {"run": "a", "measure": "frequency", "pairs": 20, "low": 0.1, "high": 0.8}
        >>> print(correlations({"first": "conv1/kernel", "correlations": [
        ...     {**row, "against": "norm", "rho": 0.5}, {**row, "against": "entry", "rho": None}]}))
        conv1/kernel, rank correlations with 95 % intervals
        run  measure    with   ρ
        a    frequency  norm   +0.50  +0.10…+0.80
        a    frequency  entry  –
    """
    rows = [("run", "measure", "with", "ρ", "")]
    for row in found["correlations"]:
        rho, low, high = (row[name] for name in ("rho", "low", "high"))
        value = "–" if rho is None else f"{rho:+.2f}"
        interval = "" if rho is None or low is None else f"{low:+.2f}…{high:+.2f}"
        rows.append((row["run"], row["measure"], row["against"], value, interval))
    head = f"{found['first']}, rank correlations with 95 % intervals"
    return f"{head}\n{columns(rows, right=set())}"
