"""Gauss–Newton, Levenberg–Marquardt and exact least squares, against NumPy, SciPy and the textbook's
examples."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import threadpoolctl
from problems import data, line, line_problem

import thalweg as tw
from thalweg import backend, blocks, job, linear
from thalweg.catalogue import models
from thalweg.optimizers import by_name


def rosenbrock(w):
    """√2·[10(x₁ − x₀²), 1 − x₀]: Madsen, Nielsen & Tingleff (2004), example 6.9, as a sum of squares."""
    return np.sqrt(2) * jnp.stack([10 * (w["x1"] - w["x0"] ** 2), 1 - w["x0"]])


def rosenbrock_problem(**options):
    return tw.Problem.from_residuals(rosenbrock, params={"x0": -1.2, "x1": 1.0}, **options)


T = 0.02 * np.arange(1, 46)


def double_exponential(w):
    """Madsen, Nielsen & Tingleff (2004), example 1.1, without noise: c₁e^(−a₁t) + c₂e^(−a₂t)."""
    model = w[0] * jnp.exp(-w[2] * T) + w[1] * jnp.exp(-w[3] * T)
    return model - (4 * np.exp(-4 * T) - 4 * np.exp(-5 * T))


# Meyer's problem, scaled as in Madsen, Nielsen & Tingleff (2004), example 3.7
MEYER_T = 0.45 + 0.05 * np.arange(1, 17)
MEYER_Y = 1e-3 * np.array(
    [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
     8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
)  # fmt: skip


def meyer(w):
    return w[0] * jnp.exp(10 * w[1] / (MEYER_T + w[2]) - 13) - MEYER_Y


def levenberg_by_hand(residuals, jacobian, w, steps, tau, decrease, marquardt=False):
    """Algorithm 3.16, each damped step by NumPy's least squares on [J; √μ D]."""
    mu, factor, iterates, mus = None, 2.0, [w], []
    for _ in range(steps):
        r, J = residuals(w), jacobian(w)
        D = np.linalg.norm(J, axis=0) if marquardt else np.ones(len(w))
        if mu is None:
            mu = tau * np.max(np.sum((J / D) ** 2, axis=0))
        stacked = np.vstack([J, np.sqrt(mu) * np.diag(D)])
        h = np.linalg.lstsq(stacked, -np.concatenate([r, np.zeros(len(w))]), rcond=None)[0]
        trial = residuals(w + h)
        gain = (r @ r - trial @ trial) / (r @ r - np.sum((r + J @ h) ** 2))
        mus.append(mu)
        if gain > 0:
            w, mu, factor = w + h, mu * max(decrease, 1 - (2 * gain - 1) ** 3), 2.0
        else:
            mu, factor = mu * factor, 2 * factor
        iterates.append(w)
    return np.array(iterates), np.array(mus)


def in_numpy(residuals, names=None):
    """A problem's residuals and Jacobian as NumPy functions of a vector."""

    def of(w):
        return residuals(dict(zip(names, w, strict=True)) if names else w)

    return jax.jit(of), jax.jit(jax.jacfwd(of))


# The textbook's examples -------------------------------------------------------------------------


def steps_to_arrive(optimizer, problem=None, steps=100):
    path = tw.descend(problem or rosenbrock_problem(), optimizer, steps=steps, stop={"loss": 1e-20})
    assert path.status == "converged"
    np.testing.assert_allclose(path.final, [1, 1], rtol=1e-8)
    return int(path.stopped_at)


def test_rosenbrock_takes_as_many_iterations_as_the_textbook_says():
    # about 16 with the identity (example 6.9, τ = 1e-3), about twice that with Marquardt's scaling
    identity = steps_to_arrive(tw.LevenbergMarquardt(damping=1e-3))
    nielsen = steps_to_arrive(tw.LevenbergMarquardt(damping=1e-3, decrease=1 / 3))
    marquardt = steps_to_arrive(tw.LevenbergMarquardt(scaling="marquardt"))
    assert abs(identity - 16) <= 1
    assert abs(nielsen - 16) <= 1
    assert 1.8 <= marquardt / identity <= 2.5


