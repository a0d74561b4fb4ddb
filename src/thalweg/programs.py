"""What a model's program says of the best way to evaluate it, read from its jaxpr.

Tracing takes a millisecond or two, as long as a small landscape: what was learnt is kept.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from thalweg import backend, identity, losses
from thalweg.jaxprs import CALLS, ENTRYWISE, jaxprs_in, names, programs_in
from thalweg.problem import Problem, pointwise

_LEARNT: dict[Any, Any] = {}
# How many samples tell whether they stand alone: primes, as a pattern that repeats among the samples does
# not fit into them.
_MANY, _FEW = 37, 5
_ROOM = 32 * 2**20  # bytes of activations of many, above which few must do
_CHANGED = (0, 0, -1, -1)  # which of them are changed, in turn
# At another place in a batch a sample is rounded otherwise, by units in the largest prediction's last place.
_ROUNDING = 1e3

# fmt: off
# jaxlib's kernels for several matrices share them out to XLA's own threads, from one of these, and wait:
# two such programs at once, each of which holds one of two threads, wait for ever. (Seen with QR; the others
# are built alike, or call code that nobody here knows.)
_EXCLUSIVE = frozenset({
    "cholesky", "cholesky_update", "eig", "eigh", "ffi_call", "fft", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "pure_callback", "qr", "schur", "svd", "triangular_solve",
    "tridiagonal", "tridiagonal_solve",
})
# fmt: on


class Model(NamedTuple):
    """What a model's program says of the best way to evaluate it."""

    entrywise: bool  # nothing but entry-by-entry arithmetic: one sample at a time is the same
    sample_bytes: int  # what goes through its products and convolutions, a sample
    values: int  # pointwise risks: the samples, or the residuals of a problem without data
    dtype: np.dtype  # of the pointwise risks, as they are kept
    exclusive: bool  # whether no other program may run beside one of it
    convolves: bool  # a convolution takes long for several models' weights at once


def _learnt(problem: Problem, what: Any, learn: Callable[[], Any]) -> Any:
    leaves, treedef = jax.tree_util.tree_flatten(problem)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    key = (what, treedef, shapes, problem.layout)
    known = _LEARNT.get(key)  # another thread may clear them at any time
    if known is not None:
        return known
    if len(_LEARNT) > 512:
        _LEARNT.clear()
    return _LEARNT.setdefault(key, learn())


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
        exclusive = any(map(is_exclusive, (program.jaxpr, *others)))
        convolves = "conv_general_dilated" in names(program.jaxpr)
        return Model(_is_entrywise(program.jaxpr), sample_bytes, values, kept, exclusive, convolves)

    return _learnt(problem, "model", learn)


def clear_caches() -> None:
    """Forget all compiled programs, and with them the arrays that functions close over.

    For sessions of days. JAX keeps what it compiled, for up to some thousands of functions: a small one takes
    a few megabytes, and one that reads an array from around it holds that as well. Arrays that are given to a
    problem (its data and parameters, and those in a `jax.tree_util.Partial`) are never held.
    """
    jax.clear_caches()
    _LEARNT.clear()
    identity.forget()
    # it knows functions by their arguments' structure, and clear_caches does not know it
    known = importlib.import_module("jax._src.api_util")
    getattr(getattr(known, "donation_vector", None), "cache_clear", lambda: None)()


def workers(problem: Problem) -> int:
    """How many programs of a problem run best side by side."""
    return 1 if model_of(problem).exclusive else backend.workers()


def is_exclusive(jaxpr: Any) -> bool:
    """Whether another program like this one must not run at the same time."""
    return not _EXCLUSIVE.isdisjoint(names(jaxpr))


