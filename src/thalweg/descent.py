"""`descend`: from its arguments to a labelled trajectory.

The loop itself is in `loop.py` and runs in blocks, between which the host copies what was recorded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, inputs, observables, results, sampling
from thalweg.ensemble import Members, check_same_parameters, member_vectors, members
from thalweg.errors import InputError
from thalweg.loop import Feed, Plan, Walk, begin, block, row_of
from thalweg.optimizers import by_name
from thalweg.optimizers.base import Optimizer, check, check_range
from thalweg.params import Layout, Params
from thalweg.problem import Problem
from thalweg.record import Record, storable

_MOST_ROWS = 1024  # recorded in a block
_MOST_STEPS = 16384  # in a block: enough for the call to vanish beside the steps
_BLOCK_BYTES = 8 * 2**20  # of recorded rows, or of tables, in a block: what the caches hold


def descend(
    problem: Problem,
    optimizer: Optimizer,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool | str = False,
    replacement: bool = False,
    drop_last: bool = False,
    batches: Any = None,
    starts: Any = None,
    runs: int | None = None,
    seed: Any = None,
    resume: xr.Dataset | None = None,
    record: Any = None,
    every: int = 1,
    progress: bool | None = None,
) -> xr.Dataset:
    """Let an optimizer descend a problem's empirical risk, and record the way it takes.

    Args:
        problem: what is minimised.
        optimizer: how. Its hyperparameters may be numbers; lists or arrays, which are sweeps, all
            combinations of which run at once; or functions of the step index.
        steps, epochs: how long; one of the two. Without batches an epoch is a step.
        batch_size: samples a step. Without it every step sees all the data. Batches go through the
            data in order; the last, smaller one of an epoch is used as it is.
        shuffle: a new order each epoch, from the seed and the epoch alone; "after_first" leaves the
            first epoch in the data's own order.
        replacement: draw each batch's samples independently instead.
        drop_last: leave an epoch's last batch out where it is smaller.
        batches: sample indices (steps, batch), given, for the steps of this call; repeated where
            `steps` asks for more.
        starts: (runs, p) in the order of `problem.names`, or a pytree of the problem's structure
            with a leading axis, or a trajectory, whose last iterates are meant.
        runs: that many random starts; run i starts from init(fold_in(key(seed), i)).
        seed: for starts and batches, 0 by default, or that of `resume`. A list is a swept
            dimension, `seed`.
        resume: a trajectory to go on from, with the optimizer's state, the step count and the seed.
            The optimizer and the batches' options are given again. States of observables begin anew,
            and so do records of updates.
        record: what to record besides parameters and loss: a list of names (thalweg.observables),
            or a mapping from names to True, False, functions of `at`, pairs (init, measure), or
            problems (the risk on them). {"params": False} leaves the iterates out.
        every: record steps 0, every, 2·every, … and the last.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        A trajectory: an `xarray.Dataset` with `params` (step, param, run, …) and `loss` (step, run,
        …), both at steps 0 … T; see docs/results.md. The loss at a step is that of the batch the
        step used, before its update; at T, that of the next batch, not applied. A run that left the
        finite numbers has status "diverged" and is NaN from `diverged_at` on; after Ctrl-C the
        trajectory holds what was computed and its runs have status "interrupted".

    Raises:
        InputError: contradicting or impossible arguments.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"a thalweg.Problem was expected, {type(problem).__name__} given.")
    check(optimizer)
    every = inputs.whole_number("every", every, 1)
    if resume is not None:
        _check_resumable(resume, problem, optimizer)
    if seed is None:
        seed = 0 if resume is None else json.loads(resume.attrs["seed"])
    who = members(problem, optimizer, starts=starts, runs=runs, seed=seed, resume=resume)
    first = 0 if resume is None else int(resume["step"].values[-1])
    batching: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "replacement": replacement,
        "drop_last": drop_last,
    }
    total, order = sampling.plan(
        problem.n_samples, who.seeds, steps=steps, batches=batches, first=first, **batching
    )
    built_in, observed = observables.chosen(record)
    if built_in["batch"] and order is None:
        raise InputError(
            "record 'batch' needs mini-batches: give batches=, or a batch_size= below the number of "
            "samples."
        )
    if first + total >= np.iinfo(np.int32).max:
        raise InputError(f"at most 2³¹ − 2 steps can be counted; {first + total} asked for.")
    schedules = _schedule_tables(optimizer, who, first, total)
    plan = Plan(
        problem=problem,
        optimizer=optimizer.with_hyperparameters(
            {name: who.hyper.get(name, np.float64(0)) for name in optimizer.hyperparameters()}
        ),
        observed=observed,
        lane=who.lane if who.batched else who.lane[0],
        swept=who.swept,
        scheduled=tuple(schedules),
        batched=who.batched,
        lanes=order is not None and order.lanes > 1,
        kept=tuple(name for name in ("params", "loss", "grad") if built_in[name]),
    )
    feeds = _Feeds(order, schedules, first)
    job = _Job(plan, feeds, who, first, total, every, resume)
    done, interrupted = job.run(progress)
    settings = _settings(
        optimizer,
        problem,
        steps=total,
        **batching,
        runs=runs,
        every=every,
        record=[
            *(name for name, on in built_in.items() if on),
            *(
                name if observables.is_named(name, seen) else f"<{name}>"
                for name, seen in observed.items()
            ),
        ],
        first_step=first,
        seed=list(who.seeds) if np.ndim(seed) else who.seeds[0],
    )
    return job.trajectory(done, interrupted, settings, built_in["batch"])


