"""The gradient flow, against closed forms and SciPy."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import bowl, bowl_problem, line_problem, press_ctrl_c
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import thalweg as tw
from thalweg import flows, integrator
from thalweg.errors import InputError

# The bowl is ½(w − w*)ᵀA(w − w*): read off its second derivatives.
A = np.array([[2.0, 1.0], [1.0, 6.0]])
BOTTOM = np.array([1.0, -2.0])


def closed_form(A, bottom, start, times):
    return np.stack([bottom + expm(-A * t) @ (start - bottom) for t in times])


def narrow(w):
    """½(x² + 10⁶ y²): the explicit solver needs 10⁶ steps for what takes a time of 3."""
    return 0.5 * (w["x"] ** 2 + 1e6 * w["y"] ** 2)


def quartic_hill(w):
    return -(w["x"] ** 4) / 4


def kink(w):
    return jnp.abs(w["x"])


@pytest.mark.parametrize("solver", ["explicit", "stiff"])
def test_the_flow_on_a_quadratic_is_its_closed_form(solver):
    flow = tw.gradient_flow(bowl_problem(), 5.0, solver=solver)
    expected = closed_form(A, BOTTOM, np.zeros(2), flow.time.values)
    # each of some 100 steps may err by 1e-8 relative and 1e-10
    np.testing.assert_allclose(flow.params, expected, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(flow.loss, [bowl({"x": x, "y": y}) for x, y in expected], atol=1e-6)
    assert flow.status == "completed"
    assert flow.accepted >= 100  # a step ends on each saved time
    assert flow.solver == solver


def test_tighter_tolerances_err_less():
    errors = []
    for rtol in (1e-4, 1e-6, 1e-8, 1e-10):
        flow = tw.gradient_flow(bowl_problem(), 2.0, points=2, rtol=rtol, atol=rtol)
        errors.append(float(abs(flow.final - closed_form(A, BOTTOM, np.zeros(2), [2.0])[0]).max()))
    assert all(b < a / 10 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("solver", ["explicit", "stiff"])
def test_rosenbrock_agrees_with_scipy(solver):
    problem = tw.Problem.from_catalogue("rosenbrock")
    flow = tw.gradient_flow(problem, 10.0, solver=solver)

    def downhill(t, w):
        x, y = w
        return [2 * (1 - x) + 400 * x * (y - x**2), -200 * (y - x**2)]

    reference = solve_ivp(
        downhill, (0, 10), [-1.2, 1.0], "Radau", flow.time.values, rtol=1e-11, atol=1e-13
    )
    # errors of 1e-8 a step, which the valley neither damps nor amplifies much
    np.testing.assert_allclose(flow.params, reference.y.T, atol=1e-6)


def test_an_ill_conditioned_quadratic_needs_the_stiff_solver():
    problem = tw.Problem.from_function(narrow, params={"x": 1.0, "y": 1.0})
    explicit = tw.gradient_flow(problem, 3.0, solver="explicit", max_steps=2000)
    assert explicit.status == "gave up"
    assert "solver='stiff'" in explicit.status.attrs["note"]
    assert explicit.diverged_at == -1
    lost = int(explicit.lost_at)
    assert np.isnan(explicit.params[lost:]).all()
    assert np.isfinite(explicit.params[:lost]).all()
    assert np.isnan(explicit.final).all()
    assert explicit.accepted + explicit.rejected == 2000
    stiff = tw.gradient_flow(problem, 3.0, solver="stiff", max_steps=2000)
    auto = tw.gradient_flow(problem, 3.0, max_steps=2000)
    xr.testing.assert_equal(auto, stiff)
    times = stiff.time.values
    np.testing.assert_allclose(stiff.params[:, 0], np.exp(-times), rtol=1e-6)
    # e^(−1e6·0.03) is 0: y is gone before the second saved point
    np.testing.assert_allclose(stiff.params[1:, 1], 0, atol=1e-9)
    assert stiff.status == "completed"


def test_auto_goes_over_with_the_stiff_solver_only_what_was_given_up():
    problem = tw.Problem.from_function(narrow, params={"x": 1.0, "y": 1.0})
    starts = [[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]
    flow = tw.gradient_flow(problem, 3.0, starts=starts, max_steps=5000)
    # with y = 0 to the last bit there is nothing stiff
    assert list(flow.solver.values) == ["explicit", "stiff", "explicit"]
    assert (flow.status == "completed").all()
    np.testing.assert_allclose(flow.final[0], np.exp(-3) * np.array([1, 1, 2]), rtol=1e-6)


def test_it_is_monotone_and_loses_what_the_gradient_takes():
    """dL/dt = −‖∇L‖²: the loss lost is the integral of the squared gradient."""
    problem = tw.Problem.from_catalogue("himmelblau")
    flow = tw.gradient_flow(problem, 1.0, points=2001, record=["grad_norm"])
    assert (np.diff(flow.loss) <= 1e-12).all()
    squared = flow.grad_norm.values**2
    lost = np.trapezoid(squared, flow.time)
    # the trapezoid's error: h²/12 · (change of d(‖∇L‖²)/dt), with h = 1/2000
    np.testing.assert_allclose(lost, flow.loss[0] - flow.loss[-1], rtol=1e-4)


def test_a_balanced_pair_of_weights_stays_balanced():
    """Under the flow of a two-layer linear model a² − b² is conserved (Saxe et al., 2014)."""

    def two_layers(w, x):
        return w["a"] * w["b"] * x

    x = np.array([1.0, -2.0, 0.5])
    problem = tw.Problem(two_layers, "mse", x, 3 * x, params={"a": 0.7, "b": -0.2})
    flow = tw.gradient_flow(problem, 5.0)
    a, b = flow.params.values.T
    np.testing.assert_allclose(a**2 - b**2, 0.49 - 0.04, rtol=1e-6)
    np.testing.assert_allclose(a[-1] * b[-1], 3.0, rtol=1e-6)


def test_an_ensemble_is_its_members():
    problem = tw.Problem.from_catalogue("himmelblau")
    starts = np.random.default_rng(0).uniform(-4, 4, (5, 2))
    flow = tw.gradient_flow(problem, 0.5, starts=starts, record=["movement"])
    assert flow.params.dims == ("step", "param", "run")
    np.testing.assert_array_equal(flow.start.T, starts)
    for run, start in enumerate(starts):
        alone = tw.gradient_flow(
            problem.at({"x": start[0], "y": start[1]}), 0.5, record=["movement"]
        )
        np.testing.assert_allclose(flow.params.isel(run=run), alone.params, rtol=1e-9)
        np.testing.assert_allclose(flow.movement.isel(run=run), alone.movement, rtol=1e-9)


def test_descent_approaches_the_flow_at_order_one():
    """Euler's global error is proportional to the step, for a time that stays."""
    problem = bowl_problem()
    end = closed_form(A, BOTTOM, np.zeros(2), [1.0])[0]
    flow = tw.gradient_flow(problem, 1.0)
    errors = []
    for steps in (500, 1000, 2000):
        path = tw.descend(problem, tw.SGD(lr=1 / steps), steps=steps)
        errors.append(float(np.linalg.norm(path.final - flow.final)))
    np.testing.assert_allclose(flow.final, end, atol=1e-7)
    np.testing.assert_allclose(np.diff(np.log2(errors)), -1, atol=0.01)


