"""Risks at the points of a plane, in compiled chunks of points and of samples.

Sums over samples run in float64, and no array of size samples × points is made unless the pointwise risk is
asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend
from thalweg.params import Layout
from thalweg.problem import Problem
from thalweg.risks import penalised, pointwise
from thalweg.rows import empty, put
from thalweg.tiling import Tiling
from thalweg.tuning import tuned


@backend.outermost(static_argnames=("wanted", "layout", "penalty", "tiling", "room"))
@tuned
def risks_of_chunks(
    problem: Problem,
    origin: Any,
    directions: Any,
    coordinates: tuple[Any, ...],
    start: Any,
    count: Any,
    *,
    wanted: tuple[str, ...],
    layout: Layout,
    penalty: bool,
    tiling: Tiling,
    room: int,
) -> dict[str, Any]:
    """The risks (room, points, …) of `count` chunks of points from chunk `start` on."""
    shape = tuple(len(c) for c in coordinates)

    def at_chunk(which: Any) -> dict[str, Any]:
        # Each point is computed as origin + Σ c_i d_i in double precision. Indices beyond the last point are
        # clipped, and the host drops those values.
        index = which * tiling.points + jnp.arange(tiling.points)
        place = jnp.unravel_index(jnp.minimum(index, math.prod(shape) - 1), shape)
        points = origin + sum(
            c[i][:, None] * d for c, i, d in zip(coordinates, place, directions, strict=True)
        )
        return _risks_at(problem, layout.unflatten(points), wanted, penalty, tiling)

    if room == 1:
        return {risk: values[None] for risk, values in at_chunk(start).items()}

    def body(row: Any, out: dict[str, Any]) -> dict[str, Any]:
        return put(out, row, at_chunk(start + row))

    return jax.lax.fori_loop(0, count, body, empty(jax.eval_shape(at_chunk, start), room))


def _risks_at(
    problem: Problem, points: Any, wanted: tuple[str, ...], penalty: bool, tiling: Tiling
) -> dict[str, Any]:
    """The risks at a chunk of points, a pytree with a leading axis."""

    def over_points(function: Callable[..., Any]) -> Any:
        return jax.vmap(function)(points)

    values: dict[str, Any] = {}
    if "pointwise" in wanted:
        each = over_points(partial(pointwise, problem))
        storable = each.dtype in (jnp.float32, jnp.float64)
        values["pointwise"] = each if storable else each.astype(float)
    if "empirical" in wanted:
        if "pointwise" in wanted and not tiling.entrywise:
            total = values["pointwise"].astype(float).sum(axis=1)
        else:
            total = _streamed(problem, over_points, tiling)
        risk = reduced(problem, total)
        if penalty:
            risk = risk + over_points(lambda w: penalised(problem, w, 0.0, True))
        values["empirical"] = risk
    if "expected" in wanted:
        values["expected"] = over_points(
            lambda w: penalised(problem, w, problem.expected_risk(w), penalty)
        ).astype(float)
    return values


def reduced(problem: Problem, total: Any) -> Any:
    """The risk whose sum over samples is `total`."""
    return total / max(problem.n_samples, 1) if problem.reduction == "mean" else total


def _streamed(
    problem: Problem, over_points: Callable[[Callable[..., Any]], Any], tiling: Tiling
) -> Any:
    """Sums of the pointwise risks over all samples, some at a time, in float64."""
    n, samples = problem.n_samples, tiling.samples
    if not n:
        return over_points(lambda w: pointwise(problem, w).astype(float).sum())

    def part_sum(first: Any, counts_from: Any) -> Any:
        """The sum over the samples from `first` on, without those before `counts_from`."""

        def at(offset: Any, size: int) -> Problem:
            x, y = jax.tree_util.tree_map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first + offset, size),
                (problem.x, problem.y),
            )
            return problem.replace(x=x, y=y)

        def fresh(values: Any, offset: Any) -> Any:
            if n % samples == 0:
                return values
            return jnp.where(first + offset >= counts_from, values, 0)

        if tiling.entrywise:
            terms = [
                fresh(over_points(lambda w, k=k: pointwise(at(k, 1), w)[0]), k)
                for k in range(samples)
            ]
            # Pairwise summation, so that the loss's own precision suffices.
            return _pairwise_sum(terms).astype(float)
        chunk = at(0, samples)
        return over_points(
            lambda w: fresh(pointwise(chunk, w).astype(float), jnp.arange(samples)).sum()
        )

    # Where the chunks do not divide the data, the last one starts early and leaves out samples that were
    # counted before.
    def add(part: Any, total: Any) -> Any:
        return total + part_sum(jnp.minimum(part * samples, n - samples), part * samples)

    if n == samples:
        return part_sum(0, 0)
    like = jax.eval_shape(part_sum, 0, 0)
    return jax.lax.fori_loop(0, -(-n // samples), add, jnp.zeros(like.shape))


def _pairwise_sum(terms: list[Any]) -> Any:
    while len(terms) > 1:
        last = terms[-1:] if len(terms) % 2 else []
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + last
    return terms[0]
