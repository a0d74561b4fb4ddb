"""Convolutions in the layout of XLA's fast kernels on a CPU, also inside loops and of several models at once.

XLA gives a convolution the layout that its kernels ask for where it stands at the outermost level of a
program; in a loop or a branch, where every step of a descent is, it multiplies number by number, which takes
some forty times as long. A convolution in groups, as `vmap` over models makes it, has no kernel at all, and
one of volumes a slow one.
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
    if not 1 <= inputs.ndim - 2 <= 3 or not equation.outvars[0].aval.size:
        return False
    made, summed, *_ = (kernel.shape[d] for d in equation.params["dimension_numbers"].rhs_spec)
    return made // _groups(equation.params) * summed >= _THIN


def _groups(params: Any) -> int:
    return params["feature_group_count"] * params["batch_group_count"]


def _arranged(equation: Any) -> Any:
    params = equation.params
    given = tuple(v.aval for v in equation.invars)
    in_order = params["dimension_numbers"] == _specs(given[0].ndim)
    if in_order and _groups(params) == 1 and given[0].ndim < 5:
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
        if ndim == 5:
            return _by_frames(*pair, named)
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


def _by_frames(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution of volumes as one of frames: those that a kernel covers are features of one frame."""
    along = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    stride, (low, high), spread, apart = (params[name][0] for name in along)
    none = (0, 0, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), (none, (low, high, spread - 1), none, none, none))
    depth, height, width, summed, made = w.shape
    frames = (x.shape[1] - (depth - 1) * apart - 1) // stride + 1
    covered = [
        lax.slice_in_dim(x, k * apart, k * apart + (frames - 1) * stride + 1, stride, axis=1)
        for k in range(depth)
    ]
    features = jnp.concatenate(covered, axis=-1)
    found = lax.conv_general_dilated_p.bind(
        features.reshape(-1, *features.shape[2:]),
        jnp.moveaxis(w, 0, 2).reshape(height, width, depth * summed, made),
        **(params | {name: params[name][1:] for name in along} | {"dimension_numbers": _specs(4)}),
    )
    return found.reshape(len(x), frames, *found.shape[1:])


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
