"""Solution paths among the arrays that `Work.kept` keeps."""

import tempfile
from pathlib import Path

import numpy as np

import dessilbi_jax as dl


def to_array(path: dl.SolutionPath) -> np.ndarray:
    """The bytes of the file that a path is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.npz"
        path.save(file)
        return np.frombuffer(file.read_bytes(), np.uint8)


def from_array(stored: np.ndarray) -> dl.SolutionPath:
    """The path of `to_array`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.npz"
        file.write_bytes(np.asarray(stored).tobytes())
        return dl.SolutionPath.load(file)
