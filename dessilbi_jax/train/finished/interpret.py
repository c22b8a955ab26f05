"""What the filters of a run respond to, computed once and kept in its folder for the report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax import files, interpretation, provenance, run_files
from dessilbi_jax.interpretation.guided import compiled
from dessilbi_jax.interpretation.units import Maps, maps_of
from dessilbi_jax.train.finished.filter_run import FilterRun, as_images, beside_of
from dessilbi_jax.train.finished.trained import rows_of
from dessilbi_jax.train.run_folder.weights import checkpoints
from dessilbi_jax.tree import find_leaf, leaf_paths

KIND = "interpretation"
FORMAT = 1
_SIDE = 48  # pixels, of gradients that are kept: of larger images every second, third, … one
_STARTS = 4


def interpret(
    run: str | Path,
    *,
    layer: str | None = None,
    beside: str | Path | None = None,
    images: Sequence[int] = (0, 1, 2),
    epochs: Sequence[int] | None = None,
    filters: int = 12,
    steps: int = 128,
    seed: int = 0,
    data_dir: str | Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Looks at the filters of a run and writes interpretation.npz into its folder.

    Three things, which the run's report then shows. (1) Of one layer, the images that maximise the
    filters which entered Γ first, for W and for W projected on Γ's support. (2) Of the first layer,
    the filters and their guided gradients on held-out images at kept epochs, ordered by the
    filters' l2 norm. (3) The colour saturation and the spectral shape of the first layer's filters
    at the end, and their rank correlations with norm and time of entry.

    Args:
        run: folder of a run, finished or not.
        layer: path of the leaf whose filters (1) shows; by default the last convolution's kernel,
            or the first leaf of a network without one.
        beside: folder of another run of the same network on the same data, such as one by SGD,
            whose last filters (2) and (3) show too.
        images: which of the held-out images, from 0.
        epochs: whose weights (2) shows, of those kept; by default the first, the middle and the
            last.
        filters: how many (1) shows at most.
        steps: of the ascent to each image of (1).
        seed: of the starts of (1).
        data_dir: as `data.load` has it; by default where the run found its images.
        command: the command line, kept in the file.

    Returns:
        The header of the file: `layer` with its number of `units`, how many are `shown` and how
        many of these are `silent`, no image having been found that passes their ReLU; `first`, the
        first layer, with its number of `filters` and how many `entered`; `panels`, `correlations`
        and settings.

    Raises:
        FileNotFoundError: no run, or no images.
        ValueError: a run on text; a layer that is not there, makes no channels, or has no filters
            in Γ; epochs or images that are not there; a run beside it that is of another network.
    """
    this = FilterRun.read(Path(run))
    if len(this.shape) != 4:
        raise ValueError(
            f"{run} was trained on text ({this.trained.facts.dataset}): only what filters "
            "see in images can be drawn"
        )
    if filters < 1:
        raise ValueError(f"filters must be a whole number of at least 1, got {filters}")
    tree = {"params": this.trained.params, "stats": this.trained.stats}
    like = jax.ShapeDtypeStruct(this.shape, jnp.float32)
    counts = interpretation.unit_counts(this.forward, tree, like)
    makers = {path.removeprefix("params/"): n for path, n in counts.items()}
    first = next(iter(makers))
    layer = _layer(this, layer, makers)
    other = None if beside is None else beside_of(this, Path(beside))

    # (1) The images that maximise what entered first.
    entry = this.entry(layer)
    units = _first_in(entry, this.leaves[layer])[:filters]
    end = int(this.path.steps[-1])
    arrays: dict[str, np.ndarray] = {"layer_entry": entry, "layer_units": units}
    for name, params in (
        ("w", this.trained.params),
        ("gamma", dl.project(this.trained.params, this.path.support(end, this.trained.params))),
    ):
        found = _maximal(this, {**tree, "params": params}, layer, units, steps, seed)
        arrays[f"maximal_{name}"], arrays[f"activation_{name}"] = found

    # (2) The first layer along the run, and beside another one.
    pixels, inputs = _images(this, images, data_dir)
    arrays["images"] = _thinned(pixels)
    arrays["first_entry"] = this.entry(first)
    maps, activated = _first_maps(this, tree, inputs, first, makers[first])
    gradients = compiled(maps)
    panels = []
    chosen = [(this, step) for step in _steps(this, epochs)]
    if other is not None:
        chosen.append((other, max(checkpoints(other.trained.folder))))
    for i, (each, step) in enumerate(chosen):
        params, stats = checkpoints(each.trained.folder).load(step)
        weights = as_images(each, dict(leaf_paths(params))[first], first)
        norms = np.sqrt(np.square(weights).sum(axis=(1, 2, 3)))
        order = np.argsort(-norms, kind="stable")
        leaves = jax.tree.leaves({"params": params, "stats": stats})
        guided = np.asarray(gradients(leaves, inputs))[order].swapaxes(0, 1)
        arrays |= {
            f"panel_{i}_order": order,
            f"panel_{i}_norms": norms,
            f"panel_{i}_selected": each.selected(first, step),
            f"panel_{i}_filters": _scaled(weights[order]),
            f"panel_{i}_guided": _thinned(_scaled(guided)),
        }
        panels.append(
            {
                "run": each.trained.folder.resolve().name,
                "own": each is this,
                "step": step,
                "epoch": step / each.trained.facts.steps_per_epoch,
            }
        )

    # (3) What goes with norm and time of entry.
    correlations = []
    for each in filter(None, (this, other)):
        weights = as_images(each, each.leaves[first], first)
        measures, found_here = _correlations(weights, each.entry(first))
        correlations += [
            {"run": each.trained.folder.resolve().name, "own": each is this, **row}
            for row in found_here
        ]
        if each is this:
            arrays |= {f"measure_{name}": values for name, values in measures.items()}
    header = {
        "kind": KIND,
        "format": FORMAT,
        "layer": layer,
        "units": makers[layer],
        "shown": len(units),
        "silent": {name: int((arrays[f"activation_{name}"] <= 0).sum()) for name in ("w", "gamma")},
        "first": first,
        "filters": makers[first],
        "entered": int((arrays["first_entry"] >= 0).sum()),
        "activated": activated,
        "step": max(checkpoints(Path(run))),
        "settings": {
            "images": list(images), "steps": steps, "starts": _STARTS, "seed": seed,
            "beside": None if beside is None else str(Path(beside).resolve()),
        },
        "panels": panels,
        "correlations": correlations,
        "command": command,
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }  # fmt: skip
    files.write(Path(run) / run_files.INTERPRETATION, header, arrays)
    return header


