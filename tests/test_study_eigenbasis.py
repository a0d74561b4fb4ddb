"""`eigenbasis`: closed forms of gradient descent, the spectrum's law, and what is drawn."""

import numpy as np
import pytest

import thalweg as tw
from thalweg import results, studies
from thalweg.catalogue.random_matrices import marchenko_pastur, marchenko_pastur_edges
from thalweg.plots import style

SMALL = {"p": 6, "n": 40, "steps": 30, "lr": 0.1, "wide_p": 8, "wide_n": 3, "wide_steps": 20}


@pytest.fixture(scope="module")
def tree():
    """The study with its default settings."""
    return studies.run("eigenbasis")


def part(tree, name):
    return results.part(tree, f"{name}/exact"), results.part(tree, f"{name}/path")


def drawn_again(p, n, seed=0):
    """The data, as studies.md's §6 describes them, from the seed."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((p, n)) / np.sqrt(n)
    return x, rng.standard_normal(n), rng.standard_normal(p) / np.sqrt(p)


# The numbers of its description --------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("tall", 5000), ("wide", 50)])
def test_the_trajectory_is_its_closed_form_to_rounding(tree, name, n):
    """w_t = w* + P(I − ηΛ)^t Pᵀ(w_0 − w*), with NumPy's eigenvectors of XXᵀ."""
    x, y, start = drawn_again(100, n)
    eigenvalues, P = np.linalg.eigh(x @ x.T)
    best = start + np.linalg.lstsq(x.T, y - x.T @ start)[0]  # the minimiser nearest to the start
    t = np.arange(1001)[:, None]
    closed = best + ((1 - 0.001 * eigenvalues) ** t * (P.T @ (start - best))) @ P.T
    path = part(tree, name)[1]
    assert path["params"].dtype == np.float64
    # 1,000 steps of rounding to 1e-16, on coordinates of order one
    np.testing.assert_allclose(path["params"], closed, atol=2e-13)


def test_the_trajectory_is_the_stated_recursion():
    """w ← w − ηXXᵀw + ηXY, written out."""
    path = part(studies.run("eigenbasis", **SMALL), "tall")[1]
    x, y, w = drawn_again(6, 40)
    for row, plotted in zip(path["params"].values, path["plotted"].values, strict=True):
        np.testing.assert_allclose(row, w, atol=1e-13)
        np.testing.assert_allclose(plotted, ((x.T @ w - y) ** 2).sum() / 40, rtol=1e-12)
        w = w - 0.1 * x @ (x.T @ w) + 0.1 * x @ y


def test_the_spectrum_lies_near_the_marchenko_pastur_edges(tree):
    exact = part(tree, "tall")[0]
    eigenvalues = exact["eigenvalue"].values
    x = drawn_again(100, 5000)[0]
    np.testing.assert_allclose(np.sort(eigenvalues), np.linalg.eigvalsh(x @ x.T), rtol=1e-12)
    low, high = marchenko_pastur_edges(0.02)
    np.testing.assert_allclose([low, high], [0.737157, 1.302843], atol=5e-7)
    # the extreme eigenvalues scatter about the edges on the scale p^(−2/3)·(high − low) = 0.026
    np.testing.assert_allclose(eigenvalues[[-1, 0]], [low, high], atol=0.026)
    counts, cuts = np.histogram(eigenvalues, 5)
    middle = (cuts[1:] + cuts[:-1]) / 2
    expected = 100 * np.diff(cuts) * marchenko_pastur(middle, 0.02)
    # eigenvalues repel each other, so that a count is off by one or two; what the middle of a wide bin says
    # of all of it is off by as many where the law is steep
    np.testing.assert_allclose(counts, expected, atol=4)


def test_the_rank_is_full_where_p_is_below_n_and_every_direction_moves(tree):
    exact, path = part(tree, "tall")
    assert int(exact["rank"]) == 100
    moved = exact["vectors"].values.T @ (path["final"].values - path["start"].values)
    way = exact["vectors"].values.T @ (exact["minimiser"].values - path["start"].values)
    share = 1 - (1 - 0.001 * exact["eigenvalue"].values) ** 1000
    assert share.min() > 0.5
    np.testing.assert_allclose(moved, share * way, atol=2e-13)
    numbers = studies.findings("eigenbasis", tree).numbers
    assert numbers["p = 100, n = 5000: rank of X"] == "100"


def test_directions_outside_the_image_never_move(tree):
    exact, path = part(tree, "wide")
    x, _, start = drawn_again(100, 50)
    assert int(exact["rank"]) == np.linalg.matrix_rank(x) == 50
    assert (exact["eigenvalue"].values[50:] == 0).all()
    # the projector on the complement of X's image, by least squares
    moved = path["params"].values.T - start[:, None]
    outside = moved - x @ np.linalg.lstsq(x, moved)[0]
    assert np.abs(outside).max() < 1e-13
    assert np.abs(moved).max() > 0.5


# Stability of gradient descent: numerics.md --------------------------------------------------------