def _check_resumable(resume: Any, problem: Problem, optimizer: Optimizer) -> None:
    """An error unless `resume` is a whole trajectory of this problem and kind of optimizer."""
    if not isinstance(resume, xr.Dataset) or "optimizer_state" not in resume:
        raise InputError("resume= needs a trajectory, as descend returns it.")
    if resume.sizes["step"] == 0 or int(resume["step"][-1]) != resume.attrs.get("last_step"):
        raise InputError(
            "resume= was given a part of a trajectory, which holds the optimizer's state at its end; "
            "give all of it."
        )
    check_same_parameters("resume=", resume, problem)
    before = results.settings_of(resume)["optimizer"]["name"]
    if before != optimizer.name:
        raise InputError(
            f"resume= holds the state of another optimizer, {before}; {optimizer.name} given."
        )


def descend_again(path: xr.Dataset) -> xr.Dataset:
    """Do again a saved descent on a catalogue problem, from its result alone.

    Raises:
        InputError: where the result does not hold all that is needed.
    """
    settings = results.settings_of(path)
    source = settings["problem"]["source"]
    if not source or "catalogue" not in source:
        raise InputError(
            "this descent's problem was made of Python functions, which a result cannot hold; "
            "descents on Problem.from_catalogue(...), studies and the command's runs can be done again."
        )
    if settings["first_step"]:
        raise InputError("this descent went on from another; do the first one again and resume it.")
    unnamed = set(settings["record"]) - {*observables.NAMED, *observables.BUILT_IN}
    if unnamed:
        raise InputError(
            f"this descent recorded functions of the user's ({', '.join(sorted(unnamed))}), which a "
            f"result cannot hold."
        )
    options = dict(settings["optimizer"])
    optimizer = by_name(options.pop("name"), **_with_schedules(options, path))
    problem = Problem.from_catalogue(source["catalogue"], dtype=source["dtype"])
    others = {d: 0 for d in results.member_dims(path) if d != "run"}
    start = path["start"].isel(others)
    starts = None
    if "run" in path.dims:
        starts = start.transpose("run", "param").values
    else:
        problem = problem.at(problem.unflatten(start.values))
    return descend(
        problem,
        optimizer,
        steps=path.attrs["last_step"],  # where an interrupted one ended
        starts=starts,
        seed=settings["seed"],
        every=settings["every"],
        record={
            name: name in settings["record"]
            for name in (*observables.BUILT_IN, *settings["record"])
        },
    )


def _with_schedules(options: dict[str, Any], path: xr.Dataset) -> dict[str, Any]:
    """The optimizer's options, with the recorded tables in place of schedules' names."""
    for name in options:
        if f"schedule_{name}" in path:
            table = path[f"schedule_{name}"].values
            options[name] = lambda step, table=table: table[step]
    return options


@dataclass(frozen=True)
class _Feeds:
    """Makes each block's tables."""

    order: sampling.Batches | None
    schedules: dict[str, np.ndarray]  # (total,), from the first step on
    first: int

    @property
    def step_bytes(self) -> int:
        """Bytes of table that a step needs."""
        order = 0 if self.order is None else 4 * self.order.size * self.order.lanes
        return max(1, order + 8 * len(self.schedules))

    def feed(self, start: int, room: int) -> Feed:
        """The tables of up to `room` steps from `start`, and of the step after them."""
        index = used = None
        if self.order is not None:
            index, used = self.order.rows(start, room + 1)
            used = used if self.order.ragged else None
        offset = start - self.first
        tables = {}
        for name, table in self.schedules.items():
            padded = np.zeros(room + 1)
            part = table[offset : offset + room + 1]
            padded[: len(part)] = part
            tables[name] = padded
        return Feed(np.int32(start), tables, index, used)


