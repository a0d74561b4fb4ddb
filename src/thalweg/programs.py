"""Properties of a model that decide how best to evaluate it, read from its jaxpr.

Tracing takes a millisecond or two, as long as a small landscape: what was learnt is cached.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend, identity
from thalweg.jaxprs import CALLS, ENTRYWISE, jaxprs_in, names
from thalweg.problem import Problem
from thalweg.risks import pointwise

_LEARNT: dict[Any, Any] = {}

# fmt: off
# jaxlib's batched kernels run on a thread of XLA's pool, distribute the matrices over that same pool, and
# wait: two such programs at once, each holding one of two threads, deadlock. (Observed with QR; the others
# are built alike, or call foreign code that may do the same.)
_EXCLUSIVE = frozenset({
    "cholesky", "cholesky_update", "eig", "eigh", "ffi_call", "fft", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "pure_callback", "qr", "schur", "svd", "triangular_solve",
    "tridiagonal", "tridiagonal_solve",
})
# fmt: on


class Model(NamedTuple):
    """Properties of a model's program that decide how best to evaluate it."""

    entrywise: bool  # elementwise arithmetic only: evaluating one sample at a time gives the same
    sample_bytes: int  # operands and results of its matrix products and convolutions, per sample
    values: int  # pointwise risks: the samples, or the residuals of a problem without data
    dtype: np.dtype  # of the pointwise risks, as they are stored
    exclusive: bool  # whether no other program like it may run at the same time
    convolves: bool  # has convolutions, which are slow when batched over several models' weights


def learnt(problem: Problem, what: Any, learn: Callable[[], Any]) -> Any:
    """What `learn` finds out about a problem: done once for problems of the same functions and shapes."""
    leaves, treedef = jax.tree_util.tree_flatten(problem)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    key = (what, treedef, shapes, problem.layout)
    value = _LEARNT.get(key)  # one look-up: another thread may clear the cache at any time
    if value is not None:
        return value
    if len(_LEARNT) > 512:
        _LEARNT.clear()
    return _LEARNT.setdefault(key, learn())


def model_of(problem: Problem) -> Model:
    def learn() -> Model:
        program = jax.make_jaxpr(pointwise)(problem, problem.layout.like)
        dtype = np.dtype(program.out_avals[0].dtype)
        # A loss may be of an integer dtype, but points that are not reached are NaN; and netCDF has no half
        # precision.
        stored_dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(float)
        n = max(problem.n_samples, 1)
        sample_bytes = _product_bytes(program.jaxpr, n) // n
        values = program.out_avals[0].shape[0]
        risks = (problem.penalty, problem.expected_risk)
        risk_jaxprs = [jax.make_jaxpr(f)(problem.layout.like).jaxpr for f in risks if f is not None]
        exclusive = any(map(is_exclusive, (program.jaxpr, *risk_jaxprs)))
        convolves = "conv_general_dilated" in names(program.jaxpr)
        return Model(
            is_entrywise(program.jaxpr), sample_bytes, values, stored_dtype, exclusive, convolves
        )

    return learnt(problem, "model", learn)


def clear_caches() -> None:
    """Forget all compiled programs, and with them the arrays that functions close over.

    For sessions of days. JAX keeps what it compiled, for up to some thousands of functions: a small one takes
    a few megabytes, and one that reads an array from around it holds that as well. Arrays that are given to a
    problem (its data and parameters, and those in a `jax.tree_util.Partial`) are never held. What is freed
    goes back to the system, also where the C library would keep the memory of small objects (glibc).
    """
    jax.clear_caches()
    _LEARNT.clear()
    is_exclusive.cache_clear()
    identity.forget()
    # a cache that holds functions, and that jax.clear_caches leaves out
    module = importlib.import_module("jax._src.api_util")
    getattr(getattr(module, "donation_vector", None), "cache_clear", lambda: None)()
    backend.return_memory()


def workers(problem: Problem) -> int:
    """How many programs of a problem run best concurrently."""
    return 1 if model_of(problem).exclusive else backend.workers()


@functools.lru_cache(512)
def is_exclusive(jaxpr: Any) -> bool:
    """Whether another program like this one must not run at the same time: it computes with LAPACK."""
    return not _EXCLUSIVE.isdisjoint(names(jaxpr))


def is_entrywise(jaxpr: Any) -> bool:
    """Whether a program is elementwise arithmetic only, sample by sample."""

    def keeps_samples(equation: Any) -> bool:
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return before[:1] == after[:1]

    return all(
        equation.primitive.name in ENTRYWISE
        or (equation.primitive.name in ("reshape", "squeeze") and keeps_samples(equation))
        or (equation.primitive.name in CALLS and all(map(is_entrywise, jaxprs_in(equation))))
        for equation in jaxpr.eqns
    )


def _product_bytes(jaxpr: Any, n: int) -> int:
    """Bytes of the operands and results of matrix products and convolutions, for n samples."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
            total += sum(a.size * a.dtype.itemsize for a in arrays if n in a.shape)
        total += sum(_product_bytes(inner, n) for inner in jaxprs_in(equation))
    return total