def test_random_starts_are_those_of_a_descent():
    def init(key):
        return {"weight": jax.random.normal(key), "bias": 0.5}

    problem = tw.Problem(
        lambda w, x: w["weight"] * x + w["bias"], "mse", [1.0, 2.0], [1.0, 0.0], init=init
    )
    flow = tw.gradient_flow(problem, 1.0, points=3, runs=3, seed=[4, 5])
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=1, runs=3, seed=[4, 5])
    assert flow.status.dims == ("run", "seed")
    np.testing.assert_allclose(flow.start, path.start, rtol=1e-7)  # init draws float32 or float64


def test_single_precision_problems_flow_in_double():
    problem = line_problem(dtype=np.float32, penalty=lambda w: 0.1 * w["weight"] ** 2)
    flow = tw.gradient_flow(problem, 2.0)
    assert flow.params.dtype == np.float64
    assert flow.attrs["dtype"] == "float64"
    assert problem.layout.dtype == np.float32
    x, y = (np.asarray(a, float) for a in (problem.x, problem.y))
    design = np.stack([np.ones_like(x), x], axis=1)  # bias, weight
    hessian = 2 * design.T @ design / len(x) + np.diag([0, 0.2])
    bottom = np.linalg.solve(hessian, 2 * design.T @ y / len(x))
    expected = closed_form(hessian, bottom, np.array([-3.0, 6.0]), flow.time.values)
    np.testing.assert_allclose(flow.params, expected, rtol=1e-6, atol=1e-6)


