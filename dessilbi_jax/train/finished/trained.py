"""Trained networks read back from their folders, masked by tickets, and measured."""

import dataclasses
import functools
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import data, files, models, run_files
from dessilbi_jax.train import growth as growing
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Rows, evaluation_size
from dessilbi_jax.train.optim import trace_channels
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.checkpoints import load_params, newest
from dessilbi_jax.train.run_folder.weights import NAME, checkpoints, read_weights
from dessilbi_jax.train.step import Network, split_network
from dessilbi_jax.tree import leaf_paths

RETRAINED = "retrained"
SPLITS = ("test", "held-out")


class Trained(NamedTuple):
    """A trained network of full size: a run's, or one retrained from a ticket.

    Attributes:
        folder: where it was read from.
        preset: name of its run.
        config: what it was trained with.
        facts: the data it was trained on.
        params: nested dict of its parameters.
        stats: nested dict of its batch statistics.
        retrained: result.json of a retrained network, None for a run.
    """

    folder: Path
    preset: str
    config: TrainConfig
    facts: DataFacts
    params: dict[str, Any]
    stats: dict[str, Any]
    retrained: dict[str, Any] | None

    def model(self) -> models.Network:
        """The network as a module with these parameters, in evaluation mode."""
        params, stats = jax.tree.map(jnp.asarray, (self.params, self.stats))
        return nnx.merge(self.network().evaluating, params, stats)

    def network(self) -> Network:
        """The network as functions of parameters and images."""
        return _network(self.facts, self.config)

    def channels(self) -> dl.ChannelGroups:
        """Its channels; FLOPs are those of one row."""
        return trace_channels(self.model())


@functools.cache
def _network(facts: DataFacts, config: TrainConfig) -> Network:
    """Returns the static parts of a network; nothing is initialised."""
    model = nnx.eval_shape(lambda: facts.build(config))
    return split_network(model, facts.mean, facts.std)[0]


class RunFacts(NamedTuple):
    """What config.json of a run says.

    Attributes:
        preset: name of the run.
        config: its configuration; of a run that has grown with the widths it has now.
        facts: its images.
    """

    preset: str
    config: TrainConfig
    facts: DataFacts


def read_run(run: Path) -> RunFacts:
    """Returns what a run's config.json says.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: config.json is damaged or of another version.
    """
    if not (run / run_files.CONFIG).is_file():
        raise FileNotFoundError(
            f"{run} holds no run: expected a folder that `dessilbi train` wrote"
        )
    saved = files.read_json(run / run_files.CONFIG)
    facts = DataFacts.from_json(saved.get("data"), str(run / run_files.CONFIG))
    config, growth = folder.read_config(run), growing.read(run)
    if growth is not None and growth.widths is not None:
        config = dataclasses.replace(config, widths=growth.widths)
    return RunFacts(str(saved.get("preset", run.name)), config, facts)


def load_run(run: Path, step: int | None = None) -> Trained:
    """Returns a run's network, by default as it is at the last step kept.

    That is the end of a finished run, else the newest of its checkpoints and of the weights that
    it keeps.

    Raises:
        FileNotFoundError: the folder holds no run, or no parameters but those of the start.
        ValueError: a file is damaged.
    """
    preset, config, facts = read_run(run)
    kept = checkpoints(run)
    last = max(kept) if step is None else step
    if step is None and not (run / run_files.RESULT).exists():
        found = newest(run / run_files.CHECKPOINTS)
        if found is None and last == 0:
            raise FileNotFoundError(
                f"the run in {run} has no finished checkpoint, only the weights it began with: go "
                f"on with it, dessilbi train --resume --out {run}"
            )
        if found is not None and int(found.name) > last:
            return Trained(run, preset, config, facts, *load_params(run), None)
    params, stats = kept.load(last)
    return Trained(run, preset, config, facts, params, stats, None)


def load_trained(place: Path) -> Trained:
    """Returns the network of a run's folder, or of one that `dessilbi retrain` wrote.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: a file is damaged.
    """
    if not is_retrained(place):
        return load_run(place)
    result = files.read_json(place / run_files.RESULT)
    where = str(place / run_files.RESULT)
    try:
        config = TrainConfig.from_json(result["config"])
        preset = str(result["preset"])
        result["ticket"]["digest"], result["head"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} describes no retrained network: {error!r}") from None
    facts = DataFacts.from_json(result.get("data"), where)
    params, stats = read_weights(place / NAME)
    return Trained(place, preset, config, facts, params, stats, result)


def is_retrained(place: Path) -> bool:
    """Whether a folder holds a retrained network."""
    if not (place / NAME).is_file() or not (place / run_files.RESULT).is_file():
        return False
    return files.read_json(place / run_files.RESULT).get("kind") == RETRAINED


