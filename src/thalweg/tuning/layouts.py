"""Values of a program stored with their axes in another order than the model's.

On a CPU, XLA's convolution kernels want an image's features last (NHWC); PyTorch's models have them first
(NCHW). Between two convolutions there is mostly elementwise arithmetic, for which the order does not matter:
it is done in the kernels' order, so that no array is transposed and transposed back.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from thalweg import backend
from thalweg.jaxprs import ENTRYWISE, is_variable

Order = tuple[int, ...]

# Operations that work with any order of the axes: by name, their parameters with an entry per axis, and the
# parameter that names some of the axes
_OF_WINDOWS = (
    "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
)  # fmt: skip
_OF_EACH_AXIS = {
    "pad": ("padding_config",),
    "reduce_window_max": _OF_WINDOWS,
    "reduce_window_min": _OF_WINDOWS,
    "reduce_window_sum": _OF_WINDOWS,
    "select_and_gather_add": _OF_WINDOWS,
    "select_and_scatter_add": _OF_WINDOWS[:3],
    "slice": ("start_indices", "limit_indices", "strides"),
}
_OF_SOME_AXES = {
    "concatenate": "dimension",
    "reduce_max": "axes",
    "reduce_min": "axes",
    "reduce_prod": "axes",
    "reduce_sum": "axes",
    "rev": "dimensions",
}
# A transpose of at least so many numbers is a separate call to XLA: fused with the arithmetic before it,
# which then reads with large strides, it takes up to seven times as long
_LARGE = 1024
_IN_ANY_ORDER = (ENTRYWISE | {"add_any"} | {*_OF_EACH_AXIS, *_OF_SOME_AXES}) - {"broadcast_in_dim"}


class Layouts:
    """Rewrites a jaxpr's equations one after the other. A value may be represented by a variable in another
    order of axes, such that the value is `lax.transpose(variable, order)`; the value itself is computed only
    where something needs it."""

    def __init__(self) -> None:
        self.equations: list[Any] = []
        # for each value that was transposed or is stored transposed: its variables, by order
        self._variables: dict[Any, dict[Order, Any]] = {}
        # by broadcast value, its equation: a broadcast costs nothing in any order
        self._broadcasts: dict[Any, Any] = {}

    def rewrite(self, equation: Any) -> None:
        """Append an equation, computed in the order that most of its operands are in already."""
        name, inputs = equation.primitive.name, equation.invars
        if name == "broadcast_in_dim":
            self._broadcasts[equation.outvars[0]] = equation
        if name == "transpose" and is_variable(inputs[0]) and inputs[0] in self._variables:
            (value,) = equation.outvars
            permutation = equation.params["permutation"]
            variables = self._variables[inputs[0]].items()
            self._variables[value] = {
                _composed(order, permutation): variable for order, variable in variables
            }
            return
        order = self._order_of(equation)
        if _is_identity(order):
            self.append(equation)
            return
        (out,), params, out_order = equation.outvars, dict(equation.params), order
        for key in _OF_EACH_AXIS.get(name, ()):
            if params[key] is not None:
                params[key] = tuple(params[key][d] for d in _inverse(order))
        if key := _OF_SOME_AXES.get(name):
            axis_or_axes = params[key]
            axes = (axis_or_axes,) if isinstance(axis_or_axes, int) else axis_or_axes
            params[key] = (
                order[axis_or_axes]
                if isinstance(axis_or_axes, int)
                else tuple(order[d] for d in axes)
            )
            if out.aval.ndim < len(order):  # a reduction: renumber the remaining axes
                remaining = [place for d, place in enumerate(order) if d not in axes]
                out_order = tuple(sorted(remaining).index(place) for place in remaining)
        operands = [self.in_order(v, order) if v.aval.ndim else v for v in inputs]
        self.add(equation.replace(invars=operands, params=params), out, out_order)

    def append(self, equation: Any) -> None:
        """Append an equation as it is, with its operands in the model's order."""
        operands = [self.in_model_order(v) for v in equation.invars]
        same = all(map(operator.is_, operands, equation.invars))
        self.equations.append(equation if same else equation.replace(invars=operands))

    def add(self, equation: Any, value: Any, order: Order) -> None:
        """Append an equation whose result, transposed by `order`, is `value`."""
        variable = value
        if not _is_identity(order):
            variable = _transposition(value, _inverse(order)).outvars[0]
            self._variables[value] = {order: variable}
        self.equations.append(equation.replace(outvars=[variable]))

    def finished(self, results: Sequence[Any]) -> list[Any]:
        """All equations, the jaxpr's results brought into the model's order."""
        for value in results:
            variable = self.in_model_order(value)
            if variable is not value:
                model_order = _model_order(value)
                self.equations.append(
                    _transposition(variable, model_order).replace(outvars=[value])
                )
                self._variables[value] = {model_order: value}
        return self.equations

    def in_model_order(self, value: Any) -> Any:
        """The variable for a value in the model's order."""
        moved = is_variable(value) and value in self._variables
        return self.in_order(value, _model_order(value)) if moved else value

    def in_order(self, value: Any, order: Order) -> Any:
        """The variable whose transpose by `order` is `value`."""
        variables = self._variables_of(value)
        if order not in variables:
            here, variable = next(iter(variables.items()))
            if value in self._broadcasts:
                equation = self._broadcast(value, order)
            else:
                equation = _transposition(variable, _composed(here, _inverse(order)))
            if _is_identity(order):
                equation = equation.replace(outvars=[value])
            self.equations.append(equation)
            variables[order] = equation.outvars[0]
            self._variables[value] = variables
        return variables[order]

    def _broadcast(self, value: Any, order: Order) -> Any:
        """An equation that broadcasts to a new variable whose transpose by `order` is `value`."""
        equation = self._broadcasts[value]
        operand = self.in_model_order(equation.invars[0])
        places = [order[d] for d in equation.params["broadcast_dimensions"]]
        if places != sorted(places):
            turned = _transposition(operand, tuple(np.argsort(places).tolist()))
            self.equations.append(turned)
            (operand,) = turned.outvars
        shape = tuple(value.aval.shape[d] for d in _inverse(order))
        new = core.Var(value.aval.update(shape=shape))
        params = {**equation.params, "shape": shape, "broadcast_dimensions": tuple(sorted(places))}
        return equation.replace(invars=[operand], outvars=[new], params=params)

    def _variables_of(self, value: Any) -> dict[Order, Any]:
        """The variables for a value, by order."""
        if is_variable(value) and value in self._variables:
            return self._variables[value]
        return {_model_order(value): value}

    def _order_of(self, equation: Any) -> Order:
        """The order in which an equation needs the fewest numbers transposed; if possible the model's."""
        if equation.primitive.name not in _IN_ANY_ORDER:
            return ()
        operands = [v for v in equation.invars if v.aval.ndim]
        available = [
            (v.aval.size, self._variables_of(v)) for v in operands if v not in self._broadcasts
        ]
        # the model's order comes first, and so wins ties
        orders = [*map(_model_order, operands[:1]), *(order for _, of in available for order in of)]

        def turned(order: Order) -> int:
            return sum(size for size, of in available if order not in of)

        return min(orders, key=turned, default=())


def _transposition(variable: Any, order: Order) -> Any:
    """An equation that writes `lax.transpose(variable, order)` to a new variable."""
    value = variable.aval
    like = _transposed(value.shape, value.dtype, value.weak_type, order)
    return like.replace(invars=[variable], outvars=[core.Var(like.outvars[0].aval)])


@functools.lru_cache(maxsize=256)  # equal transposes are then traced once
def _transposed(shape: Any, dtype: Any, weak_type: bool, order: Order) -> Any:
    turn = functools.partial(lax.transpose_p.bind, permutation=order)
    if math.prod(shape) >= _LARGE:
        turn = backend.outlined(turn)
    array = jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)
    (equation,) = jax.make_jaxpr(turn)(array).eqns
    return equation


def _model_order(value: Any) -> Order:
    return tuple(range(value.aval.ndim))


def _composed(before: Sequence[int], after: Sequence[int]) -> Order:
    """One transpose that does two, `before` and then `after`."""
    return tuple(before[d] for d in after)


def _inverse(order: Order) -> Order:
    """The transpose that undoes one by `order`."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _is_identity(order: Order) -> bool:
    return order == tuple(range(len(order)))
