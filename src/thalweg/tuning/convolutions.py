"""Convolutions that use XLA's fast CPU kernels, also inside loops and for several models at once.

XLA gives a convolution the memory layout that its kernels need only at the outermost level of a program. In a
loop or a branch, where every step of a descent is, it falls back to a scalar loop that takes some forty times
as long. Grouped convolutions, which `vmap` over models makes, have no fast kernel at all, nor have those of
few features; that of 3-D convolutions is slow. A 1 × 1 convolution is slower than the matrix product that it
is. Where inputs are dilated, as in transposed convolutions, computing the gradient with respect to the kernel
multiplies mostly zeros.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from thalweg.jaxprs import call_for
from thalweg.tuning.layouts import Layouts

Way = Callable[..., Any]

# Pairs of an input and an output feature. Measured on two cores with 3 × 3 kernels: with fewer pairs the
# scalar loop is faster than the multithreaded kernels, and a sum of products with shifted inputs, one product
# per kernel position and input feature, takes a fortieth of that. With more pairs such sums are fast alone,
# but slow in ResNet-20, whose other convolutions want another layout.
_THIN = 16
_MOST_PRODUCTS = 256  # sums of up to so many products were measured to be faster than the loop
_BARE = 32  # input features from which on padding pays; with 16 it takes a tenth longer
_UNROLLED = 48  # more products take long to compile: a loop over the kernel's rows sums them


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with its convolutions, and the operations between them, rewritten."""
    if not any(map(_is_known, jaxpr.eqns)):
        return jaxpr.eqns
    layouts = Layouts()
    for equation in jaxpr.eqns:
        if not _is_known(equation):
            layouts.rewrite(equation)
        elif (how := _how(equation)) is None:
            layouts.append(equation)
        else:
            _arrange(equation, how, layouts)
    return layouts.finished(jaxpr.outvars)


def _is_known(equation: Any) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    inputs, kernel = (v.aval for v in equation.invars)
    if inputs.dtype != kernel.dtype or inputs.dtype not in (jnp.float32, jnp.float64):
        return False
    return 1 <= inputs.ndim - 2 <= 3 and equation.outvars[0].aval.size > 0


def _how(equation: Any) -> Way | None:
    """The function that computes a convolution instead of `conv_general_dilated`; None to keep that."""
    params = equation.params
    inputs, kernel = (v.aval for v in equation.invars)
    groups, specs = _groups(params), params["dimension_numbers"]
    out_features, in_features, *places = (kernel.shape[d] for d in specs.rhs_spec)
    pairs, products = out_features // groups * in_features, math.prod(places) * in_features
    if pairs < _THIN:
        shifted = products <= _MOST_PRODUCTS and params["batch_group_count"] == 1
        return _convolved_by_shifts if shifted else None
    if groups == 1 and math.prod(places) == 1:
        return _convolved_at_each_place
    if groups == 1 and _covers(params, [inputs.shape[d] for d in specs.lhs_spec[2:]], places):
        return _convolved_at_one_place
    has_kernel = len(places) < 3 and max(params["lhs_dilation"]) == 1
    as_it_is = has_kernel and groups == 1 and specs == _specs(inputs.ndim)
    return None if as_it_is and not _is_bare(params, in_features) else _convolved_in_order


def _covers(params: dict[str, Any], lengths: Sequence[int], places: Sequence[int]) -> bool:
    """Whether a kernel covers the whole input, perhaps cropped by negative padding: one output position."""
    edges = zip(lengths, places, params["padding"], params["rhs_dilation"], strict=True)
    return max(params["lhs_dilation"]) == 1 and all(
        max(padding) <= 0 and length + sum(padding) == (k - 1) * dilation + 1
        for length, k, padding, dilation in edges
    )


def _arrange(equation: Any, how: Way, layouts: Layouts) -> None:
    (x, w), (result,) = equation.invars, equation.outvars
    model_specs = equation.params["dimension_numbers"]
    specs = (
        model_specs
        if how is _convolved_by_shifts
        else _specs(x.aval.ndim, whole=how is _convolved_at_one_place)
    )
    x = layouts.in_order(x, _order(specs.lhs_spec, model_specs.lhs_spec))
    w = layouts.in_order(w, _order(specs.rhs_spec, model_specs.rhs_spec))
    call = call_for(equation.replace(invars=[x, w]), how, **equation.params)
    layouts.add(call, result, _order(specs.out_spec, model_specs.out_spec))


def _groups(params: Any) -> int:
    return params["feature_group_count"] * params["batch_group_count"]


