"""`gradient_flow`: the continuous limit of gradient descent, as a labelled trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from thalweg import backend, blocks, observables, results
from thalweg.ensemble import Members, members
from thalweg.errors import InputError, is_number, one_of, whole_number
from thalweg.integrator import (
    DIVERGED,
    EXPLICIT,
    GAVE_UP,
    STIFF,
    Flow,
    attempts_at_a_time,
    begin,
    block,
    observe,
)
from thalweg.logbook import Record, source_of
from thalweg.problem import Problem, check_is_problem, described, in_precision

SOLVERS = ("auto", EXPLICIT, STIFF)

# Variables that a flow has besides those of every trajectory
_OWN = ("time", "accepted", "rejected", "solver", "lost_at")
_ROOM = 256  # rows of the record on the device
_BLOCK_BYTES = 8 * 2**20
_MOST_ATTEMPTS = 2**20  # attempted steps in a block
_FEW_PARAMETERS = 100  # above it "auto" does not try the stiff solver, which factors p × p matrices


def gradient_flow(
    problem: Problem,
    time: float = 10.0,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    points: int = 101,
    starts: Any = None,
    runs: int | None = None,
    seed: Any = 0,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    solver: str = "auto",
    max_steps: int = 100_000,
    record: Any = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Follow the gradient flow dw/dt = −∇L(w) of a problem's empirical risk from its start.

    Gradient descent with learning rate η is Euler's method for this equation, with steps of η: after k
    steps it has reached about the time kη. The flow is a reference, so it is integrated in double
    precision, whatever the problem's dtype, and under error control: each step of the solver is as long
    as its estimated error, of the order of atol + rtol·|w|, allows.

    Args:
        problem: what is minimised, on all its data.
        time: the end of the flow, which starts at time 0.
        times: the saved times, instead of `time` and `points`: increasing, 0 is put before them.
        points: how many times are saved, evenly spread from 0 to `time`.
        starts, runs, seed: as for `descend`.
        rtol, atol: tolerances of the error of one step, relative and absolute.
        solver: "explicit" (Tsit5: Tsitouras 2011), "stiff" (Kvaerno5: Kværnø 2004; it factors
            p × p matrices, for p parameters), or "auto": explicit, and stiff for those runs that the
            explicit one gives up, where p is at most 100.
        max_steps: how many steps, rejected ones included, a run may take before it is given up.
        record: what to record besides parameters and loss, as for `descend`: names or functions of
            `at`, in which `step` is the number of the saved point. Records with a state and batches
            belong to descents.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        A trajectory, like descend's, whose `step` counts the saved points and has a coordinate
        `time`; with `accepted` and `rejected`, the steps of the solver, and `solver` for each run.
        A run that became NaN or infinite, or whose solution ends in finite time, is "diverged"; one
        that took `max_steps` steps "gave up": see the attributes of `status` for what to do. Both
        are NaN from `lost_at` on, the first saved point that was not reached. After Ctrl-C the
        trajectory holds what was computed.

    Raises:
        InputError: contradicting or impossible arguments.
    """
    check_is_problem(problem)
    saved = _saved_times(time, times, points)
    one_of("solver", solver, SOLVERS)
    built_in, observed = observables.chosen(record)
    for name, seen in observed.items():
        if observables.has_state(seen):
            raise InputError(
                f"record: {name!r} compares steps of a descent, and a flow has none: its saved points "
                f"are where you asked for them. Record functions of `at`."
            )
    if built_in["batch"]:
        raise InputError("record: a flow sees all the data; there is no 'batch' to record.")
    double = in_precision(problem, np.float64)
    who = members(double, None, starts=starts, runs=runs, seed=seed)
    flow = Flow(
        problem=double,
        observed=observed,
        rtol=_tolerance("rtol", rtol),
        atol=_tolerance("atol", atol),
        max_steps=np.int32(min(whole_number("max_steps", max_steps, 1), 2**31 - 1)),
        solver=EXPLICIT if solver == "auto" else solver,
        batched=who.batched,
        kept=tuple(name for name in ("params", "loss", "grad") if built_in[name]),
    )
    job = _Job(flow, who, saved)
    settings = {
        "flow": {
            "rtol": float(rtol),
            "atol": float(atol),
            "solver": solver,
            "max_steps": max_steps,
        },
        "problem": described(problem),
        "times": saved,
        "runs": runs,
        "record": observables.names(built_in, observed),
        "seed": list(who.seeds) if np.ndim(seed) else who.seeds[0],
    }
    with blocks.interruptible():  # otherwise Ctrl-C while the result is assembled would lose it
        interrupted = job.run(progress)
        if solver == "auto" and not interrupted and double.size <= _FEW_PARAMETERS:
            interrupted = job.go_over_with(STIFF, progress)
        return job.trajectory(interrupted, settings)


