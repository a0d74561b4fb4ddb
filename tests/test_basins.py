"""Basins of attraction, against the descents themselves, and the minima against what is known."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from problems import bowl_problem, data, line, press_ctrl_c

import thalweg as tw
from thalweg.catalogue.functions import FUNCTIONS
from thalweg.errors import InputError


def two_wells(w):
    """(x² − 1)² + y²: minima at (±1, 0) with Hessian diag(8, 2), a saddle at the origin."""
    return (w["x"] ** 2 - 1) ** 2 + w["y"] ** 2


def slope(w):
    return w["x"] + w["y"] ** 2


def downhill(w):
    """Curved upwards everywhere, and without a minimum: Newton's steps have length 1 for ever."""
    return jnp.exp(-w["x"]) + w["y"] ** 2


def hill(w):
    return -(w["x"] ** 4) - w["y"] ** 4


def problem_of(f):
    return tw.Problem.from_function(f, params={"x": 0.0, "y": 0.0})


def square(problem, half, points):
    return tw.coordinate_plane(problem, {"x": (-half, half), "y": (-half, half)}, points)


@pytest.fixture(scope="module")
def himmelblau():
    problem = tw.Problem.from_catalogue("himmelblau")
    return problem, tw.basins(problem, tw.SGD(lr=2e-3), square(problem, 5, 15), 5000)


def test_the_minima_are_the_known_ones(himmelblau):
    found = himmelblau[1]
    known = np.array(FUNCTIONS["himmelblau"].minima)
    distance = np.linalg.norm(found.minima.values[:, None] - known, axis=2)
    assert found.sizes["minimum"] == 4
    np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-9)
    at_3_2 = int(distance[:, 0].argmin())
    # the Hessian at (3, 2) is [[74, 20], [20, 34]]
    eigenvalues = np.linalg.eigvalsh([[74, 20], [20, 34]])
    np.testing.assert_allclose(found.smallest_eigenvalue[at_3_2], eigenvalues[0], rtol=1e-9)
    np.testing.assert_allclose(found.largest_eigenvalue[at_3_2], eigenvalues[1], rtol=1e-9)
    np.testing.assert_allclose(found.minimum_loss, 0, atol=1e-15)
    np.testing.assert_allclose(found.gradient_norm, 0, atol=1e-9)


def test_each_start_reaches_what_a_descent_reaches(himmelblau):
    problem, found = himmelblau
    x, y = (g.ravel() for g in np.meshgrid(found.x, found.y, indexing="ij"))
    path = tw.descend(
        problem,
        tw.SGD(lr=2e-3),
        steps=20_000,
        starts=np.stack([x, y], axis=1),
        record={"params": False},
        every=20_000,
    )
    distance = np.linalg.norm(path.final.values.T[:, None] - found.minima.values, axis=2)
    there = distance.min(axis=1) < 1e-6
    assert there.all()
    basin = found.basin.values.ravel()
    assert (basin >= 0).all()
    np.testing.assert_array_equal(basin, distance.argmin(axis=1))
    np.testing.assert_array_equal(found.reached, np.bincount(basin, minlength=4))
    assert (np.diff(found.reached) <= 0).all()


def test_basins_of_two_wells_are_the_half_planes():
    problem = problem_of(two_wells)
    found = tw.basins(problem, tw.SGD(lr=0.01), square(problem, 1.5, 20), 2000)
    right = int(found.minima.sel(param="x").argmax("minimum"))
    np.testing.assert_allclose(found.minima[right], [1, 0], atol=1e-9)
    np.testing.assert_array_equal(found.basin == right, np.broadcast_to(found.x > 0, (20, 20)).T)
    np.testing.assert_allclose(found.largest_eigenvalue, 8, rtol=1e-9)
    # 12x² − 4 > 0 down to x = 0.577: the ball's radius is below 1 − 0.577, and above ¾ of it
    assert ((found.radius > 0.75 * 0.4226) & (found.radius < 0.4226)).all()


def test_the_saddle_is_no_minimum_and_its_ridge_is_not_there_yet():
    problem = problem_of(two_wells)
    found = tw.basins(problem, tw.SGD(lr=0.01), square(problem, 1.5, 3), 500)
    assert (found.basin.sel(x=0) == -1).all()
    assert (found.arrived_at.sel(x=0) == -1).all()
    assert (abs(found.minima.sel(param="x")) > 0.9).all()


