"""The jaxprs inside a jaxpr's equation (of a call, a loop, a branch), and other equations for them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

Rewrite = Callable[[Sequence[Any]], list[Any]]


def programs_in(equation: Any) -> list[Any]:
    """Those jaxprs, with their constants where they have any of their own."""
    held = [v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values()]
    return [v for several in held for v in several if is_program(v)]


def jaxprs_in(equation: Any) -> list[Any]:
    """Those jaxprs alone."""
    return [getattr(program, "jaxpr", program) for program in programs_in(equation)]


def is_program(parameter: Any) -> bool:
    """Whether an equation's parameter is a jaxpr, with or without its constants."""
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")


def rewritten(program: Any, rewrite: Rewrite) -> Any:
    """A jaxpr, with or without its constants, with the equations that `rewrite` gives for its own, and so for
    every jaxpr inside it. What `rewrite` leaves as it is stays the same object."""
    inner = getattr(program, "jaxpr", program)
    if inner is not program:  # from JAX 0.12 on, all jaxprs have their constants in them
        other = rewritten(inner, rewrite)
        return program if other is inner else core.ClosedJaxpr(other, program.consts)
    equations = rewrite([_with_others_inside(equation, rewrite) for equation in program.eqns])
    return program if _same(equations, program.eqns) else program.replace(eqns=equations)


def _with_others_inside(equation: Any, rewrite: Rewrite) -> Any:
    params = {name: _renewed(value, rewrite) for name, value in equation.params.items()}
    same = _same(params.values(), equation.params.values())
    return equation if same else equation.replace(params=params)


def _renewed(parameter: Any, rewrite: Rewrite) -> Any:
    if isinstance(parameter, (tuple, list)) and any(map(is_program, parameter)):
        others = [_renewed(part, rewrite) for part in parameter]
        return parameter if _same(others, parameter) else type(parameter)(others)
    return rewritten(parameter, rewrite) if is_program(parameter) else parameter


def _same(some: Any, others: Any) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))