def splits(problem: Problem, size: int) -> bool:
    """Whether the pointwise risks of `size` samples are computed as those of all are.

    A model may use the number of samples (x / len(x)) or hold an array with an entry for each: it is
    then another function of a part of the data. Two traces tell: the same operations with the same
    constants, and one risk a sample. And it may compare samples with each other (x / x.max()) or know
    their places, which is tried. (Not inside a trace, where there are no numbers to try it with.)
    """

    if size >= problem.n_samples:
        return True

    def trace(count: int) -> Any:
        x, y = jax.tree_util.tree_map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
            (problem.x, problem.y),
        )
        return jax.make_jaxpr(pointwise)(problem.replace(x=x, y=y), problem.layout.like)

    def learn() -> tuple[bool, bool]:
        """Whether a part is the same program, and whether that has nothing to be tried."""
        n = problem.n_samples
        try:
            part = trace(size)
            if part.out_avals[0].shape != (size,):
                return False, False
            same = _skeleton(part) == _skeleton(trace(n))
            if not same and size == 1:  # JAX writes a batch of one otherwise; two are a part too
                part = trace(2)
                same = _skeleton(part) == _skeleton(trace(max(n, 3)))
        except (TypeError, ValueError):  # an array inside does not fit another number of samples
            return False, False
        return same, same and _is_entrywise(part.jaxpr)

    same, entrywise = _learnt(problem, size, learn)
    traced = any(isinstance(v, Tracer) for v in jax.tree_util.tree_leaves(problem))
    if not same or entrywise or traced:
        return same
    inside = _digest((problem.predict, problem.loss))
    return _learnt(problem, ("independent", inside), partial(_are_independent, problem))


def _digest(functions: Any) -> bytes:
    """The numbers inside a model, which decide with its program whether it compares samples."""
    digest = hashlib.blake2b()
    for leaf in jax.tree_util.tree_leaves(functions):
        digest.update(np.asarray(leaf).tobytes())
    return digest.digest()


def _are_independent(problem: Problem) -> bool:
    """Whether samples are predicted alike whatever the others are, and wherever they stand among them.

    Tried with the first ones. Where one of them becomes larger or smaller than all others, those must stay
    as they are, to the last bit (which they do not where an iteration ends with the slowest of them); and
    when all change places, so must their predictions, but for rounding.
    """
    params = problem.params
    if params is None:
        assert problem.init is not None
        params = problem.init(jax.random.key(0))
    few = model_of(problem).sample_bytes * _MANY > _ROOM
    count = min(_FEW if few else _MANY, problem.n_samples)
    for within in (False, True):
        try:
            return _tried(problem, params, count, within)
        except Exception:  # a model may check its inputs, or take more samples than these
            continue
    return False


def _tried(problem: Problem, params: Any, count: int, within: bool) -> bool:
    """The trial of `_are_independent`: `count` samples, changed `within` the values that there are or not."""
    leaves, treedef = jax.tree_util.tree_flatten((problem.x, problem.y))
    # on the host: JAX would compile a program for each change of each array
    each = zip(*(_variants(np.asarray(leaf), count, within) for leaf in leaves), strict=True)
    as_they_are, *changed = map(treedef.unflatten, each)
    with jax.debug_nans(False), jax.debug_infs(False), np.errstate(all="ignore"):
        moved = jax.tree_util.tree_map(_off_zero, params)
        first = _evaluated(problem, moved, as_they_are)
        if not np.isfinite(first[0]).all():  # there are no parameters beside these
            moved, first = params, _evaluated(problem, params, as_they_are)
        found = [first, *(_evaluated(problem, moved, variant) for variant in changed)]
        risks, predictions = jax.tree_util.tree_map(lambda *several: np.stack(several), *found)
        # a loss of the user's may know places; those of ours do not, and lose digits where the model fits
        with_places = predictions if losses.is_entrywise(problem.loss) else [risks, *predictions]
        return all(map(_unmoved, [risks, *predictions])) and all(map(_move_along, with_places))