def _specs(ndim: int, whole: bool = False) -> lax.ConvDimensionNumbers:
    """Inputs and outputs as (samples, positions, features), kernels as (positions, input features, output
    features). Where the kernel covers the `whole` input, its and the input's features to sum over come first:
    the convolution is then a matrix product."""
    places = tuple(range(1, ndim - 1))
    outputs = (0, ndim - 1, *places)
    if whole:
        return lax.ConvDimensionNumbers((ndim - 1, 0, *places), (ndim - 1, 0, *places), outputs)
    return lax.ConvDimensionNumbers(outputs, (ndim - 1, ndim - 2, *range(ndim - 2)), outputs)


def _convolved_in_order(x: Any, w: Any, **params: Any) -> Any:
    """A convolution by XLA's kernels; groups are computed one after the other."""
    groups, of_batches = _groups(params), params["batch_group_count"] > 1
    plain = {
        "dimension_numbers": _specs(x.ndim),
        "feature_group_count": 1,
        "batch_group_count": 1,
    }
    if groups == 1:
        return _convolved(x, w, params | plain)
    pairs = _split(x, groups, 0 if of_batches else -1), _split(w, groups, -1)
    outputs = lax.map(lambda pair: _convolved(pair[0], pair[1], params | plain), pairs)
    outputs = jnp.moveaxis(outputs, 0, -2)
    return outputs.reshape(*outputs.shape[:-2], math.prod(outputs.shape[-2:]))


def _convolved_at_each_place(x: Any, w: Any, **params: Any) -> Any:
    """A convolution with a 1 × 1 kernel: a matrix product."""
    places = range(1, x.ndim - 1)
    steps = (1, *params["window_strides"], 1)
    unpadded = max(params["lhs_dilation"]) == 1 and not any(map(any, params["padding"]))
    if unpadded:  # positions that the stride skips need not be multiplied
        x = lax.slice(x, [0] * x.ndim, x.shape, steps)
    outputs = _product(x, w.reshape(w.shape[-2:]), [x.ndim - 1], [0], params)
    if unpadded:
        return outputs
    outputs = _padded(outputs, places, params)
    return lax.slice(outputs, [0] * x.ndim, outputs.shape, steps)


def _convolved_at_one_place(x: Any, w: Any, **params: Any) -> Any:
    """A convolution whose kernel covers the whole input: a matrix product. The gradient with respect to a
    1 × 1 kernel is such a convolution, too."""
    summed = [*range(x.ndim - 1)]
    edges = [(0, 0), *params["padding"], (0, 0)]
    ends = [size + high for size, (_, high) in zip(x.shape, edges, strict=True)]
    x = lax.slice(x, [-low for low, _ in edges], ends, (1, *params["rhs_dilation"], 1))
    outputs = _product(x, w, summed, summed, params)
    return outputs.reshape(len(outputs), *[1] * (x.ndim - 2), -1)


def _product(
    x: Any, w: Any, over_x: Sequence[int], over_w: Sequence[int], params: dict[str, Any]
) -> Any:
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    return lax.dot_general(x, w, ((over_x, over_w), ((), ())), **options)


