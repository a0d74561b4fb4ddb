"""Linearised and scaled problems: what they predict, that they compile once, and lazy training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import bowl_problem, data, line_problem

import thalweg as tw
from thalweg.catalogue.models import init_mlp, mlp


def tanh_mlp(w, x):
    return mlp(w, x, jnp.tanh)


def targets(x):
    return np.abs(x + 0.5) - 2 * np.maximum(x - 0.5, 0) - 0.4


def network(widths=(1, 8, 8, 1), n=10, seed=0, dtype=float, **options):
    x = np.random.default_rng(seed).uniform(-1, 1, n)
    params = init_mlp(widths, jax.random.key(seed))
    return tw.Problem(tanh_mlp, "mse", x, targets(x), params=params, dtype=dtype, **options)


def nearby(problem, size=0.1, seed=1):
    w = np.asarray(problem.flatten(problem.params))
    return problem.unflatten(w + size * np.random.default_rng(seed).standard_normal(w.size))


# What they are -----------------------------------------------------------------------------------


def test_the_linearised_model_is_the_tangent():
    problem = network()
    tangent = tw.linearize(problem, problem.params)
    w = nearby(problem)
    change = problem.flatten(w) - problem.flatten(problem.params)
    expected = tanh_mlp(problem.params, problem.x) + tw.jacobian(problem, problem.params) @ change
    np.testing.assert_allclose(tangent.predict(w, problem.x), expected, rtol=1e-12)
    np.testing.assert_allclose(tangent.risk(w), np.mean((expected - problem.y) ** 2), rtol=1e-12)
    # its Jacobian is the same everywhere, and f's at w₀
    for there in (w, problem.params):
        np.testing.assert_allclose(
            tw.jacobian(tangent, there), tw.jacobian(problem, problem.params), rtol=1e-12
        )
    np.testing.assert_array_equal(
        tangent.predict(problem.params, problem.x), problem.predict(problem.params, problem.x)
    )


def test_the_remainder_of_the_tangent_is_of_second_order():
    problem = network()
    tangent = tw.linearize(problem, problem.params)
    sizes = np.array([1e-2, 1e-3, 1e-4])
    off = [
        np.abs(
            tangent.predict(nearby(problem, s), problem.x) - tanh_mlp(nearby(problem, s), problem.x)
        ).max()
        for s in sizes
    ]
    np.testing.assert_allclose(np.diff(np.log10(off)), -2, atol=0.05)


def test_the_scaled_model_is_centred_and_scaled():
    problem = network()
    scaled = tw.scale_output(problem, problem.params, alpha=30.0)
    w = nearby(problem)
    expected = 30 * (tanh_mlp(w, problem.x) - tanh_mlp(problem.params, problem.x))
    np.testing.assert_allclose(scaled.predict(w, problem.x), expected, rtol=1e-10)
    np.testing.assert_array_equal(scaled.predict(problem.params, problem.x), 0)
    np.testing.assert_allclose(
        scaled.risk(problem.params), np.mean(np.asarray(problem.y) ** 2), rtol=1e-12
    )
    np.testing.assert_allclose(
        tw.jacobian(scaled, w), 30 * tw.jacobian(problem, w), rtol=1e-12, atol=1e-14
    )
    there = np.array([0.3, -2.0])  # any other inputs
    np.testing.assert_allclose(
        scaled.predict(w, there),
        30 * (tanh_mlp(w, there) - tanh_mlp(problem.params, there)),
        rtol=1e-10,
    )


def test_they_compose():
    problem = network()
    w = nearby(problem)
    change = problem.flatten(w) - problem.flatten(problem.params)
    both = tw.linearize(tw.scale_output(problem, problem.params, 30.0), problem.params)
    again = tw.scale_output(tw.linearize(problem, problem.params), problem.params, 30.0)
    expected = 30 * tw.jacobian(problem, problem.params) @ change
    np.testing.assert_allclose(both.predict(w, problem.x), expected, rtol=1e-12)
    np.testing.assert_allclose(again.predict(w, problem.x), expected, rtol=1e-9)


def test_what_is_kept_and_what_is_dropped():
    problem = network(
        expected=lambda w: 1.0, penalty=lambda w: 3.0, init=partial(init_mlp, (1, 8, 8, 1))
    )
    start = nearby(problem)
    for made in (tw.linearize(problem, start), tw.scale_output(problem, start)):
        np.testing.assert_array_equal(made.flatten(made.params), problem.flatten(start))
        assert made.names == problem.names
        assert made.reduction == problem.reduction
        assert made.risk(start) - made.risk(start, penalty=False) == 3
        with pytest.raises(tw.InputError, match="no expected risk"):
            made.expected(start)
        with pytest.raises(tw.InputError, match="no init="):
            tw.descend(made, tw.SGD(lr=0.1), steps=1, runs=2)
    assert problem.params is not start


def test_the_tangent_of_functions_and_of_residuals():
    bowl = bowl_problem()
    w0, w = {"x": 2.0, "y": 1.0}, {"x": 3.0, "y": -1.0}
    tangent = tw.linearize(bowl, w0)
    gradient = bowl.gradient(w0)
    expected = bowl.risk(w0) + gradient["x"] * 1 - gradient["y"] * 2
    np.testing.assert_allclose(tangent.risk(w), expected, rtol=1e-14)
    assert tangent.is_without_data
    # Rosenbrock's residuals: their tangent at the standard start is what Gauss–Newton minimises
    rosenbrock = tw.Problem.from_residuals(rosenbrock_residuals, params={"x": -1.2, "y": 1.0})
    tangent = tw.linearize(rosenbrock, rosenbrock.params)
    r0, J = rosenbrock.residuals(rosenbrock.params), np.array([[24.0, 10.0], [-1.0, 0.0]])
    step = np.linalg.solve(J, -r0)  # lands where the tangent is zero
    there = {"x": -1.2 + step[0], "y": 1.0 + step[1]}
    np.testing.assert_allclose(tangent.residuals(there), 0, atol=1e-12)
    with pytest.raises(tw.InputError, match="needs a model and data"):
        tw.scale_output(rosenbrock, rosenbrock.params)


def rosenbrock_residuals(w):
    return jnp.array([10 * (w["y"] - w["x"] ** 2), 1 - w["x"]])


def test_batches_landscapes_and_gradients_take_them():
    problem = network()
    for made in (
        tw.linearize(problem, problem.params),
        tw.scale_output(problem, problem.params, 5),
    ):
        w = nearby(problem)
        part = made.take(np.array([3, 1]))
        np.testing.assert_allclose(
            part.pointwise(w), made.pointwise(w)[np.array([3, 1])], rtol=1e-12
        )
        plane = tw.line(made, problem.params, w, points=5)
        surface = tw.landscape(made, plane)
        np.testing.assert_allclose(
            surface.empirical[[0, -1]], [made.risk(problem.params), made.risk(w)], rtol=1e-12
        )
        path = tw.descend(made, tw.SGD(lr=1e-3), steps=5, batch_size=3, shuffle=True)
        assert path.loss[-1] < path.loss[0] * 2


# Trap 5: α (f − f₀) in float32 -------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 1e3, 1e6])
def test_the_difference_does_not_cancel_in_float32(alpha):
    double, single = network(), network(dtype=np.float32)
    w0 = single.params
    # a float32 point at a distance of about 1/α, as lazy training goes
    w = nearby(single, size=max(0.1 / alpha, 1e-7))
    exact = alpha * (
        tanh_mlp(as_double(w), double.x.astype(np.float32).astype(float))
        - tanh_mlp(as_double(w0), double.x.astype(np.float32).astype(float))
    )
    scaled = tw.scale_output(single, w0, alpha)
    found = scaled.predict(w, single.x)
    assert found.dtype == np.float32
    assert scaled.risk(w).dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=2**-22, atol=2**-24 * np.abs(exact).max())
    gradient = scaled.flatten(scaled.gradient(w))
    assert gradient.dtype == np.float32
    in_double = tw.scale_output(
        tw.Problem(tanh_mlp, "mse", as_double(single.x), as_double(single.y), params=as_double(w0)),
        as_double(w0),
        alpha,
    )
    reference = in_double.flatten(in_double.gradient(as_double(w)))
    # rounding of the risk's own float32 arithmetic, relative to the largest entry
    np.testing.assert_allclose(gradient, reference, atol=1e-5 * np.abs(reference).max())


def as_double(tree):
    return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, float), tree)


# Compilations --------------------------------------------------------------------------------------


def test_a_sweep_over_alpha_compiles_once(compilations):
    problem = network()
    for made in (problem.params, nearby(problem)):  # both kinds, everything compiled
        tw.descend(tw.scale_output(problem, made, 1.0), tw.SGD(lr=0.1), steps=50)
        tangent = tw.linearize(tw.scale_output(problem, made, 1.0), made)
        tw.descend(tangent, tw.SGD(lr=0.1), steps=50)
    seen = len(compilations)
    assert seen
    for alpha in (2, 10.0, np.float32(100), 1000):
        scaled = tw.scale_output(problem, problem.params, alpha)
        tw.descend(scaled, tw.SGD(lr=0.1 / alpha**2), steps=70)
        tangent = tw.linearize(scaled, scaled.params)
        tw.descend(tangent, tw.SGD(lr=0.1 / alpha**2), steps=30)
    assert len(compilations) == seen


# Lazy training -------------------------------------------------------------------------------------


def test_the_theorem_of_lazy_training():
    """Chizat, Oyallon & Bach (2019), theorem 2.2: over a fixed time ‖w − w₀‖ = O(1/α) and the
    distance to the linearised model's path is O(1/α²)."""
    problem = network()
    alphas = np.array([100.0, 300.0, 1000.0, 3000.0])
    moved, apart, drift = [], [], []
    for alpha in alphas:
        scaled = tw.scale_output(problem, problem.params, alpha)
        sgd = tw.SGD(lr=0.05 / alpha**2)
        path = tw.descend(scaled, sgd, steps=400, every=100, record={"drift": tw.kernel_drift})
        linear = tw.descend(tw.linearize(scaled, problem.params), sgd, steps=400, every=100)
        moved.append(np.linalg.norm(path.final - path.start))
        apart.append(np.linalg.norm(path.params - linear.params, axis=1).max())
        drift.append(float(path.drift[-1]))
    # the next order is a factor 1 + O(1/α), 1 % at α = 100 with constants of order one
    for values, order in ((moved, -1), (drift, -1), (apart, -2)):
        slope = np.polyfit(np.log(alphas), np.log(values), 1)[0]
        assert abs(slope - order) < 0.02, (slope, order)


# Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, -1.0, np.nan, np.inf, [1.0, 10.0], "big"])
def test_impossible_scales(alpha):
    problem = line_problem()
    with pytest.raises(tw.InputError, match="alpha must be a number above 0"):
        tw.scale_output(problem, problem.params, alpha)


@pytest.mark.parametrize("make", [tw.linearize, tw.scale_output])
def test_what_does_not_fit_is_one_line(make):
    problem = line_problem()
    with pytest.raises(tw.InputError, match="entries"):
        make(problem, {"weight": 1.0})
    with pytest.raises(tw.InputError, match="not finite"):
        make(problem, {"weight": np.nan, "bias": 0.0})
    with pytest.raises(tw.InputError, match=r"thalweg\.Problem was expected"):
        make(data, problem.params)
