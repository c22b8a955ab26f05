"""The section on the ticket of a run and on the network that was cut out of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dessilbi_jax import run_files
from dessilbi_jax.files import read_json
from dessilbi_jax.report import plots
from dessilbi_jax.report.files import check_fields
from dessilbi_jax.report.page import Section, figure, paragraph, settings, table
from dessilbi_jax.report.retrained import points
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count, percent, signed
from dessilbi_jax.tickets.ticket import Ticket

_NAMES = ("dense", "masked", "slim")
_TICKET: Mapping[str, type] = {"digest": str}
_RETRAINED: Mapping[str, type] = {
    "ticket": dict, "from": str, "held_out": dict, "test": dict, "steps": int,
}  # fmt: skip
_SLIM: Mapping[str, type] = {
    "ticket": dict, "networks": dict, "difference": float, "compared": int, "channels": list,
    "params_from": str, "round_to": int,
}  # fmt: skip
_NETWORK: Mapping[str, type] = {
    "parameters": int, "flops": int, "bytes": int, "test_accuracy": float, "latency": dict,
}  # fmt: skip
_LATENCY: Mapping[str, type] = {"median": float, "low": float, "high": float}


@dataclass(frozen=True)
class Made:
    """What was made of a run: each None where it is not there.

    Attributes:
        ticket: the ticket in the run's folder.
        retrained: result.json of the network retrained from it.
        slim: result.json of the network cut out of it.
        notes: what is there but belongs to another ticket.
    """

    ticket: Ticket | None
    retrained: dict[str, Any] | None
    slim: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def read_made(folder: Path) -> Made:
    """Reads what was made of the run in a folder.

    What came from another ticket than the one that is there is left out, with a note.

    Raises:
        ValueError: a file is damaged or lacks a field, naming it.
    """
    ticket = None
    if (folder / run_files.TICKET).exists():
        ticket = Ticket.load(folder / run_files.TICKET)
    found: dict[str, dict[str, Any] | None] = {}
    notes = []
    for name, fields in ((run_files.RETRAINED, _RETRAINED), (run_files.SLIM, _SLIM)):
        file = folder / name / run_files.RESULT
        found[name] = None
        if not file.exists():
            continue
        result = check_fields(read_json(file), fields, str(file))
        theirs = check_fields(result["ticket"], _TICKET, f"{file}: ticket")["digest"]
        if ticket is not None and theirs == ticket.card.get("digest"):
            found[name] = result
        else:
            notes.append(f"The network in {name} was made from another ticket and is not shown.")
    retrained, slim = found[run_files.RETRAINED], found[run_files.SLIM]
    if retrained is not None:
        file = folder / run_files.RETRAINED / run_files.RESULT
        for split in ("held_out", "test"):
            check_fields(retrained[split], {"retrained": float}, f"{file}: {split}")
    if slim is not None:
        _check_slim(slim, str(folder / run_files.SLIM / run_files.RESULT))
    return Made(ticket, retrained, slim, tuple(notes))


def _check_slim(result: dict[str, Any], file: str) -> None:
    for name in _NAMES:
        network = check_fields(result["networks"].get(name), _NETWORK, f"{file}: {name}")
        for batch, times in network["latency"].items():
            check_fields(times, _LATENCY, f"{file}: {name}: latency {batch}")
    batches = [set(result["networks"][name]["latency"]) for name in _NAMES]
    if not batches[0] == batches[1] == batches[2]:
        raise ValueError(f"{file}: the three networks should be timed at the same batch sizes")
    channels = result["channels"]
    if len(channels) != 2 or not all(isinstance(n, int) for n in channels):
        raise ValueError(f"{file}: 'channels' should be [kept, in all], got {channels!r}")


def ticket(run: Run) -> Section | None:
    """The ticket, the retrained network, and dense, masked and slim side by side."""
    made = read_made(run.folder)
    if made.ticket is None:
        return None
    body = paragraph(_of_ticket(made.ticket)) + "".join(paragraph(n, "note") for n in made.notes)
    rows = [
        (path, count(made.ticket.masks[path].sum()), count(made.ticket.masks[path].size),
         percent(made.ticket.masks[path].mean()))
        for path in made.ticket.structured
    ]  # fmt: skip
    body += table("The ticket by layer.", ["layer", "kept", "of", "share"], rows, numbers=(1, 2, 3))
    if made.ticket.note:
        body += paragraph(f"Note on the ticket: {made.ticket.note}.", "note")
    if made.retrained is not None:
        body += paragraph(_of_retrained(made.retrained))
        own = [p for p in points(run) if p.own]
        picture = plots.retraining(own)
        if picture is not None:
            body += figure(picture, "The retraining of the ticket, all else held at zero.")
    if made.slim is not None:
        body += _of_slim(made.slim)
    else:
        body += paragraph("It has not been cut out yet: dessilbi slim does that.")
    return Section("ticket", "Ticket and slimmed network", body)


def _of_ticket(taken: Ticket) -> str:
    groups = taken.card.get("groups")
    words = f"Taken at step {count(taken.step)}: {percent(taken.density)} of the structured weights"
    if isinstance(groups, list) and len(groups) == 2:
        words += f" in {count(groups[0])} of {count(groups[1])} groups"
    found = taken.card.get("accuracy")
    measured = found.get("held-out") if isinstance(found, dict) else None
    if isinstance(measured, dict) and isinstance(measured.get("projected"), float):
        words += (
            f". With all else at zero and no retraining the network is right on "
            f"{percent(measured['projected'])} of the held-out data"
        )
    return words + "."


def _of_retrained(result: dict[str, Any]) -> str:
    starts = {"init": "from the initial weights", "end": "from the weights at the end"}
    start = starts.get(result["from"], f"from the weights of epoch {result['from']}")
    after, dense = result["test"]["retrained"], result["test"].get("dense")
    words = (
        f"Retrained for {count(result['steps'])} steps {start}, with everything outside the "
        f"ticket held at zero, it is right on {percent(after)} of the test data"
    )
    if isinstance(dense, float):
        words += f"; the dense network on {percent(dense)} ({signed(100 * (after - dense))} points)"
    return words + "."


def _of_slim(result: dict[str, Any]) -> str:
    networks, (kept, of) = result["networks"], result["channels"]
    dense, small = networks["dense"], networks["slim"]
    body = paragraph(
        f"Cut out, {count(of - kept)} of {count(of)} channels are gone, and with them all that "
        f"made or read them. {percent(small['parameters'] / dense['parameters'], 1)} of the "
        f"parameters and {percent(small['flops'] / max(dense['flops'], 1), 1)} of the operations "
        "are left. Masked is the same network with zeros in the place of what was cut: it saves "
        "nothing, and shows that the gain comes from the cut."
    )
    body += settings(
        [
            (
                "largest output difference, slim against masked",
                f"{result['difference']:.1e} of the largest output",
            ),
            ("compared on", f"{count(result['compared'])} held-out rows, all classes"),
        ]
    )
    rows = [
        ("parameters", *(count(networks[name]["parameters"]) for name in _NAMES)),
        ("FLOPs, one image", *(count(networks[name]["flops"]) for name in _NAMES)),
        ("bytes", *(count(networks[name]["bytes"]) for name in _NAMES)),
    ]
    for batch in dense["latency"]:
        times = [_time(networks[name]["latency"][batch]) for name in _NAMES]
        rows.append((f"latency, batch {batch}", *times))
    rows.append(("test accuracy", *(percent(networks[name]["test_accuracy"]) for name in _NAMES)))
    weights = "retrained weights" if result["params_from"] == "retrained" else "the run's weights"
    caption = (
        f"Dense, masked and slim side by side; masked and slim have {weights}. Latencies are "
        "medians with quartiles of the compiled networks, measured in turns."
    )
    return body + table(caption, ["", *_NAMES], rows, numbers=(1, 2, 3))


def _time(times: dict[str, float]) -> str:
    """Returns a latency in a unit that suits it, with its quartiles.

    >>> _time({"median": 2.4e-5, "low": 2e-5, "high": 3e-5})
    '24 µs (20–30)'
    >>> _time({"median": 962e-6, "low": 814e-6, "high": 1040e-6})
    '962 µs (814–1,040)'
    """
    median, low, high = (times[name] for name in ("median", "low", "high"))
    if not math.isfinite(median):
        return "–"
    scale, unit = (1e6, "µs") if median < 1e-3 else (1e3, "ms")
    values = (scale * value for value in (median, low, high))
    first, *spread = (f"{x:.3g}" if x < 999.5 else f"{x:,.0f}" for x in values)
    return f"{first} {unit} ({'–'.join(spread)})"