def test_undamped_gauss_newton_lands_on_rosenbrocks_minimum_at_step_two():
    # the first step solves 1 − x₀ = 0, which is linear, and the second then x₁ = x₀²
    path = tw.descend(rosenbrock_problem(), tw.GaussNewton(), steps=2)
    np.testing.assert_allclose(path.params, [[-1.2, 1], [1, -3.84], [1, 1]], rtol=1e-12)
    assert list(path["rank"].values) == [-1, 2, 2]


def test_double_exponential():
    problem = tw.Problem.from_residuals(double_exponential, params=np.array([1.0, -1, 1, 2]))
    path = tw.descend(problem, tw.LevenbergMarquardt(), steps=500, stop={"loss": 1e-25})
    assert path.status == "converged"
    np.testing.assert_allclose(path.final, [4, -4, 4, 5], rtol=1e-6)


@pytest.mark.parametrize("start", [(40.0, 50.0, 30.0), (8.85, 4.0, 2.5)])
def test_scaled_meyer(start):
    # from the far start some trials overflow: they are rejected
    problem = tw.Problem.from_residuals(meyer, params=np.array(start))
    path = tw.descend(problem, tw.LevenbergMarquardt(damping=1.0), steps=400)
    np.testing.assert_allclose(path.final, [2.48, 6.18, 3.45], atol=0.005)
    r, J = in_numpy(meyer)
    judge = scipy.optimize.least_squares(
        lambda w: np.asarray(r(w)), path.final.values, jac=lambda w: np.asarray(J(w)), method="lm"
    )
    np.testing.assert_allclose(path.final, judge.x, rtol=1e-6)
    np.testing.assert_allclose(path.loss[-1], 2 * judge.cost, rtol=1e-9)
    assert (np.diff(path.loss) <= 0).all()


@pytest.mark.parametrize("scaling", ["identity", "marquardt"])
@pytest.mark.parametrize("decrease", [1 / 3, 0.01])
def test_levenberg_marquardt_is_nielsens_algorithm(scaling, decrease):
    r, J = in_numpy(rosenbrock, ("x0", "x1"))
    iterates, mus = levenberg_by_hand(
        lambda w: np.asarray(r(w)), lambda w: np.asarray(J(w)), np.array([-1.2, 1.0]), 12,
        1e-3, decrease, scaling == "marquardt",
    )  # fmt: skip
    path = tw.descend(
        rosenbrock_problem(), tw.LevenbergMarquardt(decrease=decrease, scaling=scaling), steps=12
    )
    np.testing.assert_allclose(path.params, iterates, rtol=1e-9)
    np.testing.assert_allclose(path.mu[1:], mus, rtol=1e-9)
    assert np.isnan(path.mu[0])
    assert not path.accepted[0]
    moved = (np.diff(path.params, axis=0) != 0).any(axis=1)
    np.testing.assert_array_equal(path.accepted[1:], moved)
    np.testing.assert_array_equal(path.accepted, path.gain_ratio > 0)
    assert not moved.all(), "no step was rejected: half of the test is missing"


# Steps, for every shape and rank ----------------------------------------------------------------


def given_jacobian(J, r0):
    return lambda w: J @ w + r0


@pytest.mark.parametrize(
    ("m", "p", "rank"),
    [(7, 3, 3), (3, 7, 3), (5, 5, 5), (8, 6, 4), (4, 6, 2), (20_001, 9, 9), (20_001, 9, 5)],
)
def test_a_gauss_newton_step_is_the_pseudoinverse_whatever_shape_and_rank(m, p, rank):
    rng = np.random.default_rng(m * p)
    J = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, p))
    r0, w = rng.standard_normal(m), rng.standard_normal(p)
    problem = tw.Problem.from_residuals(given_jacobian(J, r0), params=w)
    path = tw.descend(problem, tw.GaussNewton(lr=0.3), steps=1)
    np.testing.assert_allclose(path.final, w - 0.3 * np.linalg.pinv(J) @ (J @ w + r0), rtol=1e-9)
    assert path["rank"][1] == rank == np.linalg.matrix_rank(J)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("mu", [0.0, 1e-12, 0.3, 1e9])
