"""Sums of gradients along skip connections, which XLA would compute over and over on a CPU.

The gradient of a value that several layers use is a sum, and with skip connections each such sum is a term of
the next. XLA fuses what is cheap into all that use it: into every use of a sum the whole chain of sums behind
it. In a transformer of six layers that is two fifths of a step (benchmarks/transformer.py), and more in a
deeper one, which takes longer to compile too.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend
from thalweg.jaxprs import equation_of, in_place_of


def arranged(equations: Sequence[Any]) -> list[Any]:
    """A jaxpr's equations, with others for the sums of such a chain that several equations take."""
    uses = Counter(id(variable) for equation in equations for variable in equation.invars)
    # sums that several take, and all sums that have one of these among their terms
    chain: set[int] = set()
    found = []
    for equation in equations:
        if _is_sum(equation):
            out = id(equation.outvars[0])
            goes_on = any(id(term) in chain for term in equation.invars)
            if goes_on or uses[out] > 1:
                chain.add(out)
            if goes_on and uses[out] > 1:
                term = equation.invars[0].aval
                made = _equation(term.shape, term.dtype)
                equation = in_place_of(equation, made, equation.outvars)
        found.append(equation)
    return found


def _is_sum(equation: Any) -> bool:
    """Whether an equation adds gradients that are arrays of numbers."""
    if equation.primitive.name != "add_any":
        return False
    term = equation.invars[0].aval
    return bool(term.shape) and jnp.issubdtype(term.dtype, jnp.floating)


@functools.lru_cache(maxsize=256)  # what is the same is then traced once
def _equation(shape: Any, dtype: Any) -> Any:
    added = backend.apart(operator.add)

    # around it, since an equation that takes another's place is in that one's context
    @jax.jit
    def added_alone(a: Any, b: Any) -> Any:
        return added(a, b)

    return equation_of(added_alone, (shape, dtype), (shape, dtype))
