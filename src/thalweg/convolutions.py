"""Convolutions in the layout of XLA's fast kernels on a CPU, also inside loops and of several models at once.

XLA gives a convolution the layout that its kernels ask for where it stands at the outermost level of a
program; in a loop or a branch, where every step of a descent is, it multiplies number by number, which takes
some forty times as long. A convolution in groups, as `vmap` over models makes it, has no kernel at all, nor
has one of few features, and one of volumes a slow one. Where inputs are spread, as in transposed
convolutions, the way back to a kernel multiplies mostly zeros.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from thalweg.jaxprs import equation_of, in_place_of

# Pairs of features, one summed over and one made. Measured on two cores, kernels of 3 × 3: with fewer the
# plain loop takes less time than the kernels' threads; and products with shifted inputs, one for every place
# of a kernel and feature summed over, a fortieth of it. With more they are fast alone, and slow in ResNet-20,
# whose other convolutions want another layout.
_THIN = 16
_MOST_PRODUCTS = 256  # of which the measured sums are faster than the loop
_UNROLLED = 48  # more take long to compile, and are summed in a loop over the kernel's rows


def arranged(equations: Sequence[Any]) -> list[Any]:
    """A jaxpr's equations, with others for its convolutions."""
    return [_arranged(equation) if _is_known(equation) else equation for equation in equations]


def _is_known(equation: Any) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    inputs, kernel = (v.aval for v in equation.invars)
    if inputs.dtype != kernel.dtype or inputs.dtype not in (jnp.float32, jnp.float64):
        return False
    return 1 <= inputs.ndim - 2 <= 3 and equation.outvars[0].aval.size > 0


def _arranged(equation: Any) -> Any:
    params = equation.params
    given = tuple(v.aval for v in equation.invars)
    groups, specs = _groups(params), params["dimension_numbers"]
    made, summed, *places = (given[1].shape[d] for d in specs.rhs_spec)
    pairs, products = made // groups * summed, math.prod(places) * summed
    shifted = pairs < _THIN and products <= _MOST_PRODUCTS and params["batch_group_count"] == 1
    if not shifted:
        has_kernel = len(places) < 3 and max(params["lhs_dilation"]) == 1
        in_order = groups == 1 and specs == _specs(given[0].ndim)
        if pairs < _THIN or (has_kernel and in_order):
            return equation
    inputs, kernel = ((a.shape, a.dtype) for a in given)
    ours = _equation(inputs, kernel, tuple(sorted(params.items())), shifted)
    return in_place_of(equation, ours, equation.outvars)


def _groups(params: Any) -> int:
    return params["feature_group_count"] * params["batch_group_count"]


def _specs(ndim: int) -> lax.ConvDimensionNumbers:
    """Samples, places, features; and of the kernel places, what is summed over, features."""
    places = tuple(range(1, ndim - 1))
    inputs = (0, ndim - 1, *places)
    return lax.ConvDimensionNumbers(inputs, (ndim - 1, ndim - 2, *range(ndim - 2)), inputs)


@functools.lru_cache(maxsize=256)  # what is the same is then compiled once
def _equation(inputs: Any, kernel: Any, params: tuple[tuple[str, Any], ...], shifted: bool) -> Any:
    named = dict(params)
    given, ndim = named["dimension_numbers"], len(inputs[0])
    wanted, groups, of_batches = _specs(ndim), _groups(named), named["batch_group_count"] > 1
    named |= {"dimension_numbers": wanted, "feature_group_count": 1, "batch_group_count": 1}

    @jax.jit
    def arranged_convolution(x: Any, w: Any) -> Any:
        if shifted:
            return _by_shifts(x, w, dict(params))
        x = _moved(x, given.lhs_spec, wanted.lhs_spec)
        w = _moved(w, given.rhs_spec, wanted.rhs_spec)
        if groups == 1:
            found = _convolved(x, w, named)
        else:  # one after the other
            pairs = _split(x, groups, 0 if of_batches else -1), _split(w, groups, -1)
            found = lax.map(lambda pair: _convolved(pair[0], pair[1], named), pairs)
            found = jnp.moveaxis(found, 0, -2)
            found = found.reshape(*found.shape[:-2], math.prod(found.shape[-2:]))
        return _moved(found, wanted.out_spec, given.out_spec)

    return equation_of(arranged_convolution, inputs, kernel)