def _schedule_tables(
    optimizer: Optimizer, who: Members, first: int, total: int
) -> dict[str, np.ndarray]:
    """Scheduled hyperparameters (total,), each function called on the host for every step."""
    bounds = optimizer.bounds()
    tables = {}
    for name, function in who.schedules.items():
        try:
            table = np.fromiter((function(first + t) for t in range(total)), float, total)
        except Exception as error:  # the user's function may fail in any way
            raise InputError(
                f"{optimizer.name}: the schedule of {name} must give a number for every step: "
                f"{type(error).__name__}: {error}."
            ) from None
        check_range(optimizer.name, f"{name} (its schedule)", table, *bounds[name])
        tables[name] = table
    return tables


class _Job:
    """One descent: its blocks, its record, and the trajectory it becomes."""

    def __init__(
        self,
        plan: Plan,
        feeds: _Feeds,
        who: Members,
        first: int,
        total: int,
        every: int,
        resume: xr.Dataset | None,
    ) -> None:
        self.plan, self.feeds, self.who = plan, feeds, who
        self.first, self.total, self.every = first, total, every
        self.layout = plan.problem.layout
        self.started, state, diverged = self._start(resume)
        feed = feeds.feed(first, 1)
        arguments = (plan, feed, who.starts, self.started, state, diverged)
        self._check_memory(begin.eval_shape(*arguments))
        self.walk = begin(*arguments)
        shapes = row_of.eval_shape(plan, feed, self.walk, np.int32(0), True)[0]
        self.record = Record(shapes, self.layout, who, first, total, every)
        rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // max(self.record.row_bytes, 1)))
        steps = max(1, min(_MOST_STEPS, _BLOCK_BYTES // feeds.step_bytes))
        self.most = min(rows * every, steps)
        self.room = -(-self.most // every) + 1

    def _check_memory(self, walk: Walk) -> None:
        """The members' states: on the device before and after a block, and on the host at the end."""

        def size(tree: Any) -> int:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree_util.tree_leaves(tree))

        numbers = sum(leaf.size for leaf in jax.tree_util.tree_leaves(walk.state))
        blocks.check_memory(
            2 * size(walk) + 8 * numbers,
            f"the states of {self.who.count} runs of {self.layout.size} parameters under "
            f"{self.plan.optimizer.name}",
            "run fewer at once, or an optimizer with less state",
        )

    def _start(self, resume: xr.Dataset | None) -> tuple[Params, Any, np.ndarray]:
        """Where step 0 was, the optimizer's state to go on with, and who has diverged already."""
        lead = (self.who.count,) if self.who.batched else ()
        if resume is None:
            return self.who.starts, None, np.full(lead, -1, np.int32)
        dims = self.who.dims
        started = self.layout.unflatten(
            member_vectors(resume["start"], "param", dims).reshape(*lead, -1)
        )
        flat = member_vectors(resume["optimizer_state"], "state", dims).reshape(*lead, -1)
        init = self.plan.over_members(lambda optimizer, lane, params: optimizer.init(params), 0)
        layout = Layout.of(self._one(jax.eval_shape(init, self.who.starts)))
        if flat.shape[-1] != layout.size:
            raise InputError(
                f"resume= holds the state of another optimizer ({flat.shape[-1]} numbers, and "
                f"{self.plan.optimizer.name} has {layout.size}); give the one it was made with."
            )
        diverged = resume["diverged_at"].transpose(*dims).values.reshape(lead).astype(np.int32)
        return started, layout.unflatten(flat), diverged

    def run(self, progress: bool | None) -> tuple[int, bool]:
        """Do the steps; how many were done, and whether Ctrl-C stopped them."""
        done, interrupted = blocks.run(
            self.total,
            self._launch,
            self._collect,
            most=self.most,
            label="descend",
            progress=progress,
            finished=self._all_diverged,
        )
        if not interrupted:
            done_or_dead = self.total
        else:
            done_or_dead = done
            self.record.end_at(self.first + done)
        # The last row is the first of a block more, whose step is not kept.
        walk = self.walk
        self._collect(done_or_dead, 1, self._launch(done_or_dead, 1))
        self.walk = walk
        return done, interrupted

    def _launch(self, start: int, count: int) -> Any:
        first = self.first + start
        last = first + count
        rows = 1 + (last - 1) // self.every - first // self.every
        self.walk, record = block(
            self.plan,
            self.feeds.feed(first, self.most),
            self.walk,
            np.int32(first),
            np.int32(last),
            np.int32(self.every),
            np.int32(rows),
            room=self.room,
            dense=self.every == 1,
        )
        return self.walk.diverged_at, record

    def _collect(self, start: int, count: int, handle: Any) -> None:
        diverged_at, record = handle
        self.dead = bool((np.asarray(diverged_at) >= 0).all())
        self.record.fill(self.first + start, self.first + start + count, record)

    def _all_diverged(self) -> bool:
        return self.dead

    def trajectory(
        self, done: int, interrupted: bool, settings: dict[str, Any], with_batches: bool
    ) -> xr.Dataset:
        """The labelled record."""
        who, walk = self.who, self.walk
        diverged_at = self._diverged_at(walk, done)
        dims, shape = who.dims, who.shape
        data: dict[str, Any] = {
            name: (where, values, self._notes(name))
            for name, where, values in self.record.variables(diverged_at)
        }
        kept = storable(self.layout.dtype)
        start = self._vectors(self.layout, self.started, shape).astype(kept)
        data["start"] = (("param", *dims), start)
        final = self._vectors(self.layout, walk.params, shape).astype(kept)
        final[..., (diverged_at >= 0).reshape(shape)] = np.nan
        data["final"] = (("param", *dims), final)
        state = self._vectors(Layout.of(self._one(walk.state)), walk.state, shape)
        data["optimizer_state"] = (("state", *dims), state.astype(np.float64))
        status = np.full(diverged_at.shape, "interrupted" if interrupted else "completed")
        status = np.where(diverged_at >= 0, "diverged", status)
        data["status"] = (dims, status.reshape(shape))
        data["diverged_at"] = (dims, diverged_at.astype(np.int64).reshape(shape))
        for name, table in self.feeds.schedules.items():
            data[f"schedule_{name}"] = (("update",), table)
        if with_batches:
            data["batch"] = self._batches()
        coords = {"step": self.record.steps, "param": np.array(self.layout.names), **who.coords}
        attrs = results.provenance(
            "trajectory",
            settings,
            seed=results.to_json(settings["seed"]),
            dtype=str(self.layout.dtype),
            device=backend.device_name(),
            last_step=int(self.record.steps[-1]),
            interrupted=int(interrupted),
        )
        return xr.Dataset(data, coords=coords, attrs=attrs)

    def _notes(self, name: str) -> dict[str, str]:
        """What a reader of the record must know: a relative movement from nowhere is absolute."""
        seen = self.plan.observed.get(name)
        if seen is None or not observables.is_relative_to_start(seen):
            return {}
        norms = np.linalg.norm(self._vectors(self.layout, self.started, self.who.shape), axis=0)
        return {"note": observables.FROM_ZERO} if (norms == 0).any() else {}

    def _diverged_at(self, walk: Walk, done: int) -> np.ndarray:
        """When each member left the finite numbers; the loop has not tested the last iterate."""
        diverged_at = np.array(walk.diverged_at).reshape(self.who.count)
        lead = (self.who.count, -1)
        finite = np.isfinite(np.asarray(walk.loss)).reshape(self.who.count)
        for leaf in jax.tree_util.tree_leaves(walk.params):
            finite = finite & np.isfinite(np.asarray(leaf)).reshape(lead).all(axis=1)
        return np.where((diverged_at < 0) & ~finite, self.first + done, diverged_at)

    def _one(self, tree: Any) -> Any:
        """The shapes of one member's part of `tree`."""
        lead = int(self.who.batched)
        return jax.tree_util.tree_map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), tree
        )

    def _vectors(self, layout: Layout, tree: Any, shape: tuple[int, ...]) -> np.ndarray:
        """`tree` as vectors (size, *members)."""
        host = jax.tree_util.tree_map(np.asarray, tree)
        vectors = layout.flatten(host, lead=int(self.who.batched))
        return np.array(np.asarray(vectors).T).reshape(layout.size, *shape)

    def _batches(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The sample indices of the recorded steps' batches; −1 where a batch is smaller."""
        order = self.feeds.order
        assert order is not None
        rows = [order.rows(int(step), 1) for step in self.record.steps]
        index, used = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        index = np.where(np.arange(order.size) < used[:, None, None], index, -1)
        index = index.swapaxes(1, 2)
        if order.lanes > 1 and "seed" in self.who.dims:
            return ("step", "in_batch", "seed"), index
        return ("step", "in_batch"), index[:, :, 0]


def _settings(optimizer: Optimizer, problem: Problem, **call: Any) -> dict[str, Any]:
    """The call as JSON can hold it; a function stands by its name."""
    return {
        "optimizer": {
            "name": optimizer.name,
            **optimizer.hyperparameters(),
            **optimizer.switches(),
        },
        "problem": {
            "source": problem.source,
            "loss": _loss_name(problem),
            "reduction": problem.reduction,
            "n_samples": problem.n_samples,
            "n_parameters": problem.size,
        },
        **call,
    }


def _loss_name(problem: Problem) -> str:
    return getattr(getattr(problem.loss, "func", problem.loss), "__name__", "loss").lstrip("_")
