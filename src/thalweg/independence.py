"""Whether the pointwise risks of some samples can be computed from these samples alone.

Read from the model's program where that says so, and tested where it does not.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from thalweg import losses
from thalweg.jaxprs import programs_in
from thalweg.problem import Problem
from thalweg.programs import is_entrywise, learnt, model_of
from thalweg.risks import pointwise

# How many samples to test for independence of each other. Primes, so that no pattern that repeats among the
# samples divides them evenly.
_MANY, _FEW = 37, 5
_ROOM = 32 * 2**20  # bytes of activations of _MANY samples, above which _FEW are tested
_CHANGED = (0, 0, -1, -1)  # index of the sample that is changed in each variant
# Tolerance for rounding, which depends on a sample's position in a batch: in ulps of the largest prediction.
_ROUNDING = 1e3


def splits(problem: Problem, size: int) -> bool:
    """Whether the pointwise risks of `size` samples can be computed from these samples alone.

    A model may use the number of samples (x / len(x)) or hold an array with an entry per sample: on a part
    of the data it is then another function. Two traces show this: they must have the same operations with
    the same constants, and one risk per sample. A model may also compare samples with each other
    (x / x.max()) or use their positions, which is tested by evaluating it. (Not inside a trace, where there
    are no numbers to evaluate it with.)
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
        """Whether a part is the same program, and whether that is elementwise and needs no further test."""
        n = problem.n_samples
        try:
            part = trace(size)
            if part.out_avals[0].shape != (size,):
                return False, False
            same = _skeleton(part) == _skeleton(trace(n))
            if not same and size == 1:  # JAX traces a batch of one differently; compare one of two
                part = trace(2)
                same = _skeleton(part) == _skeleton(trace(max(n, 3)))
        except (TypeError, ValueError):  # an array inside does not fit another number of samples
            return False, False
        return same, same and is_entrywise(part.jaxpr)

    same, entrywise = learnt(problem, size, learn)
    traced = any(isinstance(v, Tracer) for v in jax.tree_util.tree_leaves(problem))
    if not same or entrywise or traced:
        return same
    inside = _digest((problem.predict, problem.loss))
    return learnt(problem, ("independent", inside), partial(_are_independent, problem))


def _skeleton(program: Any) -> list[Any]:
    """The operations and constants of a program, without shapes, but with what slices cut off."""
    parts: list[Any] = [np.asarray(c).tobytes() for c in getattr(program, "consts", ())]
    for equation in getattr(program, "jaxpr", program).eqns:
        parts += [equation.primitive.name, _cut(equation)]
        parts += [np.asarray(v.val).tobytes() for v in equation.invars if hasattr(v, "val")]
        for inner in programs_in(equation):
            parts += _skeleton(inner)
    return parts


def _cut(equation: Any) -> Any:
    """What a slice cuts off each axis: one at a fixed sample position cuts off more where there are more
    samples."""
    params = equation.params
    if equation.primitive.name == "slice":
        shape = equation.invars[0].aval.shape
        after = tuple(np.subtract(shape, params["limit_indices"]).tolist())
        return params["start_indices"], after, params["strides"]
    if equation.primitive.name == "dynamic_slice":
        return tuple(np.subtract(equation.invars[0].aval.shape, params["slice_sizes"]).tolist())
    return params.get("sizes")


def _digest(functions: Any) -> bytes:
    """Digest of the numbers inside a model, on which it may depend whether the model compares samples."""
    digest = hashlib.blake2b()
    for leaf in jax.tree_util.tree_leaves(functions):
        digest.update(np.asarray(leaf).tobytes())
    return digest.digest()


