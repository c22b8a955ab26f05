"""`split_lbi_path`: closed form, limits, projections, fused and graph forms, parts."""

import re

import numpy as np
import pytest
from scipy import sparse

from dessilbi_jax.stats import grid_edges, split_lbi_path
from dessilbi_jax.stats.differences import difference_matrix, projected


@pytest.fixture(scope="module")
def orthogonal():
    signs = np.array([[1, 1], [1, -1]])
    H = np.kron(np.kron(signs, signs), signs)[:, 1:5].astype(float)
    return H, np.array([3.0, -1.5, 0.6, 0.0])


@pytest.fixture(scope="module")
def pieces():
    """Piecewise constant coefficients of 12 columns."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 12))
    beta = np.repeat([2.0, 0, -1], 4)
    return X, X @ beta + 0.3 * rng.standard_normal(60), beta


@pytest.fixture(scope="module")
def fused(pieces):
    return split_lbi_path(*pieces[:2], D="fused", nu=1.0, kappa=20.0, ratio=30)


@pytest.mark.parametrize("nu", [0.5, 4.0])
def test_entries_of_an_orthogonal_design(orthogonal, nu):
    H, beta = orthogonal
    path = split_lbi_path(H, H @ beta, nu=nu, kappa=400.0, standardize_y=False, ratio=8)
    expected = np.where(beta == 0, np.inf, (1 + nu) / np.maximum(abs(beta), 1e-9))
    np.testing.assert_allclose(path.entry_times, expected, rtol=5e-3)
    np.testing.assert_array_equal(path.entry_signs, np.sign(beta))
    # Once in, γ and β both go to z; the others stay at the ridge's νz/(1 + ν).
    t = 0.9 * expected[1]
    np.testing.assert_allclose(path.at(t), [3, 0, 0, 0], atol=2e-2)
    np.testing.assert_allclose(path.dense_at(t)[1:], nu * beta[1:] / (1 + nu), atol=2e-2)


def test_the_start_is_where_nothing_pulls(pieces):
    X, y, _ = pieces
    X = (X - X.mean(0)) / X.std(0)
    y = (y - y.mean()) / y.std()
    D = difference_matrix(None, 12).toarray()
    nu = 0.7
    path = split_lbi_path(X, y, nu=nu, kappa=10.0, ratio=2)
    beta = np.linalg.solve(nu * X.T @ X / 60 + D.T @ D, nu * X.T @ y / 60)
    assert path.ts[0] == pytest.approx(nu / abs(beta).max(), rel=1e-9)
    np.testing.assert_allclose(path.dense_coefs[:, 0], beta, rtol=1e-9)


def test_the_fused_path_finds_the_pieces(fused, pieces):
    X, y, beta = pieces
    assert fused.order[:2].tolist() == [3, 7]
    assert fused.entry_signs[[3, 7]].tolist() == [-1, -1]
    t = np.sqrt(fused.entry_times[7] * np.sort(fused.entry_times)[2])
    sparse_ = fused.at(t)
    assert len(np.unique(sparse_)) == 3
    np.testing.assert_allclose(sparse_, beta, atol=0.2)
    assert fused.selected(t).nonzero()[0].tolist() == [3, 7]
    residual = y - X @ sparse_ - fused.intercept_at(t)
    assert abs(residual.mean()) < 1e-9
    dense = y - X @ fused.dense_at(t) - fused.dense_intercept_at(t)
    assert abs(dense.mean()) < 1e-9


def test_all_ways_to_give_d_are_one(fused, pieces):
    X, y, _ = pieces
    D = difference_matrix("fused", 12)
    edges = np.stack([np.arange(11), np.arange(1, 12)], 1)
    for given in ({"D": D.toarray()}, {"D": D}, {"D": "graph", "edges": edges}):
        other = split_lbi_path(X, y, nu=1.0, kappa=20.0, ratio=30, **given)
        np.testing.assert_allclose(other.coefs, fused.coefs, atol=1e-9)
        np.testing.assert_allclose(other.entry_times, fused.entry_times)


def test_direct_and_gram_forms_agree(fused, pieces):
    X, y, _ = pieces
    other = split_lbi_path(X, y, D="fused", nu=1.0, kappa=20.0, ratio=30, gram=False)
    np.testing.assert_allclose(other.coefs, fused.coefs, atol=1e-9)
    np.testing.assert_allclose(other.dense_coefs, fused.dense_coefs, atol=1e-9)


def test_parts_add_up_and_strong_is_the_sparse_estimate(pieces):
    X, y, _ = pieces
    path = split_lbi_path(X, y, kappa=20.0, ratio=30)
    t = path.ts[40]
    strong, weak, noise = path.parts(t)
    np.testing.assert_array_equal(strong, path.at(t))
    np.testing.assert_allclose(strong + weak + noise, path.dense_at(t))
    assert not weak[strong != 0].any()
    assert not (weak * noise).any()
    _, all_weak, none = path.parts(t, threshold=0.0)
    assert np.count_nonzero(all_weak) >= np.count_nonzero(weak)
    assert not none.any()


def test_rows_of_d_enter_by_labels(pieces):
    X, y, _ = pieces
    labels = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    path = split_lbi_path(X, y, D="fused", groups=labels, nu=1.0, kappa=20.0, ratio=10)
    assert path.entry_times.shape == (2,)
    assert path.order[0] == 1
    early = path.selected(min(path.ts[-1], path.entry_times.mean()))
    assert early.nonzero()[0].tolist() == [3, 7]


def test_classes_start_at_the_minimum_of_the_coupled_loss(classes):
    X, y = classes
    for family, labels in (("binomial", y > 0), ("multinomial", y)):
        path = split_lbi_path(X, labels, family=family, kappa=10.0, ratio=10)
        # Before the first entry nothing moves: β at the first two snapshots differs by a step.
        assert path.ts[0] == pytest.approx(path.entry_times.min(), rel=1e-6)
        eta = np.tensordot(path.dense_coefs[..., -1], X.T, 1).T + path.dense_intercepts[..., -1]
        guess = eta > 0 if eta.ndim == 1 else eta.argmax(1)
        assert np.mean(guess == labels) > 0.65
        assert path.coefs.shape == path.dense_coefs.shape


@pytest.mark.parametrize(
    ("D", "support", "expected"),
    [
        (np.eye(3), [1, 0, 1], [1.0, 0, 9]),
        ([[-1, 1, 0], [0, -1, 1], [1, 0, 0]], [1, 0, 1], [1, 5.5, 5.5]),
        ([[-1, 1, 0], [0, -1, 1], [1, 0, 0]], [0, 1, 0], [0, 0, 9]),
        ([[1.0, 2, 0]], [0], [-0.4 + 0.4, 0, 9]),
    ],
)
def test_projections_are_the_nearest_of_the_null_space(D, support, expected):
    beta = np.array([1.0, 2.0, 9.0])
    D = np.asarray(D, float)
    got = projected(beta, sparse.csr_array(D), np.asarray(support))
    out = D[~np.asarray(support, bool)]
    np.testing.assert_allclose(got, beta - np.linalg.pinv(out) @ out @ beta, atol=1e-9)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_edges_of_a_grid_are_its_neighbours():
    mask = np.ones((2, 3, 2), bool)
    mask[0, 0, 0] = False
    edges = grid_edges(mask)
    cells = np.argwhere(mask)
    assert (abs(cells[edges[:, 0]] - cells[edges[:, 1]]).sum(1) == 1).all()
    distances = abs(cells[:, None] - cells[None]).sum(-1)
    assert len(edges) == (distances == 1).sum() / 2 == len({tuple(e) for e in edges})


BAD = {
    "width": ({"D": np.eye(3)}, "one column for each of the 12 columns of X, got (3, 3)"),
    "name": ({"D": "tv"}, "'fused' or 'graph', got 'tv'"),
    "no edges": ({"D": "graph"}, "needs edges"),
    "edges without graph": ({"edges": [[0, 1]]}, "for D='graph' only"),
    "self": ({"D": "graph", "edges": [[1, 1]]}, "two different coefficients"),
    "far": ({"D": "graph", "edges": [[0, 12]]}, "edges must lie in 0, …, 11"),
    "floats": ({"D": "graph", "edges": [[0.0, 1]]}, "edges must be integers of shape (m, 2)"),
    "NaN": ({"D": np.full((2, 12), np.nan)}, "NaN"),
    "nu": ({"nu": 0.0}, "nu must be a positive finite number, got 0.0"),
    "infinite nu": ({"nu": np.inf}, "nu must be"),
    "alpha": ({"alpha": 10.0}, "too long a step"),
    "groups": ({"groups": [0]}, "one label for each of the 12 rows of D"),
    "t_max": ({"t_max": 1e-3}, "before the first entry"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(pieces, case):
    wrong, said = BAD[case]
    with pytest.raises(ValueError, match=re.escape(said)):
        split_lbi_path(*pieces[:2], **wrong)
