"""The tables that a block of steps is given: its schedules and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import sampling
from thalweg.optimizers.base import Optimizer
from thalweg.problem import Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Feed:
    """The tables of one block: schedules, batches, and how many entries of each batch are used."""

    start: Any
    schedules: dict[str, Any]
    index: Any
    used: Any

    def batch(self, problem: Problem, lane: Any, step: Any) -> Problem:
        """The problem on the batch of `step`."""
        if self.index is None:
            return problem
        row = step - self.start
        valid = None if self.used is None else jnp.arange(self.index.shape[-1]) < self.used[row]
        return problem.take(self.index[row, lane], valid)

    def scheduled(self, optimizer: Optimizer, step: Any) -> Optimizer:
        """The optimizer with the scheduled hyperparameters of `step`."""
        if not self.schedules:
            return optimizer
        now = {name: table[step - self.start] for name, table in self.schedules.items()}
        return optimizer.with_hyperparameters({**optimizer.hyperparameters(), **now})


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

    @property
    def knows_the_past(self) -> bool:
        """Whether batches of earlier steps can be made. Those given by the user start at the first step."""
        return self.order is not None and self.order.given is None

    def feed(self, start: int, room: int, count: int) -> Feed:
        """The tables of `count` steps from `start`, and of the step after them, with room for `room`. The
        last iterate, which no update follows, keeps the hyperparameters of the last update.

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
            part = table[offset : offset + room + 1]
            last = table[-1] if len(table) else np.nan
            tables[name] = np.concatenate([part, np.full(room + 1 - len(part), last)])
        return Feed(np.int32(start), tables, index, used)