def flow_again(path: xr.Dataset) -> xr.Dataset:
    """Repeat a saved flow on a catalogue problem, from its result alone.

    Raises:
        InputError: where the result does not hold all that is needed.
    """
    problem, starts, recorded = source_of(path)
    settings = results.settings_of(path)
    return gradient_flow(
        problem,
        times=settings["times"],
        starts=starts,
        seed=settings["seed"],
        record=recorded,
        **settings["flow"],
    )


def _saved_times(time: Any, times: Any, points: Any) -> np.ndarray:
    if times is None:
        if not is_number(time) or not np.isfinite(time) or time < 0:
            raise InputError(f"time must be a finite number of at least 0; {time!r} given.")
        points = whole_number("points", points, 2)
        return np.linspace(0.0, float(time), points) if time > 0 else np.zeros(1)
    try:
        saved = np.asarray(times, float)
    except (TypeError, ValueError):
        saved = np.empty((0, 0))
    increasing = saved.ndim == 1 and saved.size and np.isfinite(saved).all()
    if not increasing or saved[0] < 0 or (np.diff(saved) <= 0).any():
        raise InputError(f"times must be increasing finite numbers from 0 on; {times!r:.80} given.")
    return saved if saved[0] == 0 else np.append(0.0, saved)


def _tolerance(name: str, value: Any) -> np.float64:
    if not is_number(value) or not 0 < value < 1:
        raise InputError(f"{name} must be a number between 0 and 1; {value!r} given.")
    least = float(jnp.finfo(float).eps)
    if name == "rtol" and value < 10 * least:
        raise InputError(f"rtol must be at least {10 * least:.1g}, ten roundings; {value!r} given.")
    return np.float64(value)


