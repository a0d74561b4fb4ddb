"""Matrix products whose operands are not in the memory layout that XLA's CPU kernels like.

The left matrix should be row-major. In a network's backward pass it is not: the gradient with respect to a
layer's weights is the product of a transposed matrix with another, for which XLA takes up to half as long
again. And for a batch of small matrices, which `vmap` over members makes, XLA calls a kernel per pair unless
the right matrices are row-major too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.jaxprs import call_for

# Measured on two cores with networks of widths 4 to 1,000 and 15 to 1,000 samples, one alone and 10 to 64 at
# once. Copying a matrix to row-major order takes time too, and pays off only under these conditions.
# In single precision: two of the three dimensions (rows, columns, contracted) are at most
_NARROW = 64
# For the left matrix: the right one has at least _COLUMNS columns, or no matrix has more than _SMALL numbers
_COLUMNS = 16
_SMALL = 4000
# For the right matrix, in single precision only: none has more than _SMALL numbers, and two of the three
# dimensions are at most
_THIN = 20


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with its matrix products rewritten."""
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
    """Whether to copy the left and the right matrix to row-major order."""
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
    # a product with a vector is not a matrix product to XLA
    if least < 2 or (single and between > _NARROW):
        return False, False
    small = between * most <= _SMALL
    return small or columns >= _COLUMNS, single and small and between <= _THIN


def _arranged_dot(
    a: Any, b: Any, *, order: tuple[bool, bool], dimension_numbers: Any, **params: Any
) -> Any:
    """A matrix product, whose left and right operands are first made row-major where `order` says so."""
    (over_a, over_b), (pairs_a, pairs_b) = dimension_numbers
    rows, columns = _free(a.shape, over_a, pairs_a), _free(b.shape, over_b, pairs_b)
    n_batch, n_contracted = len(pairs_a), len(over_a)
    leading = tuple(range(n_batch))
    # without the barrier, XLA would merge the transpose into the product again
    if order[0]:
        a = jax.lax.optimization_barrier(a.transpose(*pairs_a, *rows, *over_a))
        over_a, pairs_a = tuple(range(n_batch + len(rows), a.ndim)), leading
    if order[1]:
        b = jax.lax.optimization_barrier(b.transpose(*pairs_b, *over_b, *columns))
        over_b, pairs_b = tuple(range(n_batch, n_batch + n_contracted)), leading
    return jax.lax.dot_general(a, b, ((over_a, over_b), (pairs_a, pairs_b)), **params)


def _free(shape: Sequence[int], *other_axes: Sequence[int]) -> list[int]:
    """The axes of a matrix's rows or columns: those that are neither contracted nor batch axes."""
    return [d for d in range(len(shape)) if all(d not in dims for dims in other_axes)]
