"""What a split model is sparse in: D as an array or by name, and projections on its null spaces."""

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse import linalg as sparse_linalg

from dessilbi_jax.stats.design import HostMatrix


def difference_matrix(D: Any, p: int, edges: Any = None) -> HostMatrix:
    """D (m, p) in CSR form.

    Args:
        D: None for the identity; an array or a sparse matrix (m, p); "fused": the p − 1
            differences of neighbours, β_{j+1} − β_j; "graph": one row β_j − β_i for each edge.
        p: number of coefficients.
        edges: (m, 2), pairs (i, j) of a graph, for D="graph".

    Raises:
        ValueError: D of another width, an unknown name, edges that do not fit.

    Example:
        >>> from dessilbi_jax.stats.differences import difference_matrix
        >>> difference_matrix("fused", 3).toarray()
        array([[-1.,  1.,  0.],
               [ 0., -1.,  1.]])
    """
    by_name = isinstance(D, str)
    if edges is not None and not (by_name and D == "graph"):
        raise ValueError("edges are for D='graph' only")
    if D is None:
        return sparse.eye_array(p, format="csr")
    if by_name:
        if D == "fused":
            edges = np.stack([np.arange(p - 1), np.arange(1, p)], axis=1)
        elif D != "graph":
            raise ValueError(f"D must be a matrix, None, 'fused' or 'graph', got {D!r}")
        return _incidence(edges, p)
    D = sparse.csr_array(D, dtype=np.float64)
    if D.ndim != 2 or D.shape[1] != p:
        raise ValueError(f"D must have one column for each of the {p} columns of X, got {D.shape}")
    if not np.isfinite(D.data).all():
        raise ValueError("D contains NaN or infinity")
    return D


def _incidence(edges: Any, p: int) -> HostMatrix:
    if edges is None:
        raise ValueError("D='graph' needs edges, an array of pairs (i, j)")
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"edges must be integers of shape (m, 2), got {edges.dtype} {edges.shape}")
    if edges.size and not (edges.min() >= 0 and edges.max() < p):
        raise ValueError(f"edges must lie in 0, …, {p - 1}, got {edges.min()} to {edges.max()}")
    if (edges[:, 0] == edges[:, 1]).any():
        raise ValueError("an edge must join two different coefficients")
    m = len(edges)
    rows = np.repeat(np.arange(m), 2)
    values = np.tile([-1.0, 1.0], m)
    return sparse.coo_array((values, (rows, edges.reshape(-1))), shape=(m, p)).tocsr()


def grid_edges(mask: Any) -> np.ndarray:
    """Edges between neighbours along each axis of a grid, within a mask: total variation in space.

    Args:
        mask: bool, of any number of axes; its True cells are the coefficients, row-major.

    Returns:
        (m, 2), numbers of the cells that each edge joins; for D="graph".

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats import grid_edges
        >>> grid_edges(np.array([[True, True], [False, True]])).tolist()
        [[1, 2], [0, 1]]
    """
    mask = np.asarray(mask, dtype=bool)
    number = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1)
    out = []
    for axis in range(mask.ndim):
        here = np.moveaxis(number, axis, 0)
        pairs = np.stack([here[:-1].reshape(-1), here[1:].reshape(-1)], axis=1)
        out.append(pairs[(pairs >= 0).all(axis=1)])
    return np.concatenate(out)


def projected(beta: np.ndarray, D: HostMatrix, support: np.ndarray) -> np.ndarray:
    """The nearest coefficients whose D is zero outside a support: β on the null space of D_{Sᶜ}.

    Where each of those rows of D holds one entry, or two of opposite sign and equal size (masks,
    graphs), it is the mean over each component that they join, 0 where one of them is held at
    zero. Otherwise D_{Sᶜ}⁺D_{Sᶜ}β is subtracted, by LSQR.

    Args:
        beta: (p,).
        D: (m, p), CSR.
        support: bool (m,).

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.differences import difference_matrix, projected
        >>> projected(np.array([1.0, 2.0, 9.0]), difference_matrix("fused", 3), np.array([0, 1]))
        array([1.5, 1.5, 9. ])
    """
    out = D[np.flatnonzero(~np.asarray(support, bool))]
    out.eliminate_zeros()
    size = np.diff(out.indptr)
    one, two = (out.indptr[:-1][size == k] for k in (1, 2))
    if (size <= 2).all() and (out.data[two] == -out.data[two + 1]).all():
        p = len(beta)
        first, second = out.indices[two], out.indices[two + 1]
        graph = sparse.coo_array((np.ones(len(two)), (first, second)), shape=(p, p))
        _, label = csgraph.connected_components(graph, directed=False)
        mean = np.bincount(label, beta) / np.bincount(label)
        mean[label[out.indices[one]]] = 0
        return mean[label]
    return beta - sparse_linalg.lsqr(out, out @ beta, atol=1e-14, btol=1e-14)[0]