def test_steps_above_two_over_lambda_cannot_rest():
    problem = problem_of(two_wells)
    stable = tw.basins(problem, tw.SGD(lr=0.24), square(problem, 0.9, 10), 500)
    assert (stable.radius > 0).all()
    unstable = tw.basins(problem, tw.SGD(lr=0.26), square(problem, 0.9, 10), 500)
    assert unstable.sizes["minimum"] == 2
    assert (unstable.radius == 0).all()  # 2/0.26 is below the eigenvalue 8
    assert (unstable.basin == -1).all()


@pytest.mark.parametrize(
    "optimizer",
    [tw.SGD(lr=0.01, momentum=0.9), tw.Adam(lr=0.02), tw.SGD(lr=0.02, nesterov=True, momentum=0.5)],
)
def test_optimizers_with_a_memory_settle(optimizer):
    problem = problem_of(two_wells)
    plane = square(problem, 1.5, 10)
    found = tw.basins(problem, optimizer, plane, 4000)
    path = tw.descend(
        problem,
        optimizer,
        steps=4000,
        starts=np.stack([g.ravel() for g in np.meshgrid(found.x, found.y, indexing="ij")], axis=1),
        record={"params": False},
        every=4000,
    )
    sign = np.sign(path.final.sel(param="x").values)
    chosen = found.minima.sel(param="x").values[found.basin.values.ravel()]
    assert (found.basin >= 0).all()
    np.testing.assert_array_equal(np.sign(chosen), sign)


def test_minima_of_a_function_in_other_units():
    unit = 1e-5
    scaled = problem_of(lambda w: two_wells({k: v / unit for k, v in w.items()}))
    plane = square(problem_of(two_wells), 1.5, 6)
    expected = tw.basins(problem_of(two_wells), tw.SGD(lr=0.01), plane, 500)
    found = tw.basins(scaled, tw.SGD(lr=0.01 * unit**2), square(scaled, 1.5 * unit, 6), 500)
    np.testing.assert_array_equal(found.basin, expected.basin)
    np.testing.assert_allclose(found.minima / unit, expected.minima, atol=1e-9)
    np.testing.assert_allclose(found.radius / unit, expected.radius, rtol=1e-9)


@pytest.mark.parametrize("f", [slope, downhill])
def test_without_minima_nobody_arrives(f):
    problem = problem_of(f)
    found = tw.basins(problem, tw.SGD(lr=0.01), square(problem, 1, 4), 100)
    assert found.sizes["minimum"] == 0
    assert (found.basin == -1).all()
    tw.plot.basins(found)
    tw.plot.basins(found, by="loss")


def test_what_leaves_the_finite_numbers_diverged():
    problem = problem_of(hill)
    found = tw.basins(problem, tw.SGD(lr=0.1), square(problem, 2, 4), 200)
    assert (found.basin == -2).all()
    assert (found.arrived_at == -1).all()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loss_that_overflows_at_the_last_step_diverged_as_in_a_descent(steps):
    # x⁸ overflows from |x| = 10^38.5 on, where x and the first steps of this size are finite
    problem = tw.Problem.from_function(lambda w: w**8, 0.0)
    plane = tw.coordinate_plane(problem, {"w": (0.0, 4e38)}, points=9)
    result = tw.basins(problem, tw.SGD(lr=1e-308), plane, steps)
    starts = plane.coordinates[0][:, None]
    path = tw.descend(problem, tw.SGD(lr=1e-308), steps=steps, starts=starts)
    diverged = path["status"].values == "diverged"
    assert diverged.any()
    assert not diverged.all()
    np.testing.assert_array_equal(result["basin"].values == -2, diverged)


def test_a_budget_of_nothing_still_says_who_starts_in_a_ball():
    problem = bowl_problem()
    found = tw.basins(problem, tw.SGD(lr=0.1), square(problem, 3, 5), 0)
    # a quadratic's Hessian is the same everywhere, and the ball as wide as the window
    away = np.hypot(found.x - 1, found.y + 2)
    np.testing.assert_array_equal(found.basin == 0, away < found.radius.values[0])
    assert (found.arrived_at.where(found.basin == 0, 0) == 0).all()


def test_on_a_line_and_with_data():
    x, y = data(40)
    problem = tw.Problem(line, "mse", x, y, params={"weight": 6.0, "bias": -3.0})
    plane = tw.line(problem, {"weight": 6.0, "bias": -3.0}, {"weight": -6.0, "bias": 3.0}, 9)
    found = tw.basins(problem, tw.SGD(lr=0.1), plane, 300)
    assert found.basin.dims == ("t",)
    design = np.stack([np.ones_like(x), x], axis=1)
    np.testing.assert_allclose(found.minima[0], np.linalg.lstsq(design, y)[0], atol=1e-8)
    assert (found.basin == 0).all()