def _are_independent(problem: Problem) -> bool:
    """Whether each sample's prediction is the same whatever the other samples are, and in whatever order.

    Tested with the first samples. When one of them becomes larger or smaller than all others, the predictions
    of the others must not change in a single bit (they would where an iteration runs until the slowest sample
    has converged); and when the samples are permuted, so must be their predictions, up to rounding.
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
        except Exception:  # a model may check its inputs, or need more samples than these
            continue
    return False


def _tried(problem: Problem, params: Any, count: int, within: bool) -> bool:
    """The test of `_are_independent` on `count` samples, changed `within` the data's range or beyond it."""
    leaves, treedef = jax.tree_util.tree_flatten((problem.x, problem.y))
    # on the host: JAX would compile a program for each change of each array
    variants = zip(*(_variants(np.asarray(leaf), count, within) for leaf in leaves), strict=True)
    as_they_are, *changed = map(treedef.unflatten, variants)
    with jax.debug_nans(False), jax.debug_infs(False), np.errstate(all="ignore"):
        nonzero = jax.tree_util.tree_map(_off_zero, params)
        first = _evaluated(problem, nonzero, as_they_are)
        if not np.isfinite(first[0]).all():  # the model is not defined near its parameters
            nonzero, first = params, _evaluated(problem, params, as_they_are)
        evaluations = [first, *(_evaluated(problem, nonzero, variant) for variant in changed)]
        risks, predictions = jax.tree_util.tree_map(
            lambda *several: np.stack(several), *evaluations
        )
        # a user's loss may depend on positions; ours do not, and lose digits where the model fits well
        with_places = predictions if losses.is_entrywise(problem.loss) else [risks, *predictions]
        return all(map(_unmoved, [risks, *predictions])) and all(map(_move_along, with_places))


def _unmoved(values: np.ndarray) -> bool:
    """Whether in values (variant, sample, ...) those of unchanged samples stayed exactly the same."""
    return all(
        np.array_equal(
            np.delete(values[0], index, axis=0), np.delete(variant, index, axis=0), equal_nan=True
        )
        for index, variant in zip(_CHANGED, values[1:-1], strict=True)
    )


def _move_along(values: np.ndarray) -> bool:
    """Whether values (variant, sample, ...) are permuted as the samples were in the last variant."""
    before, after = _turned(values[0]), values[-1]
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return np.array_equal(before, after)
    off, size = np.abs(before - after), np.abs(before)
    tolerance = min(_ROUNDING * float(jnp.finfo(values.dtype).eps), 0.05)
    limit = tolerance * size[np.isfinite(size)].max(initial=0)
    return bool((off[np.isfinite(off)] <= limit).all())


def _variants(leaf: np.ndarray, count: int, within: bool) -> np.ndarray:
    """(variant, sample, ...): the first samples unchanged, then with one of them changed, then permuted."""
    rows = leaf[:count]
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not within:
        most = float(jnp.finfo(leaf.dtype).max) / 4
        beyond = 2 * (1 + min(float(np.abs(rows).max(initial=0)), most))
        ends: Any = beyond, -beyond
    else:  # integers may be indices into a table, so stay in range; the first samples may all be equal
        high, low = leaf.max(axis=0), leaf.min(axis=0)
        other = ~high if leaf.dtype == bool else high + 1
        ends = np.where(high == low, other, high), np.where(high == low, other, low)
    variants = np.stack([rows] * (len(_CHANGED) + 2))
    for variant, place, end in zip(variants[1:], _CHANGED, ends * 2, strict=False):
        variant[place] = end
    variants[-1] = _turned(rows)
    return variants


def _turned(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, max(len(rows) // 2, 1), axis=0)


@jax.jit
def _evaluated(problem: Problem, params: Any, data: Any) -> tuple[Any, list[Any]]:
    """Risks and predictions of the samples `data`."""
    x, y = data
    problem = problem.replace(x=x, y=y, mask=None)
    risks = pointwise(problem, params)
    predictions = jax.tree_util.tree_leaves(problem.predict(params, x))
    return risks, [p for p in predictions if jnp.shape(p)[:1] == risks.shape]


def _off_zero(leaf: Any) -> Any:
    """Parameters near these without zeros: a last layer of zeros would hide what the layers before it do."""
    leaf = np.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    change = 1e-2 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)
    return np.where(leaf == 0, change, leaf * (1 + change)).astype(leaf.dtype)
