"""From a run's solution path to a ticket file."""

import math
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax import files, run_files
from dessilbi_jax.train.config import REMOVABLE
from dessilbi_jax.train.finished.trained import closed_masks, counting, digest, load_run, rows_of
from dessilbi_jax.train.step import make_evaluate


def take_ticket(
    run: str | Path,
    *,
    size: dict[str, Any] | None = None,
    per_layer: bool = False,
    minimum: int = 1,
    rank: Literal["entry", "strength"] = "entry",
    out: str | Path | None = None,
    test: bool = False,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> tuple[dl.Ticket, Path]:
    """Takes a ticket from a run and writes it to a file.

    Its card has the request and the rule, sizes, and beside them: the run, its preset,
    configuration and versions; the held-out accuracies of the dense network and of the one
    projected on the ticket, without retraining; how many parameters and FLOPs would be left once
    the channels that it empties are cut out. Weights on paths from input to output come first.

    Args:
        run: the folder of a run.
        size: one of `at`, `groups`, `weights`, `density`, `params`, `flops`, as for
            `SolutionPath.ticket`, where a number above 0 and below 1 is a share of the dense
            network; by default the density that the run aimed at, or the last record of a run
            whose λ was given. For the structures channels, filters and neurons
            `params` and `flops` are what is left after the cut, for one row; for others
            `params` counts kept weights.
        per_layer: the same share in every layer.
        minimum: groups kept in each layer at least.
        rank: the order groups are kept in, as `SolutionPath.ticket` has it.
        out: the file, by default ticket.npz in the run's folder.
        test: measure the test accuracy too. The test images are for the end.
        data_dir: as `data.load` has it; by default where the run found its images.
        overwrite: replace a ticket that is there.
        command: the command line, kept on the card.

    Returns:
        The ticket, and the file.

    Raises:
        FileNotFoundError: no run, or no images.
        FileExistsError: the file is there.
        ValueError: a size that cannot be had, with the nearest that can.
        TypeError: more than one size.

    Example:
        >>> import tempfile
        >>> from dessilbi_jax import train
        >>> config = train.TrainConfig(
        ...     network="lenet300", dataset="digits", epochs=2, widths=(8,), structure="channels")
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = train.fit(config, out)
        ...     ticket, file = train.take_ticket(out, size={"groups": 5})
        ...     ticket.card["groups"], ticket.card["left"]["params"], file.name
        ([5, 8], [385, 610], 'ticket.npz')
    """
    run = Path(run)
    trained = load_run(run)
    file = Path(out) if out is not None else run / run_files.TICKET
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder: give a file with --out")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} is there already: replace it with --overwrite or give --out")
    files.check_own(file, "ticket")
    path = dl.SolutionPath.load(run / run_files.PATH)
    config, params, groups = trained.config, trained.params, trained.channels()
    asked = dict(size or {})
    if not asked:
        asked = {"at": int(path.steps[-1])}
        if config.density is not None:
            asked = {"density": config.density}
    asked = _numbers(asked, path, groups, params, config.structure == "channels")
    count = None
    if config.structure in REMOVABLE and "params" in asked:
        count = counting(groups, params).params
    elif config.structure in REMOVABLE and "flops" in asked:
        count = groups.flops
    elif "flops" in asked:
        raise ValueError(
            f"groups of the structure {config.structure!r} are no channels, so that leaving some "
            "out saves no FLOPs: ask by --weights or --density, or train with --structure channels"
        )
    options: dict[str, Any] = (
        {} if "at" in asked else {"per_layer": per_layer, "minimum": minimum, "rank": rank}
    )
    ticket = path.ticket(**asked, count=count, network=groups, **options)

    masks = closed_masks(ticket, groups, params)
    masked = dl.project(params, masks)
    accuracy: dict[str, Any] = {}
    evaluate = make_evaluate(trained.network())
    for split in ("held-out", *(["test"] if test else [])):
        batches = rows_of(trained, split, data_dir)
        dense, projected = (evaluate(p, trained.stats, batches)[0] for p in (params, masked))
        accuracy[split] = {"dense": dense, "projected": projected}
    saved = files.read_json(run / run_files.CONFIG)
    numbers = counting(groups, params)
    kept = groups.kept(ticket)
    ticket = ticket.with_card(
        run=os.path.abspath(run),
        preset=trained.preset,
        config=config.to_json(),
        seed=config.seed,
        finished=(run / run_files.RESULT).exists(),
        command=command,
        digest=digest(ticket.masks),
        accuracy=accuracy,
        left={
            "channels": [int(kept.sum()), groups.count],
            "params": [numbers.params_of(kept), sum(x.size for x in jax.tree.leaves(params))],
            "flops": [groups.flops_of(kept), groups.flops()],
        },
        run_versions=saved.get("versions", {}),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    ticket.save(file)
    return ticket, file


def _numbers(
    asked: dict[str, Any],
    path: dl.SolutionPath,
    groups: dl.ChannelGroups,
    params: Any,
    joint: bool,
) -> dict[str, Any]:
    """The size with shares of the dense network as numbers."""
    out = dict(asked)
    for name, value in asked.items():
        if name in ("density", "at") or not 0 < value < 1:
            continue
        if name == "weights":
            del out[name]
            out["density"] = value
            continue
        every = np.ones(groups.count, bool)
        whole = {
            "params": sum(x.size for x in jax.tree.leaves(params)),
            "flops": groups.flops_of(every),
            "groups": groups.count if joint else sum(map(math.prod, path.groups.values())),
        }[name]
        out[name] = value * whole if name == "flops" else round(value * whole)
    return out
