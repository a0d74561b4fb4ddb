"""Products of many pairs of small matrices, as a model's `vmap` over members makes them.

XLA has two ways to do them on a CPU: a kernel for many small products (YNNPACK's), if the left matrices lie
in memory row by row and the right ones too, and otherwise a call for every pair, which takes up to four times
as long. In a network's backward pass one of the two is always the other way round.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.jaxprs import in_place_of

# Measured on two cores, descents and planes of 10 to 64 networks of widths 4 to 128 with 15 to 1,000 samples:
# wider ones take as long as before, or longer, as putting a matrix in order then takes as long as it spares.
_NARROW = 20  # two of the numbers of rows, columns and what is summed over
_SMALL = 4000  # numbers of each matrix of a pair, and of their product

_KEPT = ("precision", "preferred_element_type", "out_sharding")


def arranged(equations: Sequence[Any]) -> list[Any]:
    """A jaxpr's equations, with others for its products of many pairs of small float32 matrices."""
    return [_arranged(equation) if _is_slow(equation) else equation for equation in equations]


def _arranged(equation: Any) -> Any:
    left, right = (v.aval for v in equation.invars)
    params = {name: equation.params[name] for name in _KEPT}
    made = _equation(
        left.shape, right.shape, equation.params["dimension_numbers"], tuple(params.items())
    )
    return in_place_of(equation, made, equation.outvars)


@functools.lru_cache(maxsize=256)  # what is the same is then compiled once
def _equation(left: Any, right: Any, dimensions: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    (over_left, over_right), (pairs_left, pairs_right) = dimensions
    rows, columns = _free(left, over_left, pairs_left), _free(right, over_right, pairs_right)
    many, middle = len(pairs_left), len(over_left)
    pairs = tuple(range(many))
    over = (
        tuple(range(many + len(rows), many + len(rows) + middle)),
        tuple(range(many, many + middle)),
    )

    @jax.jit
    def arranged_dot(a: Any, b: Any) -> Any:
        # XLA would take the transpositions into the product again
        a = jax.lax.optimization_barrier(a.transpose(*pairs_left, *rows, *over_left))
        b = jax.lax.optimization_barrier(b.transpose(*pairs_right, *over_right, *columns))
        return jax.lax.dot_general(a, b, (over, (pairs, pairs)), **dict(params))

    (made,) = jax.make_jaxpr(arranged_dot)(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (left, right))
    ).eqns
    return made


def _is_slow(equation: Any) -> bool:
    if equation.primitive.name != "dot_general":
        return False
    left, right = (v.aval for v in equation.invars)
    (over_left, over_right), (pairs_left, pairs_right) = equation.params["dimension_numbers"]
    if not pairs_left or not left.dtype == right.dtype == jnp.float32:
        return False
    rows, middle, columns = (
        math.prod(aval.shape[d] for d in dims)
        for aval, dims in (
            (left, _free(left.shape, over_left, pairs_left)),
            (left, over_left),
            (right, _free(right.shape, over_right, pairs_right)),
        )
    )
    least, between, most = sorted((rows, middle, columns))
    # with a vector it is no product of matrices to XLA
    return least > 1 and between <= _NARROW and between * most <= _SMALL


def _free(shape: Sequence[int], *taken: Sequence[int]) -> list[int]:
    """The axes of a matrix's rows or columns: those that are neither summed over nor the pairs'."""
    return [d for d in range(len(shape)) if all(d not in dims for dims in taken)]