class _Job:
    """One flow: its blocks, its record, and the trajectory it becomes."""

    def __init__(self, flow: Flow, who: Members, times: np.ndarray) -> None:
        self.flow, self.who, self.times = flow, who, times
        self.layout = flow.problem.layout
        stages = 8 if flow.solver == EXPLICIT else 3 * self.layout.size
        blocks.check_memory(
            8 * who.count * self.layout.size * stages,
            f"the {flow.solver} solver, for {who.count} runs of {self.layout.size} parameters,",
            "run fewer at once" + (", or use solver='explicit'" * (flow.solver == STIFF)),
        )
        self.walk = begin(flow, who.starts)
        shapes = observe.eval_shape(flow, self.walk, np.int32(0))[1]
        self.record = Record(shapes, self.layout, who, 0, len(times) - 1, 1, taken=_OWN)
        self.room = max(1, min(_ROOM, _BLOCK_BYTES // self.record.row_bytes))
        self.at_a_time = attempts_at_a_time(backend.device().platform)
        self.solver = np.full(who.count, flow.solver)
        self.fate = self.lost_at = self.accepted = self.rejected = np.empty(0)

    def run(self, progress: bool | None) -> bool:
        """Integrate to the last saved time; returns whether Ctrl-C ended it early."""
        done, interrupted = blocks.until(
            len(self.times),
            self._advance,
            most=_MOST_ATTEMPTS,
            label="gradient flow",
            unit="point",
            progress=progress,
        )
        self._take()
        if interrupted:
            self.record.end_at(max(done - 1, 0))
        return interrupted

    def _advance(self, done: int, attempts: int) -> int:
        """Attempt at most about `attempts` steps from saved point `done` on; returns the point reached."""
        rows = min(self.room, len(self.times) - done)
        times = np.full(self.room, np.inf)
        times[:rows] = self.times[done : done + rows]
        arguments = (times, np.int32(done), np.int32(rows), np.int32(attempts))
        self.walk, count, record = block(
            self.flow, self.walk, *arguments, room=self.room, at_a_time=self.at_a_time
        )
        if int(count):
            self.record.fill(done, done + int(count), record)
        return done + int(count)

    def _take(self) -> None:
        """Copy the members' outcomes to the host."""
        for name in ("fate", "lost_at", "accepted", "rejected"):
            values = np.array(getattr(self.walk, name)).reshape(self.who.count)
            setattr(self, name, values)
        self.final = np.array(self.layout.flatten(self.walk.params, lead=int(self.who.batched)))
        self.final = self.final.reshape(self.who.count, -1)

    def go_over_with(self, solver: str, progress: bool | None) -> bool:
        """Repeat the members that were given up, from their starts, with another solver."""
        given_up = np.flatnonzero(self.fate == GAVE_UP)
        if not given_up.size:
            return False
        starts = self.who.starts
        if self.who.batched:
            starts = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf)[given_up], starts)
        sizes = {"run": len(given_up)} if self.who.batched else {}
        who = replace(self.who, sizes=sizes, coords={}, starts=starts)
        other = _Job(replace(self.flow, solver=solver), who, self.times)
        interrupted = other.run(progress)
        for mine, theirs in zip(self.record.columns, other.record.columns, strict=True):
            mine.values = mine.values[: len(theirs.values)]
            mine.values[:, :, given_up] = theirs.values
        self.record.steps = other.record.steps
        for name in ("fate", "lost_at", "accepted", "rejected", "final"):
            getattr(self, name)[given_up] = getattr(other, name)
        self.solver[given_up] = solver
        return interrupted

    def trajectory(self, interrupted: bool, settings: dict[str, Any]) -> xr.Dataset:
        """The labelled record."""
        dims, shape = self.who.dims, self.who.shape
        data: dict[str, Any] = {
            name: (where, values) for name, where, values in self.record.variables(self.lost_at)
        }
        lead = int(self.who.batched)
        start = np.asarray(self.layout.flatten(self.who.starts, lead=lead))
        start = start.reshape(self.who.count, -1)
        self.final[self.lost_at >= 0] = np.nan
        for name, vectors in (("start", start), ("final", self.final)):
            data[name] = (("param", *dims), vectors.T.reshape(-1, *shape))
        status = np.full(self.who.count, "interrupted" if interrupted else "completed")
        status = np.where(self.fate == DIVERGED, "diverged", status)
        status = np.where(self.fate == GAVE_UP, "gave up", status)
        notes = {"note": _REMEDY.format(**settings["flow"])} if (status == "gave up").any() else {}
        data["status"] = (dims, status.reshape(shape), notes)
        lost_at = self.lost_at.astype(np.int64)
        data["diverged_at"] = (dims, np.where(self.fate == DIVERGED, lost_at, -1).reshape(shape))
        data["lost_at"] = (dims, lost_at.reshape(shape))
        for name in ("accepted", "rejected"):
            data[name] = (dims, getattr(self, name).astype(np.int64).reshape(shape))
        data["solver"] = (dims, self.solver.reshape(shape))
        time = "step", self.times[: len(self.record.steps)]
        return self.record.labelled(data, settings, interrupted, time=time)


_REMEDY = (
    "gave up: max_steps={max_steps} steps did not reach the end with rtol={rtol:g}, atol={atol:g} and "
    "solver={solver!r}. A stiff flow wants solver='stiff'; otherwise larger rtol and atol, or more "
    "max_steps, help. Where the flow runs into a kink (|·|, ReLU) and slides along it, no solver gets "
    "far: smooth the loss, as Huber's does."
)
