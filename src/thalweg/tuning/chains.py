"""Chains of sums along skip connections, which XLA would compute over and over on a CPU.

With skip connections a value is the sum of a layer's output and the value before it, and so is its gradient
in the backward pass. Several operations use it. XLA fuses cheap operations into each of their consumers: at
every layer the whole chain of sums before it is computed anew. In a transformer of six layers that takes two
fifths of a step (benchmarks/transformer.py); in a deeper network it takes more, and compiling takes longer
too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax.numpy as jnp

from thalweg import backend
from thalweg.jaxprs import ENTRYWISE, call_for, is_variable

# Arrays that may be read to compute a value with several consumers; where more are, the chain is cut. Cut at
# every second sum, the networks of the benchmarks are as fast as cut at every sum; at every third, slower.
_MOST = 2
_LEAST = 1024  # numbers; fewer are computed anew in less time than a call takes
_LAYOUT = {"reshape", "squeeze", "transpose"}
_FUSED = ENTRYWISE | {"add_any", *_LAYOUT}
# Operations whose operands XLA always writes to memory
_APART = {"conv_general_dilated", "dot_general"}


def arranged(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, where chains are cut: at some values, with a call that XLA does not inline."""
    uses, fused_uses = _uses(jaxpr)
    behind: dict[Any, frozenset[Any]] = {}  # by value, the arrays that are read to compute it
    equations = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _FUSED:
            (value,) = equation.outvars
            size = value.aval.size
            terms = [v for v in equation.invars if is_variable(v) and v.aval.size == size]
            read = frozenset[Any]().union(*(behind.get(v, {v}) for v in terms))
            again = uses[value] > 1 and fused_uses[value] > 0
            if len(read) > _MOST and again and _is_large(value.aval):
                how = {"operation": equation.primitive, **equation.params}
                equation = call_for(equation, _computed_once, compiled=backend.outlined, **how)
            else:
                behind[value] = read
        equations.append(equation)
    return equations


def _uses(jaxpr: Any) -> tuple[Counter[Any], Counter[Any]]:
    """How often each value is used, and how often by operations into which XLA may fuse what makes it. What
    uses a value in another order of its axes uses the value."""
    uses, fused = Counter[Any](), Counter[Any]()
    for equation in reversed(jaxpr.eqns):
        name = equation.primitive.name
        for v in filter(is_variable, equation.invars):
            if name in _LAYOUT:
                uses[v] += uses[equation.outvars[0]]
                fused[v] += fused[equation.outvars[0]]
            else:
                uses[v] += 1
                fused[v] += name not in _APART
    return uses, fused


def _is_large(value: Any) -> bool:
    return value.size >= _LEAST and jnp.issubdtype(value.dtype, jnp.floating)


def _computed_once(*terms: Any, operation: Any, **params: Any) -> Any:
    return operation.bind(*terms, **params)
