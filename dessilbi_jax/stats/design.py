"""What a path of a linear model reads: X standardised without writing it anew for each fold.

The driver sees the columns as (x − shift)·inv, with x dense or sparse and the same for all folds;
what differs between folds are weights of the samples and two vectors. So a sparse X stays sparse,
and folds under `jax.vmap` share one product with X.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.sparse import linalg as sparse_linalg

from dessilbi_jax.stats.precision import LEAST_ROWS, padded_size

HostMatrix: TypeAlias = Any  # np.ndarray, or a sparse matrix in CSR form


class Entries(NamedTuple):
    """A sparse matrix by its entries, in any order; entries of value 0 are padding.

    Attributes:
        row, column, value: of each entry.
        outputs, inputs: arrays as long as the matrix has rows and columns, for their lengths.
    """

    row: jax.Array
    column: jax.Array
    value: jax.Array
    outputs: jax.Array
    inputs: jax.Array


Matrix: TypeAlias = jax.Array | Entries


def times(b: jax.Array, x: Matrix) -> jax.Array:
    """b Xᵀ of (…, p) and (n, p): (…, n)."""
    if isinstance(x, Entries):
        return _summed(b[..., x.column] * x.value, x.row, len(x.outputs))
    return b @ x.T


def back(r: jax.Array, x: Matrix) -> jax.Array:
    """r X of (…, n) and (n, p): (…, p)."""
    if isinstance(x, Entries):
        return _summed(r[..., x.row] * x.value, x.column, len(x.inputs))
    return r @ x


def _summed(parts: jax.Array, where: jax.Array, length: int) -> jax.Array:
    out = jnp.zeros((*parts.shape[:-1], length), parts.dtype)
    return out.at[..., where].add(parts)


class Design(NamedTuple):
    """The standardised X: columns (x − shift)·inv."""

    x: Matrix
    shift: jax.Array
    inv: jax.Array

    def eta(self, b: jax.Array) -> jax.Array:
        """b X̃ᵀ, (…, n)."""
        b = b * self.inv
        return times(b, self.x) - jnp.sum(b * self.shift, axis=-1, keepdims=True)

    def back(self, r: jax.Array) -> jax.Array:
        """r X̃, (…, p)."""
        total = jnp.sum(r, axis=-1, keepdims=True)
        return (back(r, self.x) - total * self.shift) * self.inv


@dataclasses.dataclass(frozen=True)
class Columns:
    """X on the host, in float64: X = x/unit + origin, x about standardised if dense.

    Attributes:
        x: (n, p), dense or CSR.
        origin, unit: (p,) each; 0 and 1 where X is sparse.
        centred: whether columns are centred.
        scaled: "each", "common" (all columns by one number) or "no".
    """

    x: HostMatrix
    origin: np.ndarray
    unit: np.ndarray
    centred: bool
    scaled: str

    @classmethod
    def of(cls, X: HostMatrix, w: np.ndarray, *, centred: bool, scaled: str) -> "Columns":
        """Reads X (n, p); w are the samples' weights, of sum 1."""
        p = X.shape[1]
        zeros, ones = np.zeros(p), np.ones(p)
        if sparse.issparse(X):
            return cls(sparse.csr_array(X, dtype=np.float64), zeros, ones, centred, scaled)
        X = np.asarray(X, dtype=np.float64)
        origin = w @ X if centred else zeros
        x = X - origin
        rms = np.sqrt(w @ x**2)
        flat = rms <= 10 * np.finfo(np.float64).eps * np.abs(X).max(axis=0)
        x[:, flat] = 0  # a constant column is one, whatever its mean was rounded to
        unit = 1 / np.where(flat, 1, rms)
        if scaled != "each":
            unit = ones / (np.sqrt(np.mean(rms**2)) or 1)
        x *= unit
        return cls(x, origin, unit, centred, scaled)

    def moments(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """shift and inv of the columns under weights w (n,) of sum 1; inv of a constant is 0."""
        p = self.x.shape[1]
        square = self.x.multiply(self.x) if sparse.issparse(self.x) else self.x**2
        second = np.asarray(w @ square).reshape(p)
        shift = np.asarray(w @ self.x).reshape(p) if self.centred else np.zeros(p)
        variance = np.maximum(second - shift**2, 0)
        flat = variance <= 1e-13 * second
        if self.scaled == "each":
            return shift, np.where(flat, 0, 1 / np.sqrt(np.where(flat, 1, variance)))
        common = np.sqrt(variance.mean()) if self.scaled == "common" else self.unit[0]
        return shift, np.where(flat, 0, 1 / (common or 1))

    def factor(self, inv: np.ndarray) -> np.ndarray:
        """What takes coefficients of the standardised columns to those of X."""
        return inv * self.unit

    def centre(self, shift: np.ndarray) -> np.ndarray:
        """The means of the columns of X."""
        return self.origin + shift / self.unit

    def gram(self, w: np.ndarray, shift: np.ndarray, inv: np.ndarray) -> np.ndarray:
        """X̃ᵀWX̃, (p, p)."""
        if sparse.issparse(self.x):
            inner = (self.x.T @ self.x.multiply(w[:, None])).toarray()
        else:
            inner = self.x.T @ (w[:, None] * self.x)
        return (inner - np.outer(shift, shift)) * np.outer(inv, inv)

    def slope(self, r: np.ndarray, shift: np.ndarray, inv: np.ndarray) -> np.ndarray:
        """r X̃ of (…, n)."""
        return (np.asarray(r @ self.x) - r.sum(axis=-1, keepdims=True) * shift) * inv

    def eta(self, b: np.ndarray, shift: np.ndarray, inv: np.ndarray) -> np.ndarray:
        """b X̃ᵀ of (…, p)."""
        b = b * inv
        return np.asarray((self.x @ b.T).T) - (b @ shift)[..., None]

    def square_norm(self, w: np.ndarray, shift: np.ndarray, inv: np.ndarray) -> float:
        """‖X̃‖² under weights w: the largest eigenvalue of X̃ᵀWX̃."""
        n, p = self.x.shape
        if p <= min(n, 512):
            return top_eigenvalue(self.gram(w, shift, inv))
        if not sparse.issparse(self.x) and n <= 512:
            x = (self.x - shift) * inv * np.sqrt(w)[:, None]
            return top_eigenvalue(x @ x.T)
        return top_eigenvalue(
            sparse_linalg.LinearOperator(
                (p, p), dtype=np.float64,
                matvec=lambda b: self.slope(w * self.eta(b.reshape(-1), shift, inv), shift, inv),
            )
        )  # fmt: skip

    def on_device(self, shift: np.ndarray, inv: np.ndarray, dtype: Any) -> Design:
        """The design for the driver, its sizes padded by zeros; shift and inv may be stacks."""
        n, p = self.x.shape
        rows, columns = padded_size(n, LEAST_ROWS), padded_size(p)
        x = (
            entries(self.x, dtype, (rows, columns))
            if sparse.issparse(self.x)
            else jnp.asarray(padded(self.x, (rows, columns)).astype(dtype))
        )
        vectors = (padded(v, (*v.shape[:-1], columns)).astype(dtype) for v in (shift, inv))
        return Design(x, *map(jnp.asarray, vectors))


def top_eigenvalue(matrix: Any) -> float:
    """The largest eigenvalue of a symmetric matrix, or a linear operator, of no negative ones."""
    p = matrix.shape[0]
    if p <= 512 and not isinstance(matrix, sparse_linalg.LinearOperator):
        dense = matrix.toarray() if sparse.issparse(matrix) else matrix
        return float(max(np.linalg.eigvalsh(dense)[-1], 0))
    start = np.random.default_rng(0).standard_normal(p)  # the same result every time
    return float(
        sparse_linalg.eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    )


def padded(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array with zeros behind along each axis, up to a shape."""
    return np.pad(x, [(0, size - n) for n, size in zip(x.shape, shape, strict=True)])


def entries(x: HostMatrix, dtype: Any, shape: tuple[int, int]) -> Entries:
    """A sparse matrix for the driver, padded to a shape and in its number of entries."""
    coo = sparse.coo_array(x)
    size = max(1024, 1 << (coo.nnz - 1).bit_length())
    index = [padded(part.astype(np.int32), (size,)) for part in coo.coords]
    value = padded(coo.data.astype(dtype), (size,))
    ends = (np.zeros(length, np.int8) for length in shape)
    return Entries(*map(jnp.asarray, (*index, value, *ends)))
