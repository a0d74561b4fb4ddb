"""`two-layer-linear`: the numbers of its description, against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

import thalweg as tw
from thalweg import results, studies
from thalweg.studies import two_layer_linear

SMALL = {"n_samples": 60, "steps": 40, "newton_steps": 20, "lm_steps": 40}


@pytest.fixture(scope="module")
def tree():
    """The default problem; the first-order methods for as long as their marked numbers need."""
    return studies.run("two-layer-linear", steps=200)


@pytest.fixture(scope="module")
def small():
    return studies.run("two-layer-linear", population=True, **SMALL)


def path(tree, name, part="path"):
    return results.part(tree, f"{part}/{name}")


def start_of(tree):
    values = path(tree, "levenberg-marquardt")["start"].values
    return values[:60].reshape(10, 6), values[60:].reshape(6, 6)


def residuals(tree):
    """(W1W2 − A)X and its Jacobian in NumPy, entry by entry as the two blocks are stated."""
    x, A = tree["data/x"].values, tree["data/A"].values

    def r(w):
        return (x @ (w[:60].reshape(10, 6) @ w[60:].reshape(6, 6) - A).T).ravel()

    def jacobian(w):
        W1, W2 = w[:60].reshape(10, 6), w[60:].reshape(6, 6)
        # ∂ŷ_ni/∂W1_kj = δ_ik (W2 x_n)_j;  ∂ŷ_ni/∂W2_kl = W1_ik x_nl
        first = np.einsum("ik,nj->nikj", np.eye(10), x @ W2.T)
        second = np.einsum("ik,nl->nikl", W1, x)
        n = len(x)
        return np.hstack([first.reshape(10 * n, 60), second.reshape(10 * n, 36)])

    return r, jacobian


# The numbers of its description ------------------------------------------------------------------


def test_the_problem_is_the_one_described(tree):
    x, A = tree["data/x"].values, tree["data/A"].values
    assert x.shape == (1000, 6)
    assert A.shape == (10, 6)
    # rows of uniform numbers, scaled by ten equally spaced ones from 1 to 1e-5
    scale = np.linspace(1, 1e-5, 10)
    assert ((A / scale[:, None] >= 0) & (A / scale[:, None] <= 1)).all()
    assert 10 <= np.linalg.cond(A) <= 30
    W1, W2 = start_of(tree)
    loss = np.sum((x @ (W1 @ W2 - A).T) ** 2)
    for name in ("gradient-descent", "adam", "gauss-newton", "levenberg-marquardt"):
        np.testing.assert_allclose(path(tree, name)["loss"][0], loss, rtol=1e-10)


def test_gradient_descent_at_1e4_and_1e3_diverges_and_harms_nobody(tree):
    descent = path(tree, "gradient-descent")
    assert list(descent["lr"].values) == [1e-6, 1e-5, 1e-4, 1e-3]
    assert list(descent["status"].values) == ["completed", "completed", "diverged", "diverged"]
    assert np.isfinite(descent["loss"][:, :2]).all()
    assert (descent["diverged_at"][2:] < 20).all()
    # studies.md: 2/λ_max at the start is about 2e-5
    assert 1.5e-5 < 2 / float(tree["linearisation/largest_curvature"]) < 2.5e-5


def test_the_largest_curvature_is_that_of_the_hessian_by_differences(small):
    r, jacobian = residuals(small)
    w = path(small, "levenberg-marquardt")["start"].values
    gradient = lambda w: 2 * jacobian(w).T @ r(w)  # noqa: E731
    h = 1e-5
    columns = [(gradient(w + h * e) - gradient(w - h * e)) / (2 * h) for e in np.eye(96)]
    largest = np.linalg.eigvalsh((np.array(columns) + np.array(columns).T) / 2)[-1]
    np.testing.assert_allclose(small["linearisation/largest_curvature"], largest, rtol=1e-6)


def test_gauss_newton_falls_as_described(tree):
    loss = path(tree, "gauss-newton")["loss"]
    fast = loss.sel(lr=0.2).values
    # below 1e-12 by step 100, and to about 1e-26, which is rounding
    assert fast[100] < 1e-12
    assert 1e-28 < fast[200] < 1e-24
    # at 0.05 the loss follows (1 − 0.05)^(2k) early on
    slow = loss.sel(lr=0.05).values
    k = np.arange(11)
    np.testing.assert_allclose(slow[:11] / slow[0], 0.95 ** (2 * k), rtol=0.01)


def test_levenberg_marquardt_arrives_within_15_steps_at_default_settings(tree):
    lm = path(tree, "levenberg-marquardt")
    assert lm["status"] == "converged"
    assert lm["stopped_at"] <= 15
    assert lm["loss"][-1] < 1e-20


@pytest.mark.parametrize("seed", range(4))
def test_it_arrives_sooner_than_scipy_from_other_starts_too(seed):
    tree = studies.run("two-layer-linear", seed=seed, n_samples=200, steps=1, newton_steps=1)
    lm = path(tree, "levenberg-marquardt")
    assert lm["status"] == "converged"
    assert lm["stopped_at"] <= 15
    r, jacobian = residuals(tree)
    judge = scipy.optimize.least_squares(
        r, lm["start"].values, jac=jacobian, max_nfev=int(lm["stopped_at"]) + 1,
        ftol=1e-15, xtol=1e-15, gtol=1e-15,
    )  # fmt: skip
    # with as many evaluations, SciPy is not there
    assert 2 * judge.cost > 1e-20
    np.testing.assert_allclose(lm["loss"][-1], np.sum(r(lm["final"].values) ** 2), atol=1e-24)


@pytest.mark.parametrize(("A", "means"), [("rows", (9.2, 11.6)), ("svd", (14.4, 25.9))])
def test_the_default_decrease_takes_fewer_steps_than_nielsens(A, means):
    # the numbers that the page and the docstring of LevenbergMarquardt quote
    target = two_layer_linear._target(two_layer_linear.Settings(A=A), np.random.default_rng(0))
    problem = tw.Problem.from_residuals(
        Partial(two_layer_linear._population_residuals, target, np.sqrt(1000.0)),
        params={"W1": np.zeros((10, 6)), "W2": np.zeros((6, 6))},
    )
    path = tw.descend(
        problem, tw.LevenbergMarquardt(decrease=[0.01, 1 / 3]), steps=60, stop={"loss": 1e-20},
        starts=np.random.default_rng(1).standard_normal((60, 96)), record={"params": False},
    )  # fmt: skip
    assert (path["status"] == "converged").all()
    np.testing.assert_allclose(path["stopped_at"].mean("run"), means, atol=0.3)


def test_scipy_ends_at_the_same_risk(tree):
    r, jacobian = residuals(tree)
    start = path(tree, "levenberg-marquardt")["start"].values
    judge = scipy.optimize.least_squares(
        r, start, jac=jacobian, ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=200
    )
    assert judge.cost < 1e-20


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({}, 60),  # 96 − 36
        ({"width": 3}, 3 * 16 - 9),
        ({"width": 8}, 60),  # wider than the input: every 10 × 6 matrix can be reached
        ({"n_samples": 4}, 40),  # as many residuals
        ({"d_in": 1, "d_out": 1, "width": 1}, 1),
    ],
)
def test_the_jacobians_rank_is_all_but_the_gauge_freedom(changes, rank):
    settings = {**SMALL, "steps": 1, "newton_steps": 1, "lm_steps": 1, **changes}
    tree = studies.run("two-layer-linear", **settings)
    assert tree["linearisation/rank"] == rank
    assert two_layer_linear.expected_rank(studies.settings_of(tree)) == rank
    assert (path(tree, "gauss-newton")["rank"][1] == rank).all()
    values = tree["linearisation/singular_value"].values
    if rank < len(values):
        assert values[rank] < 1e-12 * values[0] < 1e-6 * values[rank - 1]


def test_the_jacobian_is_its_two_kronecker_blocks(small):
    x = small["data/x"].values
    W1, W2 = start_of(small)
    blocks = two_layer_linear.kronecker_blocks({"W1": W1, "W2": W2}, x)
    dense = residuals(small)[1](np.concatenate([W1.ravel(), W2.ravel()]))
    np.testing.assert_allclose(blocks, dense, rtol=1e-12)
    assert small["linearisation/off_kronecker"] < 1e-12
    # gauge freedom: (W1 S, −S W2) moves no prediction
    S = np.random.default_rng(1).standard_normal((6, 6))
    moved = dense @ np.concatenate([(W1 @ S).ravel(), -(S @ W2).ravel()])
    np.testing.assert_allclose(moved, 0, atol=1e-10)


def test_a_built_by_singular_values_has_condition_1e5():
    tree = studies.run("two-layer-linear", A="svd", **SMALL)
    values = np.linalg.svd(tree["data/A"].values, compute_uv=False)
    np.testing.assert_allclose(values[0] / values[-1], 1e5, rtol=1e-9)
    np.testing.assert_allclose(tree["data/condition"], 1e5, rtol=1e-9)
    lm = path(tree, "levenberg-marquardt")
    assert lm["status"] == "converged"
    assert lm["stopped_at"] <= 25
    assert "condition number is 100000" in " ".join(
        studies.findings("two-layer-linear", tree).sentences
    )


def test_the_expected_risk_gives_the_same_curves():
    tree = studies.run(
        "two-layer-linear", population=True, n_samples=2000, steps=30, newton_steps=20
    )
    x, A = tree["data/x"].values, tree["data/A"].values
    W1, W2 = start_of(tree)
    expected = 2000 * np.sum((W1 @ W2 - A) ** 2)
    np.testing.assert_allclose(path(tree, "gauss-newton", "population")["loss"][0, 0], expected)
    # xᵀx/n scatters about the identity by 1/√n in each of its directions
    spread = np.abs(np.linalg.eigvalsh(x.T @ x / 2000) - 1).max()
    assert spread < 0.15
    for name in ("adam", "gauss-newton"):
        a, b = (path(tree, name, part)["loss"].values for part in ("path", "population"))
        np.testing.assert_allclose(a, b, rtol=2 * spread)
    steps = [
        path(tree, "levenberg-marquardt", part)["stopped_at"] for part in ("path", "population")
    ]
    assert abs(int(steps[0]) - int(steps[1])) <= 2
    diverged = [path(tree, "gradient-descent", p)["status"].values for p in ("path", "population")]
    np.testing.assert_array_equal(*diverged)


# What is drawn and said ----------------------------------------------------------------------------


def test_figures(small):
    figures = studies.figures("two-layer-linear", small)
    assert set(figures) == {"first-order", "second-order", "fair", "jacobian", "population"}
    for name in ("first-order", "second-order", "fair", "population"):
        assert [ax.get_ylabel().split()[0] for ax in figures[name].axes] == ["loss", "gradient"]
        assert all(ax.get_yscale() == "log" for ax in figures[name].axes)
    named = [t.get_text() for t in figures["first-order"].legends[0].get_texts()]
    assert "gradient descent: lr = 0.001 (diverged)" in named
    dashes = {}
    for line in figures["first-order"].axes[0].get_lines():
        dashes.setdefault(line.get_label().split(":")[0], set()).add(line.get_linestyle())
    assert dashes["Adam"] == {"--"}
    assert dashes["gradient descent"] == {"-"}
    newton = [
        line for line in figures["second-order"].axes[0].get_lines() if "0.05" in line.get_label()
    ]
    assert len(newton) == 2  # the measured curve, and (1 − 0.05)^(2k)
    np.testing.assert_allclose(*(line.get_ydata()[:10] for line in newton), rtol=0.02)


def test_findings(tree):
    findings = studies.findings("two-layer-linear", tree)
    assert findings.numbers["rank of the Jacobian at the start"].startswith("60 of 96")
    assert "accepted" in findings.numbers["Levenberg–Marquardt"]
    assert len(findings.warnings) == 2
    assert "sum of squares" in findings.sentences[0]
    assert (
        "10" in findings.numbers["condition number of A"]
        or float(findings.numbers["condition number of A"]) < 31
    )
    table = findings.tables["Every optimizer"]
    assert len(table) == 1 + 4 + 4 + 1 + 1 + 2 + 1


def test_a_saved_study_runs_again_to_the_same_numbers(small, tmp_path):
    tw.save(small, tmp_path / "study.nc")
    loaded = tw.load(tmp_path / "study.nc")
    assert loaded.identical(small)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_samples": 1},
        {"steps": 0, "newton_steps": 0, "lm_steps": 0},
        {"lrs": (1e-3,), "adam_lrs": (0.1,), "newton_lrs": (1.0,)},
        {"lrs": (1.0,), "momentum_lr": 1.0, "newton_lrs": (2.5,)},
        {"width": 1, "d_out": 2, "d_in": 3},
        {"lm_loss": 0.0, "lm_steps": 5},
    ],
)
def test_odd_settings(changes):
    tree = studies.run("two-layer-linear", **{**SMALL, "steps": 5, "newton_steps": 5, **changes})
    assert len(studies.figures("two-layer-linear", tree)) == 4
    assert studies.findings("two-layer-linear", tree).numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": "columns"}, "unknown setting A"),
        ({"n_samples": 0}, "'n_samples' must be at least 1"),
        ({"width": 0}, "'width' must be at least 1"),
        ({"lrs": ()}, "'lrs' needs at least one step size"),
        ({"adam_lrs": (-1.0,)}, "lr must be at least 0"),
    ],
)
def test_impossible_settings_are_one_line(changes, message):
    with pytest.raises(tw.InputError, match=message):
        studies.run("two-layer-linear", **{**SMALL, **changes})
