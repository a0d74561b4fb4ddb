"""Jacobians and tangent kernels, against closed forms, torch.func and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from problems import bowl_problem, data, line, line_problem

import thalweg as tw
from thalweg import tangents
from thalweg.catalogue.models import init_mlp, mlp


def three_outputs(w, x):
    """A tanh network with outputs (n, 3)."""
    hidden = jnp.tanh(x @ w["a"]["weight"].T + w["a"]["bias"])
    return hidden @ w["b"]


def three_outputs_problem(n=7, hidden=5, dtype=float, **options):
    rng = np.random.default_rng(3)
    params = {
        "a": {"weight": rng.standard_normal((hidden, 2)), "bias": rng.standard_normal(hidden)},
        "b": rng.standard_normal((hidden, 3)),
    }
    x, y = rng.standard_normal((n, 2)), rng.standard_normal((n, 3))
    return tw.Problem(three_outputs, "mse", x, y, params=params, dtype=dtype, **options)


# The Jacobian ------------------------------------------------------------------------------------


def test_the_jacobian_of_a_line_is_its_design():
    problem = line_problem(n=6)
    x, _ = data(6)
    assert problem.names == ("bias", "weight")
    np.testing.assert_array_equal(
        tw.jacobian(problem, problem.params), np.column_stack([np.ones(6), x])
    )
    there = np.array([2.0, -1.0, 5.0])
    np.testing.assert_array_equal(
        tw.jacobian(problem, problem.params, x=there), np.column_stack([np.ones(3), there])
    )


@pytest.mark.parametrize(("n", "hidden"), [(7, 5), (40, 2)])  # m < p in reverse, m > p forward
def test_the_jacobian_agrees_with_torch(n, hidden):
    problem = three_outputs_problem(n, hidden)
    x = torch.tensor(np.asarray(problem.x))

    def predict(bias, weight, b):  # in the order of names
        return torch.tanh(x @ weight.T + bias) @ b

    leaves = [torch.tensor(np.asarray(leaf)) for leaf in jax.tree_util.tree_leaves(problem.params)]
    parts = torch.func.jacrev(predict, argnums=(0, 1, 2))(*leaves)
    expected = torch.cat([part.reshape(3 * n, -1) for part in parts], dim=1)
    found = tw.jacobian(problem, problem.params)
    assert found.shape == (3 * n, problem.size)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_the_jacobian_agrees_with_finite_differences():
    problem = three_outputs_problem()
    w = np.asarray(problem.flatten(problem.params))
    h = 1e-6  # central: the error is about h² and 1e-16 / h
    columns = [
        (
            problem.predict(problem.unflatten(w + h * e), problem.x)
            - problem.predict(problem.unflatten(w - h * e), problem.x)
        ).ravel()
        / (2 * h)
        for e in np.eye(problem.size)
    ]
    np.testing.assert_allclose(
        tw.jacobian(problem, problem.params), np.column_stack(columns), atol=1e-8
    )


def test_masked_samples_have_no_rows():
    problem = three_outputs_problem()
    batch = problem.take(np.array([4, 2, 2]), np.array([True, True, False]))
    found = tw.jacobian(batch, problem.params).reshape(3, 3, -1)
    whole = tw.jacobian(problem, problem.params).reshape(7, 3, -1)
    np.testing.assert_allclose(found[:2], whole[jnp.array([4, 2])], rtol=1e-14)
    assert not found[2].any()
    assert not tw.ntk(batch, problem.params)[6:].any()


def cubic_residuals(w):
    return jnp.array([w["a"] ** 3, w["a"] * w["b"], w["b"] ** 2])


def test_functions_and_residuals_without_data():
    bowl = bowl_problem()
    w = {"x": 2.0, "y": 1.0}
    gradient = bowl.flatten(bowl.gradient(w))
    np.testing.assert_allclose(tw.jacobian(bowl, w), gradient[None], rtol=1e-14)
    np.testing.assert_allclose(tw.ntk(bowl, w), [[gradient @ gradient]], rtol=1e-14)
    residuals = tw.Problem.from_residuals(cubic_residuals, params={"a": 2.0, "b": 3.0})
    expected = [[12, 0], [3, 2], [0, 6]]  # by hand at (2, 3)
    np.testing.assert_allclose(tw.jacobian(residuals, residuals.params), expected, rtol=1e-14)


def two_heads(w, x):
    return {"a": w["weight"] * x, "b": jnp.stack([x + w["bias"], x**2 * w["bias"]], axis=1)}


def of_heads(yhat, y):
    return (yhat["a"] - y) ** 2 + (yhat["b"] ** 2).sum(axis=1)


def test_predictions_that_are_trees_go_sample_by_sample():
    x, y = data(4)
    problem = tw.Problem(two_heads, of_heads, x, y, params={"weight": 1.0, "bias": 2.0})
    zero, one = np.zeros(4), np.ones(4)
    rows = np.stack([[zero, x], [one, zero], [x**2, zero]])  # (output, param, sample)
    np.testing.assert_array_equal(
        tw.jacobian(problem, problem.params), rows.transpose(2, 0, 1).reshape(12, 2)
    )


def test_dtype_and_init_alone():
    single = three_outputs_problem(dtype=np.float32)
    assert tw.jacobian(single, single.params).dtype == np.float32
    assert tw.ntk(single, single.params).dtype == np.float32
    x, y = data(5, np.float64)
    mixed = tw.Problem(line, "mse", x, y, params={"weight": np.float32(1), "bias": np.float32(2)})
    assert tw.jacobian(mixed, mixed.params).dtype == np.float32
    drawn = tw.Problem(mlp, "mse", x, y, init=Partial(init_mlp, (1, 3, 1)))
    start = drawn.init(jax.random.key(0))
    assert tw.ntk(drawn, start).shape == (5, 5)


# The kernel --------------------------------------------------------------------------------------


def test_the_kernel_is_the_product_of_jacobians():
    problem = three_outputs_problem()
    J = tw.jacobian(problem, problem.params)
    np.testing.assert_allclose(tw.ntk(problem, problem.params), J @ J.T, rtol=1e-12)
    there = np.random.default_rng(1).standard_normal((4, 2))
    other = tw.jacobian(problem, problem.params, x=there)
    kernel = tw.ntk(problem, problem.params, x=there)
    assert kernel.shape == (21, 12)
    np.testing.assert_allclose(kernel, J @ other.T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("there", [None, np.ones((5, 2))])
def test_a_large_jacobian_is_not_formed(rows, there, monkeypatch):
    problem = three_outputs_problem(n=6)
    whole = tw.ntk(problem, problem.params, x=there)
    # room for so many rows of the Jacobian; 1000 is the path that forms it
    monkeypatch.setattr(tangents, "_JACOBIAN_BYTES", rows * problem.size * 8)
    other = None if there is None else tangents._on(problem, there)
    blocks = tangents._traced_ntk(problem, problem.params, other)
    np.testing.assert_allclose(blocks, whole, rtol=1e-12, atol=1e-13)


def ntk_network(w, x):
    """Dense–ReLU–Dense in NTK parametrisation, without biases."""
    width, d = w["u"].shape
    return jax.nn.relu(x @ w["u"].T / d**0.5) @ w["v"] / width**0.5


ANGLES = np.array([0, 1 / 3, 1 / 2, 2 / 3, 1]) * np.pi
# The infinite width's kernel at these angles, inputs of norm √d: with E over standard normals,
# E relu(a) relu(b) + cos θ · P(a, b > 0) (arc-cosine kernels: Cho & Saul, 2009).
EXACT = np.array([1, 0.4711656, 0.1591549, -0.0288344, 0])


def test_empirical_kernels_approach_the_exact_one_as_one_over_root_width():
    by_formula = (np.sin(ANGLES) + 2 * (np.pi - ANGLES) * np.cos(ANGLES)) / (2 * np.pi)
    np.testing.assert_allclose(by_formula, EXACT, atol=5e-8)
    x = np.sqrt(2) * np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])
    rng = np.random.default_rng(0)
    widths, draws = np.array([64, 256, 1024]), 200
    errors = []
    for width in widths:
        u, v = rng.standard_normal((draws, width, 2)), rng.standard_normal((draws, width))
        problem = tw.Problem(ntk_network, "mse", x, np.zeros(5), params={"u": u[0], "v": v[0]})
        kernels = jax.vmap(lambda w, problem=problem: tw.ntk(problem, w)[0])({"u": u, "v": v})
        errors.append(np.sqrt(np.mean((kernels - EXACT) ** 2)))
    # The root mean square of 1000 deviations is known to 1/√2000, 2 %: slopes to about 0.01.
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.03
    assert errors[-1] < 0.04


# Its drift ---------------------------------------------------------------------------------------


def test_kernel_drift_along_a_descent():
    problem = three_outputs_problem()
    path = tw.descend(
        problem, tw.SGD(lr=[0.01, 0.1]), steps=6, every=3, record={"drift": tw.kernel_drift}
    )
    first = tw.ntk(problem, problem.params)
    for lr in (0, 1):
        for row in range(3):
            now = tw.ntk(problem, problem.unflatten(path.params[row, :, lr].values))
            expected = np.linalg.norm(now - first) / np.linalg.norm(first)
            np.testing.assert_allclose(path.drift[row, lr], expected, rtol=1e-10, atol=1e-15)
    assert "note" not in path.drift.attrs
    more = tw.descend(
        problem, tw.SGD(lr=[0.01, 0.1]), steps=3, resume=path, record={"drift": tw.kernel_drift}
    )
    whole = tw.descend(problem, tw.SGD(lr=[0.01, 0.1]), steps=9, record={"drift": tw.kernel_drift})
    np.testing.assert_allclose(more.drift, whole.drift[6:], rtol=1e-10)


def test_the_drift_of_a_kernel_whose_square_single_precision_does_not_hold():
    x = np.linspace(0.5, 1, 5, dtype=np.float32)

    def problem(scale):
        return tw.Problem(
            lambda w, x: scale * w**2 * x, lambda yhat, y: yhat / scale**2, x, None,
            params=np.float32(1),
        )  # fmt: skip

    small, large = (
        tw.descend(problem(s), tw.SGD(lr=0.1 * s), steps=2, record={"drift": tw.kernel_drift})
        for s in (1.0, 2.0**40)
    )
    np.testing.assert_allclose(large.drift, small.drift, rtol=1e-5, atol=1e-6)  # of 0: rounding


def test_a_linear_model_has_one_kernel():
    path = tw.descend(
        line_problem(), tw.SGD(lr=0.1), steps=5, batch_size=7, record={"drift": tw.kernel_drift}
    )
    np.testing.assert_array_equal(path.drift, 0)


def product(w, x):
    return w["a"] * w["b"] * x


def test_the_drift_from_a_zero_kernel_is_absolute_and_says_so():
    x, y = data(5)
    problem = tw.Problem(product, "mse", x, y, params={"a": 0.0, "b": 0.0})
    starts = np.array([[0.0, 0.0], [1.0, 1.0]])
    path = tw.descend(
        problem, tw.SGD(lr=0.1), steps=3, starts=starts, record={"drift": tw.kernel_drift}
    )
    assert "absolute" in path.drift.attrs["note"]
    np.testing.assert_array_equal(path.drift[:, 0], 0)  # the origin is a saddle
    assert path.drift[-1, 1] > 0


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [tw.jacobian, tw.ntk])
def test_what_does_not_fit_is_one_line(what):
    problem = three_outputs_problem()
    with pytest.raises(tw.InputError, match="structure"):
        what(problem, {"a": 1.0})
    with pytest.raises(tw.InputError, match=r"cannot take x= of shape \(4, 5\)"):
        what(problem, problem.params, x=np.ones((4, 5)))
    with pytest.raises(tw.InputError, match="not finite"):
        what(problem, problem.params, x=np.full((4, 2), np.nan))
    with pytest.raises(tw.InputError, match="has no data"):
        what(bowl_problem(), {"x": 1.0, "y": 2.0}, x=np.ones(3))
    with pytest.raises(tw.InputError, match="first axis over samples; a scalar was given"):
        what(problem, problem.params, x=1.0)
    with pytest.raises(tw.InputError, match=r"thalweg\.Problem was expected"):
        what(three_outputs, problem.params)


def test_a_jacobian_that_memory_does_not_hold_is_refused(monkeypatch):
    problem = three_outputs_problem()
    monkeypatch.setattr(tangents.blocks, "_ALWAYS_THERE", 0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(tw.InputError, match=r"21 predictions in 30 parameters .* thalweg\.ntk"):
        tw.jacobian(problem, problem.params)


def test_a_kernel_takes_the_memory_of_its_own_numbers(monkeypatch):
    problem = three_outputs_problem()
    others = problem.x[:2]
    needed = 21 * 6 * 8
    monkeypatch.setattr(tangents.blocks, "_ALWAYS_THERE", 0)
    monkeypatch.setattr(tangents.blocks, "_available", lambda: needed)
    assert tw.ntk(problem, problem.params, others).nbytes == needed
    monkeypatch.setattr(tangents.blocks, "_available", lambda: needed - 1)
    with pytest.raises(tw.InputError, match="kernel of 21 and 6 predictions would need 1008 B"):
        tw.ntk(problem, problem.params, others)
