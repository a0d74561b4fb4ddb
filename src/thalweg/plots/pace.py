"""The pace of an animation: which of the recorded steps it shows, and how fast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg.errors import InputError, one_of, real
from thalweg.plots import style

_SPACINGS = ("even", "geometric")


def steps_of(
    trajectories: Sequence[xr.Dataset], frames: int | Sequence[int], spacing: str
) -> tuple[list[int], np.ndarray]:
    """The steps to show, and all that were recorded.

    Args:
        frames: at most how many steps; or the steps themselves.
        spacing: "even" or "geometric", where there are more.

    Raises:
        InputError: no frames, or steps that were not recorded.
    """
    one_of("spacing", spacing, _SPACINGS)
    if not all(each.sizes["step"] for each in trajectories):
        raise InputError("this trajectory has no recorded steps.")
    recorded = np.unique(np.concatenate([each["step"].values for each in trajectories]))
    if not isinstance(frames, (int, np.integer)) or isinstance(frames, bool):
        steps = np.asarray(frames)
        if steps.ndim != 1 or not steps.size or not np.isin(steps, recorded).all():
            raise InputError(
                f"frames must be a number, or steps that were recorded; {frames!r} given."
            )
        return np.unique(steps).tolist(), recorded
    if frames < 1:
        raise InputError(f"an animation needs at least 1 frame; frames={frames} given.")
    shared = _shared(trajectories, recorded)
    count = int(np.searchsorted(shared, max(map(_end, trajectories)))) + 1
    count = min(count, len(shared))
    if frames >= count:
        rows = np.arange(count)
    elif frames == 1:
        rows = np.array([count - 1])
    elif spacing == "even":
        rows = np.linspace(0, count - 1, frames).round().astype(int)
    else:
        rows = np.unique(np.geomspace(1, count, frames).round().astype(int)) - 1
    return shared[rows].tolist(), recorded


def _shared(trajectories: Sequence[xr.Dataset], recorded: np.ndarray) -> np.ndarray:
    """The steps that all trajectories recorded that had begun and not ended: were one seen more often than
    another, its steps would seem slower."""
    kept = np.ones(len(recorded), bool)
    for steps in (each["step"].values for each in trajectories):
        going_on = (recorded >= steps[0]) & (recorded <= steps[-1])
        kept &= ~going_on | np.isin(recorded, steps)
    kept[-1] = True
    return recorded[kept]


def _end(path: xr.Dataset) -> int:
    """The last step at which something moves: once all members have diverged, nothing does."""
    steps, lost = path["step"].values, path["diverged_at"].values
    row = np.searchsorted(steps, lost.max()) if (lost >= 0).all() else len(steps)
    return int(steps[min(row, len(steps) - 1)])


def say_left_out(ax: Axes, steps: Sequence[int], recorded: np.ndarray) -> None:
    """Note which of the recorded steps are shown, unless all up to the last are."""
    rows = np.searchsorted(recorded, steps)
    count = int(rows[-1]) + 1
    if len(rows) == count:
        return
    gaps = np.diff(rows)
    how = None
    if len(rows) > 2:
        even, closing = gaps.max() - gaps.min() <= 1, (np.diff(gaps) >= 0).all()
        how = "evenly spaced" if even else "closest at the beginning" if closing else None
    text = f"{len(rows):,} of {style.count_of(count, 'recorded step')} shown"
    style.note(ax, style.joined(text, how))


def check_speed(fps: float, dpi: float) -> None:
    for name, value in (("fps", fps), ("dpi", dpi)):
        if not 0 < real(value) < np.inf:
            raise InputError(f"{name} must be a positive number; {value!r} given.")
