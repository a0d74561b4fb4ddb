"""The jaxprs inside a jaxpr's equation (of a call, a loop, a branch), and other equations for them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

Rewrite = Callable[[Any], list[Any]]
Function = Callable[..., Any]

# fmt: off
ENTRYWISE = frozenset({
    "abs", "acos", "add", "and", "asin", "atan", "atan2", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
})
# fmt: on
CALLS = frozenset({"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"})


def programs_in(equation: Any) -> list[Any]:
    """The jaxprs among an equation's parameters, with their constants where they have any of their own."""
    held = [v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values()]
    return [v for several in held for v in several if is_program(v)]


def jaxprs_in(equation: Any) -> list[Any]:
    """The jaxprs among an equation's parameters, without constants."""
    return [getattr(program, "jaxpr", program) for program in programs_in(equation)]


def equations(program: Any) -> Iterator[Any]:
    """A program's equations, and those of the programs inside them."""
    for equation in program.eqns:
        yield equation
        for inner in jaxprs_in(equation):
            yield from equations(inner)


def names(program: Any) -> set[str]:
    """The names of a program's operations."""
    return {equation.primitive.name for equation in equations(program)}


def array_constants(program: Any) -> Iterator[Any]:
    """The arrays inside a program, of which its text has the shapes alone."""
    yield from getattr(program, "consts", ())
    for equation in program.eqns:
        yield from (v.val for v in equation.invars if np.ndim(getattr(v, "val", 0)))
        for inner in programs_in(equation):
            yield from array_constants(inner)


def is_program(parameter: Any) -> bool:
    """Whether an equation's parameter is a jaxpr, with or without its constants."""
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")


def rewritten(program: Any, rewrite: Rewrite) -> Any:
    """A jaxpr, with or without its constants, with the equations that `rewrite` gives for its own, and so for
    every jaxpr inside it. What `rewrite` leaves as it is stays the same object; and what is one object in
    several places stays one, to be compiled once."""
    # by identity, which the old one of each pair keeps from passing on to another
    done: dict[int, tuple[Any, Any]] = {}

    def other(program: Any) -> Any:
        if id(program) not in done:
            done[id(program)] = program, made(program)
        return done[id(program)][1]

    def made(program: Any) -> Any:
        inner = getattr(program, "jaxpr", program)
        if inner is not program:  # from JAX 0.12 on, all jaxprs have their constants in them
            same = (found := other(inner)) is inner
            return program if same else core.ClosedJaxpr(found, program.consts)
        equations = [with_others_inside(equation) for equation in program.eqns]
        equations = rewrite(program.replace(eqns=equations))
        return program if _same(equations, program.eqns) else program.replace(eqns=equations)

    def with_others_inside(equation: Any) -> Any:
        if equation.primitive.name == "shard_map":  # whose arrays are of a kind of their own
            return equation
        params = {name: renewed(value) for name, value in equation.params.items()}
        same = _same(params.values(), equation.params.values())
        return equation if same else equation.replace(params=params)

    def renewed(parameter: Any) -> Any:
        if isinstance(parameter, (tuple, list)) and any(map(is_program, parameter)):
            others = [renewed(part) for part in parameter]
            kind = type(parameter)
            build = getattr(kind, "_make", kind)  # a linear solve has its programs in a named tuple
            return parameter if _same(others, parameter) else build(others)
        return other(parameter) if is_program(parameter) else parameter

    return other(program)


def inlined(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with their own in place of the calls of functions that have nothing but arithmetic
    entry by entry in them."""
    taken = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    used = set(filter(is_variable, taken))
    found = []
    for equation in jaxpr.eqns:
        inner = _inside(equation)
        if inner is None:
            found.append(equation)
            continue
        named = dict(zip(inner.invars, equation.invars, strict=True))
        for result, out in zip(inner.outvars, equation.outvars, strict=True):
            if out in used:
                named[result] = out
        for each in inner.eqns:
            found.append(
                each.replace(
                    invars=[named[v] if is_variable(v) else v for v in each.invars],
                    outvars=[named.setdefault(v, core.Var(v.aval)) for v in each.outvars],
                )
            )
    return found


def _inside(equation: Any) -> Any:
    """The jaxpr of a call that can be inlined, whose own calls were before (`rewritten` begins inside)."""
    jaxprs = jaxprs_in(equation)
    if equation.primitive.name not in CALLS or equation.ctx.xla_metadata or len(jaxprs) != 1:
        return None
    (jaxpr,) = jaxprs
    results = set(filter(is_variable, jaxpr.outvars))
    made = {v for each in jaxpr.eqns for v in each.outvars}
    if jaxpr.constvars or not results <= made or len(results) < len(jaxpr.outvars):
        return None
    return jaxpr if {each.primitive.name for each in jaxpr.eqns} <= ENTRYWISE else None


def is_variable(operand: Any) -> bool:
    """Whether what an equation takes is a variable, and not a number."""
    return not isinstance(operand, core.Literal)


def call_for(
    equation: Any, function: Function, found: Sequence[Any] | None = None, /, *,
    compiled: Callable[[Function], Function] = jax.jit, **static: Any,
) -> Any:  # fmt: skip
    """An equation that takes the place of another: a call of `function` with what that one takes.

    Args:
        function: of arrays, and of what is `static` by keyword, which has a hash.
        found: the variables that it writes to; those of `equation` without it.
        compiled: how it is compiled, as with `thalweg.backend.apart`.
    """
    given = ((v.aval.shape, v.aval.dtype) for v in equation.invars)
    call = _call(function, compiled, tuple(static.items()), *given)
    return call.replace(
        invars=equation.invars,
        outvars=equation.outvars if found is None else found,
        source_info=equation.source_info,
        ctx=equation.ctx,
    )


@functools.lru_cache(maxsize=2048)  # what is the same is then traced, and compiled, once
def _call(function: Function, compiled: Any, static: Any, *given: tuple[Any, Any]) -> Any:
    def of_arrays(*arrays: Any) -> Any:
        return function(*arrays, **dict(static))

    of_arrays.__name__ = function.__name__.lstrip("_")  # which profiles show
    shapes = (jax.ShapeDtypeStruct(*array) for array in given)
    (equation,) = jax.make_jaxpr(compiled(of_arrays))(*shapes).eqns
    return equation


def _same(some: Any, others: Any) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))
