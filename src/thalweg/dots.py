"""Products of matrices whose operands do not lie in memory as XLA's kernels like them on a CPU.

The left matrix should lie there row by row. In a network's backward pass it does not: the gradient of a
layer's weights is the product of a transposed matrix with another, for which XLA takes up to half as long
again. And of many pairs of small matrices, as `vmap` over members makes them, it calls a kernel for every
pair, if the right ones do not lie row by row too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.jaxprs import equation_of, in_place_of

# Measured on two cores, networks of widths 4 to 1,000 with 15 to 1,000 samples, alone and 10 to 64 of them:
# to put a matrix in order takes time too, which is spared where the following holds.
# In single precision, of the numbers of rows, of columns and of what is summed over, two are at most
_NARROW = 64
# For the left matrix: each of its numbers is multiplied so often, or no matrix has more than _SMALL numbers
_COLUMNS = 16
_SMALL = 4000
# For the right one, in single precision alone: the latter, and two of those three are at most
_THIN = 20

_KEPT = ("precision", "preferred_element_type", "out_sharding")


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
    dimensions = equation.params["dimension_numbers"]
    order = _in_order(left, right, dimensions)
    if not any(order):
        return equation
    params = tuple((name, equation.params[name]) for name in _KEPT)
    made = _equation(left.shape, right.shape, left.dtype, dimensions, order, params)
    return in_place_of(equation, made, equation.outvars)


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


@functools.lru_cache(maxsize=256)  # what is the same is then compiled once
def _equation(
    left: Any,
    right: Any,
    dtype: Any,
    dimensions: Any,
    order: tuple[bool, bool],
    params: tuple[tuple[str, Any], ...],
) -> Any:
    (over_left, over_right), (pairs_left, pairs_right) = dimensions
    rows, columns = _free(left, over_left, pairs_left), _free(right, over_right, pairs_right)
    many, middle = len(pairs_left), len(over_left)
    first = tuple(range(many))

    @jax.jit
    def arranged_dot(a: Any, b: Any) -> Any:
        over_a, pairs_a, over_b, pairs_b = over_left, pairs_left, over_right, pairs_right
        # XLA would take the transpositions into the product again
        if order[0]:
            a = jax.lax.optimization_barrier(a.transpose(*pairs_left, *rows, *over_left))
            over_a, pairs_a = tuple(range(many + len(rows), a.ndim)), first
        if order[1]:
            b = jax.lax.optimization_barrier(b.transpose(*pairs_right, *over_right, *columns))
            over_b, pairs_b = tuple(range(many, many + middle)), first
        return jax.lax.dot_general(a, b, ((over_a, over_b), (pairs_a, pairs_b)), **dict(params))

    return equation_of(arranged_dot, (left, dtype), (right, dtype))


def _free(shape: Sequence[int], *taken: Sequence[int]) -> list[int]:
    """The axes of a matrix's rows or columns: those that are neither summed over nor the pairs'."""
    return [d for d in range(len(shape)) if all(d not in dims for dims in taken)]
