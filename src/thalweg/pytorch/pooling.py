"""Max pooling, and its reversal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.pytorch.kinks import first


def max_pool(
    theirs: Callable[..., Any],
    x: Any,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Any, Any]:
    """The maxima of windows, in the inputs' own precision where torchax's are double, and their indices. With
    dilation, where JAX has no derivative of the maximum, a gather at these."""
    _, places = theirs(jax.lax.stop_gradient(x), size, stride, padding, dilation, ceil_mode)
    axes = len(size)
    if set(np.ravel(dilation)) != {1}:
        rows = (-1, math.prod(x.shape[-axes:])), (-1, math.prod(places.shape[-axes:]))
        maxima = jnp.take_along_axis(x.reshape(rows[0]), places.reshape(rows[1]), 1)
        return maxima.reshape(places.shape), places
    lows = np.broadcast_to(padding, axes).tolist()
    strides = list(stride) or list(size)
    ends = zip(x.shape[-axes:], places.shape[-axes:], size, strides, lows, strict=True)
    highs = [max((count - 1) * step + k - n - low, 0) for n, count, k, step, low in ends]
    leading = x.ndim - axes
    least = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    maxima = jax.lax.reduce_window(
        x,
        np.array(least, x.dtype),
        jax.lax.max,
        [*[1] * leading, *size],
        [*[1] * leading, *strides],
        [*[(0, 0)] * leading, *zip(lows, highs, strict=True)],
    )
    return maxima, places


def max_unpool(axes: int, x: Any, places: Any, size: Sequence[int], *how: Any) -> Any:
    """Scatter entries to the indices that max pooling took them from; zeros elsewhere."""
    rows = (-1, math.prod(x.shape[-axes:]))

    def put(row: Any, at: Any) -> Any:
        still, zeros = jax.lax.stop_gradient(row), jnp.zeros(math.prod(size), x.dtype)
        # as in PyTorch, an entry that another one overwrites still gets a gradient
        return zeros.at[at].set(still) + zeros.at[at].add(row - still)

    return jax.vmap(put)(x.reshape(rows), places.reshape(rows)).reshape(*x.shape[:-axes], *size)


def adaptive_max_pool(axes: int, x: Any, size: Sequence[int]) -> tuple[Any, Any]:
    """The maxima of windows that cover the last axes, and their indices; the first of several maxima."""
    spatial = x.shape[-axes:]
    places = jnp.broadcast_to(jnp.arange(math.prod(spatial)).reshape(spatial), x.shape)
    # last axis first, so that ties go to the first index in row-major order
    for axis in range(-1, -axes - 1, -1):
        n, m = x.shape[axis], size[axis]
        pooled = []
        for i in range(m):
            window = slice(i * n // m, -(-(i + 1) * n // m))
            window_x, window_places = (
                jax.lax.slice_in_dim(each, window.start, window.stop, axis=each.ndim + axis)
                for each in (x, places)
            )
            value, index = first(jnp.argmax, window_x, axis, keepdim=True)
            pooled.append((value, jnp.take_along_axis(window_places, index, axis)))
        x, places = (jnp.concatenate(parts, axis) for parts in zip(*pooled, strict=True))
    return x, places
