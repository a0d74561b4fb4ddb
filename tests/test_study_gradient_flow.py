"""The study of gradient flow: its numbers, with their sources, and what it does with odd settings."""

import numpy as np
import pytest
from matplotlib.patches import Polygon
from scipy.integrate import solve_ivp
from small import SMALL

import thalweg as tw
from thalweg import studies
from thalweg.errors import InputError
from thalweg.plots import log_slope as slope

NAME = "gradient-flow"


def ripples(x, y):
    """The function as it stands in the description, in NumPy."""
    return np.sin(x + 4) * (np.cos(3 * y - 5) + 0.3) + 0.5 * np.cos(2 * (x + 2) * (y - 4) ** 2)


def gradient(x, y):
    wave = np.sin(2 * (x + 2) * (y - 4) ** 2)
    return np.array(
        [
            np.cos(x + 4) * (np.cos(3 * y - 5) + 0.3) - wave * (y - 4) ** 2,
            -3 * np.sin(x + 4) * np.sin(3 * y - 5) - 2 * wave * (x + 2) * (y - 4),
        ]
    )


@pytest.fixture(scope="module")
def small():
    return studies.run(NAME, **SMALL[NAME])


@pytest.fixture(scope="module")
def order():
    """The default starts, steps and learning rates; no map."""
    return studies.run(NAME, basin_points=0, points=21, every=100)


def test_the_landscape_is_the_function(small):
    surface = small["landscape"]
    x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
    np.testing.assert_allclose(surface.empirical, ripples(x, y), atol=1e-12)


def test_descents_start_alike_and_are_eulers_method(small):
    starts = np.random.default_rng(0).uniform(-1.5, 1.5, (8, 2))
    for size, lr in (("small", 1e-4), ("large", 2e-3)):
        path = small[f"descent/{size}"]
        np.testing.assert_array_equal(path.start.values.T, starts)
        # large steps are thrown about: with curvatures λ up to 1e4 each multiplies rounding by λ·lr, 20
        rows = {"small": 20, "large": 2}[size]
        w = starts.T.copy()
        for _ in range(3 * rows):
            w = w - lr * gradient(*w)
        assert path.step[rows] == 3 * rows
        np.testing.assert_allclose(path.params[rows], w, rtol=1e-6)
        np.testing.assert_allclose(path.time, lr * path.step, rtol=1e-14)


def test_the_defaults_are_those_of_the_description():
    defaults = {name: default for name, default, _ in studies.settings_help(NAME)}
    assert defaults["runs"] == "100"
    assert defaults["spread"] == "1.5"
    assert defaults["small_lr"] == "0.0001"
    assert defaults["large_lr"] == "0.002"
    assert defaults["steps"] == "10000"
    assert defaults["window"] == "3.0"
    assert defaults["levels"] == "50"
    assert defaults["basin_points"] == "1000"


def test_the_flow_agrees_with_scipy(order):
    flow = order["flow"].to_dataset()
    assert (flow.status == "completed").all()
    # to time 1 and for some runs: Radau takes its time
    until = int(np.searchsorted(flow.time.values, 1.0 + 1e-9))
    for run in (0, 7, 42):
        reference = solve_ivp(
            lambda t, w: -gradient(*w),
            (0, 1),
            flow.start.values[:, run],
            "Radau",
            flow.time.values[:until],
            rtol=1e-10,
            atol=1e-12,
        )
        np.testing.assert_allclose(flow.params[:until, :, run], reference.y.T, atol=2e-6)


def test_the_distance_from_the_flow_is_of_order_one(order):
    """Euler's global error is proportional to its step (Hairer, Nørsett & Wanner, II.3)."""
    table = order["distance"]
    tiny = table.lr.values <= 1e-4
    median = table.distance.median("run").values
    assert slope(table.lr.values[tiny], median[tiny]) == pytest.approx(1, abs=0.02)
    # and not in the median alone: nine runs in ten
    slopes = [slope(table.lr.values[tiny], d) for d in table.distance.values[tiny].T]
    assert np.mean(abs(np.array(slopes) - 1) < 0.05) > 0.9
    numbers = studies.findings(NAME, order).numbers
    assert abs(float(numbers["order: slope for lr up to the small one"]) - 1) < 0.02
    np.testing.assert_allclose(table.lr * table.steps, 1.0)


