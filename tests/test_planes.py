"""Where to look: origin, directions and coordinates are what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import bowl_problem, data, line, line_problem

import thalweg as tw
from thalweg.errors import InputError


def three(w):
    return w["a"] ** 2 + w["b"] ** 2 + w["c"] ** 2


def three_problem(**options):
    return tw.Problem.from_function(three, params={"a": 10.0, "b": 20.0, "c": 30.0}, **options)


def points(plane):
    """All points of the plane (…, p), each computed afresh."""
    grid = np.meshgrid(*plane.coordinates, indexing="ij")
    return plane.origin + sum(c[..., None] * d for c, d in zip(grid, plane.directions, strict=True))


def test_a_rectangular_grid_of_two_parameters():
    plane = tw.coordinate_plane(
        three_problem(), {"a": (0, 3), "b": (-1, 1)}, points={"a": 7, "b": 4}
    )
    assert plane.axes == ("a", "b")
    assert plane.shape == (7, 4)
    np.testing.assert_allclose(plane.coordinates[0], [0, 0.5, 1, 1.5, 2, 2.5, 3], rtol=1e-15)
    np.testing.assert_allclose(plane.coordinates[1], [-1, -1 / 3, 1 / 3, 1], rtol=1e-15)
    all_points = points(plane)
    assert all_points.shape == (7, 4, 3)
    np.testing.assert_array_equal(all_points[4, 3], [2, 1, 30])  # a, b, and c where it was


def test_axes_keep_the_order_they_were_given_in():
    plane = tw.coordinate_plane(three_problem(), {"c": (0, 1), "a": (5, 6)}, points=2)
    assert plane.axes == ("c", "a")
    assert plane.names == ("a", "b", "c")
    np.testing.assert_array_equal(points(plane)[1, 0], [5, 20, 1])
    assert list(plane.dataset().direction.values) == ["c", "a"]


def test_one_axis_and_three():
    one = tw.coordinate_plane(three_problem(), {"b": (0, 1)}, points=5)
    assert one.shape == (5,)
    np.testing.assert_array_equal(points(one)[:, 1], [0, 0.25, 0.5, 0.75, 1])
    whole = tw.coordinate_plane(
        three_problem(), {"a": (0, 1), "b": (0, 1), "c": (0, 1)}, {"c": 3, "a": 2, "b": 4}
    )
    assert whole.shape == (2, 4, 3)
    np.testing.assert_array_equal(points(whole)[1, 3, 1], [1, 1, 0.5])


def test_a_range_may_run_backwards_and_one_point_may_stand():
    plane = tw.coordinate_plane(three_problem(), {"a": (1, -1), "b": (4, 4)}, {"a": 3, "b": 1})
    np.testing.assert_array_equal(plane.coordinates[0], [1, 0, -1])
    np.testing.assert_array_equal(plane.coordinates[1], [4])


def test_at_says_where_the_other_parameters_are():
    at = {"a": 1.0, "b": np.array(2.0), "c": 3}
    for place in (at, np.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 3.0])):
        plane = tw.coordinate_plane(three_problem(), {"a": (0, 1)}, points=2, at=place)
        np.testing.assert_array_equal(points(plane), [[0, 2, 3], [1, 2, 3]])


def test_a_plane_may_lie_at_the_end_of_a_descent():
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3)
    plane = tw.coordinate_plane(bowl_problem(), {"y": (0, 1)}, points=2, at=path.final)
    np.testing.assert_array_equal(points(plane)[:, 0], [path.final[0]] * 2)


def test_a_line_passes_through_its_two_points():
    a, b = {"weight": 6.0, "bias": -3.0}, {"weight": 2.0, "bias": 1.0}
    problem = line_problem()
    plane = tw.line(problem, a, b, points=5)
    assert plane.axes == ("t",)
    np.testing.assert_array_equal(plane.coordinates[0], [0, 0.25, 0.5, 0.75, 1])
    along = points(plane)
    np.testing.assert_array_equal(along[0], problem.flatten(a))
    np.testing.assert_array_equal(along[-1], problem.flatten(b))
    np.testing.assert_array_equal(along[1], [-2, 5])  # (bias, weight), a quarter of the way
    longer = tw.line(problem, problem.flatten(a), problem.flatten(b), 3, span=(-1, 1), name="alpha")
    np.testing.assert_array_equal(points(longer)[0], [-7, 10])


def test_a_plane_in_every_parameter_needs_no_point():
    drawn = tw.Problem(line, "mse", *data(), init=draw)
    plane = tw.coordinate_plane(drawn, {"weight": (0, 1), "bias": (0, 1)}, points=2)
    np.testing.assert_array_equal(points(plane)[1, 0], [0, 1])  # weight 1, bias 0
    with pytest.raises(InputError, match=r"no starting point.*at="):
        tw.coordinate_plane(drawn, {"weight": (0, 1)})


def draw(key):
    return {"weight": jax.random.normal(key), "bias": jnp.zeros(())}


def clashing(name):
    return tw.Problem.from_function(lambda w: w[name] ** 2, params={name: 1.0})


@pytest.mark.parametrize(
    "name", ["step", "param", "run", "sample", "expected", "origin", "directions", "residual"]
)
def test_a_name_that_every_result_has_is_refused_with_a_suggestion(name):
    with pytest.raises(InputError, match=f"call the parameter '{name}_'"):
        tw.coordinate_plane(clashing(name), {name: (0, 1)})


def test_a_name_that_a_landscape_gives_its_curvature_is_refused_before_it_is_computed():
    problem = clashing("trace")
    plane = tw.coordinate_plane(problem, {"trace": (0, 1)}, 3)
    assert "empirical" in tw.landscape(problem, plane)
    with pytest.raises(InputError, match="'trace' would clash with a variable"):
        tw.landscape(problem, plane, curvature=True)


def test_a_name_that_cannot_be_saved_is_refused_with_a_suggestion():
    problem = clashing("dense/kernel")
    with pytest.raises(InputError, match="call it 'dense_kernel'"):
        tw.line(problem, problem.params, np.zeros(problem.size), name="dense/kernel")


RANGES = {"a": (0, 1), "b": (0, 1)}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: tw.coordinate_plane(p, {}), r"as in \{'a': \(-1, 1\)\}"),
        (lambda p: tw.coordinate_plane(p, [("a", (0, 1))]), r"as in \{'a': \(-1, 1\)\}"),
        (lambda p: tw.coordinate_plane(p, {"A": (0, 1)}), "unknown parameter 'A'; .* 'a'"),
        (lambda p: tw.coordinate_plane(p, {"a": 3}), r"a pair \(from, to\); 3 given"),
        (lambda p: tw.coordinate_plane(p, {"a": (0, 1, 2)}), "a pair"),
        (lambda p: tw.coordinate_plane(p, {"a": (1, 1)}), "two different finite numbers"),
        (lambda p: tw.coordinate_plane(p, {"a": (0, np.inf)}), "two different finite numbers"),
        (lambda p: tw.coordinate_plane(p, RANGES, 0), "at least 1; 0 given"),
        (lambda p: tw.coordinate_plane(p, RANGES, 2.5), "whole number"),
        (lambda p: tw.coordinate_plane(p, RANGES, {"a": 3}), "no number for 'b'"),
        (lambda p: tw.coordinate_plane(p, RANGES, {"a": 3, "b": 3, "c": 3}), "unknown axis.*'c'"),
        (lambda p: tw.coordinate_plane(p, RANGES, at={"a": 1.0}), "expected {a"),
        (lambda p: tw.coordinate_plane(p, {"a": (0, 1)}, at=np.array([0, np.nan, 0])), "finite"),
        (lambda p: tw.line(p, np.ones(3), np.ones(3)), "two different points"),
        (lambda p: tw.line(p, np.ones(3), np.zeros(3), name="step"), "clash"),
        (lambda p: tw.line(p, np.ones(3), other_point()), "other parameters"),
        (
            lambda p: of_shapes(p, origin=2),
            r"an origin \(3,\) and directions \(1, 3\); 1, \(2,\) and",
        ),
        (
            lambda p: of_shapes(p, directions=2),
            r"directions \(1, 3\); 1, \(3,\) and \(2, 3\) given",
        ),
        (lambda p: of_shapes(p, coordinates=2), "a plane of 1 axes"),
    ],
)
def test_a_plane_that_cannot_be_is_refused(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make(three_problem())
    assert "\n" not in str(caught.value)


def of_shapes(problem, origin=3, directions=1, coordinates=1):
    along = (np.arange(3.0),) * coordinates
    return tw.Plane(("t",), along, np.zeros(origin), np.ones((directions, 3)), problem.names)


def other_point():
    return xr.DataArray(np.zeros(3), dims="param", coords={"param": ["u", "v", "w"]})


def test_names_with_slashes(tmp_path):
    """As haiku's: netCDF has groups of such names."""
    params = {"mlp/~/linear": {"w": 1.0, "b": 0.5}}

    def predict(w, x):
        return w["mlp/~/linear"]["w"] * x + w["mlp/~/linear"]["b"]

    x = np.linspace(-1, 1, 9)
    problem = tw.Problem(predict, "mse", x, 2 * x, params=params)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3, record={"m": tw.movement_by_parameter})
    assert {"m_mlp_~_linear.w", "m_mlp_~_linear.b"} <= set(path)
    plane = tw.coordinate_plane(problem, {"mlp/~/linear.w": (0, 3), "mlp/~/linear.b": (-1, 1)}, 5)
    surface = tw.landscape(problem, plane)
    assert surface.empirical.dims == ("mlp_~_linear.w", "mlp_~_linear.b")
    for number, result in enumerate((path, surface)):
        tw.save(result, tmp_path / f"{number}.nc")
        xr.testing.assert_identical(tw.load(tmp_path / f"{number}.nc"), result)
