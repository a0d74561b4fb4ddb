"""Max pooling, and the way back through it, against PyTorch's and JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from thalweg.tuning import tuned

POOLS = {
    1: torch.nn.functional.max_pool1d,
    2: torch.nn.functional.max_pool2d,
    3: torch.nn.functional.max_pool3d,
}


def pooled(x, window, stride, padding):
    n = x.ndim - 2
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, *[window] * n), (1, 1, *[stride] * n),
        ((0, 0), (0, 0), *[(padding, padding)] * n),
    )  # fmt: skip


def arranged(function, *arguments):
    """How many of a function's ways back are put otherwise."""
    return str(jax.make_jaxpr(tuned(function))(*arguments)).count("name=back_through_maximum")


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding"),
    [
        ((3, 2, 9), 2, 2, 0),
        ((3, 2, 8, 6), 2, 2, 0),
        ((3, 2, 9, 7), 2, 2, 1),
        ((3, 2, 9, 8), 3, 2, 1),
        ((3, 2, 7, 7), 3, 1, 0),
        ((3, 2, 8, 8), 2, 3, 0),
        ((2, 2, 6, 4, 5), 2, 2, 1),
    ],
)
def test_slopes_are_pytorchs_also_where_entries_are_equal(shape, window, stride, padding, rng):
    """Of numbers that are often equal: of several the first is the maximum."""
    x = rng.integers(-2, 2, shape).astype(float)
    x[0] = -1.0

    def risk(x):
        found = pooled(x, window, stride, padding)
        return jnp.sum(found * jnp.arange(found.size).reshape(found.shape))

    found = jax.jit(tuned(lambda x: pooled(x, window, stride, padding)))(x)
    np.testing.assert_array_equal(found, pooled(x, window, stride, padding))
    assert arranged(jax.grad(risk), x) == 1
    tensor = torch.tensor(x, requires_grad=True)
    told = POOLS[len(shape) - 2](tensor, window, stride, padding)
    (told * torch.arange(told.numel()).reshape(told.shape)).sum().backward()
    np.testing.assert_array_equal(jax.jit(tuned(jax.grad(risk)))(x), tensor.grad.numpy())
    several = np.stack([x, x + 0.5, rng.standard_normal(shape)])
    many = jax.vmap(jax.grad(risk))
    assert arranged(many, several) == 1
    np.testing.assert_array_equal(jax.jit(tuned(many))(several), jax.jit(many)(several))


def test_what_is_not_finite_goes_the_way_that_xla_goes(rng):
    x = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.2] = -np.inf
    x[0, 0] = -np.inf
    x[1, 1] = np.nan
    for window, stride, padding in ((2, 2, 0), (3, 2, 1)):
        back = jax.vjp(lambda x: pooled(x, window, stride, padding), x)[1]  # noqa: B023
        slopes = np.arange(pooled(x, window, stride, padding).size, dtype=np.float32)
        slopes = slopes.reshape(pooled(x, window, stride, padding).shape)
        np.testing.assert_array_equal(jax.jit(tuned(back))(slopes)[0], jax.jit(back)(slopes)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_maximum_is_nan_where_its_window_holds_one(dtype):
    """XLA's own maxima of so many windows are finite."""
    x = np.zeros((8, 16, 24, 24), dtype)
    x[0, 1, 2, 3] = x[7, 0, 0, 23] = np.nan
    x[2, 3, 5, 7] = -np.inf
    found = jax.jit(tuned(lambda x: pooled(x, 2, 2, 0)))(x)
    assert found.dtype == dtype
    assert {tuple(place) for place in np.argwhere(np.isnan(found))} == {(0, 1, 1, 1), (7, 0, 0, 11)}


def test_maxima_of_integers_and_windows_with_gaps_stay_as_they_are():
    whole = jnp.arange(36).reshape(1, 1, 6, 6)
    window = (1, 1, 2, 2)
    for function, x in (
        (lambda x: lax.reduce_window(x, -1, lax.max, window, window, "VALID"), whole),
        (lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, window, window, "VALID", window_dilation=(1, 1, 2, 2)
        ), whole + 0.5),
    ):  # fmt: skip
        np.testing.assert_array_equal(jax.jit(tuned(function))(x), function(x))
        assert "name=maximum" not in str(jax.make_jaxpr(tuned(function))(x))


def test_large_windows_stay_as_they_are():
    assert arranged(jax.grad(lambda x: pooled(x, 5, 5, 0).sum()), jnp.ones((1, 1, 10, 10))) == 0
