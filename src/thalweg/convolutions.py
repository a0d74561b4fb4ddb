"""Convolutions in the layout of XLA's fast kernels on a CPU, also inside loops and of several models at once.

XLA gives a convolution the layout that its kernels ask for where it stands at the outermost level of a
program; in a loop or a branch, where every step of a descent is, it multiplies number by number, which takes
some forty times as long. A convolution in groups, as `vmap` over models makes it, has no kernel at all, nor
has one of few features, and one of volumes a slow one; one of a single place is slower than the product of
matrices that it is. Where inputs are spread, as in transposed convolutions, the way back to a kernel
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
from thalweg.layouts import Layouts

Way = Callable[..., Any]

# Pairs of features, one summed over and one made. Measured on two cores, kernels of 3 × 3: with fewer the
# plain loop takes less time than the kernels' threads; and products with shifted inputs, one for every place
# of a kernel and feature summed over, a fortieth of it. With more they are fast alone, and slow in ResNet-20,
# whose other convolutions want another layout.
_THIN = 16
_MOST_PRODUCTS = 256  # of which the measured sums are faster than the loop
_UNROLLED = 48  # more take long to compile, and are summed in a loop over the kernel's rows


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with others for its convolutions, and for what comes between them."""
    if not any(map(_is_known, jaxpr.eqns)):
        return jaxpr.eqns
    layouts = Layouts()
    for equation in jaxpr.eqns:
        if not _is_known(equation):
            layouts.take(equation)
        elif (how := _how(equation)) is None:
            layouts.keep(equation)
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
    """The function that computes a convolution, if not its own operation."""
    params = equation.params
    inputs, kernel = (v.aval for v in equation.invars)
    groups, specs = _groups(params), params["dimension_numbers"]
    made, summed, *places = (kernel.shape[d] for d in specs.rhs_spec)
    pairs, products = made // groups * summed, math.prod(places) * summed
    if pairs < _THIN:
        shifted = products <= _MOST_PRODUCTS and params["batch_group_count"] == 1
        return _convolved_by_shifts if shifted else None
    if groups == 1 and math.prod(places) == 1:
        return _convolved_at_each_place
    if groups == 1 and _covers(params, [inputs.shape[d] for d in specs.lhs_spec[2:]], places):
        return _convolved_at_one_place
    has_kernel = len(places) < 3 and max(params["lhs_dilation"]) == 1
    return (
        None if has_kernel and groups == 1 and specs == _specs(inputs.ndim) else _convolved_in_order
    )


def _covers(params: dict[str, Any], lengths: Sequence[int], places: Sequence[int]) -> bool:
    """Whether a kernel covers all that is given, cut off at the edges perhaps, and makes one place of it."""
    edges = zip(lengths, places, params["padding"], params["rhs_dilation"], strict=True)
    return max(params["lhs_dilation"]) == 1 and all(
        max(padding) <= 0 and length + sum(padding) == (k - 1) * apart + 1
        for length, k, padding, apart in edges
    )


def _arrange(equation: Any, how: Way, layouts: Layouts) -> None:
    (x, w), (found,) = equation.invars, equation.outvars
    given = equation.params["dimension_numbers"]
    wanted = (
        given
        if how is _convolved_by_shifts
        else _specs(x.aval.ndim, whole=how is _convolved_at_one_place)
    )
    x = layouts.ordered(x, _order(wanted.lhs_spec, given.lhs_spec))
    w = layouts.ordered(w, _order(wanted.rhs_spec, given.rhs_spec))
    made = call_for(equation.replace(invars=[x, w]), how, **equation.params)
    layouts.add(made, found, _order(wanted.out_spec, given.out_spec))


def _groups(params: Any) -> int:
    return params["feature_group_count"] * params["batch_group_count"]


def _specs(ndim: int, whole: bool = False) -> lax.ConvDimensionNumbers:
    """Samples, places, features; and of the kernel places, what is summed over, features. Where the kernel
    covers the `whole`, what is summed over comes first: it is a product of matrices."""
    places = tuple(range(1, ndim - 1))
    made = (0, ndim - 1, *places)
    if whole:
        return lax.ConvDimensionNumbers((ndim - 1, 0, *places), (ndim - 1, 0, *places), made)
    return lax.ConvDimensionNumbers(made, (ndim - 1, ndim - 2, *range(ndim - 2)), made)


def _convolved_in_order(x: Any, w: Any, **params: Any) -> Any:
    """A convolution by XLA's kernels, of several groups one after the other."""
    groups, of_batches = _groups(params), params["batch_group_count"] > 1
    plain = {
        "dimension_numbers": _specs(x.ndim),
        "feature_group_count": 1,
        "batch_group_count": 1,
    }
    if groups == 1:
        return _convolved(x, w, params | plain)
    pairs = _split(x, groups, 0 if of_batches else -1), _split(w, groups, -1)
    found = lax.map(lambda pair: _convolved(pair[0], pair[1], params | plain), pairs)
    found = jnp.moveaxis(found, 0, -2)
    return found.reshape(*found.shape[:-2], math.prod(found.shape[-2:]))


def _convolved_at_each_place(x: Any, w: Any, **params: Any) -> Any:
    """A convolution whose kernel is one place: a product of matrices."""
    places = range(1, x.ndim - 1)
    steps = (1, *params["window_strides"], 1)
    nothing = max(params["lhs_dilation"]) == 1 and not any(map(any, params["padding"]))
    if nothing:  # is added to the inputs: what is left out need not be multiplied
        x = lax.slice(x, [0] * x.ndim, x.shape, steps)
    found = _product(x, w.reshape(w.shape[-2:]), [x.ndim - 1], [0], params)
    if nothing:
        return found
    found = _padded(found, places, params)
    return lax.slice(found, [0] * x.ndim, found.shape, steps)


def _convolved_at_one_place(x: Any, w: Any, **params: Any) -> Any:
    """A convolution whose kernel covers all: a product of matrices. So is the way back to a kernel of one
    place."""
    summed = [*range(x.ndim - 1)]
    edges = [(0, 0), *params["padding"], (0, 0)]
    ends = [size + high for size, (_, high) in zip(x.shape, edges, strict=True)]
    x = lax.slice(x, [-low for low, _ in edges], ends, (1, *params["rhs_dilation"], 1))
    found = _product(x, w, summed, summed, params)
    return found.reshape(len(found), *[1] * (x.ndim - 2), -1)


def _product(
    x: Any, w: Any, over_x: Sequence[int], over_w: Sequence[int], params: dict[str, Any]
) -> Any:
    kept = {name: params[name] for name in ("precision", "preferred_element_type")}
    return lax.dot_general(x, w, ((over_x, over_w), ((), ())), **kept)


def _convolved_by_shifts(x: Any, w: Any, **params: Any) -> Any:
    """A convolution as a sum of products with shifted inputs, in the layout that is asked for: from another,
    every number of the sum would be written far from the one before."""
    specs, groups = params["dimension_numbers"], params["feature_group_count"]
    x = x.transpose(_order(specs.lhs_spec, specs.out_spec))
    w = w.transpose(_order(specs.rhs_spec, _specs(x.ndim).rhs_spec))
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


def _order(given: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The transposition of an array whose axes stand where `given` says that has each of them where `wanted`
    says."""
    order = [0] * len(given)
    for here, there in zip(given, wanted, strict=True):
        order[there] = here
    return tuple(order)


def _split(array: Any, groups: int, axis: int) -> Any:
    """An axis in groups of as many each, which become the first axis."""
    axis %= array.ndim
    shape = array.shape
    parts = array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)
