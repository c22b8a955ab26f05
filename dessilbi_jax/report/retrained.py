"""The tickets of a run that were retrained, as their folders tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dessilbi_jax import run_files
from dessilbi_jax.files import read_json
from dessilbi_jax.report.files import check_fields
from dessilbi_jax.report.run import Run

_FIELDS: Mapping[str, type] = {"ticket": dict, "test": dict, "from": str}


@dataclass(frozen=True)
class Point:
    """A ticket that was retrained: its density, and accuracies on test data.

    `dense` and `projected` are None where it was retrained on other data. `epochs` are the lines
    of its retraining, one an epoch. `own` is the ticket of the run, not of its sweep.
    """

    density: float
    retrained: float
    projected: float | None
    dense: float | None
    start: str
    epochs: tuple[dict[str, Any], ...]
    own: bool = False


def points(run: Run) -> list[Point]:
    """Returns the retrained tickets of a run, by rising density; those of `sweep/` and its own.

    Raises ValueError naming a result.json that is damaged.
    """
    places = [run.folder / run_files.RETRAINED]
    if (run.folder / run_files.SWEEP).is_dir():
        places += sorted((run.folder / run_files.SWEEP).glob(f"*-{run_files.RETRAINED}"))
    found = []
    for place in places:
        file = place / run_files.RESULT
        if not file.exists():
            continue
        result = check_fields(read_json(file), _FIELDS, str(file))
        density = result["ticket"].get("density")
        if not isinstance(density, float):
            continue  # of an older version
        test = check_fields(result["test"], {"retrained": float}, f"{file}: test")
        found.append(
            Point(
                density,
                float(test["retrained"]),
                test.get("projected"),
                test.get("dense"),
                result["from"],
                tuple(result.get("epochs") or ()),
                own=place.name == run_files.RETRAINED,
            )
        )
    return sorted(found, key=lambda point: point.density)
