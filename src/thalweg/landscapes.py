"""`landscape`: risks evaluated on a plane.

Samples stream: nothing of size samples × grid is made unless the pointwise risk is asked for, and
sums over samples run in float64. Points go in chunks, many at a time where the model is tiny, one at
a time where its activations are large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from thalweg import backend, blocks, results
from thalweg.errors import InputError, unknown
from thalweg.planes import Plane
from thalweg.problem import Problem, penalised, pointwise

_POINTS = 2048  # in a chunk, at most
_SAMPLES = 4096  # in a chunk, at most: the sum over it is one fused loop
_ACTIVATIONS = 32 * 2**20  # bytes a chunk of points may keep between a model's layers
_ROWS = 64 * 2**20  # bytes of results held on the device at a time


def landscape(
    problem: Problem,
    plane: Plane,
    risks: str | Sequence[str] = ("empirical",),
    *,
    penalty: bool = True,
    progress: bool | None = None,
) -> xr.Dataset:
    """Risks on every point of a plane.

    Args:
        risks: of "empirical", "expected" and "pointwise".
        penalty: whether the problem's penalty is part of the empirical and the expected risk. The
            pointwise risk never holds it.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        An `xarray.Dataset` with the risks by name on the plane's axes, `pointwise` with a first
        dimension `sample`, and the plane itself (`origin`, `directions`). After Ctrl-C, points that
        were not reached are NaN and the attribute `interrupted` is 1.

    Raises:
        InputError: an unknown risk, a plane of another problem, a result too large for memory.
    """
    if not isinstance(plane, Plane):
        raise InputError(f"a plane was expected, {type(plane).__name__} given.")
    if plane.names != problem.names:
        raise InputError("the plane belongs to another problem: its parameters have other names.")
    wanted = (risks,) if isinstance(risks, str) else tuple(risks)
    for risk in wanted:
        if risk not in results.RISKS:
            raise unknown("risk", risk, results.RISKS)
    if not wanted:
        raise InputError(f"risks= is empty; ask for some of {', '.join(results.RISKS)}.")
    if "expected" in wanted and problem.expected_risk is None:
        raise InputError(
            "this problem has no expected risk; give it as Problem(..., expected=params -> scalar)."
        )
    values, interrupted = _evaluate(problem, plane, wanted, penalty, progress)
    data = plane.dataset()
    for risk in wanted:
        dims = ("sample", *plane.axes) if risk == "pointwise" else plane.axes
        shape = values[risk].shape[:-1]
        data[risk] = (dims, values[risk].reshape(*shape, *plane.shape))
    data.attrs = results.provenance(
        "landscape",
        {
            "risks": list(wanted),
            "penalty": bool(penalty) and problem.penalty is not None,
            "reduction": problem.reduction,
            "n_samples": problem.n_samples,
            "source": problem.source,
        },
        dtype=str(problem.layout.dtype),
        device=backend.device_name(),
        interrupted=int(interrupted),
    )
    return data


def _evaluate(
    problem: Problem, plane: Plane, wanted: tuple[str, ...], penalty: bool, progress: bool | None
) -> tuple[dict[str, np.ndarray], bool]:
    """The risks (…, points) of the plane's points in C order, and whether Ctrl-C cut it short."""
    total = math.prod(plane.shape)
    program = partial(
        _chunks,
        problem,
        plane.origin,
        plane.directions,
        plane.coordinates,
        wanted=wanted,
        penalty=bool(penalty),
    )
    chunk, samples = _chunk_sizes(problem, total)
    shapes = program.func.eval_shape(
        *program.args, 0, 1, **program.keywords, chunk=chunk, samples=samples, room=1
    )
    row = sum(s.size * s.dtype.itemsize for s in shapes.values())
    chunks = -(-total // chunk)
    blocks.check_memory(
        row * chunks + (row if "pointwise" in wanted else 0),
        f"this landscape of {' × '.join(map(str, plane.shape))} points"
        + (f" × {problem.n_samples} samples" if "pointwise" in wanted else ""),
        "lower points=" + (", or leave out the pointwise risk" if "pointwise" in wanted else ""),
    )
    values = {
        risk: np.empty((*s.shape[1:-1], chunks * chunk), s.dtype) for risk, s in shapes.items()
    }
    room = max(1, min(chunks, _ROWS // max(row, 1)))

    def launch(start: int, count: int) -> Any:
        return program(np.int32(start), np.int32(count), chunk=chunk, samples=samples, room=room)

    def collect(start: int, count: int, parts: dict[str, Any]) -> None:
        for risk, part in parts.items():
            rows = np.asarray(part)
            for i in range(count):
                at = (start + i) * chunk
                values[risk][..., at : at + chunk] = rows[i]

    done, interrupted = blocks.run(
        chunks, launch, collect, most=room, label="landscape", unit="chunk", progress=progress
    )
    for risk in wanted:
        values[risk][..., done * chunk :] = np.nan
    return {risk: values[risk][..., :total] for risk in wanted}, interrupted


def _chunk_sizes(problem: Problem, total: int) -> tuple[int, int]:
    """Points and samples a chunk.

    What a layer hands to the next one is written to memory, an entry-by-entry model's values are
    not: so the models' products decide. Sample chunks divide the data evenly where they can, which
    spares a mask.
    """
    n = max(problem.n_samples, 1)
    activation = _activation_bytes(problem)
    samples = min(n, _SAMPLES)
    if activation:
        samples = max(1, min(n, 8 * _ACTIVATIONS // activation))
    if samples < n:
        even = next((s for s in range(samples, samples // 2, -1) if n % s == 0), None)
        samples = even or -(-n // -(-n // samples))
    points = min(_POINTS, max(1, _ACTIVATIONS // max(samples * activation, 1)))
    points = min(points, total)
    return -(-total // -(-total // points)), samples


def _activation_bytes(problem: Problem) -> int:
    """Bytes a sample that the model's products and convolutions hand on, from its jaxpr."""
    total = _product_bytes(jax.make_jaxpr(pointwise)(problem, problem.layout.like).jaxpr)
    return total // max(problem.n_samples, 1)


def _product_bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        for inner in jax.tree_util.tree_leaves(
            tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += _product_bytes(inner)
    return total


@partial(jax.jit, static_argnames=("wanted", "penalty", "chunk", "samples", "room"), inline=False)
def _chunks(
    problem: Problem,
    origin: Any,
    directions: Any,
    coordinates: tuple[Any, ...],
    start: Any,
    count: Any,
    *,
    wanted: tuple[str, ...],
    penalty: bool,
    chunk: int,
    samples: int,
    room: int,
) -> dict[str, Any]:
    """The risks (room, …, chunk) of `count` chunks of points from chunk `start` on."""
    shape = tuple(len(c) for c in coordinates)

    def at_chunk(which: Any) -> dict[str, Any]:
        # Each point afresh, in double precision: origin + Σ c_i d_i. Beyond the last one the
        # indices are clipped, and the host leaves those values out.
        index = jnp.minimum(which * chunk + jnp.arange(chunk), math.prod(shape) - 1)
        place = jnp.unravel_index(index, shape)
        points = origin + sum(
            c[i][:, None] * d for c, i, d in zip(coordinates, place, directions, strict=True)
        )
        return _risks_at(problem, problem.unflatten(points), wanted, penalty, samples)

    def body(row: Any, out: dict[str, Any]) -> dict[str, Any]:
        values = at_chunk(start + row)
        return {
            risk: jax.lax.dynamic_update_index_in_dim(out[risk], values[risk], row, 0)
            for risk in wanted
        }

    shapes = jax.eval_shape(at_chunk, start)
    empty = {risk: jnp.zeros((room, *s.shape), s.dtype) for risk, s in shapes.items()}
    return jax.lax.fori_loop(0, count, body, empty)


def _risks_at(
    problem: Problem, points: Any, wanted: tuple[str, ...], penalty: bool, samples: int
) -> dict[str, Any]:
    """The risks at a chunk of points, a pytree with a leading axis."""

    def over_points(function: Any) -> Any:
        return jax.vmap(function)(points)

    values: dict[str, Any] = {}
    if "pointwise" in wanted:
        each = jax.vmap(partial(pointwise, problem), out_axes=1)(points)
        values["pointwise"] = each
        total = each.astype(float).sum(axis=0)
    elif "empirical" in wanted:
        total = _streamed(problem, over_points, samples)
    if "empirical" in wanted:
        risk = total / max(problem.n_samples, 1) if problem.reduction == "mean" else total
        if penalty:
            risk = risk + over_points(lambda w: penalised(problem, w, 0.0, True))
        values["empirical"] = risk
    if "expected" in wanted:
        values["expected"] = over_points(
            lambda w: penalised(problem, w, problem.expected_risk(w), penalty)
        ).astype(float)
    return values


def _streamed(problem: Problem, over_points: Any, samples: int) -> Any:
    """Sums of the pointwise risks over all samples, `samples` at a time, in float64."""
    n = problem.n_samples
    if n <= samples:
        return over_points(lambda w: pointwise(problem, w).astype(float).sum())

    def add(part: Any, total: Any) -> Any:
        # Where the chunks do not divide the data, the last one starts early and leaves out what
        # was counted before.
        first = jnp.minimum(part * samples, n - samples)
        x, y = jax.tree_util.tree_map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, samples), (problem.x, problem.y)
        )
        there = problem.replace(x=x, y=y)
        if n % samples == 0:
            return total + over_points(lambda w: pointwise(there, w).astype(float).sum())
        fresh = first + jnp.arange(samples) >= part * samples
        return total + over_points(
            lambda w: jnp.where(fresh, pointwise(there, w).astype(float), 0).sum()
        )

    start = over_points(lambda w: jnp.zeros(()))
    return jax.lax.fori_loop(0, -(-n // samples), add, start)
