"""The jaxprs inside a jaxpr's equation: of a call, a loop, a branch."""

from __future__ import annotations

from typing import Any


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
