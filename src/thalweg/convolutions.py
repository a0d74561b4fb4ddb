"""Convolutions in the layout of XLA's fast kernels on a CPU, also inside loops and of several models at once.

XLA gives a convolution the layout that its kernels ask for where it stands at the outermost level of a
program; in a loop or a branch, where every step of a descent is, it multiplies number by number, which takes
some forty times as long. And a convolution in groups, as `vmap` over models makes it, has no kernel at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from thalweg.jaxprs import equation_of, in_place_of

# Measured on two cores, kernels of 3 × 3 with 1 to 16 features: with fewer pairs of features the plain loop
# takes less time than the kernels' threads.
_THIN = 16


def arranged(equations: Sequence[Any]) -> list[Any]:
    """A jaxpr's equations, with others for its convolutions."""
    return [_arranged(equation) if _has_kernel(equation) else equation for equation in equations]


def _has_kernel(equation: Any) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    inputs, kernel = (v.aval for v in equation.invars)
    if inputs.dtype != kernel.dtype or inputs.dtype not in (jnp.float32, jnp.float64):
        return False
    if not 1 <= inputs.ndim - 2 <= 2:  # the kernels for volumes are slower still
        return False
    made, summed, *_ = (kernel.shape[d] for d in equation.params["dimension_numbers"].rhs_spec)
    return made // _groups(equation.params) * summed >= _THIN


def _groups(params: Any) -> int:
    return params["feature_group_count"] * params["batch_group_count"]


def _arranged(equation: Any) -> Any:
    params = equation.params
    given = tuple(v.aval for v in equation.invars)
    if _groups(params) == 1 and params["dimension_numbers"] == _specs(given[0].ndim):
        return equation
    made = _equation(*((a.shape, a.dtype) for a in given), tuple(sorted(params.items())))
    return in_place_of(equation, made, equation.outvars)


def _specs(ndim: int) -> lax.ConvDimensionNumbers:
    """Samples, places, features; and of the kernel places, what is summed over, features."""
    places = tuple(range(1, ndim - 1))
    inputs = (0, ndim - 1, *places)
    return lax.ConvDimensionNumbers(inputs, (ndim - 1, ndim - 2, *range(ndim - 2)), inputs)


@functools.lru_cache(maxsize=256)  # what is the same is then compiled once
def _equation(inputs: Any, kernel: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    named = dict(params)
    given, ndim = named["dimension_numbers"], len(inputs[0])
    wanted, groups, of_batches = _specs(ndim), _groups(named), named["batch_group_count"] > 1
    named |= {"dimension_numbers": wanted, "feature_group_count": 1, "batch_group_count": 1}

    def convolved(pair: tuple[Any, Any]) -> Any:
        return lax.conv_general_dilated_p.bind(*pair, **named)

    @jax.jit
    def arranged_convolution(x: Any, w: Any) -> Any:
        x = _moved(x, given.lhs_spec, wanted.lhs_spec)
        w = _moved(w, given.rhs_spec, wanted.rhs_spec)
        if groups == 1:
            found = convolved((x, w))
        else:  # one after the other
            pairs = _split(x, groups, 0 if of_batches else -1), _split(w, groups, -1)
            found = jnp.moveaxis(lax.map(convolved, pairs), 0, -2)
            found = found.reshape(*found.shape[:-2], math.prod(found.shape[-2:]))
        return _moved(found, wanted.out_spec, given.out_spec)

    return equation_of(arranged_convolution, inputs, kernel)


def _moved(array: Any, given: Sequence[int], wanted: Sequence[int]) -> Any:
    """An array whose axes stand where `given` says, with each of them where `wanted` says."""
    order = [0] * array.ndim
    for here, there in zip(given, wanted, strict=True):
        order[there] = here
    return array.transpose(*order)


def _split(array: Any, groups: int, axis: int) -> Any:
    """An axis in groups of as many each, which become the first axis."""
    axis %= array.ndim
    shape = array.shape
    parts = array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)