def _convolved_by_shifts(x: Any, w: Any, **params: Any) -> Any:
    """A convolution as a sum of products with shifted inputs, computed in the output's layout: in another,
    consecutive numbers of the sum would be written far from each other."""
    specs, groups = params["dimension_numbers"], params["feature_group_count"]
    x = x.transpose(_order(specs.lhs_spec, specs.out_spec))
    w = w.transpose(_order(specs.rhs_spec, _specs(x.ndim).rhs_spec))
    *places, in_features, out_features = w.shape
    _, axis, *spatial_axes = specs.out_spec
    x = _padded(x, spatial_axes, params)
    # split the feature axis into (groups, features per group)
    x = x.reshape(*x.shape[:axis], groups, in_features, *x.shape[axis + 1 :])
    w = w.reshape(*places, in_features, groups, out_features // groups, *[1] * (x.ndim - axis - 2))
    spatial_axes = [a + (a > axis) for a in spatial_axes]
    rolled = math.prod(places) * in_features > _UNROLLED

    def total(x: Any, w: Any, place: int = 0) -> Any:
        if place == len(places):
            products = [
                lax.slice_in_dim(x, k, k + 1, axis=axis + 1) * w[k] for k in range(in_features)
            ]
            return functools.reduce(operator.add, products)
        a, n, step = spatial_axes[place], places[place], params["rhs_dilation"][place]
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
            return lax.fori_loop(1, n, lambda k, outputs: outputs + at(k), at(0))
        return functools.reduce(operator.add, map(at, range(n)))

    outputs = total(x, w)
    return outputs.reshape(*outputs.shape[:axis], out_features, *outputs.shape[axis + 2 :])


def _padded(x: Any, axes: Sequence[int], params: dict[str, Any]) -> Any:
    """Inputs dilated and padded along `axes`, by as many of the leading entries of the settings."""
    edges = [(0, 0, 0)] * x.ndim
    for axis, (low, high), dilation in zip(
        axes, params["padding"], params["lhs_dilation"], strict=False
    ):
        edges[axis] = (low, high, dilation - 1)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _convolved(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution without groups, in the layout of XLA's kernels."""
    dilated = max(params["lhs_dilation"]) > 1
    plain = max(*params["window_strides"], *params["rhs_dilation"]) == 1
    if dilated and plain:
        lengths = zip(
            x.shape[1:-1], w.shape[:-2], params["lhs_dilation"], params["padding"], strict=True
        )
        out_lengths = [
            sum(padding) + (n - 1) * dilation + 2 - k for n, k, dilation, padding in lengths
        ]
        if math.prod(w.shape[:-2]) > math.prod(out_lengths):
            return _exchanged(x, w, out_lengths, params)
    if x.ndim == 5:
        return _by_frames(x, w, params)
    return _by_kernel(x, w, params)


def _by_kernel(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A convolution by XLA's kernel. The library that XLA may use for 2-D ones of many features takes two to
    five times as long where nothing is padded: one position is, and the outputs that it adds are left out."""
    if not _is_bare(params, w.shape[-2]):
        return lax.conv_general_dilated_p.bind(x, w, **params)
    padded = {"padding": ((0, 1), (0, 0))}
    dilated = (x.shape[1] - 1) * params["lhs_dilation"][0] + 1
    reach = (w.shape[0] - 1) * params["rhs_dilation"][0] + 1
    outputs = lax.conv_general_dilated_p.bind(x, w, **params | padded)
    length = (dilated - reach) // params["window_strides"][0] + 1
    return lax.slice_in_dim(outputs, 0, length, axis=1)


def _is_bare(params: dict[str, Any], in_features: int) -> bool:
    padding = params["padding"]
    return len(padding) == 2 and in_features >= _BARE and not any(map(any, padding))


def _exchanged(x: Any, w: Any, out_lengths: Sequence[int], params: dict[str, Any]) -> Any:
    """The convolution of dilated inputs with a kernel larger than the output, as in the gradient with respect
    to a transposed convolution's kernel: the roles of inputs and kernel are exchanged, and the result is
    reversed."""
    places = range(1, x.ndim - 1)
    padding = tuple(
        (n - 1 - low, n - 1 - high)
        for n, (low, high) in zip(out_lengths, params["padding"], strict=True)
    )
    ones = (1,) * len(places)
    params = params | {
        "padding": padding,
        "lhs_dilation": ones,
        "rhs_dilation": params["lhs_dilation"],
    }
    last = x.ndim - 1
    reversed_outputs = _convolved(
        w.transpose(last, *range(last - 1), last - 1), x.transpose(*places, last, 0), params
    )
    return lax.rev(reversed_outputs.transpose(last, *places, 0), tuple(places))


def _by_frames(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """A 3-D convolution as a 2-D one: the frames that the kernel covers become features of one frame."""
    per_axis = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    stride, _, _, dilation = (params[name][0] for name in per_axis)
    x = _padded(x, (1,), params)
    depth, height, width, in_features, out_features = w.shape
    frames = (x.shape[1] - (depth - 1) * dilation - 1) // stride + 1
    covered = [
        lax.slice_in_dim(x, k * dilation, k * dilation + (frames - 1) * stride + 1, stride, axis=1)
        for k in range(depth)
    ]
    features = jnp.concatenate(covered, axis=-1)
    outputs = _by_kernel(
        features.reshape(-1, *features.shape[2:]),
        jnp.moveaxis(w, 0, 2).reshape(height, width, depth * in_features, out_features),
        params | {name: params[name][1:] for name in per_axis} | {"dimension_numbers": _specs(4)},
    )
    return outputs.reshape(len(x), frames, *outputs.shape[1:])


def _order(source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """The transpose that moves each axis of an array from its position in `source` to that in `target`."""
    order = [0] * len(source)
    for old, new in zip(source, target, strict=True):
        order[new] = old
    return tuple(order)


def _split(array: Any, groups: int, axis: int) -> Any:
    """Splits an axis into equal groups, along a new first axis."""
    axis %= array.ndim
    shape = array.shape
    parts = array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)
