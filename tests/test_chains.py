"""Networks with skip connections and their gradients, and what XLA fuses of their sums."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import backend
from thalweg.tuning import tuned


def residual(weights, x):
    for weight in weights:
        normed = (x - x.mean(-1, keepdims=True)) / (1 + (x**2).mean(-1, keepdims=True))
        x = x + jnp.tanh(normed @ weight)
    return (x**2).mean()


def after_relu(weights, x):
    """As in ResNet: what the next layer takes is the sum's positive part."""
    for weight in weights:
        x = jax.nn.relu(x + jnp.tanh(x) @ weight)
    return (x**2).mean()


def deep(weights, x):
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return (x**2).mean()


@pytest.fixture
def network(rng):
    def drawn(depth, dtype="float32", *lead):
        weights = [rng.standard_normal((*lead, 80, 80)).astype(dtype) / 10 for _ in range(depth)]
        return weights, rng.standard_normal((70, 80)).astype(dtype)

    return drawn


def alone(function, *arguments):
    """How many of a function's values are computed by themselves."""
    return str(jax.make_jaxpr(tuned(function))(*arguments)).count("name=computed_once")


def widest(function, *arguments):
    """The largest number of arrays that one of the compiled program's fusions takes."""
    program = jax.jit(function).lower(*arguments).compile().as_text()
    fusions = re.findall(r" fusion\((.*?)\), kind=kLoop", program)
    return max(found.count("%") for found in fusions)


@pytest.mark.parametrize("network_of", [residual, after_relu])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients_are_the_same(dtype, network_of, network):
    slope = jax.value_and_grad(network_of)
    weights, x = network(6, dtype)
    assert alone(slope, weights, x)
    rounding = 1e-5 if dtype == "float32" else 1e-13
    found, exact = (jax.jit(f)(weights, x) for f in (tuned(slope), slope))
    for one, other in zip(*map(jax.tree_util.tree_leaves, (found, exact)), strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=rounding, atol=rounding * abs(other).max())


def test_second_derivatives_of_many_networks_in_a_loop(network):
    weights, x = network(3, "float64", 4)

    def product(weights):
        def gradient(w):
            return jax.grad(residual)(w, x)

        return jax.vmap(lambda w: jax.jvp(gradient, (w,), (w,))[1])(weights)

    def twice(weights):
        return jax.lax.fori_loop(0, 2, lambda _, w: product(w), weights)

    assert alone(twice, weights)
    for found, exact in zip(jax.jit(tuned(twice))(weights), jax.jit(twice)(weights), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("network_of", "more"), [(residual, 12), (after_relu, 6)])
def test_no_fusion_grows_with_the_depth(network_of, more, network):
    """Without it, one takes as many arrays as there are layers and more."""
    gradient = jax.grad(network_of)
    at_four, at_twelve = (widest(tuned(gradient), *network(depth)) for depth in (4, 12))
    assert at_four == at_twelve
    assert widest(gradient, *network(12)) > at_twelve + more


def test_networks_without_skip_connections_are_left_as_they_are(network):
    weights, x = network(6)
    assert alone(jax.grad(deep), weights, x) == 0
    # a sum of gradients, but none of its terms is one
    assert alone(jax.grad(lambda w, x: deep(w, x) + deep(w, 2 * x)), weights, x) == 0


def of_three(w, x, y):
    return w - 0.1 * (0.9 * x + y)


def twice_used(v, x):
    return v * x, v - x


def convolved(images, kernels, first):
    """A convolution of four images that XLA's kernel takes as they are."""
    kernel = kernels.ravel()[first : first + 2304].reshape(3, 3, 16, 16)
    return jax.lax.conv_general_dilated(
        images.reshape(4, 10, 10, 16), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("uses", "cut"),
    [
        (lambda v, x: (v.T @ x, x @ v.T), []),
        (lambda v, x: (v @ x, v.T + x), ["sub"]),
        (lambda v, x: (v.T - x, v.T.ravel() + x.ravel()), ["sub"]),
        (lambda v, x: v.T - x, []),
        (lambda v, x: twice_used(v.T, x), ["sub"]),
        (lambda v, x: (jax.lax.squeeze(v.reshape(1, 80, 80), (0,)) @ x, v @ x), []),
        (lambda v, x: tuple(convolved(v, x, k) for k in (0, 2304)), []),
    ],
    ids=[
        "products",
        "a product and a sum",
        "sums",
        "one sum",
        "sums of one transpose",
        "products of another shape",
        "convolutions",
    ],
)
def test_a_value_is_cut_where_xla_would_compute_it_again(uses, cut, rng):
    """XLA writes what a product takes to memory. In another order of its axes a value is the same one: cut
    there, a weight would be transposed for each step's products."""
    arrays = rng.standard_normal((3, 80, 80)).astype("float32")

    def function(w, x, y):
        return uses(of_three(w, x, y), x)

    program = str(jax.make_jaxpr(tuned(function))(*arrays))
    bodies = re.findall(r"name=computed_once\s.*?\bin\b", program, re.DOTALL)
    assert [re.findall(r" = (sub|transpose|reshape)\b", body)[0] for body in bodies] == cut
    for found, exact in zip(
        *(jax.tree_util.tree_leaves(f(*arrays)) for f in (jax.jit(tuned(function)), function)),
        strict=True,
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), [((31, 33), "float32"), ((80, 80), "int32")])
def test_few_numbers_and_whole_ones_are_not_cut(shape, dtype):
    arrays = [jnp.ones(shape, dtype)] * 3
    assert alone(lambda w, x, y: twice_used(w + x - y, x), *arrays) == 0


def test_a_descent_takes_them(network):
    """Ten steps of momentum, against the rule written out with JAX's own gradients."""
    weights, x = network(4, "float64")
    problem = tw.Problem.from_function(lambda w: residual(w, x), params=weights)
    path = tw.descend(problem, tw.SGD(lr=0.1, momentum=0.9), steps=10)
    velocity = [np.zeros_like(w) for w in weights]
    for _ in range(10):
        slopes = jax.grad(residual)(weights, x)
        velocity = [0.9 * v + g for v, g in zip(velocity, slopes, strict=True)]
        weights = [w - 0.1 * v for w, v in zip(weights, velocity, strict=True)]
    exact = problem.flatten(weights)
    np.testing.assert_allclose(path.params.isel(step=-1), exact, rtol=1e-9, atol=1e-12)


def test_what_stands_apart_is_a_call_of_its_own():
    """Both that use it would compute it otherwise, each in a loop of its own."""
    slope = backend.outlined(lambda x: 2 * jnp.sin(x))

    def used_twice(x, y):
        return slope(x) @ y, slope(x) - y

    x, y = np.ones((9, 9)), np.ones((9, 9))
    program = jax.jit(used_twice).lower(x, y).compile().as_text()
    assert len(re.findall(r" call\(", program)) == 1
    np.testing.assert_allclose(jax.jit(used_twice)(x, y)[1], 2 * np.sin(1) - y)
    # and is differentiated and batched as what it is
    both = jax.jit(jax.vmap(jax.value_and_grad(slope)))(jnp.arange(3.0))
    np.testing.assert_allclose(both, [2 * np.sin(np.arange(3)), 2 * np.cos(np.arange(3))])
