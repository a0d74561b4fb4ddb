"""Values of a program with their axes in another order than the model gives them.

XLA's kernels of convolutions want the features of an image last on a CPU, and PyTorch's models have them
first. What comes between two convolutions is mostly arithmetic entry by entry, to which the order is all one:
it is done in theirs, so that no array is turned about and back.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from thalweg import backend
from thalweg.jaxprs import ENTRYWISE, is_variable

Order = tuple[int, ...]

# Operations that do the same whatever the order of the axes, with their parameters that say something of each
# axis, or name some
_OF_EACH_AXIS = {
    "pad": ("padding_config",),
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
# Numbers from which on one is a call to XLA by itself: fused with the arithmetic before it, which reads from
# afar then, it takes up to seven times as long
_LARGE = 1024
_IN_ANY_ORDER = (ENTRYWISE | {"add_any"} | {*_OF_EACH_AXIS, *_OF_SOME_AXES}) - {"broadcast_in_dim"}


class Layouts:
    """A jaxpr's equations, written anew one after the other. In place of a value there may be a variable of
    which the value is the `lax.transpose` by some order; the value itself is made where something asks for
    it."""

    def __init__(self) -> None:
        self.equations: list[Any] = []
        # of a value that is there otherwise than as itself, the variables by their orders
        self._variables: dict[Any, dict[Order, Any]] = {}
        self._copies: set[Any] = set()  # of a number or a row, which are there in any order

    def take(self, equation: Any) -> None:
        """Go on with an equation as it is, in the order in which most of what it takes is there."""
        name, given = equation.primitive.name, equation.invars
        if name == "broadcast_in_dim":
            self._copies.update(equation.outvars)
        if name == "transpose" and is_variable(given[0]) and given[0] in self._variables:
            (value,) = equation.outvars
            after = equation.params["permutation"]
            found = self._variables[given[0]].items()
            self._variables[value] = {_then(order, after): variable for order, variable in found}
            return
        order = self._order_of(equation)
        if _is_own(order):
            self.keep(equation)
            return
        (out,), params, kept = equation.outvars, dict(equation.params), order
        for key in _OF_EACH_AXIS.get(name, ()):
            if params[key] is not None:
                params[key] = tuple(params[key][d] for d in _back(order))
        if key := _OF_SOME_AXES.get(name):
            named = params[key]
            axes = (named,) if isinstance(named, int) else named
            params[key] = order[named] if isinstance(named, int) else tuple(order[d] for d in axes)
            if out.aval.ndim < len(order):  # of those that are left, which comes first, and so on
                left = [place for d, place in enumerate(order) if d not in axes]
                kept = tuple(sorted(left).index(place) for place in left)
        operands = [self.ordered(v, order) if v.aval.ndim else v for v in given]
        self.add(equation.replace(invars=operands, params=params), out, kept)

    def keep(self, equation: Any) -> None:
        """Go on with an equation as it is, in the model's own order."""
        given = [self.own(v) for v in equation.invars]
        same = all(map(operator.is_, given, equation.invars))
        self.equations.append(equation if same else equation.replace(invars=given))

    def add(self, equation: Any, value: Any, order: Order) -> None:
        """Go on with an equation for the variable of which `value` is the transposition by `order`."""
        variable = value
        if not _is_own(order):
            variable = _transposition(value, _back(order)).outvars[0]
            self._variables[value] = {order: variable}
        self.equations.append(equation.replace(outvars=[variable]))

    def finished(self, results: Sequence[Any]) -> list[Any]:
        """The equations, with those for the jaxpr's results."""
        for value in results:
            variable = self.own(value)
            if variable is not value:
                own = _own(value)
                self.equations.append(_transposition(variable, own).replace(outvars=[value]))
                self._variables[value] = {own: value}
        return self.equations

    def own(self, value: Any) -> Any:
        """The variable for a value in the model's own order."""
        moved = is_variable(value) and value in self._variables
        return self.ordered(value, _own(value)) if moved else value

    def ordered(self, value: Any, order: Order) -> Any:
        """The variable of which `value` is the transposition by `order`."""
        variables = self._of(value)
        if order not in variables:
            here, variable = next(iter(variables.items()))
            equation = _transposition(variable, _then(here, _back(order)))
            if _is_own(order):
                equation = equation.replace(outvars=[value])
            self.equations.append(equation)
            variables[order] = equation.outvars[0]
            self._variables[value] = variables
        return variables[order]

    def _of(self, value: Any) -> dict[Order, Any]:
        """The variables for a value, by their orders."""
        if is_variable(value) and value in self._variables:
            return self._variables[value]
        return {_own(value): value}

    def _order_of(self, equation: Any) -> Order:
        """The order for an equation: that in which the least has to be turned, if possible its own."""
        if equation.primitive.name not in _IN_ANY_ORDER:
            return ()
        given = [v for v in equation.invars if v.aval.ndim]
        there = [(v.aval.size, self._of(v)) for v in given if v not in self._copies]
        # of as many numbers the first
        orders = [*map(_own, given[:1]), *(order for _, of in there for order in of)]

        def turned(order: Order) -> int:
            return sum(size for size, of in there if order not in of)

        return min(orders, key=turned, default=())


def _transposition(variable: Any, order: Order) -> Any:
    """An equation for `lax.transpose(variable, order)`, a new variable."""
    value = variable.aval
    like = _transposed(value.shape, value.dtype, value.weak_type, order)
    return like.replace(invars=[variable], outvars=[core.Var(like.outvars[0].aval)])


@functools.lru_cache(maxsize=256)  # what is the same is then traced once
def _transposed(shape: Any, dtype: Any, weak_type: bool, order: Order) -> Any:
    turn = functools.partial(lax.transpose_p.bind, permutation=order)
    if math.prod(shape) >= _LARGE:
        turn = backend.apart(turn)
    given = jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)
    (equation,) = jax.make_jaxpr(turn)(given).eqns
    return equation


def _own(value: Any) -> Order:
    return tuple(range(value.aval.ndim))


def _then(before: Sequence[int], after: Sequence[int]) -> Order:
    """One transposition for two, one after the other."""
    return tuple(before[d] for d in after)


def _back(order: Order) -> Order:
    """The transposition that undoes one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _is_own(order: Order) -> bool:
    return order == tuple(range(len(order)))
