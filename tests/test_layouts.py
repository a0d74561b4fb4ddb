"""What comes between convolutions, in their kernels' order of the axes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from thalweg import backend
from thalweg.jaxprs import equations, inlined, names, rewritten
from thalweg.tuning import convolutions, tuned

FIRST = ("NCHW", "OIHW", "NCHW")


def convolved(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=FIRST)


def batch_norm(x):
    mean, var = (f(x, (0, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(var + 0.1)


def extrema(x):
    return jnp.concatenate([x - x.max(1, keepdims=True), x - x.min((2, 3), keepdims=True)], axis=1)


# of images (n, 6, 8, 7), to images
BETWEEN = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "clipped": lambda x: jnp.clip(x, -0.1, 0.2),
    "chosen": lambda x: jnp.where(x > 0.1, x, -2.0 * x**3),
    "scaled": lambda x: x * jnp.arange(6.0, dtype=x.dtype)[:, None, None] - 1,
    "plus rows": lambda x: x + jnp.linspace(0, 1, 7, dtype=x.dtype),
    "batch norm": batch_norm,
    "extrema": extrema,
    "product": lambda x: x * jnp.prod(x[:, :2], axis=1, keepdims=True),
    "padded": lambda x: jnp.pad(x, [(0, 0), (1, 0), (0, 2), (3, 1)], constant_values=0.5),
    "cut": lambda x: lax.slice(x, (0, 1, 0, 2), (5, 6, 8, 7), (1, 1, 2, 1)),
    "cut off": lambda x: x[:, 1:, 2:5],
    "turned round": lambda x: jnp.flip(x, (1, 3)),
    "transposed": lambda x: jnp.sin(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "rows for columns": lambda x: x.swapaxes(2, 3),
    "to and fro, counted up": lambda x: (
        x + jnp.cumsum(x.transpose(0, 2, 3, 1), 1).transpose(0, 3, 1, 2)
    ),
    "to and fro": lambda x: x.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2),
    "reshaped": lambda x: jnp.tanh(x.reshape(len(x), -1)).reshape(x.shape),
    "sorted": lambda x: jnp.sort(x, axis=2),
    "pooled": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "SAME"),
    "averaged": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"),
    "rounded": lambda x: x.astype(jnp.float16).astype(x.dtype) + x,
    "branch": lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x) * x),
}


def network(between):
    def risk(weights, x):
        first, second, third = weights
        hidden = between(convolved(x, first))
        second = second[:, : hidden.shape[1]]
        hidden = jnp.tanh(convolved(hidden, second))
        return (convolved(hidden, third) ** 2).mean() + hidden.mean((2, 3)).max()

    return risk


@pytest.fixture
def given(rng):
    shapes = (6, 3, 3, 3), (32, 12, 3, 2), (16, 32, 3, 1)
    weights = [rng.standard_normal(shape) / 5 for shape in shapes]
    return weights, rng.standard_normal((5, 3, 8, 7))


def turned(function, *arguments):
    """How many large arrays of a tuned function's program are put in another order."""
    program = jax.make_jaxpr(tuned(function))(*arguments)
    found = [e.outvars[0].aval for e in equations(program) if e.primitive.name == "transpose"]
    return sum(value.ndim == 4 and value.size > 1000 for value in found)


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_values_and_derivatives_are_the_same(between, given):
    weights, x = given
    risk = network(between)

    def all_of_them(weights):
        def gradient(w):
            return jax.grad(risk)(w, x)

        return risk(weights, x), jax.jvp(gradient, (weights,), (weights,))

    found, exact = (jax.jit(f)(weights) for f in (tuned(all_of_them), all_of_them))
    for one, other in zip(*map(jax.tree_util.tree_leaves, (found, exact)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_of_many_networks_in_a_loop(given):
    weights, x = given
    several = [np.stack([w, -w, 2 * w]) for w in weights]
    slope = jax.vmap(jax.grad(network(jax.nn.relu)), (0, None))

    def descended(weights):
        def step(_, weights):
            return jax.tree_util.tree_map(lambda w, g: w - 0.1 * g, weights, slope(weights, x))

        return lax.fori_loop(0, 3, step, weights)

    found, exact = (jax.jit(f)(several) for f in (tuned(descended), descended))
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_no_array_is_turned_between_two_convolutions(depth, rng):
    kernel = rng.standard_normal((6, 6, 3, 3))
    scale = rng.standard_normal((6, 1, 1))

    def deep(kernel, x):
        for _ in range(depth):
            x = jax.nn.relu(convolved(x, kernel) * scale + 1) + x
        return x

    # the images, and what is returned
    assert turned(deep, kernel, rng.standard_normal((5, 6, 8, 7))) == 2


@pytest.mark.parametrize("between", ["batch norm", "batch norm as a call", "pooled", "averaged"])
def test_what_comes_between_convolutions_turns_no_array(between, given):
    """Neither on the way nor on the way back."""
    how = BETWEEN.get(between, jax.jit(batch_norm))
    (first, second, _), x = given

    def risk(x, how):
        return (convolved(how(convolved(x, first)), second[:, :6]) ** 2).sum()

    x = jnp.concatenate([x, x, x])
    for function in (risk, jax.grad(risk)):
        with_it, without = (turned(partial(function, how=f), x) for f in (how, lambda x: x))
        assert with_it == without


def test_parameters_are_updated_in_their_own_order(given):
    weights, x = given

    def step(weights, momentum):
        slopes = jax.grad(network(jax.nn.relu))(weights, x)
        momentum = [0.9 * m + 2 * g for m, g in zip(momentum, slopes, strict=True)]
        return [w - 0.1 * m for w, m in zip(weights, momentum, strict=True)], momentum

    gradient = turned(jax.grad(network(jax.nn.relu)), weights, x)
    assert turned(step, weights, weights) == gradient


def test_a_result_may_be_in_the_kernels_order(given):
    (first, *_), x = given

    def both_ways(x):
        found = convolved(x, first)
        return found, found.transpose(0, 2, 3, 1), found.transpose(0, 2, 3, 1), found

    found, exact = jax.jit(tuned(both_ways))(x), both_ways(x)
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_a_program_without_convolutions_is_left_as_it_is(given):
    def risk(weights, x):
        return sum((w.transpose(1, 0, 2, 3) ** 2).sum() for w in weights) * x.mean((2, 3)).max()

    program = jax.make_jaxpr(jax.grad(risk))(*given)
    assert rewritten(program, convolutions.arranged) is program


def test_what_is_printed_on_the_way_is_printed_once(given, capfd):
    def shown(x):
        jax.debug.print("at {}", x.mean())
        return x

    value = jax.jit(tuned(network(shown)))(*given)
    np.testing.assert_allclose(value, network(lambda x: x)(*given), rtol=1e-9)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("at ") == 1


# calls that are inlined -----------------------------------------------------------------------


def calls(function, *arguments):
    program = jax.make_jaxpr(function)(*arguments)
    return names(rewritten(program, inlined).jaxpr)


def test_calls_of_arithmetic_are_inlined():
    x = jnp.linspace(-2, 2, 7)
    twice = jax.jit(lambda x: (jax.nn.relu(x), x * 2))
    reduced = jax.jit(lambda x: jnp.var(x, keepdims=True) - x.max())
    arithmetic = jax.nn.relu, jax.nn.gelu, jax.nn.silu, lambda x: twice(x)[0] + twice(x)[1]
    for function in (*arithmetic, reduced):
        assert calls(function, x).isdisjoint({"jit", "pjit", "custom_jvp_call"})
        np.testing.assert_allclose(tuned(function)(x), function(x), rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        jax.jit(lambda x: x),
        jax.jit(lambda x: (x, x + 1)),
        jax.jit(lambda x: (1.0, x + 1)),
        jax.jit(lambda x: [jnp.sin(x)] * 2),
        jax.jit(jnp.cumsum),
        backend.outlined(jnp.sin),
    ],
)
def test_other_calls_are_kept(function):
    x = jnp.linspace(-2, 2, 7)
    assert calls(lambda x: jax.tree_util.tree_leaves(function(x)), x) & {"jit", "pjit"}
    for one, other in zip(
        *map(jax.tree_util.tree_leaves, (tuned(function)(x), function(x))), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)
