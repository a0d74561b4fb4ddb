"""`measure`: what a descent would have recorded, along an existing trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, names, observables, results
from thalweg.ensemble import Members
from thalweg.errors import InputError
from thalweg.logbook import Record
from thalweg.observables import At, at_point, first_state, measured
from thalweg.params import Layout
from thalweg.problem import Problem, check_is_problem, described
from thalweg.rows import empty, put
from thalweg.tuning import tuned

# bytes of a block's iterates and measurements: what the caches hold
_BLOCK_BYTES = 4 * 2**20
_MOST_ROWS = 1024


def measure(
    problem: Problem, path: xr.Dataset, record: Any, *, progress: bool | None = None
) -> xr.Dataset:
    """Measure what a descent would have recorded, along an existing trajectory.

    For training that was recorded as it ran (`thalweg.record`) or read from checkpoints
    (`thalweg.trajectory`), and for questions that come up after a descent:

        thalweg.measure(problem, path, {"sharpness": thalweg.sharpness})

    Args:
        problem: what is measured, on all its data: the problem that was descended, or another with the
            same parameters.
        path: a trajectory with its iterates (`params`), of any runs and sweeps.
        record: as for `thalweg.descend`: names, functions of `at`, pairs (init, measure), problems. In
            `at`, the batch is all the data, loss and gradient are those of all the data, and there is
            no optimizer. A record with a state sees the recorded iterates one after the other.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        The trajectory, with a variable on its steps and members for each of them. They are NaN (−1
        where integers) from where a run diverged, and, with the attribute `interrupted` 1, where Ctrl-C
        came first.

    Raises:
        InputError: a path without iterates or of other parameters, names that it has already, records
            that belong to a descent.
    """
    check_is_problem(problem)
    if not isinstance(path, xr.Dataset) or not {"params", "start", "status"} <= set(path.variables):
        raise InputError(
            "measure needs a trajectory with its iterates; descend or record with 'params'."
        )
    if "step" not in path["params"].dims:
        raise InputError(
            "measure needs a trajectory's steps; this is one of them: isel(step=[-1])."
        )
    if not path.sizes["step"]:
        raise InputError("measure needs a trajectory's steps; this has none.")
    if path.sizes.get("param") != problem.size or not names.same(path, problem.names):
        raise InputError("the path has other parameters than the problem.")
    built_in, observed = observables.chosen(record)
    if built_in["batch"]:
        raise InputError("record: 'batch' is known only to a descent.")
    if not observed and not built_in["grad"]:
        raise InputError("record= names nothing to measure; as in ['grad_norm', 'risk'].")
    dims = results.member_dims(path)
    who = Members({d: path.sizes[d] for d in dims})
    sight = _Sight(problem, observed, built_in["grad"], problem.layout, who.batched)
    walked = _Walked(path, who, problem.layout)
    memory = _begin(sight, walked.start, walked.rows(0, 1)[0], walked.steps[0])
    one_row = walked.steps[:1], walked.rows(0, 1), np.int32(1)
    shapes = _block.eval_shape(sight, walked.start, memory, *one_row)[1]
    shapes = jax.tree_util.tree_map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes)
    measurements = Record(shapes, problem.layout, who, 0, walked.count - 1, 1)
    for column in measurements.columns:
        if column.name in path.variables:
            raise InputError(
                f"record: the path has {column.name!r} already; choose another name, or drop it with "
                f"path.drop_vars({column.name!r})."
            )
    with blocks.interruptible():  # otherwise Ctrl-C while the result is assembled would lose it
        done, interrupted = _along(sight, walked, memory, measurements, progress)
        lost = np.minimum(walked.lost_at(), done)
        lost[lost == walked.count] = -1
        variables = {name: (where, values) for name, where, values in measurements.variables(lost)}
        cut = interrupted or path.attrs.get("interrupted", 0)
        settings = results.settings_of(path)
        on_problem = dict.fromkeys(variables, described(problem))
        settings["measured"] = {**settings.get("measured", {}), **on_problem}
        return path.assign(variables).assign_attrs(
            settings=results.to_json(settings), interrupted=int(cut)
        )


class _Walked:
    """A trajectory in the device's form: members along one axis, or without one, in the parameters' own
    precision."""

    def __init__(self, path: xr.Dataset, who: Members, layout: Layout) -> None:
        self.path, self.dims, self.dtype = path, who.dims, layout.dtype
        self.member = ((who.count,) if who.batched else ()) + (layout.size,)
        steps = path["step"].values
        whole = np.int32 if steps.max(initial=0) <= np.iinfo(np.int32).max else np.int64
        # int32 as in a descent, unless steps are large, as when they count tokens
        self.steps = steps.astype(whole)
        self.count = len(self.steps)
        self.params = path["params"].transpose("step", *who.dims, "param").values
        start = path["start"].transpose(*who.dims, "param").values
        self.start = start.reshape(self.member).astype(self.dtype)

    def rows(self, first: int, room: int) -> np.ndarray:
        """The iterates (room, …, p) from row `first` on; zeros beyond the last."""
        rows = np.zeros((room, *self.member), self.dtype)
        recorded = self.params[first : first + room]
        rows[: len(recorded)] = recorded.reshape(-1, *self.member)
        return rows

    def lost_at(self) -> np.ndarray:
        """The first row at which each member had diverged, or a flow had given it up; where neither, the
        number of rows."""
        name = "lost_at" if "lost_at" in self.path else "diverged_at"
        lost = self.path[name].transpose(*self.dims).values.reshape(-1)
        return np.where(lost < 0, self.count, np.searchsorted(self.steps, lost))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Sight:
    """What is measured, on which problem."""

    problem: Problem
    observed: dict[str, Any]
    gradient: bool = field(metadata={"static": True})
    layout: Layout = field(metadata={"static": True})
    batched: bool = field(metadata={"static": True})

    def at(self, start: Any, params: Any, step: Any) -> At:
        start, params = map(self.layout.unflatten, (start, params))
        return at_point(self.problem, params, start, step)

    def over_members(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a member's start, iterate and states, and of the step, under vmap over the members if
        there is an axis of them."""
        return jax.vmap(function, (0, 0, 0, None)) if self.batched else function


