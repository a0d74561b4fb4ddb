"""`landscape`: risks evaluated on a plane.

Samples are streamed: no array of size samples × grid is allocated unless the pointwise risk is asked for, and
sums over samples run in float64. Points are evaluated in chunks: large ones where the model is elementwise;
smaller ones, each on one core, where it passes arrays from layer to layer. Where these arrays are large,
points are evaluated one by one, in separate calls, because batched convolutions of several models are no
faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from thalweg import backend, blocks, passes, programs, results
from thalweg.chunks import reduced, risks_of_chunks
from thalweg.curvature import hessian
from thalweg.errors import InputError, one_of
from thalweg.params import Layout
from thalweg.planes import Plane, check_is_plane_of
from thalweg.problem import Problem, check_has_expected, check_is_problem, described
from thalweg.programs import model_of
from thalweg.risks import penalised, pointwise
from thalweg.tiling import Tiling, tiling_of

_CURVATURE = ("directional_curvature", "largest_eigenvalue", "smallest_eigenvalue", "trace")
_HELD = 8 * 2**20  # bytes of results that a call returns: what the caches hold


def landscape(
    problem: Problem,
    plane: Plane,
    risks: str | Sequence[str] = ("empirical",),
    *,
    penalty: bool = True,
    curvature: bool = False,
    device: Any = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Risks at every point of a plane.

    Args:
        risks: of "empirical", "expected" and "pointwise".
        penalty: whether the problem's penalty is part of the empirical and the expected risk. The
            pointwise risk never includes it.
        curvature: also say what curvature the plane has at its origin, and what the whole space has
            there: `directional_curvature` along each direction, `largest_eigenvalue`,
            `smallest_eigenvalue` and `trace` of the Hessian of the empirical risk. The origin of a
            coordinate plane has 0 for the parameters that vary.
        device: where to compute: "cpu", "gpu", "tpu" or one of jax.devices(); JAX's own without it.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        An `xarray.Dataset` with the risks by name on the plane's axes, `pointwise` with a first
        dimension `sample`, and the plane itself (`origin`, `directions`). After Ctrl-C, points that
        were not reached are NaN and the attribute `interrupted` is 1.

    Raises:
        InputError: an unknown risk, a plane of another problem, a device that is not there, a result
            too large for memory.
    """
    check_is_problem(problem)
    check_is_plane_of(problem, plane, taken=_CURVATURE if curvature else ())
    if not isinstance(risks, Iterable):
        raise InputError(
            f"risks must be of {', '.join(results.RISKS)}, one or several; {risks!r:.80} given."
        )
    wanted = (risks,) if isinstance(risks, str) else tuple(risks)
    for risk in wanted:
        one_of("risk", risk, results.RISKS)
    if not wanted:
        raise InputError(f"risks= is empty; ask for some of {', '.join(results.RISKS)}.")
    if "expected" in wanted:
        check_has_expected(problem)
    problem = problem.without_left_out()
    with backend.on_device(device) as move:
        on_device = problem
        if device is not None:
            # only a pytree's leaves move to the device: put its host-side fields back
            on_device = move(problem).replace(init=problem.init, source=problem.source)
        variables = {}
        if curvature:
            variables = _curvature_at(
                on_device if penalty else on_device.replace(penalty=None), plane
            )
        values, interrupted = _evaluate(on_device, plane, wanted, penalty, progress)
        device = backend.device_name()
    for risk in wanted:
        surface = values[risk].reshape(*plane.shape, *values[risk].shape[1:])
        if risk == "pointwise":
            variables[risk] = (("sample", *plane.axes), np.moveaxis(surface, -1, 0))
        else:
            variables[risk] = (plane.axes, surface)
    attrs = results.provenance(
        "landscape",
        {
            "risks": list(wanted),
            "penalty": bool(penalty) and problem.penalty is not None,
            **described(problem),
        },
        dtype=str(problem.layout.dtype),
        device=device,
        interrupted=int(interrupted),
    )
    return plane.dataset(variables, attrs)


def _evaluate(
    problem: Problem, plane: Plane, wanted: tuple[str, ...], penalty: bool, progress: bool | None
) -> tuple[dict[str, np.ndarray], bool]:
    """The risks (points, …) of the plane's points in C order, and whether Ctrl-C cut it short."""
    total = math.prod(plane.shape)
    tiling = tiling_of(problem, total, "pointwise" in wanted)
    values = _allocated(problem, plane, wanted, tiling)
    if tiling.one_by_one:
        done, interrupted = _point_by_point(problem, plane, values, penalty, progress)
    else:
        done, interrupted = _in_chunks(problem, plane, values, penalty, progress, tiling)
    for risk in values.values():
        risk[done:] = np.nan
    return {name: risk[:total] for name, risk in values.items()}, interrupted


def _allocated(
    problem: Problem, plane: Plane, wanted: tuple[str, ...], tiling: Tiling
) -> dict[str, np.ndarray]:
    """Arrays for the risks at all points, rounded up to whole chunks; an error where memory is too small."""
    model, with_samples = model_of(problem), "pointwise" in wanted
    size = -(-math.prod(plane.shape) // tiling.points) * tiling.points
    # A point's samples are contiguous on the device, and so they are here: transposing them would take longer
    # than computing them.
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        risk: ((), np.dtype(float)) for risk in wanted
    }
    if with_samples:
        shapes["pointwise"] = (model.values,), model.dtype
    point_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    blocks.check_memory(
        point_bytes * (size + (tiling.points if with_samples else 0)),
        f"this landscape of {' × '.join(map(str, plane.shape))} points"
        + (f" × {problem.n_samples} samples" if with_samples else ""),
        "lower points=" + (", or leave out the pointwise risk" if with_samples else ""),
    )
    return {risk: np.empty((size, *shape), dtype) for risk, (shape, dtype) in shapes.items()}