def test_damped_steps_are_those_of_the_stacked_system(columns, mu):
    rng = np.random.default_rng(3)
    J = rng.standard_normal((9, 4)) * [1, 1e-3, 10, 1]
    r0 = rng.standard_normal(9)
    found = linear.linearized(given_jacobian(J, r0), jnp.zeros(4), columns)
    D = np.linalg.norm(J, axis=0) if columns else np.ones(4)
    stacked = np.vstack([J, np.sqrt(mu) * np.diag(D)])
    h = np.linalg.lstsq(stacked, -np.concatenate([r0, np.zeros(4)]), rcond=None)[0]
    step, promised = found.step(mu)
    np.testing.assert_allclose(step, h, rtol=1e-9)
    np.testing.assert_allclose(promised, r0 @ r0 - np.sum((J @ h + r0) ** 2), rtol=1e-6)
    np.testing.assert_allclose(found.square, r0 @ r0)


def test_steps_do_not_square_the_condition_number():
    # Läuchli's matrix [1 1; ε 0; 0 ε]: JᵀJ is [1 1; 1 1] in float64 for ε = 1e-9, and has no inverse.
    # For r = (2, 1, 1) + J·0 the solution of min ‖Jh + b‖², b = (2, ε, ε), is h = (−1, −1) exactly.
    eps = 1e-9
    J, b = np.array([[1, 1], [eps, 0], [0, eps]]), np.array([2, eps, eps])
    step, _ = linear.linearized(given_jacobian(J, b), jnp.zeros(2)).step()
    np.testing.assert_allclose(step, [-1, -1], atol=1e-6)  # κ·ε = 1.4e9 · 2e-16
    gram = J.T @ J
    assert np.linalg.matrix_rank(gram) == 1
    assert np.linalg.cond(J) > 1e9


@pytest.mark.parametrize("unit", [1e-22, 1e22])
def test_steps_in_float32_where_the_squares_of_singular_values_are_no_numbers(unit):
    rng = np.random.default_rng(0)
    J, r = rng.standard_normal((6, 3)), rng.standard_normal(6)

    def residuals(w):
        return jnp.float32(unit * J) @ w + jnp.float32(r)

    linearized = linear.linearized(residuals, jnp.zeros(3, jnp.float32))
    step, promised = linearized.step()
    expected, rest, *_ = np.linalg.lstsq(J, -r)
    np.testing.assert_allclose(step * unit, expected, rtol=1e-5)
    np.testing.assert_allclose(promised, r @ r - rest[0], rtol=1e-5)
    assert step.dtype == jnp.float32
    np.testing.assert_allclose(linearized.largest, unit**2 * max((J**2).sum(axis=0)), rtol=1e-5)


def test_the_jacobian_is_that_of_dense_differentiation_both_ways():
    for m, p in [(3, 8), (8, 3)]:
        A = np.random.default_rng(0).standard_normal((m, p))
        residuals = lambda w, A=A: jnp.sin(A @ w)  # noqa: E731
        w = jnp.linspace(-1, 1, p)
        value, J = linear.value_and_jacobian(residuals, w)
        np.testing.assert_allclose(value, np.sin(A @ w), rtol=1e-12)
        np.testing.assert_allclose(J, np.cos(A @ w)[:, None] * A, rtol=1e-12)


def test_a_jacobian_that_would_not_fit_is_refused_before_it_is_made():
    problem = tw.Problem(
        lambda w, x: x * w.sum(), "mse", np.zeros(2_000_000), np.zeros(2_000_000),
        params=np.zeros(1_000_000),
    )  # fmt: skip
    with pytest.raises(tw.InputError, match="Jacobian of 2000000 residuals"):
        tw.descend(problem, tw.GaussNewton(), steps=1)