def find_run(ticket: dl.Ticket, file: Path, given: str | Path | None = None) -> Path:
    """Returns the folder of the run that a ticket was taken from.

    It is the one given, else the ticket's own folder, else the one that its card names.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run there is another one than the ticket's.
    """
    named = ticket.card.get("run")
    beside = file.resolve().parent
    run = Path(given) if given is not None else beside
    if given is None and not (beside / run_files.CONFIG).exists():
        if not isinstance(named, str):
            raise ValueError(f"{file} does not say which run it is of: give it with --run")
        run = Path(named)
    if not (run / run_files.CONFIG).exists():
        raise FileNotFoundError(f"{file} is of the run {run}, which is not there: give --run")
    if read_run(run).config.to_json() != ticket.card.get("config"):
        raise ValueError(f"{file} is not a ticket of the run in {run}: its configuration differs")
    return run


def digest(masks: Mapping[str, np.ndarray]) -> str:
    """Returns 16 hexadecimal digits that stand for a ticket's masks.

    Example:
        >>> digest({"w": np.array([True, False])}) == digest({"w": np.array([True, True])})
        False
    """
    total = hashlib.sha256()
    for path, mask in sorted(masks.items()):
        total.update(f"{path} {mask.shape} ".encode() + np.packbits(mask).tobytes())
    return total.hexdigest()[:16]


def fitted(ticket: dl.Ticket, trained: Trained) -> dl.Ticket:
    """Returns the ticket for a network, which may have been retrained with another head.

    Warns where a ticket does not say which run it is of.

    Raises:
        ValueError: it does not fit, the network is of another run, or it was retrained from
            another ticket.
    """
    if trained.retrained is None:
        config = ticket.card.get("config")
        if config is None:
            warnings.warn(
                f"the ticket does not say which run it is of: it may not be of {trained.folder}",
                stacklevel=2,
            )
        elif config != trained.config.to_json():
            raise ValueError(
                f"the ticket is of another run than the network in {trained.folder}: their "
                "configurations differ. Give the ticket's own run, or a network that was "
                "retrained from the ticket"
            )
    if trained.retrained is not None:
        theirs = trained.retrained["ticket"]["digest"]
        if theirs != digest(ticket.masks):
            raise ValueError(
                f"{trained.folder} was retrained from another ticket: its digest is {theirs}, "
                f"this one's {digest(ticket.masks)}"
            )
        if trained.retrained["head"]:
            return with_head(ticket, trained.params, trained.retrained["head"])
    return ticket


def with_head(ticket: dl.Ticket, params: Any, head: list[str]) -> dl.Ticket:
    """Returns the ticket with the named leaves dense, in the shapes that `params` has."""
    return ticket.transfer(params, drop=[f"^{re.escape(path)}$" for path in head])


def closed_masks(ticket: dl.Ticket, groups: dl.ChannelGroups, params: Any) -> Any:
    """Returns a ticket's masks with the whole of each channel that it empties masked too.

    A channel whose kernel slices are all masked leaves nothing but what its bias and
    normalisation make of zeros; with these at zero as well it can be cut out.

    Args:
        ticket: fits `params`.
        groups: the channels of the network.
        params: its parameters.

    Returns:
        A tree of bool arrays like `params`.

    Raises:
        ValueError: the ticket does not fit.
    """
    masks = ticket.mask(params)
    kept = groups.kept(ticket)
    if any(not kept[each.groups].any() for each in groups.sets):
        return masks  # a layer without channels: the ticket as it is, nothing can be cut
    return jax.tree.map(jnp.logical_and, masks, groups.plan_of(kept).mask(params))


def counting(groups: dl.ChannelGroups, params: Any) -> dl.ChannelGroups:
    """Returns the groups so that `params` counts parameters only, without batch statistics."""
    names = {path for path, _ in leaf_paths(params)}
    return dataclasses.replace(
        groups, shapes={path: s for path, s in groups.shapes.items() if path in names}
    )


def rows_of(trained: Trained | RunFacts, split: str, data_dir: str | Path | None) -> Rows:
    """Returns the rows of a split, "test" or "held-out", as batches on one device.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    source = trained.facts.load(data_dir)
    part = source.test_part() if split == "test" else trained.facts.split(source)[1]
    return on_one_device(part, source, trained.config)


def on_one_device(part: data.Part, source: data.Source, config: TrainConfig) -> Rows:
    """Returns a part as batches on one device, which keeps them if they are small."""
    size = evaluation_size(source, config)
    return Rows(part, size, make_mesh("one"), keep=source.resident)


def target_of(ticket: Path, given: str | Path | None, name: str = run_files.RETRAINED) -> Path:
    """Returns the folder for what is made from a ticket: by default beside it, named after it.

    Example:
        >>> target_of(Path("runs/demo/ticket.npz"), None).as_posix()
        'runs/demo/retrained'
        >>> target_of(Path("small.npz"), None, "slim").as_posix()
        'small-slim'
    """
    if given is not None:
        return Path(given)
    return ticket.with_name(name if ticket.name == run_files.TICKET else f"{ticket.stem}-{name}")


def ticket_facts(ticket: dl.Ticket, file: Path) -> dict[str, Any]:
    """Returns what a result says of the ticket it came from."""
    return {
        "file": str(file.resolve()),
        "digest": digest(ticket.masks),
        "step": ticket.step,
        "density": ticket.density,
    }