def test_single_precision_agrees(himmelblau):
    problem = tw.Problem.from_catalogue("himmelblau", dtype="float32")
    found = tw.basins(problem, tw.SGD(lr=2e-3), square(problem, 5, 15), 5000)
    np.testing.assert_allclose(found.minima, himmelblau[1].minima, atol=1e-8)
    # boundaries are sharp, and no start of this grid lies on one
    xr.testing.assert_equal(found.basin, himmelblau[1].basin)


def test_it_is_saved_and_the_same_again(himmelblau, tmp_path):
    problem, found = himmelblau
    xr.testing.assert_identical(tw.load(tw.save(found, tmp_path / "basins.nc")), found)
    again = tw.basins(problem, tw.SGD(lr=2e-3), square(problem, 5, 15), 5000)
    xr.testing.assert_equal(again, found)


def test_ctrl_c_leaves_the_others_not_there_yet(monkeypatch):
    problem = tw.Problem.from_catalogue("ripples")
    press_ctrl_c(monkeypatch, call=3)
    found = tw.basins(problem, tw.SGD(lr=1e-5), square(problem, 3, 10), 10**8)
    assert found.attrs["interrupted"] == 1
    assert (found.basin == -1).any()


def test_the_picture_shows_what_was_found(himmelblau):
    found = himmelblau[1]
    ax = tw.plot.basins(found, most=3)
    (image,) = ax.images
    colors = np.asarray(image.get_array())
    assert colors.shape == (15, 15, 3)
    # across is x and up is y
    number = found.basin.transpose("y", "x").values
    for k in range(4):
        assert len(np.unique(colors[number == k], axis=0)) == 1
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 4
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[0].startswith("0: (")
    assert texts[3].startswith("1 other minimum")
    assert [t.get_text() for t in ax.texts if t.get_text().isdigit()] == ["0", "1", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    by_loss = tw.plot.basins(found, by="loss")
    assert by_loss.figure.axes[1].get_ylabel() == "loss at the minimum reached"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: tw.basins(p, tw.SGD(lr=[0.1, 0.2]), square(p, 1, 3)), "lr must be a single"),
        (lambda p: tw.basins(p, tw.SGD(lr=lambda t: 0.1), square(p, 1, 3)), "lr must be a single"),
        (lambda p: tw.basins(p, tw.SGD(lr=0.1), square(p, 1, 3), -1), "steps must be"),
        (lambda p: tw.basins(p, tw.SGD(lr=0.0), square(p, 1, 3)), "with lr=0 no start moves"),
        (lambda p: tw.basins(p, tw.SGD(lr=0.1), "plane"), "a plane was expected"),
        (lambda p: tw.basins(p, 0.1, square(p, 1, 3)), "optimizer"),
        (lambda p: tw.basins(p, tw.GaussNewton(), square(p, 1, 3)), "needs a sum of squares"),
        (lambda p: tw.basins(two_wells, tw.SGD(lr=0.1), square(p, 1, 3)), "Problem was expected"),
        (
            lambda p: tw.basins(
                tw.Problem.from_function(lambda w: w["a"] ** 2, params={"a": 1.0}),
                tw.SGD(lr=0.1),
                square(p, 1, 3),
            ),
            "another problem",
        ),
        (lambda p: tw.plot.basins("map"), "basins were expected"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(bowl_problem())
    assert "\n" not in str(caught.value)


def test_many_parameters_are_refused():
    problem = tw.Problem.from_function(lambda w: jnp.sum(w["x"] ** 2), params={"x": np.ones(40)})
    plane = tw.line(problem, {"x": np.zeros(40)}, {"x": np.ones(40)}, 3)
    with pytest.raises(InputError, match="up to 32 parameters; this one has 40"):
        tw.basins(problem, tw.SGD(lr=0.1), plane)


def test_pictures_refuse_what_they_cannot_draw(himmelblau):
    found = himmelblau[1]
    for options, message in (
        ({"by": "size"}, "by"),
        ({"most": 0}, "most must be from 1 to 12"),
        ({"most": 13}, "most must be from 1 to 12"),
        ({"most": 2.5}, "most must be from 1 to 12"),
        ({"by": "loss", "loss_range": 3}, "two increasing numbers; 3 given"),
        ({"by": "loss", "loss_range": (1, 0)}, "two increasing numbers"),
    ):
        with pytest.raises(InputError, match=message):
            tw.plot.basins(found, **options)
    assert not plt.get_fignums()