def _in_chunks(
    problem: Problem, plane: Plane, values: dict[str, np.ndarray], penalty: bool, progress: bool | None,
    tiling: Tiling,
) -> tuple[int, bool]:  # fmt: skip
    """Fill `values`, some points at a time; how many points were reached, and whether Ctrl-C cut it short."""
    wanted = tuple(values)
    chunks = -(-math.prod(plane.shape) // tiling.points)
    row = tiling.points * sum(risk[:1].nbytes for risk in values.values())
    workers = 1 if tiling.entrywise else min(programs.workers(problem), chunks)
    room = max(1, min(-(-chunks // workers), _HELD // workers // max(row, 1)))

    def evaluate(start: int, count: int) -> Any:
        return risks_of_chunks(
            problem,
            plane.origin,
            plane.directions,
            plane.coordinates,
            np.int64(start),
            np.int64(count),
            wanted=wanted,
            layout=problem.layout,
            penalty=bool(penalty),
            tiling=tiling,
            room=room,
        )

    beside = backend.inheriting(lambda *span: jax.block_until_ready(evaluate(*span)))

    def launch(start: int, count: int) -> Iterable[Any]:
        if workers == 1:
            return [(start, count, evaluate(start, count))]
        chunks_per_worker = -(-count // workers)
        begins = range(start, start + count, chunks_per_worker)
        counts = [min(chunks_per_worker, start + count - begin) for begin in begins]
        return zip(begins, counts, pool.map(beside, begins, counts), strict=True)

    def collect(start: int, count: int, spans: Iterable[Any]) -> None:
        for begin, length, parts in spans:
            for risk, part in parts.items():
                rows = np.asarray(part)
                for i in range(length):
                    at = (begin + i) * tiling.points
                    values[risk][at : at + tiling.points] = rows[i]

    with ThreadPoolExecutor(workers) as pool:  # starts no threads before they have work
        done, interrupted = blocks.run(
            chunks,
            launch,
            collect,
            most=room * workers,
            label="landscape",
            unit="chunk",
            progress=progress,
        )
    return done * tiling.points, interrupted


def _curvature_at(problem: Problem, plane: Plane) -> dict[str, Any]:
    """The variables of `curvature=True`: the Hessian of the empirical risk at the plane's origin."""
    operator = hessian(problem, plane.origin)
    images = np.asarray(operator @ plane.directions.T, float).T
    with np.errstate(invalid="ignore", divide="ignore"):
        along = (plane.directions * images).sum(axis=1) / (plane.directions**2).sum(axis=1)
    trace = operator.trace()
    variables = (
        ("direction", along),
        ((), float(operator.top(1)[0][0])),
        ((), float(operator.bottom(1)[0][0])),
        ((), trace.value, {"standard_error": trace.error}),
    )
    return dict(zip(_CURVATURE, variables, strict=True))


def _point_by_point(
    problem: Problem,
    plane: Plane,
    values: dict[str, np.ndarray],
    penalty: bool,
    progress: bool | None,
) -> tuple[int, bool]:
    """Like `_in_chunks`, for a model whose activations at a single point already fill a chunk's memory."""
    wanted = tuple(values)
    count, size = len(values[wanted[0]]), passes.samples_at_a_time(problem)
    layout = problem.layout
    # reused for every point: allocating them anew would take half of the host's time per point
    where, step = np.empty((2, problem.size))

    def launch(start: int, count: int) -> list[dict[str, Any]]:
        return [at_point(index) for index in range(start, start + count)]

    def at_point(index: int) -> dict[str, Any]:
        indices = np.unravel_index(index, plane.shape)
        np.copyto(where, plane.origin)
        for c, i, d in zip(plane.coordinates, indices, plane.directions, strict=True):
            np.add(where, np.multiply(c[i], d, out=step), out=where)
        point = jnp.asarray(where.astype(layout.dtype))  # a copy, which JAX may keep as it is
        risks: dict[str, Any] = {}
        if {"empirical", "pointwise"} & set(wanted):
            summed, losses = passes.over_samples(problem, size, _losses, (), point, layout=layout)
            risks["empirical"] = reduced(problem, summed)
            risks["pointwise"] = losses
            if penalty and problem.penalty is not None:
                risks["empirical"] += _penalty(problem, layout.unflatten(point))
        if "expected" in wanted:
            risks["expected"] = problem.expected(layout.unflatten(point), penalty=penalty)
        return risks

    def collect(start: int, count: int, found: list[dict[str, Any]]) -> None:
        for index, risks in enumerate(found, start):
            for risk in wanted:
                if risk != "pointwise":
                    values[risk][index] = float(risks[risk])
                    continue
                values[risk][index] = passes.of_each_sample(risks[risk], values[risk].shape[1])

    return blocks.run(
        count, launch, collect, most=8, label="landscape", unit="point", progress=progress
    )


def _losses(part: Problem, point: Any, *, layout: Layout) -> tuple[Any, Any]:
    """The sum in float64 of those pointwise risks that count, and all of them."""
    losses = pointwise(part, layout.unflatten(point))
    counted = losses if part.mask is None else jnp.where(part.mask, losses, 0)
    return counted.astype(float).sum(), losses


@jax.jit
def _penalty(problem: Problem, params: Any) -> Any:
    return penalised(problem, params, 0.0, True)