@pytest.fixture(scope="module")
def quadratic():
    """A (5 × 5) with eigenvalues 0.5 … 4 in a rotated basis, b and a start."""
    rng = np.random.default_rng(3)
    Q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    eigenvalues = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    return Q, eigenvalues, rng.standard_normal(5), rng.standard_normal(5)


@pytest.mark.parametrize("lr", [0.1, 0.4, 0.49, 0.51])
def test_gradient_descent_on_a_quadratic_is_its_closed_form(quadratic, lr):
    """½wᵀAw − bᵀw: w_t = w* + Q(I − ηΛ)^t Qᵀ(w_0 − w*), stable or not."""
    Q, eigenvalues, b, start = quadratic
    A = Q @ np.diag(eigenvalues) @ Q.T
    problem = tw.Problem.from_function(lambda w: 0.5 * w @ A @ w - b @ w, params=start)
    path = tw.descend(problem, tw.SGD(lr=lr), steps=200)
    best = np.linalg.solve(A, b)
    t = np.arange(201)[:, None]
    closed = best + ((1 - lr * eigenvalues) ** t * (Q.T @ (start - best))) @ Q.T
    size = np.maximum(1, np.abs(closed).max(axis=1, keepdims=True))
    assert (np.abs(path["params"].values - closed) <= 1e-11 * size).all()


def test_the_threshold_is_two_over_the_largest_eigenvalue(quadratic):
    Q, eigenvalues, b, start = quadratic
    A = Q @ np.diag(eigenvalues) @ Q.T
    problem = tw.Problem.from_function(lambda w: 0.5 * w @ A @ w - b @ w, params=start)
    threshold = 2 / 4.0
    path = tw.descend(problem, tw.SGD(lr=threshold * np.array([1 - 1e-3, 1 + 1e-3])), steps=8000)
    way = np.linalg.norm(path["params"].values - np.linalg.solve(A, b)[:, None], axis=1)
    # along the last eigenvector |1 − ηλ| is 1 ∓ 0.002: e^(∓16) = 1e∓7 after 8,000 steps
    assert way[-1, 0] < 1e-5 * way[0, 0]
    assert way[-1, 1] > 1e5 * way[0, 1]


@pytest.mark.parametrize(("loss", "factor"), [("half", 2.0), ("mse", 1.0)])
def test_mse_has_no_half_and_its_threshold_is_half_as_large(loss, factor):
    x, y, start = drawn_again(4, 30, seed=1)
    largest = np.linalg.eigvalsh(x @ x.T).max()
    problem = tw.Problem(
        lambda w, x: x @ w,
        (lambda yhat, y: 0.5 * (yhat - y) ** 2) if loss == "half" else "mse",
        x.T,
        y,
        params=start,
        reduction="sum",
    )
    lr = factor / largest * np.array([1 - 1e-3, 1 + 1e-3])
    final = tw.descend(problem, tw.SGD(lr=lr), steps=10_000, every=10_000)["final"].values
    best = np.linalg.lstsq(x.T, y)[0]
    assert np.linalg.norm(final[:, 0] - best) < 1e-6
    assert np.linalg.norm(final[:, 1] - best) > 1e6


# What is drawn and said ----------------------------------------------------------------------------


def test_figures(tree):
    figures = studies.figures("eigenbasis", tree)
    names = ("matrix", "spectrum", "descent", "movement")
    assert list(figures) == [*names, *(f"wide_{name}" for name in names), "pace"]
    given, eigen = figures["movement"].axes[:2]
    exact, path = part(tree, "tall")
    moved = np.abs(path["params"].values - path["start"].values)
    np.testing.assert_array_equal(given.collections[0].get_array(), moved.T)
    assert given.collections[0].norm.vmax == eigen.collections[0].norm.vmax
    assert eigen.get_ylabel() == "eigenvalue"
    rotated = np.abs((path["params"].values - path["start"].values) @ exact["vectors"].values)
    np.testing.assert_array_equal(eigen.collections[0].get_array(), rotated.T)
    theory, measured = figures["pace"].axes[1].lines
    np.testing.assert_allclose(
        measured.get_ydata(), np.interp(measured.get_xdata(), *theory.get_data()), atol=1e-4
    )
    (note,) = style.notes(figures["wide_spectrum"].axes[0])
    assert note == "50 of 100 eigenvalues are zero: no bar"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0, "wide_steps": 0},
        {"p": 1, "n": 1, "wide_p": 1, "wide_n": 1},
        {"lr": 100.0, "wide_lr": 1000.0, "steps": 300, "wide_steps": 300},
        {"p": 40, "n": 3, "wide_p": 3, "wide_n": 40},
        {"p": 5, "n": 5},
        {"lr": 0.0, "wide_lr": 0.0},
    ],
)
def test_odd_settings(settings):
    tree = studies.run("eigenbasis", **(SMALL | settings))
    assert len(studies.figures("eigenbasis", tree)) == 9
    found = studies.findings("eigenbasis", tree)
    assert found.numbers
    assert bool(found.warnings) == ("lr" in settings and settings["lr"] > 1)


def test_impossible_sizes():
    with pytest.raises(tw.InputError, match="'wide_p' and 'wide_n' must be at least 1; 100 and 0"):
        studies.run("eigenbasis", wide_n=0)
