"""What a model's program says of the best way to evaluate it, read from its jaxpr.

Tracing takes a millisecond or two, as long as a small landscape: what was learnt is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from thalweg import backend, losses
from thalweg.jaxprs import jaxprs_in, programs_in
from thalweg.problem import Problem, pointwise

_LEARNT: dict[Any, Any] = {}
# Batches of other sizes round otherwise; a model that mixes its samples is off by far more.
_SAME = 1e-2
_ROUNDING = 1e3  # units in the last place of the largest prediction

# fmt: off
_ENTRYWISE = frozenset({
    "abs", "acos", "add", "and", "asin", "atan", "atan2", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
})
# jaxlib's kernels for several matrices share them out to XLA's own threads, from one of these, and wait:
# two such programs at once, each of which holds one of two threads, wait for ever. (Seen with QR; the others
# are built alike, or call code that nobody here knows.)
_ALONE = frozenset({
    "cholesky", "cholesky_update", "eig", "eigh", "ffi_call", "fft", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "pure_callback", "qr", "schur", "svd", "triangular_solve",
    "tridiagonal", "tridiagonal_solve",
})
# fmt: on
_CALLS = frozenset({"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"})


class Model(NamedTuple):
    """What a model's program says of the best way to evaluate it."""

    entrywise: bool  # nothing but entry-by-entry arithmetic: one sample at a time is the same
    sample_bytes: int  # what goes through its products and convolutions, a sample
    values: int  # pointwise risks: the samples, or the residuals of a problem without data
    dtype: np.dtype  # of the pointwise risks, as they are kept
    alone: bool  # whether two of its programs must not run at once
    convolves: bool  # a convolution takes long for several models' weights at once


def _learnt(problem: Problem, what: Any, learn: Callable[[], Any]) -> Any:
    leaves, treedef = jax.tree_util.tree_flatten(problem)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    key = (what, treedef, shapes, problem.layout)
    if key not in _LEARNT:
        if len(_LEARNT) > 512:
            _LEARNT.clear()
        _LEARNT[key] = learn()
    return _LEARNT[key]


def model_of(problem: Problem) -> Model:
    def learn() -> Model:
        program = jax.make_jaxpr(pointwise)(problem, problem.layout.like)
        dtype = np.dtype(program.out_avals[0].dtype)
        # A loss may count in integers, and points that are not reached are NaN; netCDF has no half
        # precision.
        kept = dtype if dtype in (np.float32, np.float64) else np.dtype(float)
        n = max(problem.n_samples, 1)
        sample_bytes = _product_bytes(program.jaxpr, n) // n
        values = program.out_avals[0].shape[0]
        risks = (problem.penalty, problem.expected_risk)
        others = [jax.make_jaxpr(f)(problem.layout.like).jaxpr for f in risks if f is not None]
        alone = any(map(runs_alone, (program.jaxpr, *others)))
        convolves = "conv_general_dilated" in _names(program.jaxpr)
        return Model(_is_entrywise(program.jaxpr), sample_bytes, values, kept, alone, convolves)

    return _learnt(problem, "model", learn)


def workers(problem: Problem) -> int:
    """How many programs of a problem run best side by side."""
    return 1 if model_of(problem).alone else backend.workers()


def runs_alone(jaxpr: Any) -> bool:
    """Whether another program like this one must not run at the same time."""
    return not _ALONE.isdisjoint(_names(jaxpr))


def _names(jaxpr: Any) -> set[str]:
    """The names of a program's operations."""
    inner = (name for e in jaxpr.eqns for part in jaxprs_in(e) for name in _names(part))
    return {*(equation.primitive.name for equation in jaxpr.eqns), *inner}


