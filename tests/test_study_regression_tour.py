"""Study 3: its numbers, against NumPy, PyTorch and optimality conditions; odd settings."""

import sys

import numpy as np
import pytest
import torch
from small import SMALL

import thalweg as tw
from thalweg import files, studies
from thalweg.catalogue import data
from thalweg.studies import polynomials

NAME = "regression-tour"


@pytest.fixture(scope="module")
def tour():
    return studies.run(NAME, points=12, adam_epochs=10, polynomial_epochs=20)


@pytest.fixture(scope="module")
def xy():
    return data.parabola_with_outlier()


def test_the_data_are_drawn_in_the_stated_order(tour, xy):
    rng = np.random.RandomState(42)
    u = rng.uniform(size=100)
    x = np.sort(2 * u - 1)
    y = 1 + 3 * x - 4 * x**2 + 0.7 * rng.normal(size=100)
    np.testing.assert_array_equal(xy[0][1:], x[1:])
    np.testing.assert_array_equal(xy[1][1:], y[1:])
    assert (xy[0][0], xy[1][0]) == (-1.5, 10)
    np.testing.assert_array_equal(tour["data/x"], xy[0])


def test_the_least_squares_line(tour, xy):
    # the description's digits, and NumPy's polyfit
    np.testing.assert_allclose(
        tour["least-squares/params"], [-0.26649881, 2.64187294], rtol=0, atol=5e-9
    )
    np.testing.assert_allclose(tour["least-squares/params"], np.polyfit(*xy, 1)[::-1], rtol=1e-10)
    found = studies.findings(NAME, tour).numbers["least-squares line"]
    assert found == "intercept -0.26649881, slope 2.64187294"


@pytest.mark.parametrize(("loss", "f"), [("mse", np.square), ("mae", np.abs)])
def test_landscapes_lie_about_that_line(tour, xy, loss, f):
    surface = tour[f"landscape/{loss}"]
    x, y = xy
    for axis, middle in zip(
        ("intercept", "slope"), tour["least-squares/params"].values, strict=True
    ):
        np.testing.assert_allclose(surface[axis][[0, -1]], [middle - 1, middle + 1], rtol=1e-12)
    i, j = 3, 8
    by_hand = f(surface.intercept.values[i] + surface.slope.values[j] * x - y).mean()
    # the parameters of the reference are float32, and so are the grid's points
    np.testing.assert_allclose(surface.empirical[i, j], by_hand, rtol=1e-6)


def test_z_and_its_derivative(tour):
    numbers = studies.findings(NAME, tour).numbers
    # the description's digits; dz/dθ = −2(1 − log(1 + e))·e/(1 + e)
    assert numbers["z at θ = 1"].startswith("0.09813")
    np.testing.assert_allclose(
        float(numbers["its derivative, by the reverse pass"]), 0.4580252880326174, rtol=1e-14
    )
    np.testing.assert_allclose(
        float(numbers["its derivative, by the formula"]), 0.4580252880326174, rtol=1e-14
    )
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    ((1 - torch.log(1 + torch.exp(theta))) ** 2).backward()
    graph = tour["graph/reverse"].to_dataset()
    gradient = graph["value"].values[graph["kind"].values == "gradient"]
    np.testing.assert_allclose(gradient, theta.grad.item(), rtol=1e-14)


def test_the_loss_and_gradient_at_zero(tour, xy):
    x, y = xy
    path = tour["path/line"]
    assert path.params.dtype == np.float32
    assert path.loss.dtype == np.float64
    np.testing.assert_allclose(path.loss[0], 1.93830832356722, rtol=1e-14)  # the description's
    by_hand = [-np.sign(y).mean(), -(np.sign(y) * x).mean()]
    np.testing.assert_allclose(path.grad[0], by_hand, rtol=1e-6)  # float32
    assert studies.findings(NAME, tour).numbers["MAE of the line at zero"] == "1.93830832356722"


def test_descents_agree_with_torch(tour, xy):
    x, y = map(torch.from_numpy, xy)
    for name, a, steps, degree in (("line", 6.0, 50, 1), ("quadratic-full", 10.0, 100, 2)):
        w = [torch.zeros((), requires_grad=True) for _ in range(degree + 1)]
        path = tour[f"path/{name}"]
        for t in range(steps):
            yhat = sum(c * x**k for k, c in enumerate(w))
            loss = torch.nn.functional.l1_loss(yhat, y)
            assert loss.dtype == torch.float64
            # float32 parameters: a sign may flip a step early, within their precision
            np.testing.assert_allclose(path.loss[t], loss.item(), rtol=1e-5)
            np.testing.assert_allclose(path.params[t], [c.item() for c in w], atol=2e-5)
            loss.backward()
            with torch.no_grad():
                for c in w:
                    c -= a / (t + 1) * c.grad
                    c.grad = None


def test_adam_and_mini_batches_see_every_sample_once_an_epoch(tour):
    assert tour["path/quadratic-batches"].sizes["step"] == 20 * 10 + 1
    assert tour["path/quadratic-adam"].sizes["step"] == 10 * 10 + 1
    assert tour["path/polynomial"].sizes["step"] == 20 * 10 + 1
    assert tour["path/polynomial"].sizes["param"] == 13
    rates = tour["path/quadratic-batches/schedule_lr"].values
    np.testing.assert_allclose(rates, np.repeat(1 / np.arange(1, 21), 10), rtol=1e-12)
    batches = tour["batches"]
    assert batches.batch.shape == (5, 20)
    assert sorted(batches.batch.values.ravel()) == list(range(100))
    # equal batches: their losses and gradients have the whole data's as their mean
    np.testing.assert_allclose(batches.loss.mean(), 1.93830832356722, rtol=1e-12)
    np.testing.assert_allclose(
        batches.grad.mean("step"), tour["path/quadratic-full/grad"][0], rtol=1e-5
    )