def test_a_flow_that_blows_up_does_not_stop_its_neighbours():
    """dx/dt = x³ from 1 is 1/√(1 − 2t): it ends at t = ½. From ½ it ends at t = 2 only."""
    problem = tw.Problem.from_function(quartic_hill, params={"x": 1.0})
    flow = tw.gradient_flow(problem, times=[0.25, 0.45, 0.6, 1.0], starts=[[1.0], [0.5]])
    assert list(flow.status.values) == ["diverged", "completed"]
    assert list(flow.diverged_at.values) == [3, -1]
    times = flow.time.values
    np.testing.assert_array_equal(times, [0, 0.25, 0.45, 0.6, 1.0])
    np.testing.assert_allclose(flow.params[:3, 0, 0], 1 / np.sqrt(1 - 2 * times[:3]), rtol=1e-6)
    np.testing.assert_allclose(flow.params[:, 0, 1], 1 / np.sqrt(4 - 2 * times), rtol=1e-6)
    assert np.isnan(flow.params[3:, 0, 0]).all()
    assert np.isnan(flow.loss[3:, 0]).all()
    assert list(flow.step.values) == [0, 1, 2, 3, 4]


def test_a_start_that_is_not_finite_there_has_diverged():
    problem = tw.Problem.from_function(lambda w: jnp.log(w["x"]), params={"x": 1.0})
    flow = tw.gradient_flow(problem, 0.2, starts=[[-1.0], [1.0]], points=5)
    assert list(flow.status.values) == ["diverged", "completed"]
    assert flow.diverged_at[0] == 0
    # dx/dt = −1/x: x² = 1 − 2t
    np.testing.assert_allclose(flow.final[0, 1], np.sqrt(0.6), rtol=1e-7)


def test_sliding_along_a_kink_is_given_up():
    flow = tw.gradient_flow(
        tw.Problem.from_function(kink, params={"x": 1.2}), 2.0, points=5, max_steps=1000
    )
    assert flow.status == "gave up"
    assert flow.lost_at == 3  # it comes to the kink at t = 1.2, between points 2 and 3
    assert "kink" in flow.status.attrs["note"]
    np.testing.assert_allclose(flow.params[:3, 0], [1.2, 0.7, 0.2], atol=1e-8)


def test_crossing_a_kink_of_relu_is_no_trouble():
    """The slope of w + ½(w − 1)₊ jumps where it does not change sign."""

    def bent(w):
        return jnp.where(w["x"] > 1, 1.5 * w["x"] - 0.5, w["x"])

    problem = tw.Problem.from_function(bent, params={"x": 2.0})
    flow = tw.gradient_flow(problem, 1.0, points=11)
    # speed 1.5 down to x = 1, at t = 2/3, and 1 from there
    expected = np.where(flow.time < 2 / 3, 2 - 1.5 * flow.time, 1 - (flow.time - 2 / 3))
    np.testing.assert_allclose(flow.params[:, 0], expected, atol=1e-8)
    assert flow.rejected > 0
    assert flow.status == "completed"


def test_it_has_descends_schema(tmp_path):
    problem = tw.Problem.from_catalogue("himmelblau")
    flow = tw.gradient_flow(
        problem,
        0.2,
        points=6,
        starts=[[0.0, 0.0], [1.0, 1.0]],
        record={"grad": True, "risk": True, "pair": lambda at: {"two": jnp.ones(2), "n": at.step}},
    )
    path = tw.descend(
        problem, tw.SGD(lr=1e-3), steps=5, starts=flow, record={"grad": True, "risk": True}
    )
    np.testing.assert_array_equal(path.start, flow.final)
    for name in set(path.data_vars) - {
        "optimizer_state",
        "stopped_at",
        "updates",
    }:  # a descent's own
        assert flow[name].dims == path[name].dims, name
        assert flow[name].dtype.kind == path[name].dtype.kind, name
    assert flow.pair_two.dims == ("step", "pair_two_0", "run")
    np.testing.assert_array_equal(flow.pair_n[:, 0], np.arange(6))
    assert flow.attrs["kind"] == "trajectory"
    np.testing.assert_allclose(flow.risk, flow.loss)
    loaded = tw.load(tw.save(flow, tmp_path / "flow.nc"))
    xr.testing.assert_identical(loaded, flow)
    surface = tw.landscape(problem, tw.coordinate_plane(problem, {"x": (-4, 4), "y": (-4, 4)}, 5))
    where = tw.project(surface, loaded)
    np.testing.assert_allclose(where["x"], flow.params.sel(param="x"))
    tw.plot.contour(surface, loaded)


def test_params_of_any_structure():
    def quadratic(w):
        return jnp.sum(w["a"][0] ** 2) + 2 * jnp.sum((w["b"] - 1) ** 2)

    params = {"a": [jnp.ones((2, 3))], "b": jnp.zeros(4)}
    flow = tw.gradient_flow(tw.Problem.from_function(quadratic, params=params), 1.0, points=3)
    np.testing.assert_allclose(flow.final[:6], np.exp(-2), rtol=1e-6)
    np.testing.assert_allclose(flow.final[6:], 1 - np.exp(-4), rtol=1e-6)


