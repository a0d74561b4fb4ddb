"""Which samples each step sees: in order, shuffled, drawn with replacement, or given."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import InputError, whole_number

AFTER_FIRST = "after_first"  # of shuffle=: the first epoch in the data's own order


@dataclass(frozen=True)
class Batches:
    """The mini-batches of a descent, one row of sample indices per step and seed.

    Any step's batch can be asked for at any time: each epoch's order comes from (seed, epoch)
    alone, so that a descent that is resumed sees the batches it would have seen.
    """

    n_samples: int
    size: int
    per_epoch: int
    seeds: tuple[int, ...]
    shuffle: bool = False
    in_order: int = 0  # epochs before the first shuffled one
    replacement: bool = False
    given: np.ndarray | None = None
    origin: int = 0  # the step that takes the first of the given batches

    @property
    def ragged(self) -> bool:
        """Whether an epoch's last batch is smaller than the others."""
        return (
            self.given is None
            and not self.replacement
            and self.per_epoch * self.size > self.n_samples
        )

    def smaller_within(self, first: int, total: int) -> int:
        """The size of the smaller batch, if a descent of `total` steps from step `first` sees it; else 0.
        The last iterate sees a batch too."""
        is_reached = self.ragged and first % self.per_epoch + total >= self.per_epoch - 1
        return self.n_samples % self.size if is_reached else 0

    @property
    def lanes(self) -> int:
        """The number of different orders: one per seed where the order is random, else one."""
        return len(self.seeds) if self.shuffle or self.replacement else 1

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices (count, lanes, size) of steps start …, and how many of each are used (count,).

        Unused places repeat a sample of the same batch: the loss of any other sample might not have a finite
        derivative, and masking it out would then leave a NaN.
        """
        if self.given is not None:
            steps = (np.arange(start, start + count) - self.origin) % len(self.given)
            return self.given[steps][:, None, :], np.full(count, self.size, np.int32)
        first, last = start // self.per_epoch, (start + count - 1) // self.per_epoch
        epochs = np.concatenate([self._epoch(e) for e in range(first, last + 1)])
        offset = start - first * self.per_epoch
        place = (np.arange(start, start + count) % self.per_epoch) * self.size
        used = self.size if self.replacement else np.minimum(self.size, self.n_samples - place)
        return epochs[offset : offset + count], np.broadcast_to(used, count).astype(np.int32)

    def at(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `rows`, for any ascending steps; each epoch's order is drawn once."""
        parts = []
        for _, epoch_steps in itertools.groupby(
            steps.tolist(), lambda step: step // self.per_epoch
        ):
            first, *_ = steps_within = list(epoch_steps)
            parts.append(
                [
                    table[np.subtract(steps_within, first)]
                    for table in self.rows(first, steps_within[-1] - first + 1)
                ]
            )
        index, used = map(np.concatenate, zip(*parts, strict=True))
        return index, used

    def _epoch(self, epoch: int) -> np.ndarray:
        """All of an epoch's batches: (per_epoch, lanes, size)."""
        room = self.per_epoch * self.size
        out = np.zeros((self.lanes, room), np.int32)
        for lane in range(self.lanes):
            if self.replacement:
                order = _generator(self.seeds[lane], epoch).integers(0, self.n_samples, room)
            elif self.shuffle and epoch >= self.in_order:
                order = _generator(self.seeds[lane], epoch).permutation(self.n_samples)
            else:
                order = np.arange(self.n_samples)
            used = min(room, len(order))
            out[lane, :used] = order[:used]
            out[lane, used:] = order[room - self.size] if used < room else 0
        return out.reshape(self.lanes, self.per_epoch, self.size).swapaxes(0, 1)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


def plan(
    n_samples: int,
    seeds: tuple[int, ...],
    *,
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    shuffle: bool | str,
    replacement: bool,
    drop_last: bool,
    batches: Any,
    first: int = 0,
) -> tuple[int, Batches | None]:
    """How many steps to take and the batches to take them on (None: the full batch).

    Raises:
        InputError: where the arguments contradict each other.
    """
    if steps is not None and epochs is not None:
        raise InputError(f"give steps= or epochs=, not both ({steps=}, {epochs=} given).")
    steps = None if steps is None else whole_number("steps", steps, 0)
    epochs = None if epochs is None else whole_number("epochs", epochs, 0)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
    if batches is None and steps is None and epochs is None:
        raise InputError("give steps= or epochs= (or batches=); none given.")
    if (batches is not None or batch_size is not None) and not n_samples:
        raise InputError("this problem has no data, so there are no batches to take.")
    if shuffle not in (True, False, AFTER_FIRST):
        raise InputError(f"shuffle= must be True, False or {AFTER_FIRST!r}; {shuffle!r} given.")
    if replacement and shuffle == AFTER_FIRST:
        raise InputError(
            f"replacement=True draws the samples of every epoch, and shuffle={AFTER_FIRST!r} wants the first "
            f"in the data's order; leave out one."
        )
    if (shuffle or replacement or drop_last) and batch_size is None:
        raise InputError("shuffle=, replacement= and drop_last= need batch_size=.")
    if batches is not None:
        if batch_size is not None or epochs is not None:
            raise InputError("batches= gives the batches; leave out batch_size= and epochs=.")
        rows = _given(batches, n_samples)
        return (len(rows) if steps is None else steps), Batches(
            n_samples, rows.shape[1], len(rows), seeds, given=rows, origin=first
        )
    if drop_last and batch_size is not None and batch_size > n_samples:
        raise InputError(
            f"drop_last=True leaves no batch: batch_size is {batch_size}, and there are {n_samples} "
            f"samples."
        )
    if batch_size is None or (batch_size >= n_samples and not replacement):
        return (epochs if steps is None else steps), None  # type: ignore[return-value]
    per_epoch = n_samples // batch_size if drop_last else -(-n_samples // batch_size)
    count = epochs * per_epoch if steps is None else steps  # type: ignore[operator]
    return count, Batches(
        n_samples,
        batch_size,
        per_epoch,
        seeds,
        shuffle=bool(shuffle),
        in_order=int(shuffle == AFTER_FIRST),
        replacement=bool(replacement),
    )


def _given(batches: Any, n_samples: int) -> np.ndarray:
    try:
        rows = np.asarray(batches)
    except ValueError:
        raise InputError(
            "batches= must hold the same number of indices for every step; rows of different "
            "lengths given."
        ) from None
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise InputError(
            f"batches= must be whole numbers of shape (steps, batch); shape {rows.shape} and dtype "
            f"{rows.dtype} given."
        )
    if rows.min() < 0 or rows.max() >= n_samples:
        raise InputError(
            f"batches= holds indices from {rows.min()} to {rows.max()}; there are {n_samples} "
            f"samples, so 0 to {n_samples - 1} are allowed."
        )
    return rows.astype(np.int32)
