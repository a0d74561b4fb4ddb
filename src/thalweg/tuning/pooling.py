"""The backward pass of max pooling, as elementwise arithmetic.

XLA uses a scatter that goes through the windows one by one: on a CPU that takes ten to twenty times as long
as arithmetic on whole arrays.
"""

from __future__ import annotations

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
    """A jaxpr's equations, with the backward passes of maxima over small windows rewritten."""
    return [_arranged(equation) if _is_small(equation) else equation for equation in jaxpr.eqns]


def _is_small(equation: Any) -> bool:
    if equation.primitive.name != "select_and_scatter_add":
        return False
    params, size = equation.params, math.prod(equation.params["window_dimensions"])
    floating = jnp.issubdtype(equation.invars[1].aval.dtype, jnp.floating)
    return params["select_prim"].name == "ge" and floating and 1 < size <= _LARGEST


def _arranged(equation: Any) -> Any:
    names = ("window_dimensions", "window_strides", "padding")
    return call_for(equation, _back_through_maximum, **{n: equation.params[n] for n in names})


def _back_through_maximum(
    slopes: Any, values: Any, *, window_dimensions: Any, window_strides: Any, padding: Any
) -> Any:
    """The gradient with respect to all entries, from that with respect to the maxima of the windows."""
    out, shape = slopes.shape, values.shape
    places = list(itertools.product(*map(range, window_dimensions)))  # in row-major order
    padded = [low + size + high for size, (low, high) in zip(shape, padding, strict=True)]
    reach = [(count - 1) * stride + 1 for count, stride in zip(out, window_strides, strict=True)]
    # JAX pads with −∞; among equal entries XLA selects the first, as >= does here
    values = lax.pad(values, jnp.array(-jnp.inf, values.dtype), [(*p, 0) for p in padding])
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