def test_a_saved_flow_on_a_catalogue_problem_runs_again(tmp_path):
    problem = tw.Problem.from_catalogue("himmelblau", dtype="float32")
    for starts in (None, [[0.0, 0.0], [1.0, 2.0]]):
        flow = tw.gradient_flow(
            problem, 0.5, points=7, starts=starts, record={"movement": True, "loss": False}
        )
        again = tw.rerun(tw.load(tw.save(flow, tmp_path / "flow.nc")))
        xr.testing.assert_equal(again, flow)
    with pytest.raises(InputError, match="cannot hold"):
        tw.rerun(tw.gradient_flow(bowl_problem(), 1.0, points=2))


def test_time_zero_is_the_start_alone():
    flow = tw.gradient_flow(bowl_problem(), 0)
    assert dict(flow.sizes) == {"step": 1, "param": 2}
    np.testing.assert_array_equal(flow.final, [0, 0])
    assert flow.accepted == 0


def test_another_time_tolerance_or_number_of_points_compiles_nothing():
    problem = bowl_problem()
    tw.gradient_flow(problem, 1.0)
    before = integrator.block._cache_size(), integrator.begin._cache_size()
    tw.gradient_flow(problem, 2, points=7, rtol=1e-5, atol=1e-6, max_steps=77)
    tw.gradient_flow(bowl_problem(), times=np.geomspace(1e-3, 1, 600))
    assert (integrator.block._cache_size(), integrator.begin._cache_size()) == before


def test_a_loop_of_known_length_changes_nothing(monkeypatch):
    """As a GPU does it, which looks only now and then whether the members are there."""
    starts = np.random.default_rng(0).normal(size=(5, 2))
    options = {"time": 2.0, "points": 5, "starts": starts, "max_steps": 53, "solver": "explicit"}
    expected = tw.gradient_flow(bowl_problem(), **options)
    assert set(expected.status.values) == {"completed", "gave up"}
    monkeypatch.setattr(flows, "attempts_at_a_time", lambda _: integrator.attempts_at_a_time("gpu"))
    found = tw.gradient_flow(bowl_problem(), **options)
    for name in ("status", "accepted", "rejected", "lost_at"):
        np.testing.assert_array_equal(found[name], expected[name])
    # another program, whose sums may be rounded otherwise
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-12)


@pytest.mark.parametrize(("at_a_time", "made"), [(1, 5), (2, 6), (3, 6)])
def test_a_block_attempts_as_many_steps_as_it_is_told(at_a_time, made):
    problem = bowl_problem()
    flow = integrator.Flow(problem, {}, 1e-9, 1e-12, 1000, integrator.EXPLICIT, False, ("loss",))
    walk = integrator.begin(flow, problem.params)
    times, first = np.array([0.0, 50.0, 100.0]), np.int32(0)
    walk, done, _ = integrator.block(
        flow, walk, times, first, np.int32(3), np.int32(5), room=3, at_a_time=at_a_time
    )
    assert walk.accepted + walk.rejected == made
    assert done == 1  # the first one is where it began


def test_an_explicit_step_is_diffraxs_own():
    problem = bowl_problem()
    start = {"x": jnp.asarray(0.3), "y": jnp.asarray(-2.0)}
    flow = integrator.Flow(problem, {}, 1e-6, 1e-9, 100, integrator.EXPLICIT, False, ())
    terms, solver, _ = integrator._method(flow)
    state = solver.init(terms, 0.0, 0.4, start, None)
    params, error, _, slope, _ = solver.step(terms, 0.0, 0.4, start, None, state, jnp.bool_(False))
    state = diffrax.Tsit5().init(terms, 0.0, 0.4, start, None)
    theirs = diffrax.Tsit5().step(terms, 0.0, 0.4, start, None, state, jnp.bool_(True))
    # the same sums in another order, of numbers of the order of one
    for ours, other in ((params, theirs[0]), (error, theirs[1]), (slope, theirs[3][1])):
        for name in start:
            np.testing.assert_allclose(ours[name], other[name], rtol=1e-12, atol=1e-15)


def test_each_of_a_steps_slopes_is_computed_once():
    """Six of them, of which all later stages and the error are sums."""
    flow = integrator.Flow(bowl_problem(), {}, 1e-6, 1e-9, 100, integrator.EXPLICIT, False, ())
    terms, solver, _ = integrator._method(flow)

    def step(params, slope):
        return solver.step(terms, 0.0, 0.4, params, None, slope, jnp.bool_(False))[:2]

    start = {"x": jnp.ones(()), "y": jnp.ones(())}
    program = jax.jit(step).lower(start, start).compile().as_text()
    assert program.count(" call(") == 6


