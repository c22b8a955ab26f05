"""Reading interpretation.npz: what `dessilbi interpret` found out about a run's filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax import files, run_files

_KIND, _FORMATS = "interpretation", (1,)
_MOST = 2**28  # bytes of one array: far more than a page could show
_MEASURES = ("saturation", "frequency", "orientation")
_PARTS = ("order", "norms", "selected", "filters", "guided")
_ARRAYS = (
    "layer_entry", "layer_units", "maximal_w", "maximal_gamma", "activation_w", "activation_gamma",
    "first_entry", "images",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """The first layer of one network at one moment.

    Attributes:
        name: which, in words.
        own: whether it is of the run itself.
        order: [filters] the filters, from the largest norm to the smallest.
        norms: [filters] their l2 norms.
        selected: [filters] which have something in Γ.
        filters: [filters, height, width, channels] bytes, in that order.
        guided: [images, filters, height, width, channels] bytes, in that order.
    """

    name: str
    own: bool
    order: np.ndarray
    norms: np.ndarray
    selected: np.ndarray
    filters: np.ndarray
    guided: np.ndarray


@dataclass(frozen=True)
class Looked:
    """What `interpretation.npz` holds.

    Attributes:
        header: settings, and `correlations` as they were computed.
        layer: the leaf whose filters were maximised.
        layer_entry: [filters] step at which each entered, -1 for never.
        units: [shown] those whose images are here.
        maximal: for W and for W projected on Γ's support, [shown, height, width, channels] bytes.
        activations: for both, [shown] the mean activation on each image.
        first: the leaf of the first layer.
        first_entry: as `layer_entry`, of the first layer.
        images: [images, height, width, channels] bytes.
        panels: the first layer along the run, then beside it.
        measures: by name, [filters] of the first layer at the end.
    """

    header: dict[str, Any]
    layer: str
    layer_entry: np.ndarray
    units: np.ndarray
    maximal: tuple[np.ndarray, np.ndarray]
    activations: tuple[np.ndarray, np.ndarray]
    first: str
    first_entry: np.ndarray
    images: np.ndarray
    panels: tuple[Panel, ...]
    measures: dict[str, np.ndarray]

    @property
    def own(self) -> tuple[Panel, ...]:
        """The panels of the run itself."""
        return tuple(panel for panel in self.panels if panel.own)


def read_looked(folder: Path) -> Looked | None:
    """Returns what has been found out about a run's filters, None where nobody looked.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / run_files.INTERPRETATION
    if not file.exists():
        return None
    try:
        header, arrays = files.read(file, _KIND, _FORMATS, _sizes)
        return _parsed(header, arrays)
    except Exception as error:  # whatever zip, JSON or NumPy make of damaged bytes
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}): write it anew with `dessilbi "
            f"interpret {folder}`, or delete it"
        ) from None


def _sizes(header: Mapping[str, Any]) -> dict[str, int]:
    """The most bytes of each array, from the header: pictures of filters are small."""
    panels = [f"panel_{i}_{part}" for i in range(len(header["panels"])) for part in _PARTS]
    return dict.fromkeys((*_ARRAYS, *(f"measure_{name}" for name in _MEASURES), *panels), _MOST)


def _parsed(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Looked:
    panels = []
    for i, told in enumerate(header["panels"]):
        where = "" if told["own"] else f"{told['run']}, "
        name = f"{where}epoch {told['epoch']:.4g}" if told["step"] else f"{where}initialisation"
        panels.append(Panel(name, told["own"], *(arrays[f"panel_{i}_{part}"] for part in _PARTS)))
    header["correlations"], header["command"], header["step"]  # needed by the section
    return Looked(
        header=header,
        layer=header["layer"],
        layer_entry=arrays["layer_entry"],
        units=arrays["layer_units"],
        maximal=(arrays["maximal_w"], arrays["maximal_gamma"]),
        activations=(arrays["activation_w"], arrays["activation_gamma"]),
        first=header["first"],
        first_entry=arrays["first_entry"],
        images=arrays["images"],
        panels=tuple(panels),
        measures={name: arrays[f"measure_{name}"] for name in _MEASURES},
    )
