"""Distributions of what members end with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg.errors import InputError, one_of
from thalweg.plots import curves, legends, members, style, ticks

_ROUNDING = 1e-12


def histogram(
    values: Any,
    name: str = "loss",
    *,
    bins: Any = 30,
    x: str = "linear",
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """A histogram of members' final values; several on the same bins.

    A trajectory gives one histogram for each combination of swept values. Diverged members are
    counted in the legend, not drawn.

    Args:
        values: a trajectory, whose last recorded step counts; an array; or a mapping from names to
            trajectories or arrays.
        name: which record of a trajectory; the axis label of an array.
        bins: how many bins between the smallest and the largest of all values, or their edges.
        x: "linear" or "log"; on a log axis values at or below zero are left out, and counted.
        ax: where to draw; a new figure without it.
        title: a title.
        label: the name in the legend of a trajectory or an array that is given alone.

    Raises:
        InputError: a record that is not there, an unknown scale, impossible bins.
    """
    one_of("x", x, ("linear", "log"))
    mapping = values if members.are_several(values) else {label or "": values}
    groups: dict[str, _Ends] = {}
    for prefix, one in mapping.items():
        groups.update(_groups(style.plain(prefix), one, name))
    low = 0
    if x == "log":
        low = sum(int((ends.values <= 0).sum()) for ends in groups.values())
        groups = {t: replace(e, values=e.values[e.values > 0]) for t, e in groups.items()}
    pooled = np.concatenate([e.values for e in groups.values()]) if groups else np.empty(0)
    edges = _edges(pooled, bins, x)
    ax = style.new_axes(ax)
    taken = style.styles_taken(ax)
    for i, (text, ends) in enumerate(groups.items()):
        look = style.style(taken + i)
        text = style.joined(text, ends.words, by=": ")
        options: dict[str, Any] = {"bins": edges, "gid": f"{style.SERIES}-{taken + i}"}
        # Filled, and outlined with the series' dash, which distinguishes them in greyscale.
        ax.hist(ends.values, color=look.color, alpha=0.3, label=f"_{text}", **options)
        ax.hist(
            ends.values,
            histtype="step",
            color=look.color,
            ls=look.dash,
            lw=1.6,
            label=text,
            **options,
        )
    outside = int(((pooled < edges[0]) | (pooled > edges[-1])).sum())
    if outside:
        style.note(ax, f"{style.count_of(outside, 'value')} outside the bins not shown")
    if low:
        style.note(ax, f"{style.count_of(low, 'value')} ≤ 0 not shown (log axis)")
    if not pooled.size:
        style.note(ax, "no value can be shown")
    ticks.scale(ax, x=x)
    final = any(isinstance(one, xr.Dataset) for one in mapping.values())
    words = style.joined("final" if final else None, curves.label_of(name), by=" ")
    ax.set(xlabel=words, ylabel="members" if final else "values")
    style.titled(ax, title, words)
    legends.add(ax)
    return ax


@dataclass(frozen=True)
class _Ends:
    """The finite values of one histogram, and its legend entry."""

    values: np.ndarray
    words: str


def _groups(prefix: str, values: Any, name: str) -> dict[str, _Ends]:
    """Values by legend entry."""
    if not isinstance(values, xr.Dataset):
        array = style.numbers("values", values).ravel()
        return {prefix: _ends(array, np.zeros(array.shape, bool), "value")}
    path = members.check_trajectory(values)
    final = curves.final(path, name)
    lost = members.diverged(path)
    groups = {}
    for series in members.by_sweep(path):
        ends = np.array([final[m] for m in series.members])
        gone = np.array([lost[m] for m in series.members])
        groups[style.joined(prefix, series.label, by=": ")] = _ends(ends, gone, "member")
    return groups


def _ends(values: np.ndarray, gone: np.ndarray, what: str) -> _Ends:
    fine = np.isfinite(values) & ~gone
    missing = int((~fine & ~gone).sum())
    words = style.joined(
        style.count_of(values.size, what),
        f"{gone.sum():,} diverged" if gone.any() else None,
        f"{missing:,} not finite" if missing else None,
    )
    return _Ends(values[fine], words)


def even_edges(values: np.ndarray, bins: Any) -> np.ndarray:
    """numpy's edges for this many bins (or a rule's name, or edges); where all values are equal to rounding,
    a wider range around them, since bins within rounding would have no width."""
    if values.size and np.ndim(bins) == 0:
        low, high = values.min(), values.max()
        size = max(abs(low), abs(high))
        if high - low <= _ROUNDING * size:
            room = max(0.5, 1e-6 * size)  # 0.5 is numpy's
            count = 1 if isinstance(bins, str) else int(bins)
            return np.linspace(low - room, high + room, count + 1)
    return np.histogram_bin_edges(values, bins)


def checked(bins: Any) -> Any:
    """A number of bins, or their edges as an array; an InputError for anything else."""
    if isinstance(bins, (int, np.integer)) and not isinstance(bins, bool) and bins >= 1:
        return int(bins)
    try:
        edges = np.array(bins, float)
    except (TypeError, ValueError):
        edges = np.empty(0)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise InputError(
            f"bins must be a whole number of at least 1, or two or more increasing edges; {bins!r:.80} given."
        )
    return edges


def _edges(pooled: np.ndarray, bins: Any, x: str) -> np.ndarray:
    bins = checked(bins)
    if x == "log" and isinstance(bins, int):
        low, high = (pooled.min(), pooled.max()) if pooled.size else (1.0, 10.0)
        if low == high:
            low, high = low / 2, high * 2
        edges = np.geomspace(low, high, bins + 1)
        edges[[0, -1]] = low, high
        return edges
    return even_edges(pooled, bins)