def _unmoved(values: np.ndarray) -> bool:
    """Whether the rows that did not change have the values (variant, sample, ...) that they had."""
    return all(
        np.array_equal(
            np.delete(values[0], place, axis=0), np.delete(row, place, axis=0), equal_nan=True
        )
        for place, row in zip(_CHANGED, values[1:-1], strict=True)
    )


def _move_along(values: np.ndarray) -> bool:
    """Whether values (variant, sample, ...) change places as their samples did in the last variant."""
    before, after = _turned(values[0]), values[-1]
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return np.array_equal(before, after)
    off, size = np.abs(before - after), np.abs(before)
    tolerance = min(_ROUNDING * float(jnp.finfo(values.dtype).eps), 0.05)
    limit = tolerance * size[np.isfinite(size)].max(initial=0)
    return bool((off[np.isfinite(off)] <= limit).all())


def _variants(leaf: np.ndarray, count: int, within: bool) -> np.ndarray:
    """(variant, sample, ...): the first ones as they are, with one of them changed, and in other places."""
    rows = leaf[:count]
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not within:
        most = float(jnp.finfo(leaf.dtype).max) / 4
        beyond = 2 * (1 + min(float(np.abs(rows).max(initial=0)), most))
        ends: Any = beyond, -beyond
    else:  # whole numbers may be places in a table, and the first of them all alike
        high, low = leaf.max(axis=0), leaf.min(axis=0)
        other = ~high if leaf.dtype == bool else high + 1
        ends = np.where(high == low, other, high), np.where(high == low, other, low)
    found = np.stack([rows] * (len(_CHANGED) + 2))
    for variant, place, end in zip(found[1:], _CHANGED, ends * 2, strict=False):
        variant[place] = end
    found[-1] = _turned(rows)
    return found


def _turned(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, max(len(rows) // 2, 1), axis=0)


@jax.jit
def _evaluated(problem: Problem, params: Any, data: Any) -> tuple[Any, list[Any]]:
    """Risks and predictions of other samples."""
    x, y = data
    problem = problem.replace(x=x, y=y, mask=None)
    risks = pointwise(problem, params)
    predictions = jax.tree_util.tree_leaves(problem.predict(params, x))
    return risks, [p for p in predictions if jnp.shape(p)[:1] == risks.shape]


def _off_zero(leaf: Any) -> Any:
    """Parameters near these without zeros, which would hide what a network's last layer is given."""
    leaf = np.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    change = 1e-2 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)
    return np.where(leaf == 0, change, leaf * (1 + change)).astype(leaf.dtype)


def _is_entrywise(jaxpr: Any) -> bool:
    def keeps_samples(equation: Any) -> bool:
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return before[:1] == after[:1]

    return all(
        equation.primitive.name in ENTRYWISE
        or (equation.primitive.name in ("reshape", "squeeze") and keeps_samples(equation))
        or (equation.primitive.name in CALLS and all(map(_is_entrywise, jaxprs_in(equation))))
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
    """The operations and constants of a program, without shapes, but with what is cut off arrays."""
    parts: list[Any] = [np.asarray(c).tobytes() for c in getattr(program, "consts", ())]
    for equation in getattr(program, "jaxpr", program).eqns:
        parts += [equation.primitive.name, _cut(equation)]
        parts += [np.asarray(v.val).tobytes() for v in equation.invars if hasattr(v, "val")]
        for inner in programs_in(equation):
            parts += _skeleton(inner)
    return parts


def _cut(equation: Any) -> Any:
    """What an operation takes off each axis; one that knows a sample's place takes more off more of them."""
    params = equation.params
    if equation.primitive.name == "slice":
        shape = equation.invars[0].aval.shape
        after = tuple(np.subtract(shape, params["limit_indices"]).tolist())
        return params["start_indices"], after, params["strides"]
    if equation.primitive.name == "dynamic_slice":
        return tuple(np.subtract(equation.invars[0].aval.shape, params["slice_sizes"]).tolist())
    return params.get("sizes")
