"""Derivatives along directions: of a function with a reverse rule alone as of the same one without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import forward


@jax.custom_vjp
def cube(z):
    return z**3


cube.defvjp(lambda z: (z**3, z), lambda z, g: (3 * z**2 * g,))


def network(power):
    def predict(w, x):
        return power(x @ w["first"]) @ w["second"]

    return predict


@pytest.fixture
def problems(rng):
    """The same network with its own reverse rule, and without."""
    x, y = rng.standard_normal((12, 2)), rng.standard_normal((12, 2))
    params = {"first": rng.standard_normal((2, 2)), "second": rng.standard_normal((2, 2))}
    return [
        tw.Problem(network(power), "mse", x, y, params=params) for power in (cube, lambda z: z**3)
    ]


def test_products_and_matrices(rng):
    a, v = rng.standard_normal(5), rng.standard_normal(5)
    expected = 3 * a**2 * v
    np.testing.assert_allclose(forward.jvp(cube, a, v)[1], expected, rtol=1e-14)
    value, push = forward.linearize(cube, jnp.asarray(a))
    np.testing.assert_allclose(value, a**3, rtol=1e-14)
    np.testing.assert_allclose(push(v), expected, rtol=1e-14)


@jax.custom_vjp
def clipped(z):
    return 2 * z


clipped.defvjp(lambda z: (2 * z, None), lambda _, g: (jnp.clip(2 * g, -10, 10),))


def test_a_rule_that_is_not_linear(rng):
    matrix, point = rng.standard_normal((9, 5)), rng.standard_normal(5)
    _, found = forward.value_and_jacobian(lambda w: clipped(matrix @ w), point)
    np.testing.assert_allclose(found, 2 * matrix, rtol=1e-12)
    with pytest.raises(
        tw.InputError, match=r"custom_vjp has no derivative along a direction.*min|max"
    ):
        forward.jvp(clipped, point, point)


@pytest.mark.parametrize("rows", [3, 9])
def test_a_jacobian_either_way(rows, rng):
    matrix, point = rng.standard_normal((rows, 5)), rng.standard_normal(5)
    value, found = forward.value_and_jacobian(lambda w: cube(matrix @ w), point)
    np.testing.assert_allclose(value, (matrix @ point) ** 3, rtol=1e-12)
    np.testing.assert_allclose(found, 3 * (matrix @ point)[:, None] ** 2 * matrix, rtol=1e-12)


@pytest.mark.parametrize(
    "measure",
    [
        lambda p: tw.hessian(p, p.params).top(3)[0],
        lambda p: tw.gauss_newton(p, p.params).top(3)[0],
        lambda p: tw.fisher(p, p.params).top(3)[0],
        lambda p: tw.gradient_covariance(p, p.params).top(3)[0],
        lambda p: tw.jacobian(p, p.params),
        lambda p: tw.ntk(p, p.params),
        lambda p: tw.descend(p, tw.LevenbergMarquardt(), steps=5).loss.values,
        lambda p: tw.descend(tw.linearize(p, p.params), tw.SGD(lr=0.01), steps=5).loss.values,
        lambda p: tw.hessian(tw.linearize(p, p.params), p.params).top(3)[0],
        lambda p: tw.gradient_flow(p, 0.1, points=3).loss.values,
    ],
)
def test_a_model_with_a_rule_of_its_own_is_the_model(measure, problems):
    own, plain = map(measure, problems)
    np.testing.assert_allclose(own, plain, rtol=1e-9)
