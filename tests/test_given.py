"""What people give that is nearly what is asked for: taken as it is meant, or refused in one line."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import thalweg as tw
from thalweg.errors import InputError, real

RULE = tw.SGD(lr=0.1)
START = {"w": 6.0, "b": -3.0}
SOME = np.array([1.0, 2.0])  # where one name or one number belongs


def line(p, x):
    return p["w"] * x + p["b"]


def made(**options):
    x = np.random.default_rng(0).uniform(-1, 1, 30)
    return tw.Problem(line, "mse", x, 2 * x + 0.5, params=START, **options)


@pytest.fixture(scope="module")
def problem():
    return made()


@pytest.fixture(scope="module")
def path(problem):
    return tw.descend(problem, RULE, steps=3, starts=[[1.0, 2.0], [3.0, 4.0]])


def starts_of(problem, starts):
    return tw.descend(problem, RULE, steps=0, starts=starts)["start"].transpose("run", "param")


# Starts and points ----------------------------------------------------------------------------


def test_starts_go_by_their_dimensions(problem, path):
    """As many runs as parameters: the shape does not tell them apart."""
    for starts in (path["final"], path["final"].transpose("run", "param"), path):
        np.testing.assert_array_equal(starts_of(problem, starts), path["final"].T)


def test_of_a_part_of_a_trajectory_the_last_iterate_is_the_start(problem, path):
    for part in (path.isel(step=slice(0, 2)), path.isel(step=1), path["params"].isel(step=1)):
        np.testing.assert_array_equal(
            starts_of(problem, part), path["params"].isel(step=1).transpose("run", "param")
        )
    last = path.isel(step=-1)
    for part in (last, last.drop_vars("params"), last.drop_vars("step")):
        np.testing.assert_array_equal(starts_of(problem, part), path["final"].T)
    for part in (path.drop_vars("params").isel(step=1), path.isel(step=slice(0, 0))):
        with pytest.raises(InputError, match="a part of a trajectory, whose iterates"):
            starts_of(problem, part)


def test_a_list_of_points_is_one_start_each(problem):
    points = [{"w": 6.0, "b": -3.0}, {"w": 1, "b": 0}, {"w": np.float32(2), "b": jnp.array(0.5)}]
    expected = [[-3.0, 6.0], [0.0, 1.0], [0.5, 2.0]]
    np.testing.assert_array_equal(starts_of(problem, points), expected)
    np.testing.assert_array_equal(starts_of(problem, [np.array(row) for row in expected]), expected)
    # a pytree that is itself a list keeps its leading axis over the runs
    layers = tw.Problem.from_function(lambda p: p[0] ** 2 + p[1] ** 2, params=[1.0, 2.0])
    stacked = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    np.testing.assert_array_equal(starts_of(layers, stacked), [[1.0, 3.0], [2.0, 4.0]])
    for wrong in ([{"w": 6.0}], [{"w": 1.0, "c": 2.0}], [[1.0, 2.0], [3.0]], [None]):
        with pytest.raises(InputError, match=r"expected \{b \(\), w"):
            starts_of(problem, wrong)
    with pytest.raises(InputError, match="must hold real numbers"):
        starts_of(problem, [{"w": "six", "b": -3.0}])
    with pytest.raises(InputError, match=r"a list of points, as in .*; dict given"):
        starts_of(problem, {"w": 6.0, "c": 0.0})


def test_tables_go_by_their_columns(problem):
    table = pd.DataFrame({"w": [6.0, 1.0, 2.0], "b": [-3.0, 0.0, 0.5]})
    expected = table[["b", "w"]].to_numpy()
    plane = tw.coordinate_plane(problem, {"b": (-1, 1), "w": (-1, 1)})
    np.testing.assert_array_equal(starts_of(problem, table), expected)
    np.testing.assert_array_equal(plane.project(table)["w"], table["w"])
    np.testing.assert_allclose(tw.pca_plane(problem, table).origin, expected[-1])
    np.testing.assert_array_equal(starts_of(problem, pd.DataFrame(expected)), expected)
    other = table.rename(columns={"w": "weight"})
    for function in (
        lambda: starts_of(problem, other),
        lambda: plane.project(other),
        lambda: tw.pca_plane(problem, other),
    ):
        with pytest.raises(InputError, match=r"has the columns \['weight', 'b'\]"):
            function()


@pytest.mark.parametrize("point", [np.array([1 + 5j, 2]), np.array(["1", "2"])])
def test_points_are_real(problem, point):
    for function in (problem.risk, problem.at, lambda p: tw.hessian(problem, p)):
        with pytest.raises(InputError, match="must hold real numbers"):
            function(point)


def test_a_gradient_is_a_vector_of_an_operator(problem):
    operator = tw.hessian(problem, problem.params)
    gradient = problem.gradient(problem.params)
    np.testing.assert_array_equal(operator @ gradient, operator @ problem.flatten(gradient))


@pytest.mark.parametrize("index", [3, [1000], [-31], [0.5], "all", [[1]]])
def test_samples_that_there_are_not(problem, index):
    with pytest.raises(InputError, match="index must be a list of whole numbers below 30"):
        problem.take(index)
    with pytest.raises(InputError, match="names no samples"):
        problem.take([])
    with pytest.raises(InputError, match="this problem has none"):
        tw.Problem.from_catalogue("beale").take([0])


def test_samples_by_list_slice_and_mask(problem):
    for index in ([0, 1, 2], slice(0, 3), np.arange(30) < 3, jnp.arange(3)):
        np.testing.assert_array_equal(problem.take(index).x, problem.x[:3])
    np.testing.assert_array_equal(problem.take([-1]).x, problem.x[-1:])


def test_other_inputs_have_an_axis_of_samples(problem):
    with pytest.raises(InputError, match="first axis over samples"):
        tw.ntk(problem, problem.params, 0.5)


# Seeds and members ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [jax.random.PRNGKey(0), jax.random.key(5)])
def test_a_key_is_no_seed(problem, seed):
    with pytest.raises(InputError, match="not a JAX key"):
        tw.descend(problem, RULE, steps=1, seed=seed)


def test_members_are_resumed_in_their_order(problem):
    swept = tw.descend(problem, tw.SGD(lr=[0.01, 0.3]), steps=5)
    with pytest.raises(InputError, match=r"lr \[0.01, 0.3\], in this order"):
        tw.descend(problem, tw.SGD(lr=[0.3, 0.01]), steps=1, resume=swept)
    slower = tw.descend(problem, tw.SGD(lr=[0.001, 0.03]), steps=0, resume=swept)
    np.testing.assert_array_equal(slower["final"].values, swept["final"].values)
    options = {"batch_size": 5, "shuffle": True}
    seeds = tw.descend(problem, RULE, steps=5, seed=[1, 2], **options)
    for other in ([2, 1], [1, 3]):
        with pytest.raises(InputError, match=r"goes on with seed \[1, 2\]"):
            tw.descend(problem, RULE, steps=1, seed=other, resume=seeds, **options)


# Planes ---------------------------------------------------------------------------------------


def test_a_plane_is_projected_on_as_it_is(problem, path):
    plane = tw.coordinate_plane(problem, {"b": (-1, 1), "w": (-1, 1)})
    assert tw.project(plane, path).identical(plane.project(path))
    other = tw.Problem(
        lambda q, x: q["z"] * x + q["b"], "mse", np.ones(2), np.ones(2), params={"z": 1.0, "b": 0.0}
    )
    with pytest.raises(InputError, match="belongs to another problem"):
        plane.project(path, other)
    with pytest.raises(InputError, match=r"thalweg.Problem was expected"):
        plane.project(path, 3)
    for other in (path, xr.DataTree(path)):  # a tree has a `dataset` too, which is no method
        with pytest.raises(InputError, match="a plane or a landscape was expected"):
            tw.project(other, path)
    with pytest.raises(InputError, match="points as an array"):
        plane.project([problem.params])
    at_start = plane.project(problem.params)
    assert (at_start["w"], at_start["b"], at_start["residual"]) == (6.0, -3.0, 0.0)


def test_directions_of_no_length(problem):
    zero = {"w": 0.0, "b": 0.0}
    with pytest.raises(InputError, match="length 0, since all filters"):
        tw.random_plane(problem, zero, vectors=True)
    plane = tw.random_plane(problem, zero, vectors=True, normalize="none")
    flat = tw.Plane(("u", "v"), plane.coordinates, plane.origin, plane.directions * [[1], [0]],
                    plane.names)  # fmt: skip
    with pytest.raises(InputError, match="direction of length 0"):
        flat.project(np.ones((3, 2)))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_directions_are_not_the_users_own_samples(seed):
    """Who draws data by default_rng(seed) has the same stream."""
    x = np.random.default_rng(seed).standard_normal((50, 1000))
    problem = tw.Problem(
        lambda p, x: (x @ p["w"].T)[:, 0], "mse", x, x[:, 0], params={"w": np.ones((1, 1000))}
    )
    directions = tw.random_plane(problem, problem.params, points=3, seed=seed).directions
    cosines = directions @ x.T / np.linalg.norm(directions, axis=1)[:, None]
    assert np.abs(cosines / np.linalg.norm(x, axis=1)).max() < 5 / np.sqrt(1000)


# Half precision and complex numbers -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [3, 300])
def test_curvature_in_half_precision(dtype, size):
    x = np.random.default_rng(0).standard_normal((10, size))
    problem = tw.Problem(
        lambda p, x: x @ p["w"], "mse", x, np.ones(10), params={"w": np.ones(size)}, dtype=dtype
    )
    kept = np.asarray(problem.x, float)
    values = np.linalg.eigvalsh(2 / 10 * kept.T @ kept)
    operator = tw.hessian(problem, problem.params)
    # a product of half precision is off by its rounding, a few thousandths
    np.testing.assert_allclose(operator.top(1)[0], values[-1:], rtol=0.01)
    np.testing.assert_allclose(tw.sharpness(problem, problem.params), values[-1], rtol=0.01)
    found = operator.density(2, 10)
    np.testing.assert_allclose(found["ritz_value"].max(), values[-1], rtol=0.01)
    tw.hessian_plane(problem, problem.params)


def test_least_squares_in_half_precision():
    solution = tw.least_squares(made(dtype="bfloat16"))
    np.testing.assert_allclose([float(solution["w"]), float(solution["b"])], [2, 0.5], rtol=0.01)


def test_complex_risks_are_refused():
    x = np.linspace(-1, 1, 8)

    def spectrum(p, x):
        return jnp.fft.fft(p["w"] * x)

    for build in (
        lambda: tw.Problem(spectrum, "mse", x, x, params={"w": 1.0}),
        lambda: tw.Problem.from_function(lambda w: jnp.exp(1j * w), 1.0),
        lambda: made(penalty=lambda p: 1j * p["w"]),
    ):
        with pytest.raises(InputError, match="returns complex numbers"):
            build()
    tw.Problem(lambda p, x: jnp.abs(spectrum(p, x)), "mse", x, x, params={"w": 1.0})


# Pictures and thresholds ----------------------------------------------------------------------


def test_a_slice_of_a_landscape_is_a_profile(problem, path):
    plane = tw.coordinate_plane(problem, {"b": (-4, 1), "w": (0, 7)}, points=6)
    surface = tw.landscape(problem, plane)
    (drawn,) = tw.plot.profile(surface.isel(b=2)).lines
    np.testing.assert_array_equal(drawn.get_ydata(), surface["empirical"].isel(b=2))
    for draw in (tw.plot.contour, tw.plot.heatmap, tw.plotly.surface):
        with pytest.raises(InputError, match=r"this one has 1 \(w\): draw it with profile"):
            draw(surface.isel(b=2))
    with pytest.raises(InputError, match=r"isel\(step=\[-1\]\)"):
        tw.plot.contour(surface, path.isel(step=-1))
    with pytest.raises(InputError, match="a part of one, without its status, given"):
        tw.plot.loss(path[["loss"]])
    without = tw.descend(problem, RULE, steps=3, record={"loss": False})
    assert tw.plotly.surface(surface, without)["data"]


def test_a_rate_of_zero_is_stable_on_everything(problem):
    for rule in (tw.SGD(lr=0.0), tw.Adam(lr=0.0), tw.RMSprop(lr=0.0), tw.Adagrad(lr=0.0)):
        assert tw.stability_threshold(tw.descend(problem, rule, steps=1)) == np.inf
    scheduled = tw.descend(problem, tw.SGD(lr=lambda t: 0.1), steps=0)
    assert np.isnan(tw.stability_threshold(scheduled)).all()


def test_a_preconditioned_record_has_the_preconditioned_limit(problem):
    path = tw.descend(
        problem, tw.Adam(lr=0.01), steps=3, batch_size=10,
        record={"preconditioned_sharpness": tw.preconditioned_sharpness},
    )  # fmt: skip
    ax = tw.plot.sharpness(path, "preconditioned_sharpness")
    assert any("stable below" in text.get_text() for text in ax.get_legend().get_texts())
    assert any("limit is that of full batches" in text.get_text() for text in ax.texts)


# Masks, batches and what is compiled ----------------------------------------------------------


def test_a_batch_of_samples_that_do_not_count_moves_nothing(problem):
    masked = problem.take(np.arange(30), np.arange(30) >= 10)
    path = tw.descend(masked, RULE, steps=6, batch_size=5)  # of which the first two do not count
    assert path.status == "completed"
    np.testing.assert_array_equal(path["params"][2], path["params"][0])
    kept = tw.descend(problem.take(np.arange(10, 30)), RULE, steps=4, batch_size=5)
    np.testing.assert_allclose(path["params"][2:], kept["params"], rtol=1e-14)


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True, "seed": [3, 4]}, {"replacement": True}, {"drop_last": True}]
)
def test_the_recorded_batches_are_those_of_single_steps(problem, options, every):
    path = tw.descend(
        problem, RULE, steps=20, batch_size=7, record=["batch"], every=every, **options
    )
    whole = tw.descend(problem, RULE, steps=20, batch_size=7, record=["batch"], **options)
    expected = whole["batch"].sel(step=path["step"])
    np.testing.assert_array_equal(path["batch"], expected)


def test_an_operator_is_not_made_in_a_compiled_function(problem):
    with pytest.raises(InputError, match="not inside a compiled function"):
        tw.descend(
            problem, RULE, steps=1,
            record={"top": lambda at: tw.hessian(at.problem, at.params).top(1)[0]},
        )  # fmt: skip
    with pytest.raises(InputError, match="needs a descent's optimizer"):
        tw.preconditioned_sharpness(problem, problem.params)


# What is something else altogether ----------------------------------------------------------------


def test_what_is_something_else_is_one_line(problem, tmp_path):
    path, operator = (
        tw.descend(problem, tw.SGD(lr=0.1), steps=2),
        tw.hessian(problem, problem.params),
    )
    plane = tw.line(problem, problem.params, np.zeros(problem.size), 3)
    surface = tw.landscape(problem, plane)
    for call, words in (
        (lambda: tw.Problem(line, "mse", [1.0], [2.0], init="zeros"), "init must be a function"),
        (lambda: tw.Problem.from_catalogue(["beale"]), "unknown catalogue problem"),
        (lambda: problem.risk("start"), "entries 'start'; expected"),
        (lambda: tw.stability_threshold(problem), "a trajectory was expected, Problem given"),
        (lambda: operator.density(width="wide"), "width must be above 0; 'wide'"),
        (lambda: operator.density(width=np.inf), "width must be above 0; inf"),
        (lambda: tw.trajectory(5), "a series of checkpoints was expected, .*; 5 given"),
        (lambda: tw.trajectory([problem.params], "mse"), "thalweg.Problem was expected"),
        (lambda: tw.trajectory([problem.params], problem, key=3), "key must be a checkpoint's key"),
        (lambda: tw.trajectory([problem.params], problem, steps=3), "steps= must hold"),
        (lambda: tw.landscape(problem, plane, risks=3), "risks must be of empirical"),
        (lambda: tw.landscape(problem, plane, risks=[3]), "unknown risk 3"),
        (lambda: tw.line(problem, problem.params, np.zeros(problem.size), 10**30), "lower points="),
        (lambda: tw.line(problem, problem.params, np.zeros(problem.size), name=""), "an axis needs a name"),
        (lambda: tw.save(path, None), "a file's path was expected; None given"),
        (lambda: tw.load(3), "a file's path was expected; 3 given"),
        (lambda: tw.plot.loss(path, ax=plt.figure()), "ax must be one of matplotlib's axes.*Figure given"),
        (lambda: tw.plot.profile(surface, ax=[1, 2]), "ax must be one of matplotlib's axes.*list given"),
        (lambda: tw.plot.loss(path, band=1), "band must be two increasing quantiles"),
        (lambda: tw.plot.record(path, [["loss"]]), "unknown record"),
        (lambda: tw.plot.record(path, 5), "unknown record 5"),
        (lambda: tw.plot.convergence(path, 5), "unknown record 5"),
        (lambda: tw.plot.density(path.loss), "a spectral density was expected"),
        (lambda: tw.plot.path(problem, path, ax=plt.gca()), "a landscape was expected, Problem given"),
        (lambda: tw.plot.contour(path), "a landscape was expected, trajectory given"),
        (lambda: tw.plot.contour(plane), r"Plane given. Give landscape\(problem, plane\)"),
        (lambda: tw.descend(problem, tw.LBFGS(max_iter=SOME), steps=1), "max_iter must be a whole number"),
        (lambda: tw.descend(problem, tw.LBFGS(line_search_fn=SOME), steps=1), "unknown line_search_fn"),
        (lambda: tw.Problem(line, SOME, [1.0], [2.0], params=START), "loss must be a function"),
        (lambda: tw.Problem(line, "mse", [1.0], [2.0], params=START, reduction=SOME), "unknown reduction"),
        (lambda: tw.LevenbergMarquardt(scaling=SOME).check_together(), "unknown scaling"),
        (lambda: tw.random_plane(problem, problem.params, normalize=SOME), "unknown normalisation"),
        (lambda: operator.trace(method=SOME), "unknown trace method"),
        (lambda: tw.gradient_flow(problem, time=1.0, solver=SOME), "unknown solver"),
        (lambda: tw.studies.run(SOME), "unknown study"),
        (lambda: tw.computation_graph(line, START, 1.0, most="ten"), "most must be a whole number"),
        (lambda: tw.plot.grid(2, columns=[1]), "columns must be a whole number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
        plt.close("all")


def test_a_number_may_be_an_array_of_one(problem):
    path, operator = (
        tw.descend(problem, tw.SGD(lr=[0.1, 0.2]), steps=3),
        tw.hessian(problem, problem.params),
    )
    width = float(operator.density().attrs["width"])
    for same in (jnp.array(width), np.array(width), xr.DataArray(width)):
        np.testing.assert_array_equal(
            operator.density(width=same).density, operator.density(width=width).density
        )
    np.testing.assert_array_equal(operator.top(tolerance=jnp.array(1e-3))[0], operator.top()[0])
    tw.plot.loss(path, band=np.array([0.2, 0.8]))
    for bad in ("0.1", None, [1, 2], object()):
        assert np.isnan(real(bad))
    plt.close("all")