# Where there is nothing to gain, or no number --------------------------------------------------


@pytest.mark.parametrize("optimizer", [tw.GaussNewton(), tw.LevenbergMarquardt()], ids=repr)
def test_from_the_minimum_nothing_moves(optimizer):
    problem = rosenbrock_problem().at({"x0": 1.0, "x1": 1.0})
    path = tw.descend(problem, optimizer, steps=60)
    np.testing.assert_array_equal(path.params, np.ones((61, 2)))
    assert path.status == "completed"
    assert np.isfinite(path.optimizer_state).all()


def test_a_jacobian_of_zeros_moves_nothing():
    problem = tw.Problem.from_residuals(
        lambda w: jnp.stack([w[0] ** 2 + 1, 2.0]), params=[0.0, 0.0]
    )
    for optimizer in (tw.GaussNewton(), tw.LevenbergMarquardt(scaling="marquardt")):
        path = tw.descend(problem, optimizer, steps=3)
        np.testing.assert_array_equal(path.final, [0, 0])
        assert path.status == "completed"


def logarithm(w):
    return jnp.stack([jnp.log(w["x"]) + 3, 0.1 * w["x"]])


def test_a_trial_outside_the_domain_is_rejected_and_gauss_newton_diverges_there():
    problem = tw.Problem.from_residuals(logarithm, params={"x": 2.0})
    path = tw.descend(problem, tw.LevenbergMarquardt(damping=1e-6), steps=60)
    assert np.isnan(path.gain_ratio[1])  # log of a negative number
    assert not path.accepted[1]
    judge = scipy.optimize.minimize_scalar(
        lambda x: (np.log(x) + 3) ** 2 + 0.01 * x**2, bounds=(1e-3, 3), options={"xatol": 1e-12}
    )
    np.testing.assert_allclose(path.final, [judge.x], rtol=1e-6)
    lost = tw.descend(problem, tw.GaussNewton(), steps=5)
    assert lost.status == "diverged"
    assert lost.diverged_at == 1


def raised_kink(w):
    return jnp.atleast_1d(jnp.abs(w["w"]) + 3)


def test_a_step_that_gains_nothing_is_not_taken():
    """J = 1, r = 4 and μ = 1 lead from 1 to 1 − 4 / (1 + 1) = −1, where the residual is the same."""
    problem = tw.Problem.from_residuals(raised_kink, params={"w": 1.0})
    path = tw.descend(problem, tw.LevenbergMarquardt(damping=1.0), steps=2)
    assert path.gain_ratio[1] == 0
    assert not path.accepted[1]
    assert path.params[1].item() == 1
    assert path.mu[2] == 2 * path.mu[1] == 2


def kinked(w):
    return jnp.stack([jax.nn.relu(w["x"]) + 1, 0.1 * (w["x"] + 1) * w["y"], w["y"] - 1])


def test_at_a_kink_the_loss_does_not_rise():
    problem = tw.Problem.from_residuals(kinked, params={"x": 3.0, "y": 0.0})
    path = tw.descend(problem, tw.LevenbergMarquardt(), steps=100)
    assert path.status == "completed"
    assert (np.diff(path.loss) <= 0).all()
    assert np.isfinite(path.optimizer_state).all()


# Wherever an optimizer works ---------------------------------------------------------------------


def wave(w, x):
    return w["amplitude"] * jnp.sin(w["rate"] * x + w["phase"])


