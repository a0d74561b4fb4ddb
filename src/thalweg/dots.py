"""Products of matrices whose operands do not lie in memory as XLA's kernels like them on a CPU.

The left matrix should lie there row by row. In a network's backward pass it does not: the gradient of a
layer's weights is the product of a transposed matrix with another, for which XLA takes up to half as long
again. And of many pairs of small matrices, as `vmap` over members makes them, it calls a kernel for every
pair, if the right ones do not lie row by row too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.jaxprs import call_for

# Measured on two cores, networks of widths 4 to 1,000 with 15 to 1,000 samples, alone and 10 to 64 of them:
# to put a matrix in order takes time too, which is spared where the following holds.
# In single precision, of the numbers of rows, of columns and of what is summed over, two are at most
_NARROW = 64
# For the left matrix: each of its numbers is multiplied so often, or no matrix has more than _SMALL numbers
_COLUMNS = 16
_SMALL = 4000
# For the right one, in single precision alone: the latter, and two of those three are at most
_THIN = 20


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with others for its products of matrices."""
    return [_arranged(equation) if _is_product(equation) else equation for equation in jaxpr.eqns]


def _is_product(equation: Any) -> bool:
    if equation.primitive.name != "dot_general":
        return False
    left, right = (v.aval.dtype for v in equation.invars)
    return left == right and left in (jnp.float32, jnp.float64)


def _arranged(equation: Any) -> Any:
    left, right = (v.aval for v in equation.invars)
    order = _in_order(left, right, equation.params["dimension_numbers"])
    return (
        call_for(equation, _arranged_dot, order=order, **equation.params)
        if any(order)
        else equation
    )


def _in_order(left: Any, right: Any, dimensions: Any) -> tuple[bool, bool]:
    """Whether the left and the right matrix are to be put in order."""
    (over_left, over_right), (pairs_left, pairs_right) = dimensions
    rows, middle, columns = (
        math.prod(matrix.shape[d] for d in axes)
        for matrix, axes in (
            (left, _free(left.shape, over_left, pairs_left)),
            (left, over_left),
            (right, _free(right.shape, over_right, pairs_right)),
        )
    )
    least, between, most = sorted((rows, middle, columns))
    single = left.dtype == jnp.float32
    # with a vector it is no product of matrices to XLA
    if least < 2 or (single and between > _NARROW):
        return False, False
    small = between * most <= _SMALL
    return small or columns >= _COLUMNS, single and small and between <= _THIN


def _arranged_dot(
    a: Any, b: Any, *, order: tuple[bool, bool], dimension_numbers: Any, **params: Any
) -> Any:
    """A product of matrices that are put in order first, or not."""
    (over_a, over_b), (pairs_a, pairs_b) = dimension_numbers
    rows, columns = _free(a.shape, over_a, pairs_a), _free(b.shape, over_b, pairs_b)
    many, middle = len(pairs_a), len(over_a)
    first = tuple(range(many))
    # XLA would take the transpositions into the product again
    if order[0]:
        a = jax.lax.optimization_barrier(a.transpose(*pairs_a, *rows, *over_a))
        over_a, pairs_a = tuple(range(many + len(rows), a.ndim)), first
    if order[1]:
        b = jax.lax.optimization_barrier(b.transpose(*pairs_b, *over_b, *columns))
        over_b, pairs_b = tuple(range(many, many + middle)), first
    return jax.lax.dot_general(a, b, ((over_a, over_b), (pairs_a, pairs_b)), **params)


def _free(shape: Sequence[int], *taken: Sequence[int]) -> list[int]:
    """The axes of a matrix's rows or columns: those that are neither summed over nor the pairs'."""
    return [d for d in range(len(shape)) if all(d not in dims for dims in taken)]
