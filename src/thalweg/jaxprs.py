"""Jaxprs nested in equations (of calls, loops and branches): how to walk, rewrite and inline them."""

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
# What a call consists of that is inlined
_SIMPLE = ENTRYWISE | {"add_any", "reduce_max", "reduce_min", "reduce_sum", "reshape", "squeeze"}
CALLS = frozenset({"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"})


def programs_in(equation: Any) -> list[Any]:
    """The jaxprs among an equation's parameters, as ClosedJaxprs where they carry constants."""
    parameters = [v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values()]
    return [v for programs in parameters for v in programs if is_program(v)]


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
    """The constant arrays of a program; its text shows only their shapes."""
    yield from getattr(program, "consts", ())
    for equation in program.eqns:
        yield from (v.val for v in equation.invars if np.ndim(getattr(v, "val", 0)))
        for inner in programs_in(equation):
            yield from array_constants(inner)


def is_program(parameter: Any) -> bool:
    """Whether an equation's parameter is a jaxpr, with or without its constants."""
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")


def rewritten(program: Any, rewrite: Rewrite) -> Any:
    """A jaxpr, with or without its constants, whose equations are replaced by those that `rewrite` returns
    for it; nested jaxprs are rewritten first. A jaxpr that does not change stays the same object, and one
    that occurs in several places stays shared, so that it is compiled once."""
    # by id: keeping the old program in the pair prevents its id from being reused
    done: dict[int, tuple[Any, Any]] = {}

    def rewritten_once(program: Any) -> Any:
        if id(program) not in done:
            done[id(program)] = program, rebuilt(program)
        return done[id(program)][1]

    def rebuilt(program: Any) -> Any:
        inner = getattr(program, "jaxpr", program)
        if inner is not program:  # from JAX 0.12 on, all jaxprs have their constants in them
            new = rewritten_once(inner)
            return program if new is inner else core.ClosedJaxpr(new, program.consts)
        equations = [with_rewritten_params(equation) for equation in program.eqns]
        equations = rewrite(program.replace(eqns=equations))
        return program if _same(equations, program.eqns) else program.replace(eqns=equations)

    def with_rewritten_params(equation: Any) -> Any:
        if equation.primitive.name == "shard_map":  # its arrays have types of their own
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
        return rewritten_once(parameter) if is_program(parameter) else parameter

    return rewritten_once(program)


def inlined(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with calls of functions that are arithmetic and reductions alone inlined."""
    operands = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    used = set(filter(is_variable, operands))
    equations = []
    for equation in jaxpr.eqns:
        inner = _inside(equation)
        if inner is None:
            equations.append(equation)
            continue
        renamed = dict(zip(inner.invars, equation.invars, strict=True))
        for result, out in zip(inner.outvars, equation.outvars, strict=True):
            if out in used:
                renamed[result] = out
        for inner_equation in inner.eqns:
            equations.append(
                inner_equation.replace(
                    invars=[renamed[v] if is_variable(v) else v for v in inner_equation.invars],
                    outvars=[
                        renamed.setdefault(v, core.Var(v.aval)) for v in inner_equation.outvars
                    ],
                )
            )
    return equations


def _inside(equation: Any) -> Any:
    """The jaxpr of a call that can be inlined, else None. Calls inside it were inlined before, as `rewritten`
    starts with the innermost jaxprs."""
    jaxprs = jaxprs_in(equation)
    if equation.primitive.name not in CALLS or equation.ctx.xla_metadata or len(jaxprs) != 1:
        return None
    (jaxpr,) = jaxprs
    results = set(filter(is_variable, jaxpr.outvars))
    written = {v for each in jaxpr.eqns for v in each.outvars}
    if jaxpr.constvars or not results <= written or len(results) < len(jaxpr.outvars):
        return None
    return jaxpr if {each.primitive.name for each in jaxpr.eqns} <= _SIMPLE else None


def is_variable(operand: Any) -> bool:
    """Whether an equation's operand is a variable, not a literal."""
    return not isinstance(operand, core.Literal)


def call_for(
    equation: Any, function: Function, outvars: Sequence[Any] | None = None, /, *,
    compiled: Callable[[Function], Function] = jax.jit, **static: Any,
) -> Any:  # fmt: skip
    """A call of `function` with the operands of `equation`, to replace it.

    Args:
        function: takes the operands, which are arrays, and the hashable `static` arguments by keyword.
        outvars: the variables that the call writes to; by default those of `equation`.
        compiled: how to compile it: `jax.jit`, or `thalweg.backend.outlined`.
    """
    arrays = ((v.aval.shape, v.aval.dtype) for v in equation.invars)
    call = _call(function, compiled, tuple(static.items()), *arrays)
    return call.replace(
        invars=equation.invars,
        outvars=equation.outvars if outvars is None else outvars,
        source_info=equation.source_info,
        ctx=equation.ctx,
    )


@functools.lru_cache(maxsize=2048)  # equal calls are then traced, and compiled, once
def _call(
    function: Function, compiled: Any, static: Any, *shapes_and_dtypes: tuple[Any, Any]
) -> Any:
    def of_arrays(*arrays: Any) -> Any:
        return function(*arrays, **dict(static))

    of_arrays.__name__ = function.__name__.lstrip("_")  # the name that profiles show
    shapes = (jax.ShapeDtypeStruct(*array) for array in shapes_and_dtypes)
    (equation,) = jax.make_jaxpr(compiled(of_arrays))(*shapes).eqns
    return equation


def _same(some: Any, others: Any) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))