def test_who_has_arrived_after_ten_thousand_steps():
    """By the gradient alone, and to 1e-6: under one in a hundred at 1e-4, about half at 2e-3."""
    problem = tw.Problem.from_catalogue("ripples")
    starts = np.random.default_rng(1).uniform(-3, 3, (400, 2))
    share = {}
    for lr in (1e-4, 2e-3):
        path = tw.descend(
            problem,
            tw.SGD(lr=lr),
            steps=10_000,
            starts=starts,
            record={"params": False, "grad_norm": True},
            every=10_000,
        )
        share[lr] = float((path.grad_norm[-1] < 1e-6).mean())
    assert share[1e-4] < 0.01
    assert 0.35 < share[2e-3] < 0.55


def test_minima_are_minima_and_arrivals_arrive():
    """Newton's points against the gradient in NumPy and a Hessian by differences; then the descents
    that the map says have arrived, run on to the end, in float64."""
    tree = studies.run(
        NAME, **{**SMALL[NAME], "basin_points": 12, "basin_steps": 2000, "dtype": "float64"}
    )
    problem = tw.Problem.from_catalogue("ripples")
    for size, lr in (("small", 1e-4), ("large", 2e-3)):
        found = tree[f"basins/{size}"]
        points = found.minima.values
        g = gradient(*points.T)
        assert np.linalg.norm(g, axis=0).max() < 1e-7
        h = 1e-6
        columns = [
            (gradient(*(points + h * e).T) - gradient(*(points - h * e).T)) / (2 * h)
            for e in np.eye(2)
        ]
        eigenvalues = np.linalg.eigvalsh(np.stack(columns, axis=1).transpose(2, 0, 1))
        assert (eigenvalues[:, 0] > 0).all()
        # differences of a gradient with curvatures up to 1e4: six digits
        np.testing.assert_allclose(eigenvalues[:, 1], found.largest_eigenvalue, rtol=1e-4)
        assert ((found.radius == 0) | (found.largest_eigenvalue < 2 / lr)).all()
        x, y = np.meshgrid(found.x, found.y, indexing="ij")
        basin = found.basin.values
        there = basin >= 0
        assert there.any()
        path = tw.descend(
            problem,
            tw.SGD(lr=lr),
            steps=300_000,
            starts=np.stack([x[there], y[there]], axis=1),
            record={"params": False},
            every=300_000,
        )
        np.testing.assert_allclose(path.final.values.T, points[basin[there]], atol=1e-6)


def test_figures_and_findings(small):
    drawn = dict(studies.drawings(NAME, small))
    assert set(drawn) == {
        "paths", "final_values", "flow", "time", "distance", "basins_small", "basins_large",
        "basins_loss",
    }  # fmt: skip
    for drawing in drawn.values():
        assert "?" in drawing.caption
    found = studies.findings(NAME, small)
    assert len(found.sentences) >= 3
    histogram = drawn["final_values"].figure.axes[0]
    edges = {
        tuple(np.unique(p.get_xy()[:, 0]).round(12))
        for p in histogram.patches
        if isinstance(p, Polygon)
    }
    assert len(edges) == 1  # the same bins
    small_ax, large_ax = drawn["paths"].figure.axes[:2]
    colors = [
        {line.get_color() for line in ax.lines if line.get_alpha() and len(line.get_xdata()) > 2}
        for ax in (small_ax, large_ax)
    ]
    assert "#0072B2" in colors[0]
    assert "#B2182B" in colors[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"runs": 1},
        {"runs": 1, "steps": 1, "every": 7},
        {"large_lr": 1e3, "lrs": (1e-4,)},
        {"window": 0.5, "points": 2, "levels": 3},
        {"dtype": "float64", "basin_points": 2, "basin_steps": 0},
    ],
)
def test_odd_settings(settings):
    tree = studies.run(NAME, **{**SMALL[NAME], "steps": 20, "basin_steps": 20, **settings})
    assert list(studies.drawings(NAME, tree))
    assert studies.findings(NAME, tree).numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"small_lr": 1.0}, "small_lr < large_lr"),
        ({"small_lr": -1.0}, "small_lr < large_lr"),
        ({"runs": 0}, "runs must be"),
        ({"basin_points": 1}, "basin_points"),
        ({"lrs": ()}, "lrs"),
        ({"lrs": (0.1, 0.1)}, "lrs"),
        ({"lrs": (float("nan"),)}, "lrs"),
        ({"points": 1}, "points"),
        ({"levels": 1}, "levels"),
        ({"window": 0.0}, "window"),
        ({"dtype": "float3"}, "dtype"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(InputError, match=message):
        studies.run(NAME, **{**SMALL[NAME], **settings})