@pytest.mark.parametrize("degree", [1, 2])
def test_the_least_absolute_fit_fulfils_its_optimality_conditions(xy, degree):
    x, y = xy
    residual = np.polynomial.polynomial.polyval(x, polynomials.least_absolute(x, y, degree)) - y
    powers = np.vander(x, degree + 1, increasing=True)
    on_it = (
        np.abs(residual) < 1e-9
    )  # a vertex: as many samples lie on the curve as it has parameters
    assert on_it.sum() == degree + 1
    # 0 = Σ x_k s_k for signs s_k off the curve and some s_k in [−1, 1] on it
    others = powers[~on_it].T @ np.sign(residual[~on_it])
    s = np.linalg.solve(powers[on_it].T, -others)
    assert (np.abs(s) <= 1).all()


def test_the_table_says_how_far_each_descent_stops_short(tour):
    (rows,) = studies.findings(NAME, tour).tables.values()
    assert len(rows) == 7
    for row in rows[1:]:
        assert float(row[4]) > -1e-9  # no descent is below the least
    for name in ("line", "quadratic-full", "quadratic-batches", "quadratic-adam", "polynomial"):
        # the curve that is drawn is the one that was reached
        np.testing.assert_allclose(
            tour[f"fit/{name}/mae"], tour[f"path/{name}/risk"][-1], rtol=2e-5
        )
    least = {m: float(tour[f"exact/{m}/mae"]) for m in ("line", "quadratic", "polynomial")}
    assert least["line"] > least["quadratic"] > least["polynomial"]
    np.testing.assert_allclose(tour["fit/line/mae"], least["line"], atol=1e-4)
    np.testing.assert_allclose(tour["fit/quadratic-full/mae"], least["quadratic"], atol=5e-3)


def test_figures(tour):
    names = [name for name, _ in studies.drawings(NAME, tour)]
    assert names == [
        "data", "fit-least-squares", "landscape-mse", "surface-mse", "landscape-mae", "surface-mae",
        "graph", "graph-reverse", "descent-line", "fit-line", "batches", "path-quadratic-full",
        "fit-quadratic-full", "path-quadratic-batches", "fit-quadratic-batches",
        "path-quadratic-adam", "fit-quadratic-adam", "fit-polynomial", "fits", "gap",
    ]  # fmt: skip
    figures = studies.figures(NAME, tour)
    (ax,) = figures["fits"].axes
    curves = [line for line in ax.lines if len(line.get_xdata()) == 1000]
    assert len(curves) == 6
    labels = [text.get_text() for text in figures["descent-line"].axes[0].get_legend().get_texts()]
    assert {"path", "least squares", "start", "end"} <= set(labels)
    for name in ("fit-least-squares", "fit-line", "fit-quadratic-adam", "fit-polynomial"):
        assert len(figures[name].axes) == 2
    assert [ax.get_title()[:7] for ax in figures["batches"].axes if ax.get_visible()] == [
        f"Batch {k}" for k in range(1, 6)
    ]


def test_without_its_extras_the_study_draws_what_it_can(tour, monkeypatch):
    for library in ("plotly", "plotly.graph_objects", "igraph"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setenv("PATH", "")  # no Graphviz
    drawings = dict(studies.drawings(NAME, tour))
    missing = {key: drawing.missing for key, drawing in drawings.items() if drawing.missing}
    assert {"graph", "graph-reverse"} < set(missing) < set(drawings)
    for key, says in missing.items():
        extra = "graph" if key.startswith("graph") else "plotly"
        assert says.endswith(f"pip install 'thalweg[{extra}]'")


@pytest.mark.parametrize(
    "settings",
    [
        {"outlier": ()},
        {"n_samples": 1},
        {"n_samples": 2, "degree": 12},
        {"n_samples": 15, "shown_batch": 4, "batch_size": 7},
        {"shown_batch": 100, "batch_size": 200},
        {"line_steps": 0, "quadratic_steps": 0, "sgd_epochs": 0, "adam_epochs": 0,
         "polynomial_epochs": 0},
        {"quadratic_lr": 1e300, "theta": 800.0},
        {"degree": 1, "noise": 0.0, "data_seed": 1},
    ],
)  # fmt: skip
def test_odd_settings(settings):
    tree = studies.run(NAME, **{**SMALL[NAME], **settings})
    assert list(studies.drawings(NAME, tree))
    assert studies.findings(NAME, tree).numbers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outlier", (1.0,)),
        ("window", (1.0, 2.0)),
        ("n_samples", 0),
        ("degree", 0),
        ("batch_size", 0),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(tw.InputError, match=name):
        studies.run(NAME, **{name: value})


def test_a_diverging_descent_is_named(tmp_path):
    tree = studies.run(NAME, **{**SMALL[NAME], "polynomial_lr": 1e38, "polynomial_epochs": 60})
    assert str(tree["path/polynomial/status"].values) == "diverged"
    found = studies.findings(NAME, tree)
    assert any("diverged" in warning for warning in found.warnings)
    tw.save(tree, tmp_path / "tour.nc")
    assert files.load(tmp_path / "tour.nc").identical(tree)
