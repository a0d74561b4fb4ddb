"""One descent at work: the tables of its blocks, its record, and the trajectory it becomes.

The loop itself is in `loop.py` and runs in blocks, between which the host copies what was recorded.
Members are independent of each other, so each core advances a share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, observables
from thalweg.ensemble import Members, of_members
from thalweg.errors import InputError
from thalweg.feeds import Feed, Feeds
from thalweg.logbook import Record, storable
from thalweg.loop import at_rest, begin, block, known_turns, row_of, should_arrive
from thalweg.optimizers.stepping import begun
from thalweg.params import Layout, Params
from thalweg.programs import is_exclusive
from thalweg.shares import Share, everyone, shares_of
from thalweg.walks import Past, Plan, Span, Walk

_MOST_ROWS = 1024  # recorded in a block
_MOST_STEPS = 16384  # in a block: enough to make the cost of the call negligible
_BLOCK_BYTES = 4 * 2**20  # of a share's rows, or of the tables, in a block: what the caches hold
# Multiplications of a member's QR factorisation: some microseconds, and a tenth of a second
_SMALL, _LARGE = 1e4, 1e9


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
        same_rule: bool,
    ) -> None:
        self.plan, self.feeds, self.who = plan, feeds, who
        self.first, self.total, self.every = first, total, every
        self.layout = plan.problem.layout
        self.started, past = self._start(resume, same_rule)
        samples = plan.problem.n_samples if feeds.order is None else feeds.order.size
        self.shares = list(shares_of(plan, who.count, samples))
        feed = feeds.feed(first, 1, 1)
        self.known = known_turns(every, backend.device().platform)

        def inputs_of(share: Share) -> tuple[Params, Params, Past]:
            return self._of(share, (who.starts, self.started, past))

        first_plan, (params, start, before) = self.shares[0].plan, inputs_of(self.shares[0])
        evaluates = begin.trace(first_plan, feed, params, start, before, arrives=False)
        walk = evaluates.out_info
        self.arrives = should_arrive(evaluates.jaxpr.jaxpr, self.known)
        self.arriving = self.arrives  # until the first block has been launched
        self._check_memory(start, walk)
        shapes = row_of.eval_shape(first_plan, feed, start, walk, np.int32(0), True)[0]
        self.record = Record(shapes, self.layout, who, first, total, every, updates=walk.info)
        row_bytes = max(1, self.record.row_bytes // len(self.shares))
        rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // row_bytes))
        steps = max(1, min(_MOST_STEPS, _BLOCK_BYTES // feeds.step_bytes))
        self.most = min(rows * every, steps)
        # rounded up to a power of two, plus two: otherwise each value of `every` would compile anew
        self.room = 2 ** (-(-self.most // every) - 1).bit_length() + 2
        # A dense block contains the code of a row twice. With users' observables that takes long to compile,
        # and saves less than a microsecond per step, except on a GPU, where the host controls each loop.
        self.dense = every == 1 and (self.known > 0 or not plan.observed)
        if len(self.shares) > 1 and self._is_exclusive(start, walk):
            self.shares = [everyone(plan)]
        self.threads = backend.Threads(min(backend.workers(), len(self.shares)))
        self.over = False  # whether every member has diverged or stopped
        self.starts, self.walks = [], []
        for share in self.shares:
            params, start, before = inputs_of(share)
            self.starts.append(jax.device_put(start))
            params = params if resume is not None else self.starts[-1]
            walk = begin(share.plan, feed, params, self.starts[-1], before, arrives=self.arrives)
            for step, stopped in self._at_rest(walk) if resume is not None else ():
                walk = at_rest(share.plan, feeds.feed(step, 1, 0), walk, stopped)
            self.walks.append(walk)

    def _at_rest(self, walk: Walk) -> Iterator[tuple[int, np.ndarray]]:
        """The members that had stopped, by the step on whose batch to evaluate them: that at which they
        stopped, or, where batches of earlier steps are not known, the next step, on which `begin` has
        evaluated them already unless the first block arrives."""
        stopped = np.asarray(-1 if walk.stopped_at is None else walk.stopped_at)
        if self.feeds.knows_the_past:
            for step in set(stopped.ravel().tolist()) - {-1}:
                yield step, stopped == step
        elif self.arrives and (stopped >= 0).any():
            yield self.first, stopped >= 0

    def _is_exclusive(self, start: Params, walk: Walk) -> bool:
        """Whether the block of one share must not run at the same time as another's. The trace is cached, and
        used again to compile the block."""
        feed, span, static = self._block_arguments(0, 1)
        traced = block.trace(self.shares[0].plan, feed, start, walk, span, **static)
        return is_exclusive(traced.jaxpr)

    def _is_alone(self) -> bool:
        """Whether LAPACK should compute in one thread. It does so by itself where a least-squares method's
        matrices are small, and its threads are worth waiting for where there is one matrix and it is large:
        those of several members XLA spreads over the cores."""
        samples, numbers = self.plan.problem.n_samples, self.layout.size
        work = max(samples, numbers) * numbers**2
        large = self.who.count == 1 and work > _LARGE
        return work > _SMALL and not large and self._is_exclusive(self.starts[0], self.walks[0])

    def _of(self, share: Share, tree: Any) -> Any:
        """A share's part of a pytree with a leading axis over all members."""
        if len(self.shares) == 1:
            return tree
        return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf)[share.members], tree)

    def _all(self, tree: Callable[[Walk], Any]) -> Any:
        """`tree` of the shares' walks, joined along the axis of members."""
        trees = [tree(walk) for walk in self.walks]
        if len(trees) == 1:
            return trees[0]
        return jax.tree_util.tree_map(
            lambda *leaves: np.concatenate(
                [np.asarray(leaf)[s.again :] for leaf, s in zip(leaves, self.shares, strict=True)]
            ),
            *trees,
        )

    def _check_memory(self, start: Params, walk: Walk) -> None:
        """An error where memory cannot hold the states of all members (per share those of `walk`): on the
        device before and after a step, and at the end on the host, where several shares' are joined."""

        def size(tree: Any) -> int:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree_util.tree_leaves(tree))

        numbers = sum(leaf.size for leaf in jax.tree_util.tree_leaves(walk.state))
        shares = len(self.shares)
        copies = 2 if shares == 1 else 3
        blocks.check_memory(
            shares * (copies * size((start, walk)) + 8 * numbers),
            f"the states of {self.who.count} runs of {self.layout.size} parameters under "
            f"{self.plan.optimizer.name}",
            "run fewer at once, or an optimizer with less state",
        )

    def _start(self, resume: xr.Dataset | None, same_rule: bool) -> tuple[Params, Past]:
        """The iterates at step 0, and the past of a resumed descent. A member that had stopped by another
        rule than the present one continues."""
        lead = (self.who.count,) if self.who.batched else ()
        going_on = np.full(lead, -1, np.int32)
        nobody = None if self.plan.stop is None else going_on
        if resume is None:
            return self.who.starts, Past(None, going_on, nobody, None)
        sizes = self.who.sizes
        started = self.layout.unflatten(
            of_members(resume["start"], sizes, "param").reshape(*lead, -1)
        )
        flat = of_members(resume["optimizer_state"], sizes, "state").reshape(*lead, -1)
        init = self.plan.over_members(lambda optimizer, lane, params: begun(optimizer, params), 0)
        layout = Layout.of(self._one(jax.eval_shape(init, self.who.starts)))
        if flat.shape[-1] != layout.size:
            raise InputError(
                f"resume= holds the state of another optimizer, or of another version's ({flat.shape[-1]} "
                f"numbers, and {self.plan.optimizer.name} has {layout.size}); give the one it was made with."
            )
        diverged, stopped, updates = (
            of_members(resume[name], sizes).reshape(lead).astype(np.int32)
            for name in ("diverged_at", "stopped_at", "updates")
        )
        stopped = stopped if same_rule else nobody
        ends = (
            np.int32(self.first) if stopped is None else np.where(stopped < 0, self.first, stopped)
        )
        missed = np.where(diverged < 0, ends, diverged).astype(np.int32) - updates
        state = layout.unflatten(flat)
        return started, Past(state, diverged, stopped, missed if missed.any() else None)

    def run(self, progress: bool | None) -> bool:
        """Run all steps; returns whether Ctrl-C ended the descent."""
        with self.threads, backend.lapack_alone if self._is_alone() else nullcontext():
            reached, interrupted = blocks.run(
                self.total,
                self._launch,
                self._collect,
                most=self.most,
                label="descend",
                progress=progress,
                finished=lambda: self.over,
            )
            done = reached if interrupted else self._end()
            if done < self.total:
                recorded = not interrupted and self.first + done in self.record.steps
                self.record.end_at(self.first + done)
                if recorded:
                    return interrupted
            elif reached == self.total > 0:  # the last block has recorded the last row
                return interrupted
            self._collect(done, 0, self._launch(done, 0))
        return interrupted

    def _end(self) -> int:
        """How many steps lead to the last iterate: if all members have stopped or diverged, and at least one
        has stopped, those until the last of them did; else all."""
        if self.plan.stop is None:
            return self.total
        stopped, diverged = map(
            np.asarray, self._all(lambda walk: (walk.stopped_at, walk.diverged_at))
        )
        if (stopped < 0).all() or not self._over(diverged, stopped):
            return self.total
        return max(int(np.maximum(stopped, diverged).max()) - self.first, 0)

    def _block_arguments(self, start: int, count: int) -> tuple[Feed, Span, dict[str, Any]]:
        """What `block` needs, besides the plan and the walk, for `count` steps from `start`."""
        first = self.first + start
        ends = self._ends(start, count)
        span = Span.of(first, first + count, self.every, self.first, ends, self.arriving)
        feed = self.feeds.feed(first, self.most, count)
        static = {"room": self.room, "dense": self.dense, "known": self.known}
        return feed, span, {**static, "arrives": self.arrives}

    def _ends(self, start: int, count: int) -> bool:
        """Whether a block ends at the last iterate. A block of no steps only records that."""
        return count == 0 or start + count == self.total

    def _launch(self, start: int, count: int) -> list[Callable[[], Any]]:
        feed, span, static = self._block_arguments(start, count)
        self.arriving = False

        def advance(k: int) -> Any:
            self.walks[k], *results = block(
                self.shares[k].plan, feed, self.starts[k], self.walks[k], span, **static
            )
            return results

        return [self.threads.call(k, advance, k) for k in range(len(self.shares))]

    def _collect(self, start: int, count: int, handles: list[Callable[[], Any]]) -> None:
        first, ends = self.first + start, self._ends(start, count)
        self.over = True
        for share, result in zip(self.shares, handles, strict=True):
            diverged_at, stopped_at, record = result()
            self.over &= self._over(diverged_at, stopped_at)
            self.record.fill(first, first + count, record, share.members, share.again, ends)

    @staticmethod
    def _over(diverged_at: Any, stopped_at: Any) -> bool:
        """Whether every member has diverged or stopped."""
        over = np.asarray(diverged_at) >= 0
        return bool((over if stopped_at is None else over | (np.asarray(stopped_at) >= 0)).all())

    def trajectory(
        self, interrupted: bool, settings: dict[str, Any], with_batches: bool
    ) -> xr.Dataset:
        """The labelled record."""
        who, walk = self.who, self._all(lambda walk: walk)
        diverged_at = np.array(walk.diverged_at).reshape(who.count)
        stopped_at = np.full_like(diverged_at, -1)
        if walk.stopped_at is not None:
            stopped_at = np.asarray(walk.stopped_at).reshape(diverged_at.shape)
        dims, shape = who.dims, who.shape
        data: dict[str, Any] = {
            name: (where, values, self._notes(name))
            for name, where, values in self.record.variables(diverged_at, stopped_at)
        }
        kept = storable(self.layout.dtype)
        data["start"] = (("param", *dims), self._vectors(self.started, kept))
        final = self._vectors(walk.params, kept)
        final[..., (diverged_at >= 0).reshape(shape)] = np.nan
        data["final"] = (("param", *dims), final)
        data["optimizer_state"] = (("state", *dims), self._vectors(walk.state, np.float64))
        status = np.full(diverged_at.shape, "interrupted" if interrupted else "completed")
        status = np.where(stopped_at >= 0, "converged", status)
        status = np.where(diverged_at >= 0, "diverged", status)
        data["status"] = (dims, status.reshape(shape))
        updates = np.where(stopped_at >= 0, stopped_at, self.record.steps[-1])
        updates = np.where(diverged_at >= 0, diverged_at, updates)
        updates = updates - (0 if walk.missed is None else np.asarray(walk.missed).reshape(-1))
        for name, count in (
            ("diverged_at", diverged_at),
            ("stopped_at", stopped_at),
            ("updates", updates),
        ):
            data[name] = (dims, count.astype(np.int64).reshape(shape))
        for name, table in self.feeds.schedules.items():
            data[f"schedule_{name}"] = (("update",), table)
        if with_batches:
            data["batch"] = self._batches()
        return self.record.labelled(data, settings, interrupted)

    def _notes(self, name: str) -> dict[str, str]:
        """Notes on a variable: a relative movement is absolute where its reference has norm zero."""
        observable = self.plan.observed.get(name)
        if observable is not None and observable.relative:
            first = jax.tree_util.tree_leaves(self._all(lambda walk: walk.memory[name]))
            nonzero = [np.asarray(leaf).reshape(self.who.count, -1).any(axis=1) for leaf in first]
            return {} if np.any(nonzero, axis=0).all() else {"note": observables.OF_ZERO}
        if observable is None or not observables.is_named("relative_movement", observable):
            return {}
        from_elsewhere = self._vectors(self.started, self.layout.dtype).any(axis=0)
        return {} if from_elsewhere.all() else {"note": observables.FROM_ZERO}

    def _one(self, tree: Any) -> Any:
        """The shapes of one member's part of `tree`."""
        lead = int(self.who.batched)
        return jax.tree_util.tree_map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), tree
        )

    def _vectors(self, tree: Any, dtype: Any) -> np.ndarray:
        """`tree` as host vectors (size, *members), with a single copy of each number."""
        count = self.who.count
        leaves = jax.tree_util.tree_leaves(jax.device_get(tree))  # one transfer for all leaves
        rows = [leaf.reshape(count, -1) for leaf in leaves]
        vectors = np.empty((sum(row.shape[1] for row in rows), count), dtype)
        end = 0
        for row in rows:
            begin, end = end, end + row.shape[1]
            vectors[begin:end] = row.T
        return vectors.reshape(-1, *self.who.shape)

    def _batches(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The sample indices of the recorded steps' batches; −1 pads smaller ones."""
        order = self.feeds.order
        assert order is not None
        index, used = order.at(self.record.steps)
        index = np.where(np.arange(order.size) < used[:, None, None], index, -1)
        index = index.swapaxes(1, 2)
        if order.lanes > 1 and "seed" in self.who.dims:
            return ("step", "in_batch", "seed"), index
        return ("step", "in_batch"), index[:, :, 0]
