"""Max pooling and its backward pass, as elementwise arithmetic.

For the backward pass XLA uses a scatter that goes through the windows one by one: on a CPU that takes ten to
twenty times as long as arithmetic on whole arrays. Its maxima of windows pass over NaN where there are many.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from thalweg.jaxprs import call_for

_LARGEST = 16  # entries of a window; the code is unrolled over them


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with maxima over small windows, and their backward passes, rewritten."""
    return list(map(_arranged, jaxpr.eqns))


def _arranged(equation: Any) -> Any:
    name, params = equation.primitive.name, equation.params
    if name not in ("reduce_window_max", "select_and_scatter_add"):
        return equation
    floating = jnp.issubdtype(equation.invars[-1].aval.dtype, jnp.floating)
    small = 1 < math.prod(params["window_dimensions"]) <= _LARGEST
    ones = (*params.get("base_dilation", ()), *params.get("window_dilation", ()))
    if not floating or not small or any(one > 1 for one in ones):
        return equation
    if name == "reduce_window_max":
        how = _maximum
    elif params["select_prim"].name == "ge":
        how = _back_through_maximum
    else:
        return equation
    static = {n: params[n] for n in ("window_dimensions", "window_strides", "padding")}
    return call_for(equation, how, **static)


def _maximum(values: Any, *, window_dimensions: Any, window_strides: Any, padding: Any) -> Any:
    """The maxima of the windows, NaN where a window holds one. They are taken along one axis after the other:
    of few slices."""
    values = _padded(values, padding)
    for axis, (size, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
        ends = values.shape[axis] - size + 1
        entries = (lax.slice_in_dim(values, k, k + ends, stride, axis) for k in range(size))
        values = functools.reduce(lax.max, entries)
    return values


def _padded(values: Any, padding: Any) -> Any:
    """Padded as JAX does it, with −∞."""
    return lax.pad(values, jnp.array(-jnp.inf, values.dtype), [(*p, 0) for p in padding])


def _back_through_maximum(
    slopes: Any, values: Any, *, window_dimensions: Any, window_strides: Any, padding: Any
) -> Any:
    """The gradient with respect to all entries, from that with respect to the maxima of the windows."""
    out, shape = slopes.shape, values.shape
    places = list(itertools.product(*map(range, window_dimensions)))  # in row-major order
    padded = [low + size + high for size, (low, high) in zip(shape, padding, strict=True)]
    reach = [(count - 1) * stride + 1 for count, stride in zip(out, window_strides, strict=True)]
    values = _padded(values, padding)
    # among equal entries XLA selects the first, as >= does here
    entries = (lax.slice(values, place, _sum(place, reach), window_strides) for place in places)
    best, which = next(entries), jnp.zeros(out, np.int8)
    for number, entry in enumerate(entries, 1):
        kept = best >= entry
        best, which = jnp.where(kept, best, entry), jnp.where(kept, which, np.int8(number))
    which = lax.optimization_barrier(which)  # or it is computed anew for each place
    total = jnp.zeros(padded, slopes.dtype)
    for number, place in enumerate(places):
        part = jnp.where(which == number, slopes, jnp.zeros((), slopes.dtype))
        sizes = zip(place, padded, reach, window_strides, strict=True)
        room = [(first, size - first - length, stride - 1) for first, size, length, stride in sizes]
        total = total + lax.pad(part, jnp.zeros((), slopes.dtype), room)
    lows = [low for low, _ in padding]
    return lax.slice(total, lows, _sum(lows, shape))


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]
