"""Chains of arithmetic along skip connections, which XLA would compute over and over on a CPU.

With skip connections a value is the sum of what a layer makes and of the value before it; and so is its
gradient, on the way back. Several operations take it. XLA fuses what is cheap into all that use it, and
computes it anew for each: at every layer the whole chain behind it. In a transformer of six layers that is
two fifths of a step (benchmarks/transformer.py), and more in a deeper network, which takes longer to compile
too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax.numpy as jnp

from thalweg import backend
from thalweg.jaxprs import ENTRYWISE, call_for, is_variable

# Arrays that it takes to compute a value which several operations take: with a chain cut at every second sum,
# the networks of the benchmarks are as fast as with one cut at every sum, at every third they are slower.
_MOST = 2
_LEAST = 1024  # numbers, which take longer to compute than a call
_FUSED = ENTRYWISE | {"add_any", "reshape", "squeeze", "transpose"}


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with others for the values at which such a chain is cut: each is a call to XLA."""
    uses = Counter(v for equation in jaxpr.eqns for v in equation.invars if is_variable(v))
    behind: dict[Any, frozenset[Any]] = {}  # the arrays that are read where a value is computed
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in _FUSED:
            (value,) = equation.outvars
            size = value.aval.size
            terms = [v for v in equation.invars if is_variable(v) and v.aval.size == size]
            read = frozenset[Any]().union(*(behind.get(v, {v}) for v in terms))
            if len(read) > _MOST and uses[value] > 1 and _is_large(value.aval):
                how = {"operation": equation.primitive, **equation.params}
                equation = call_for(equation, _computed_once, compiled=backend.apart, **how)
            else:
                behind[value] = read
        found.append(equation)
    return found


def _is_large(value: Any) -> bool:
    return value.size >= _LEAST and jnp.issubdtype(value.dtype, jnp.floating)


def _computed_once(*terms: Any, operation: Any, **params: Any) -> Any:
    return operation.bind(*terms, **params)