def wave_problem(n=40, dtype=float, **options):
    rng = np.random.default_rng(5)
    x = np.linspace(0, 3, n)
    y = 2 * np.sin(1.5 * x + 0.4) + 0.1 * rng.standard_normal(n)
    return tw.Problem(
        wave, "mse", x.astype(dtype), y.astype(dtype),
        params={"amplitude": 1.0, "rate": 1.3, "phase": 0.0}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scipy_finds_the_same_minimum(reduction):
    problem = wave_problem(reduction=reduction)
    path = tw.descend(problem, tw.LevenbergMarquardt(), steps=40)
    judge = scipy.optimize.least_squares(
        lambda v: np.asarray(problem.residuals(problem.unflatten(v))),
        problem.flatten(problem.params), xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    np.testing.assert_allclose(path.final, judge.x, rtol=1e-6)
    np.testing.assert_allclose(path.loss[-1], 2 * judge.cost, rtol=1e-9)


def test_sweeps_and_ensembles_equal_separate_runs():
    starts = np.array([[1.0, 0.0, 1.3], [3.0, 0.5, 1.0]])
    both = tw.descend(
        wave_problem(), tw.LevenbergMarquardt(damping=[1e-4, 1.0]), steps=15, starts=starts
    )
    assert both.params.dims == ("step", "param", "run", "damping")
    newton = tw.descend(wave_problem(), tw.GaussNewton(lr=[0.2, 1.0]), steps=15, starts=starts)
    for run in range(2):
        for i in range(2):
            alone = tw.descend(
                wave_problem(), tw.LevenbergMarquardt(damping=[1e-4, 1.0][i]), steps=15,
                starts=starts[[run]],
            )  # fmt: skip
            np.testing.assert_allclose(both.params[:, :, run, i], alone.params[:, :, 0], rtol=1e-7)
            alone = tw.descend(
                wave_problem(), tw.GaussNewton(lr=[0.2, 1.0][i]), steps=15, starts=starts[[run]]
            )
            np.testing.assert_allclose(
                newton.params[:, :, run, i], alone.params[:, :, 0], rtol=1e-7
            )


def test_mini_batches_use_the_batchs_residuals_alone():
    # 40 samples in batches of 15: the third has ten, and five places that do not count
    path = tw.descend(
        wave_problem(), tw.GaussNewton(lr=0.3), epochs=1, batch_size=15, record=["batch"]
    )
    problem = wave_problem()
    for step, index in enumerate([np.arange(15), np.arange(15, 30), np.arange(30, 40)]):
        w = path.params[step].values
        a, phase, rate = w  # in the order of names
        x, y = np.asarray(problem.x)[index], np.asarray(problem.y)[index]
        inside = rate * x + phase
        J = np.stack([np.sin(inside), a * np.cos(inside), a * x * np.cos(inside)], axis=1)
        h = np.linalg.lstsq(J, y - a * np.sin(inside), rcond=None)[0]
        np.testing.assert_allclose(path.params[step + 1], w + 0.3 * h, rtol=1e-9)
    stochastic = tw.descend(
        wave_problem(), tw.LevenbergMarquardt(), epochs=20, batch_size=15, shuffle=True
    )
    assert problem.risk(problem.unflatten(stochastic.final.values)) < 0.05


def test_float32_stays_float32_and_arrives():
    path = tw.descend(wave_problem(dtype=np.float32), tw.LevenbergMarquardt(), steps=30)
    double = tw.descend(wave_problem(), tw.LevenbergMarquardt(), steps=30)
    assert path.params.dtype == path.loss.dtype == np.float32
    np.testing.assert_allclose(path.final, double.final, rtol=1e-3)


@pytest.mark.parametrize(
    "optimizer", [tw.GaussNewton(lr=[0.1, 0.5]), tw.LevenbergMarquardt()], ids=lambda o: o.name
)
def test_resume_equals_an_uninterrupted_run(optimizer, tmp_path):
    options = {"batch_size": 13, "shuffle": True, "seed": 3}
    whole = tw.descend(wave_problem(), optimizer, steps=12, **options)
    first = tw.descend(wave_problem(), optimizer, steps=5, **options)
    tw.save(first, tmp_path / "first.nc")
    rest = tw.descend(
        wave_problem(), optimizer, steps=7, resume=tw.load(tmp_path / "first.nc"), **options
    )
    np.testing.assert_array_equal(rest.params, whole.params[5:])


def test_other_numbers_compile_nothing(compilations):
    problem = wave_problem(n=23)
    tw.descend(problem, tw.LevenbergMarquardt(), steps=4)
    assert compilations
    seen = len(compilations)
    tw.descend(problem, tw.LevenbergMarquardt(damping=1, decrease=0.3), steps=9)
    assert len(compilations) == seen


def test_on_a_landscape_beside_sgd():
    problem = line_problem()
    plane = tw.coordinate_plane(problem, {"bias": (-5, 8), "weight": (-5, 8)}, points=9)
    surface = tw.landscape(problem, plane)
    ax = tw.plot.contour(surface, tw.descend(problem, tw.SGD(lr=0.1), steps=5))
    tw.plot.path(surface, tw.descend(problem, tw.LevenbergMarquardt(), steps=5), ax=ax)
    gids = {line.get_gid() for line in ax.lines}
    assert {"thalweg-series-0", "thalweg-series-1"} <= gids
    names = ax.get_legend_handles_labels()[1]
    assert names.count("path") == 2


def test_by_name_and_its_errors():
    assert by_name("gaussnewton", lr=0.5).lr == 0.5
    assert by_name("LevenbergMarquardt", scaling="marquardt").scaling == "marquardt"
    with pytest.raises(tw.InputError, match="did you mean 'marquardt'"):
        tw.descend(wave_problem(), tw.LevenbergMarquardt(scaling="marquard"), steps=1)
    with pytest.raises(tw.InputError, match="decrease must be between 0 and 1; 2 given"):
        tw.descend(wave_problem(), tw.LevenbergMarquardt(decrease=2.0), steps=1)
    with pytest.raises(tw.InputError, match="damping must be at least 0"):
        tw.descend(wave_problem(), tw.LevenbergMarquardt(damping=-1.0), steps=1)


def bowl(w):
    return w["x"] ** 2


@pytest.mark.parametrize("optimizer", [tw.GaussNewton(), tw.LevenbergMarquardt()], ids=repr)
def test_other_problems_are_refused_with_a_remedy(optimizer):
    for problem in (line_problem("huber"), tw.Problem.from_function(bowl, params={"x": 1.0})):
        with pytest.raises(tw.InputError, match=r"sum of squares .* Problem\.from_residuals"):
            tw.descend(problem, optimizer, steps=1)
    with pytest.raises(tw.InputError, match="penalty= is not among"):
        tw.descend(line_problem(penalty=lambda w: w["weight"] ** 2), optimizer, steps=1)


# The exact minimiser -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_least_squares_is_numpys(dtype, reduction):
    x, y = data(dtype=dtype)
    params = tw.least_squares(line_problem(dtype=dtype, reduction=reduction))
    design = np.column_stack([x, np.ones(50)]).astype(float)
    weight, bias = np.linalg.lstsq(design, y.astype(float), rcond=None)[0]
    rtol = 1e-10 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose([params["weight"], params["bias"]], [weight, bias], rtol=rtol)
    assert params["weight"].dtype == dtype


def test_least_squares_of_the_regression_tours_line():
    # studies.md, study 3: RandomState(42), 100 points, the first replaced by the outlier (−1.5, 10)
    rng = np.random.RandomState(42)
    x = np.sort(2 * rng.rand(100) - 1)
    y = 1 + 3 * x - 4 * x**2 + 0.7 * rng.randn(100)
    x[0], y[0] = -1.5, 10
    params = tw.least_squares(tw.Problem(line, "mse", x, y, params={"weight": 0.0, "bias": 0.0}))
    np.testing.assert_allclose(
        [params["bias"], params["weight"]], [-0.26649881, 2.64187294], atol=5e-9
    )


def several(w, x):
    return x @ w["matrix"].T + 1.0


def init_matrix(key):
    return {"matrix": jax.random.normal(key, (2, 6))}


def test_least_squares_takes_the_shortest_of_many_and_needs_no_start():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 6)), rng.standard_normal((4, 2))
    problem = tw.Problem(several, "mse", x, y, init=init_matrix)
    matrix = tw.least_squares(problem)["matrix"]
    np.testing.assert_allclose(matrix, (np.linalg.pinv(x) @ (y - 1)).T, rtol=1e-9)
    np.testing.assert_allclose(x @ matrix.T + 1, y, rtol=1e-9)


