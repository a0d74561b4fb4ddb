"""One descent at work: the tables of its blocks, its record, and the trajectory it becomes.

The loop itself is in `loop.py` and runs in blocks, between which the host copies what was recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, names, observables, results, sampling
from thalweg.ensemble import Members, member_vectors
from thalweg.errors import InputError
from thalweg.logbook import Record, storable
from thalweg.loop import Feed, Plan, Walk, begin, block, row_of
from thalweg.params import Layout, Params

_MOST_ROWS = 1024  # recorded in a block
_MOST_STEPS = 16384  # in a block: enough for the call to vanish beside the steps
_BLOCK_BYTES = 8 * 2**20  # of recorded rows, or of tables, in a block: what the caches hold


@dataclass(frozen=True)
class Feeds:
    """Makes each block's tables."""

    order: sampling.Batches | None
    schedules: dict[str, np.ndarray]  # (total,), from the first step on
    first: int

    @property
    def step_bytes(self) -> int:
        """Bytes of table that a step needs."""
        order = 0 if self.order is None else 4 * self.order.size * self.order.lanes
        return max(1, order + 8 * len(self.schedules))

    def feed(self, start: int, room: int, count: int) -> Feed:
        """The tables of `count` steps from `start`, and of the step after them, with room for `room`.

        An epoch's order costs the host as much as its steps cost the device: only what a block uses
        is made, and the rest is zeros.
        """
        index = used = None
        if self.order is not None:
            index, used = (
                np.concatenate([rows, np.zeros((room - count, *rows.shape[1:]), rows.dtype)])
                for rows in self.order.rows(start, count + 1)
            )
            used = used if self.order.ragged else None
        offset = start - self.first
        tables = {}
        for name, table in self.schedules.items():
            padded = np.zeros(room + 1)
            part = table[offset : offset + room + 1]
            padded[: len(part)] = part
            tables[name] = padded
        return Feed(np.int32(start), tables, index, used)


class Job:
    """One descent: its blocks, its record, and the trajectory it becomes."""

    def __init__(
        self,
        plan: Plan,
        feeds: Feeds,
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
        feed = feeds.feed(first, 1, 1)
        arguments = (plan, feed, who.starts, self.started, state, diverged)
        self._check_memory(begin.eval_shape(*arguments))
        self.walk = begin(*arguments)
        shapes = row_of.eval_shape(plan, feed, self.walk, np.int32(0), True)[0]
        self.record = Record(shapes, self.layout, who, first, total, every, updates=self.walk.info)
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
        """Do the steps; at which step the descent ended, and whether Ctrl-C ended it."""
        done, interrupted = blocks.run(
            self.total,
            self._launch,
            self._collect,
            most=self.most,
            label="descend",
            progress=progress,
            finished=self._is_over,
        )
        if not interrupted:
            done = self._end()
        if done < self.total:
            known = not interrupted and self.first + done in self.record.steps
            self.record.end_at(self.first + done)
            if known:
                return done, interrupted
        # The last row is the first of a block more, whose step is not kept. What it says of the last
        # iterate is.
        walk = self.walk
        self._collect(done, 1, self._launch(done, 1))
        self.walk = replace(walk, stopped_at=self.walk.stopped_at)
        return done, interrupted

    def _end(self) -> int:
        """The step of the last iterate: where all members have stopped, or diverged and one at least
        stopped, that where the last of them did."""
        if self.plan.stop is None:
            return self.total
        stopped, diverged = (np.asarray(a) for a in (self.walk.stopped_at, self.walk.diverged_at))
        if (stopped < 0).all() or not self._over(diverged, stopped):
            return self.total
        return int(np.maximum(stopped, diverged).max()) - self.first

    def _launch(self, start: int, count: int) -> Any:
        first = self.first + start
        last = first + count
        rows = 1 + (last - 1) // self.every - first // self.every
        self.walk, record = block(
            self.plan,
            self.feeds.feed(first, self.most, count),
            self.walk,
            np.int32(first),
            np.int32(last),
            np.int32(self.every),
            np.int32(rows),
            room=self.room,
            dense=self.every == 1,
        )
        return self.walk.diverged_at, self.walk.stopped_at, record

    def _collect(self, start: int, count: int, handle: Any) -> None:
        diverged_at, stopped_at, record = handle
        self.over = self._over(diverged_at, stopped_at)
        self.record.fill(self.first + start, self.first + start + count, record)

    def _is_over(self) -> bool:
        return self.over

    @staticmethod
    def _over(diverged_at: Any, stopped_at: Any) -> bool:
        """Whether every member has diverged or stopped."""
        over = np.asarray(diverged_at) >= 0
        return bool((over if stopped_at is None else over | (np.asarray(stopped_at) >= 0)).all())

    def trajectory(
        self, done: int, interrupted: bool, settings: dict[str, Any], with_batches: bool
    ) -> xr.Dataset:
        """The labelled record."""
        who, walk = self.who, self.walk
        diverged_at = self._diverged_at(walk, done)
        stopped_at = np.full_like(diverged_at, -1)
        if walk.stopped_at is not None:
            stopped_at = np.asarray(walk.stopped_at).reshape(diverged_at.shape)
        dims, shape = who.dims, who.shape
        data: dict[str, Any] = {
            name: (where, values, self._notes(name))
            for name, where, values in self.record.variables(diverged_at, stopped_at)
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
        status = np.where(stopped_at >= 0, "converged", status)
        status = np.where(diverged_at >= 0, "diverged", status)
        data["status"] = (dims, status.reshape(shape))
        for name, at in (("diverged_at", diverged_at), ("stopped_at", stopped_at)):
            data[name] = (dims, at.astype(np.int64).reshape(shape))
        for name, table in self.feeds.schedules.items():
            data[f"schedule_{name}"] = (("update",), table)
        if with_batches:
            data["batch"] = self._batches()
        coords = {"step": self.record.steps, **names.coords(self.layout.names), **who.coords}
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
        if seen is not None and seen.relative:
            first = jax.tree_util.tree_leaves(self.walk.memory[name])
            kept = [np.asarray(leaf).reshape(self.who.count, -1).any(axis=1) for leaf in first]
            return {} if np.any(kept, axis=0).all() else {"note": observables.OF_ZERO}
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