@jax.jit
def _begin(sight: _Sight, start: Any, params: Any, step: Any) -> Any:
    """The observables' first states."""

    def one(start: Any, params: Any, _: Any, step: Any) -> Any:
        at = sight.at(start, params, step)
        return {name: first_state(name, seen, at) for name, seen in sight.observed.items()}

    return sight.over_members(one)(start, params, params, step)


@backend.outermost()
@tuned
def _block(
    sight: _Sight, start: Any, memory: Any, steps: Any, rows: Any, count: Any
) -> tuple[Any, dict[str, Any]]:
    """The observables' states after the first `count` of `rows` (room, …, p), and what is measured there."""

    def one(start: Any, params: Any, memory: Any, step: Any) -> tuple[Any, dict[str, Any]]:
        at = sight.at(start, params, step)
        values = {"grad": at.grad} if sight.gradient else {}
        after = {}
        for name, seen in sight.observed.items():
            values[name], after[name] = measured(name, seen, at, memory[name])
        return after, values

    def turn(i: Any, carry: Any) -> Any:
        memory, out = carry
        memory, values = sight.over_members(one)(start, rows[i], memory, steps[i])
        return memory, put(out, i, values)

    shapes = jax.eval_shape(sight.over_members(one), start, rows[0], memory, steps[0])[1]
    return jax.lax.fori_loop(0, count, turn, (memory, empty(shapes, len(rows))))


def _along(
    sight: _Sight, walked: _Walked, memory: Any, measurements: Record, progress: bool | None
) -> tuple[int, bool]:
    """Fill a record with what is measured at the iterates; returns how many were reached, and whether Ctrl-C
    ended it early."""
    row_bytes = measurements.row_bytes + walked.start.nbytes
    room = max(1, min(walked.count, _MOST_ROWS, _BLOCK_BYTES // row_bytes))

    def launch(first: int, count: int) -> Any:
        nonlocal memory
        steps = np.resize(walked.steps[first : first + room], room)
        rows = walked.rows(first, room)
        memory, values = _block(sight, walked.start, memory, steps, rows, np.int32(count))
        return values

    def collect(first: int, count: int, values: Any) -> None:
        ends = first + count == walked.count
        measurements.fill(first, first + count - ends, values, ends=ends)

    return blocks.run(
        walked.count, launch, collect, most=room, label="measure", unit="row", progress=progress
    )