def test_more_points_than_a_block_records():
    times = np.linspace(0, 1, 1001)
    flow = tw.gradient_flow(bowl_problem(), times=times)
    np.testing.assert_array_equal(flow.time, times)
    np.testing.assert_allclose(
        flow.params, closed_form(A, BOTTOM, np.zeros(2), times), rtol=1e-7, atol=1e-7
    )


def test_ctrl_c_keeps_what_was_computed(monkeypatch):
    problem = tw.Problem.from_function(narrow, params={"x": 1.0, "y": 1.0})
    press_ctrl_c(monkeypatch, call=8)
    flow = tw.gradient_flow(problem, 1.0, points=10**6, solver="explicit", max_steps=2**31 - 1)
    assert flow.attrs["interrupted"] == 1
    assert flow.status == "interrupted"
    rows = flow.sizes["step"]
    assert 0 < rows < 10**6
    assert flow.attrs["last_step"] == rows - 1
    times = flow.time.values
    np.testing.assert_allclose(flow.params[:, 0], np.exp(-times), rtol=1e-4)


def test_plots_draw_a_flow_against_time():
    flow = tw.gradient_flow(bowl_problem(), 3.0, points=4, record=["movement"])
    for draw in (tw.plot.loss, tw.plot.movement):
        ax = draw(flow)
        assert ax.get_xlabel() == "time"
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1, 2, 3])
    ax = tw.plot.loss(flow, x="log")
    assert "time 0 not shown (log axis)" in [
        t for artist in ax.texts for t in artist.get_text().split("\n")
    ]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3)
    assert tw.plot.loss(path).get_xlabel() == "step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": -1.0}, "time must be a finite number of at least 0; -1.0"),
        ({"time": np.inf}, "time must be"),
        ({"time": "long"}, "time must be"),
        ({"time": True}, "time must be"),
        ({"points": 1}, "points must be a whole number of at least 2"),
        ({"times": [0.0, 2.0, 1.0]}, "times must be increasing"),
        ({"times": [-1.0, 2.0]}, "times must be increasing"),
        ({"times": []}, "times must be increasing"),
        ({"rtol": 0.0}, "rtol must be a number between 0 and 1"),
        ({"rtol": 1e-16}, "rtol must be at least"),
        ({"atol": "small"}, "atol must be"),
        ({"solver": "euler"}, "'auto'.*'explicit'|auto, explicit"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"record": ["batch"]}, "no 'batch'"),
        ({"record": ["successive_change"]}, "successive_change.*steps of a descent"),
        ({"record": {"mean": (lambda at: 0.0, lambda at, s: (s, s))}}, "'mean'"),
        ({"record": ["expected"]}, "no expected risk"),
        ({"record": ["grad_nrm"]}, "grad_norm"),
        ({"record": {"accepted": lambda at: at.loss}}, "'accepted' is taken"),
        ({"record": {"time": lambda at: at.loss}}, "'time' is taken"),
        ({"starts": [[0.0, 0.0]], "runs": 2}, "give one of"),
        ({"starts": [[0.0, np.nan]]}, "not finite"),
        ({"runs": 3}, "no init="),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        tw.gradient_flow(bowl_problem(), **options)
    assert "\n" not in str(caught.value)


def test_bad_problems_and_resumes_are_refused():
    with pytest.raises(InputError, match="Problem was expected"):
        tw.gradient_flow(bowl)
    flow = tw.gradient_flow(bowl_problem(), 1.0, points=2)
    with pytest.raises(InputError, match="resume="):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=1, resume=flow)


def test_the_stiff_solver_says_when_its_matrices_do_not_fit():
    problem = tw.Problem.from_function(
        lambda w: jnp.sum(w["x"] ** 2), params={"x": np.zeros(300_000)}
    )
    with pytest.raises(InputError, match=r"stiff solver.*solver='explicit'"):
        tw.gradient_flow(problem, 1.0, solver="stiff")


def normal_start(key):
    return {"x": jax.random.normal(key), "y": jnp.zeros(())}


def test_drawn_starts_are_one_program(compilations):
    problem = tw.Problem.from_function(bowl, init=normal_start)
    tw.gradient_flow(problem, 0.1, points=2, runs=2)
    assert compilations
    seen = len(compilations)
    tw.gradient_flow(problem, 0.2, points=2, runs=2, seed=1)
    assert len(compilations) == seen
