"""What the loop's programs are given: the plan of a descent, a block's steps, and the members as they are
between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.blocks import rows_before
from thalweg.feeds import Feed
from thalweg.observables import At
from thalweg.optimizers.base import Optimizer
from thalweg.params import Params
from thalweg.problem import Problem
from thalweg.stopping import Stop


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """What does not change along a descent. Arrays are traced; the rest decides the program."""

    problem: Problem
    optimizer: Optimizer
    observed: dict[str, Any]
    lane: Any
    stop: Stop | None
    swept: tuple[str, ...] = field(metadata={"static": True})
    scheduled: tuple[str, ...] = field(metadata={"static": True})
    batched: bool = field(metadata={"static": True})
    lanes: bool = field(metadata={"static": True})
    kept: tuple[str, ...] = field(metadata={"static": True})

    def over_members(
        self, function: Callable[..., Any], *in_axes: int | None
    ) -> Callable[..., Any]:
        """`function(optimizer, lane, *rest)`, under vmap over the members if there is an axis of them."""
        if not self.batched:
            return partial(function, self.optimizer, self.lane)
        axes = self.optimizer.with_hyperparameters(
            {n: 0 if n in self.swept else None for n in self.optimizer.hyperparameters()}
        )
        mapped = jax.vmap(function, in_axes=(axes, 0 if self.lanes else None, *in_axes))
        return partial(mapped, self.optimizer, self._lane_of_batches)

    @property
    def _lane_of_batches(self) -> Any:
        """The members' lanes; the only one where all seeds have one order of batches."""
        return self.lane if self.lanes else jnp.int32(0)

    @property
    def is_for_one(self) -> bool:
        """Whether there is an axis of members, of a single one."""
        return self.batched and len(self.lane) == 1

    def without_axis(self) -> Plan:
        """The plan for that one, without the axis."""
        alone = self.of(0)
        return replace(alone, batched=False, lane=alone._lane_of_batches)

    def of(self, members: slice | int) -> Plan:
        """The plan for some of the members."""
        hyper = self.optimizer.hyperparameters()
        values = hyper | {name: hyper[name][members] for name in self.swept}
        optimizer = self.optimizer.with_hyperparameters(values)
        return replace(self, optimizer=optimizer, lane=self.lane[members])


class Past(NamedTuple):
    """What a resumed descent takes over from the one before, per member."""

    state: Any  # the optimizer's; None in a descent that is not resumed
    diverged_at: Any
    stopped_at: Any  # None in a descent without a stopping rule
    missed: Any  # steps that passed while the member had stopped; None if no member had


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk:
    """A member between two steps. A block is given this and returns it in place, in donated buffers."""

    params: Params
    state: Any
    loss: Any
    grad: Params
    info: dict[str, Any]
    memory: dict[str, Any]  # the observables' states
    diverged_at: Any
    stopped_at: Any  # None in a descent without a stopping rule
    missed: Any  # as in `Past`

    def at(
        self, plan: Plan, feed: Feed, optimizer: Optimizer, lane: Any, start: Params, step: Any
    ) -> At:
        problem = plan.problem.replace(params=self.params)  # one with init= has a layout then
        batch = feed.batch(problem, lane, step)
        iterate = (self.params, start, self.loss, self.grad, step)
        updates = step
        if self.stopped_at is not None:
            updates = jnp.where(self.stopped_at >= 0, self.stopped_at, updates)
        if self.missed is not None:
            updates = updates - self.missed
        return At(problem, batch, *iterate, feed.scheduled(optimizer, step), self.state, updates)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Span:
    """The steps of a block, from `first` to `last`.

    Rows are recorded at `first`, at each multiple of `every` after it and before `last`, and at `last` if the
    descent `ends` there; the host drops those that were not asked for. `begun` is the first step of the
    descent: for observables with a state it counts as recorded, too. A span of arriving members starts one
    step before `begun`, where nothing is recorded.
    """

    first: Any
    last: Any
    every: Any
    begun: Any
    rows: Any  # number of rows before `last`: computed in the program, it would cost 60 microseconds per call
    ends: Any

    @classmethod
    def of(
        cls, first: int, last: int, every: int, begun: int, ends: bool, arriving: bool = False
    ) -> Span:
        rows, i32 = rows_before(first, last, every), np.int32
        return cls(i32(first - arriving), i32(last), i32(every), i32(begun), i32(rows), ends)