def _by_shifts(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution as a sum of products with shifted inputs, in the layout that is asked for: from another,
    every number of the sum would be written far from the one before."""
    specs, groups = params["dimension_numbers"], params["feature_group_count"]
    x = _moved(x, specs.lhs_spec, specs.out_spec)
    w = _moved(w, specs.rhs_spec, _specs(x.ndim).rhs_spec)
    *places, summed, made = w.shape
    _, axis, *along = specs.out_spec
    x = _padded(x, along, params)
    # the features of a group stand beside it
    x = x.reshape(*x.shape[:axis], groups, summed, *x.shape[axis + 1 :])
    w = w.reshape(*places, summed, groups, made // groups, *[1] * (x.ndim - axis - 2))
    along = [a + (a > axis) for a in along]
    rolled = math.prod(places) * summed > _UNROLLED

    def total(x: Any, w: Any, place: int = 0) -> Any:
        if place == len(places):
            products = [lax.slice_in_dim(x, k, k + 1, axis=axis + 1) * w[k] for k in range(summed)]
            return functools.reduce(operator.add, products)
        a, n, step = along[place], places[place], params["rhs_dilation"][place]
        reach = x.shape[a] - (n - 1) * step

        def at(k: Any) -> Any:
            stride = params["window_strides"][place]
            if isinstance(k, int):
                here = lax.slice_in_dim(x, k * step, k * step + reach, stride, a)
            else:
                here = lax.dynamic_slice_in_dim(x, k * step, reach, a)
                here = lax.slice_in_dim(here, 0, None, stride, a)
            return total(here, w[k], place + 1)

        if rolled and place == 0:
            return lax.fori_loop(1, n, lambda k, found: found + at(k), at(0))
        return functools.reduce(operator.add, map(at, range(n)))

    found = total(x, w)
    return found.reshape(*found.shape[:axis], made, *found.shape[axis + 2 :])


def _padded(x: Any, axes: Sequence[int], params: dict[str, Any]) -> Any:
    """Inputs spread and padded along axes, by the first of the settings."""
    edges = [(0, 0, 0)] * x.ndim
    for axis, (low, high), spread in zip(
        axes, params["padding"], params["lhs_dilation"], strict=False
    ):
        edges[axis] = (low, high, spread - 1)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _convolved(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution in the kernels' layout and without groups."""
    spread = max(params["lhs_dilation"]) > 1
    plain = max(*params["window_strides"], *params["rhs_dilation"]) == 1
    if spread and plain:
        lengths = zip(
            x.shape[1:-1], w.shape[:-2], params["lhs_dilation"], params["padding"], strict=True
        )
        made = [sum(padding) + (n - 1) * apart + 2 - k for n, k, apart, padding in lengths]
        if math.prod(w.shape[:-2]) > math.prod(made):
            return _exchanged(x, w, made, params)
    if x.ndim == 5:
        return _by_frames(x, w, params)
    return lax.conv_general_dilated_p.bind(x, w, **params)


def _exchanged(x: Any, w: Any, made: Sequence[int], params: dict[str, Any]) -> Any:
    """The convolution of spread inputs with a kernel larger than what it makes, as on the way back to a
    transposed convolution's kernel: the kernel is convolved with the inputs, and the outcome turned round."""
    places = range(1, x.ndim - 1)
    padding = tuple(
        (n - 1 - low, n - 1 - high) for n, (low, high) in zip(made, params["padding"], strict=True)
    )
    one = (1,) * len(places)
    params = params | {
        "padding": padding,
        "lhs_dilation": one,
        "rhs_dilation": params["lhs_dilation"],
    }
    last = x.ndim - 1
    found = _convolved(
        w.transpose(last, *range(last - 1), last - 1), x.transpose(*places, last, 0), params
    )
    return lax.rev(found.transpose(last, *places, 0), tuple(places))


def _by_frames(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution of volumes as one of frames: those that a kernel covers are features of one frame."""
    along = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    stride, _, _, apart = (params[name][0] for name in along)
    x = _padded(x, (1,), params)
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