def splits(problem: Problem, size: int) -> bool:
    """Whether the pointwise risks of `size` samples are computed as those of all are.

    A model may use the number of samples (x / len(x)) or hold an array with an entry for each: it is
    then another function of a part of the data. Two traces tell: the same operations with the same
    constants, and one risk a sample. And it may compare samples with each other (x / x.max()), which no
    trace tells: the risks of the first samples must not depend on those that follow. (Inside a trace there
    are no numbers to tell it by.)
    """

    if size >= problem.n_samples:
        return True

    def trace(count: int) -> Any:
        x, y = jax.tree_util.tree_map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
            (problem.x, problem.y),
        )
        return jax.make_jaxpr(pointwise)(problem.replace(x=x, y=y), problem.layout.like)

    def learn() -> bool:
        try:
            part = trace(size)
        except (TypeError, ValueError):  # an array inside does not fit another number of samples
            return False
        return (
            part.out_avals[0].shape == (size,)
            and _skeleton(part) == _skeleton(trace(problem.n_samples))
            and (traced or _is_entrywise(part.jaxpr) or _stand_alone(problem, size))
        )

    traced = any(isinstance(v, Tracer) for v in jax.tree_util.tree_leaves(problem))
    return _learnt(problem, (size, traced), learn)


def _stand_alone(problem: Problem, size: int) -> bool:
    """Whether the first one or two risks are the same with and without the samples that follow."""
    few = min(size, 2)
    more = min(max(size, few + 1), problem.n_samples)
    params = problem.params
    if params is None:
        assert problem.init is not None
        params = problem.init(jax.random.key(0))
    alone, among = _first_of(problem, params, few=few, more=more)
    if _alike(alone[0], among[0], _SAME, each=True):
        return True
    # Where the model fits, a risk is a rounding error: then it is for the predictions to tell
    if not losses.is_entrywise(problem.loss):
        return False
    leaves = map(jax.tree_util.tree_leaves, (alone[1], among[1]))
    return all(
        _alike(a, b, _ROUNDING * float(jnp.finfo(a.dtype).eps), each=False)
        for a, b in zip(*leaves, strict=True)
    )


def _alike(some: Any, others: Any, tolerance: float, each: bool) -> bool:
    """Whether two arrays agree, relative to each number or to the largest. An overflow says nothing."""
    some, others = (np.asarray(array, float) for array in (some, others))
    there = np.isfinite(some) & np.isfinite(others)
    size = np.maximum(np.abs(some), np.abs(others))[there]
    off = np.abs(some - others)[there]
    return bool((off <= tolerance * (size if each else size.max(initial=0))).all())


@partial(jax.jit, static_argnames=("few", "more"))
def _first_of(problem: Problem, params: Any, *, few: int, more: int) -> tuple[Any, Any]:
    """The first few risks and predictions, computed alone and among more."""

    def of_the_first(count: int) -> Any:
        x, y = jax.tree_util.tree_map(lambda leaf: leaf[:count], (problem.x, problem.y))
        part = problem.replace(x=x, y=y, mask=None)
        found = pointwise(part, params), part.predict(params, x)
        return jax.tree_util.tree_map(lambda leaf: leaf[:few], found)

    return of_the_first(few), of_the_first(more)


def _is_entrywise(jaxpr: Any) -> bool:
    def keeps_samples(equation: Any) -> bool:
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return before[:1] == after[:1]

    return all(
        equation.primitive.name in _ENTRYWISE
        or (equation.primitive.name in ("reshape", "squeeze") and keeps_samples(equation))
        or (equation.primitive.name in _CALLS and all(map(_is_entrywise, jaxprs_in(equation))))
        for equation in jaxpr.eqns
    )


def _product_bytes(jaxpr: Any, n: int) -> int:
    """Bytes of what goes into products and convolutions, and comes out, of n samples."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
            total += sum(a.size * a.dtype.itemsize for a in arrays if n in a.shape)
        total += sum(_product_bytes(inner, n) for inner in jaxprs_in(equation))
    return total


def _skeleton(program: Any) -> list[Any]:
    """The operations and constants of a program, without shapes."""
    parts: list[Any] = [np.asarray(c).tobytes() for c in getattr(program, "consts", ())]
    for equation in getattr(program, "jaxpr", program).eqns:
        parts.append(equation.primitive.name)
        parts += [np.asarray(v.val).tobytes() for v in equation.invars if hasattr(v, "val")]
        for inner in programs_in(equation):
            parts += _skeleton(inner)
    return parts