def test_least_squares_with_columns_that_depend_on_each_other():
    x = np.stack([np.arange(5.0), 2 * np.arange(5.0)], axis=1)
    problem = tw.Problem(
        models.line, "mse", x, np.arange(5.0), params={"weight": np.zeros(2), "bias": 0.0}
    )
    params = tw.least_squares(problem)
    # y = x₁: the shortest weights that give it are along (1, 2), (0.2, 0.4)
    np.testing.assert_allclose(params["weight"], [0.2, 0.4], rtol=1e-9)
    np.testing.assert_allclose(params["bias"], 0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_least_squares_of_a_network_made_linear(seed):
    """Its columns nearly depend on each other: the solution is long, and its sums cancel."""
    rng = np.random.default_rng(seed)
    w = {"W": rng.normal(size=(1, 6)), "b": np.zeros(6), "v": rng.normal(size=6)}
    x = rng.uniform(-2, 2, (25, 1))
    network = tw.Problem(
        lambda w, x: jnp.tanh(x @ w["W"] + w["b"]) @ w["v"], "mse", x, np.sin(2 * x[:, 0]), params=w
    )
    linear = tw.linearize(network, w)
    by_steps = tw.descend(linear, tw.GaussNewton(), steps=1)["loss"].values[-1]
    assert float(linear.risk(tw.least_squares(linear))) <= 2 * by_steps < 1e-10


def relu_line(w, x):
    return jax.nn.relu(w["weight"] * x) + w["bias"]


def test_least_squares_refuses_what_it_cannot_solve():
    with pytest.raises(tw.InputError, match="linear in its parameters"):
        tw.least_squares(wave_problem())
    x, y = data()
    kink = tw.Problem(relu_line, "mse", x, y, params={"weight": 1.0, "bias": 0.0})
    with pytest.raises(tw.InputError, match="linear in its parameters"):
        tw.least_squares(kink)
    with pytest.raises(tw.InputError, match="sum of squares"):
        tw.least_squares(line_problem("l1"))
    with pytest.raises(tw.InputError, match="penalty"):
        tw.least_squares(line_problem(penalty=lambda w: w["weight"] ** 2))
    with pytest.raises(tw.InputError, match=r"thalweg\.Problem was expected"):
        tw.least_squares(None)


def lapacks_threads():
    return {library["num_threads"] for library in backend._libraries().info()}


def test_lapack_has_one_thread_in_a_descent_unless_a_single_matrix_is_large(monkeypatch):
    within = []

    def counted(*args, **options):
        within.append(lapacks_threads())
        return run(*args, **options)

    run = blocks.run
    monkeypatch.setattr(blocks, "run", counted)
    problem, one, two = (
        rosenbrock_problem(),
        tw.LevenbergMarquardt(),
        tw.LevenbergMarquardt(damping=[0.1, 1.0]),
    )
    with threadpoolctl.threadpool_limits(2, "blas"):
        for optimizer, small, large, expected in (
            (one, 1, 1e9, {1}),
            (one, 1, 1, {2}),
            (two, 1, 1, {1}),
            (two, 1e4, 1e9, {2}),
            (tw.SGD(lr=1e-4), 1, 1e9, {2}),
        ):
            monkeypatch.setattr(job, "_SMALL", small)
            monkeypatch.setattr(job, "_LARGE", large)
            within.clear()
            tw.descend(problem, optimizer, steps=2)
            assert within == [expected]
            assert lapacks_threads() == {2}


def test_lapacks_threads_come_back_when_the_last_of_several_descents_ends():
    with threadpoolctl.threadpool_limits(2, "blas"):
        with backend.lapack_alone:
            other = threading.Thread(target=backend.lapack_alone.__enter__)
            other.start()
            other.join()
        assert lapacks_threads() == {1}
        backend.lapack_alone.__exit__()
        assert lapacks_threads() == {2}