def _layer(run: FilterRun, given: str | None, makers: dict[str, int]) -> str:
    """The leaf whose filters are drawn.

    Raises:
        ValueError: it is not there, makes no channels, or has no filters in Γ.
    """
    if given is None:
        convolutions = [path for path in makers if run.leaves[path].ndim > 2]
        leaf = convolutions[-1] if convolutions else next(iter(makers))
    else:
        leaf = find_leaf(run.leaves, given)
        if leaf not in makers:
            raise ValueError(
                f"{leaf} makes no channels to look at: it is not the kernel of a layer. Those that "
                f"do: {', '.join(makers)}"
            )
    groups = run.path.groups.get(leaf)
    if groups is None or math.prod(groups) != groups[-1] or groups[-1] != makers[leaf]:
        has = "none" if groups is None else f"{math.prod(groups):,} of them"
        raise ValueError(
            f"the groups of {leaf} in Γ are not its {makers[leaf]} filters or units (it has "
            f"{has}), so that they have no path: give another --layer, or train with --structure "
            "filters, neurons or channels"
        )
    return leaf


def _first_in(entry: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """The units that entered, the earliest first; where none has, all, the largest first."""
    norms = np.sqrt(np.square(leaf.astype(np.float64)).reshape(-1, leaf.shape[-1]).sum(axis=0))
    late = np.where(entry < 0, np.iinfo(np.int64).max, entry)
    order = np.lexsort((-norms, late))
    return order[entry[order] >= 0] if (entry >= 0).any() else order


def _maximal(
    run: FilterRun, tree: Any, layer: str, units: np.ndarray, steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best image [units, height, width, channels] for each unit, as bytes; its activation."""
    mean, std = (np.asarray(x, np.float32) for x in (run.trained.facts.mean, run.trained.facts.std))
    found = interpretation.activation_maximisation(
        run.forward, tree, (f"params/{layer}", units.tolist()), run.shape,
        key=jax.random.key(seed), starts=_STARTS, steps=steps,
        bounds=((0 - mean) / std, (1 - mean) / std),
        activated=_has_relu_behind(run, tree, layer),
    )  # fmt: skip
    pixels = np.asarray(found.images)[:, 0, 0] * std + mean
    images = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return images, np.asarray(found.activations)[:, 0]


def _has_relu_behind(run: FilterRun, tree: Any, layer: str) -> bool:
    like = jax.ShapeDtypeStruct(run.shape, jnp.float32)
    try:
        maps_of(run.forward, tree, like, (f"params/{layer}", 0), True)
    except ValueError:
        return False
    return True


def _images(
    run: FilterRun, wanted: Sequence[int], data_dir: str | Path | None
) -> tuple[np.ndarray, jax.Array]:
    """Held-out images as bytes, and as the network is given them.

    Raises:
        ValueError: numbers of images that are not there.
    """
    rows = rows_of(run.trained, "held-out", data_dir)
    if not wanted or min(wanted) < 0 or max(wanted) >= len(rows):
        raise ValueError(
            f"the run holds out {len(rows)} images, numbered from 0 to {len(rows) - 1}; got "
            f"{', '.join(map(str, wanted)) or 'none'}"
        )
    found: list[np.ndarray] = []
    for batch, _ in rows:
        found.extend(np.asarray(batch))
        if len(found) > max(wanted):
            break
    pixels = np.stack([found[i] for i in wanted])
    return pixels, run.trained.network().normalise(jnp.asarray(pixels))


def _steps(run: FilterRun, epochs: Sequence[int] | None) -> list[int]:
    """The kept steps whose weights are shown.

    Raises:
        ValueError: an epoch that is not kept.
    """
    kept = list(checkpoints(run.trained.folder))
    if epochs is None:
        return sorted({kept[0], kept[len(kept) // 2], kept[-1]})
    wanted = [epoch * run.trained.facts.steps_per_epoch for epoch in epochs]
    for epoch, step in zip(epochs, wanted, strict=True):
        if step not in kept:
            there = ", ".join(f"{k / run.trained.facts.steps_per_epoch:g}" for k in kept)
            raise ValueError(
                f"the weights of epoch {epoch} are not kept in {run.trained.folder}; those of "
                f"epochs {there} are"
            )
    return sorted(set(wanted))


def _first_maps(
    run: FilterRun, tree: Any, inputs: jax.Array, first: str, count: int
) -> tuple[Maps, bool]:
    """The maps of all units of the first layer, behind the ReLU that follows if there is one."""
    activated = _has_relu_behind(run, tree, first)
    unit = (f"params/{first}", range(count))
    return maps_of(run.forward, tree, inputs, unit, activated), activated


def _correlations(
    weights: np.ndarray, entry: np.ndarray
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The measures of filters, and their rank correlations with norm and time of entry.

    What never entered comes after all that did. Filters of zeros have no measures.
    """
    shape = interpretation.spectral_shape(weights)
    measures = {
        "saturation": interpretation.colour_saturation(weights),
        "frequency": shape.frequency,
        "orientation": shape.orientation,
    }
    late = np.where(entry < 0, entry.max() + 1, entry)
    norms = np.sqrt(np.square(weights).sum(axis=(1, 2, 3)))
    rows = []
    for name, values in measures.items():
        for against, other in (("norm", norms), ("entry", late)):
            found = interpretation.rank_correlation(values, other)
            numbers = {
                key: value if math.isfinite(value) else None
                for key, value in (("rho", found.value), ("low", found.low), ("high", found.high))
            }
            rows.append({"measure": name, "against": against, "pairs": found.pairs, **numbers})
    return measures, rows


def _scaled(x: np.ndarray) -> np.ndarray:
    """Images [..., height, width, channels] as bytes: each from its minimum to its maximum."""
    low, high = (f(x, axis=(-3, -2, -1), keepdims=True) for f in (np.min, np.max))
    share = (x - low) / np.where(high > low, high - low, 1)
    return np.round(255 * share).astype(np.uint8)


def _thinned(x: np.ndarray) -> np.ndarray:
    """Images of which only every second, third, … row and column is kept where they are large."""
    stride = math.ceil(max(x.shape[-3:-1]) / _SIDE)
    return x[..., ::stride, ::stride, :]
