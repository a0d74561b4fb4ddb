"""Legends, and where they cover the least of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Polygon

from thalweg.plots.style import BAND, LAST, RIM

_CELLS = 40
_PLACES = {
    f"{vertical} {horizontal}": (across, up)
    for vertical, up in (("upper", 1.0), ("lower", 0.0), ("center", 0.5))
    for horizontal, across in (("right", 1.0), ("left", 0.0), ("center", 0.5))
    if (vertical, horizontal) != ("center", "center")
}


def add(ax: Axes) -> None:
    """A legend of all that has a label, where the fewest points lie.

    matplotlib's own loc="best" warns, and is slow, where there are many.
    """
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    # The entries of circle and star come after the series that they mark.
    order = sorted(range(len(labels)), key=lambda i: handles[i].get_gid() == LAST)
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc=_emptiest(ax, len(labels)),  # pyright: ignore[reportArgumentType]
        fontsize="small" if len(labels) <= 6 else "x-small",
        framealpha=0.9,
    )


def ends_named(ax: Axes) -> set[str]:
    """The legend's entries of circle, star and cross; a path may be called "start", too."""
    entries = zip(*ax.get_legend_handles_labels(), strict=True)
    return {text for handle, text in entries if handle.get_gid() == LAST}


def share(figure: Figure | SubFigure, axes: Sequence[Axes], columns: int = 3) -> None:
    """Replace the panels' legends by one below all of them, with every panel's entries, in as many columns as
    fit."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(text, handle)
        panel_legend = ax.get_legend()
        if panel_legend is not None:
            panel_legend.remove()
    for count in range(min(columns, max(len(entries), 1)), 0, -1):
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=count,
            fontsize="small",
        )
        if legend.get_window_extent().width <= figure.bbox.width or count == 1:
            break
        legend.remove()


def _emptiest(ax: Axes, entries: int) -> str:
    """The location for a legend with this many entries that covers least of the drawing.

    Counted is the area that lines and points touch, not how many there are. In three dimensions it is the
    upper corner away from the labels of the third axis.
    """
    if ax.name == "3d":
        return "upper right" if ax.azim % 180 < 90 else "upper left"  # pyright: ignore[reportAttributeAccessIssue]
    points = _outline(ax)
    points = points[((points >= 0) & (points <= 1)).all(axis=1)]
    cells = np.unique(np.floor(points * _CELLS), axis=0) / _CELLS
    wide, high = 0.5, min(0.6, 0.06 + 0.07 * entries)
    covered = {}
    for place, (across, up) in _PLACES.items():
        left, low = across * (1 - wide), up * (1 - high)
        x, y = cells[:, 0], cells[:, 1]
        inside = (x >= left) & (x <= left + wide) & (y >= low) & (y <= low + high)
        covered[place] = int(inside.sum())
    return min(covered, key=lambda place: covered[place])


def _outline(ax: Axes) -> np.ndarray:
    """Points (n, 2) along lines, markers and bands, in axes coordinates: a few hundred from each artist."""
    _ = ax.get_xlim(), ax.get_ylim()  # reading the limits runs a pending autoscale
    outlines = [
        _between(np.column_stack(line.get_data(orig=False)))
        for line in ax.lines
        if line.get_gid() != RIM
    ]
    for collection in ax.collections:
        offsets = np.asarray(collection.get_offsets(), float)
        if len(offsets) > 1:
            outlines.append(offsets)
        elif collection.get_gid() == BAND:
            outlines += [_between(np.asarray(path.vertices)) for path in collection.get_paths()]
        elif isinstance(collection, LineCollection):
            outlines += [_between(np.asarray(s)) for s in collection.get_segments()]
    for patch in ax.patches:
        if patch.get_gid() and isinstance(patch, Polygon):
            outlines.append(_between(np.asarray(patch.get_xy())))
    to_axes = ax.transData - ax.transAxes
    with np.errstate(all="ignore"):
        transformed = [to_axes.transform(points) for points in outlines if len(points)]
    return np.concatenate([*transformed, np.empty((0, 2))])


def _between(points: np.ndarray) -> np.ndarray:
    """A few hundred points along a line, interpolated between its vertices where those are few."""
    points = np.asarray(points, float)
    if len(points) < 2:
        return points
    places = np.linspace(0, len(points) - 1, 300 if len(points) > 300 else 4 * len(points))
    index = np.arange(len(points))
    with np.errstate(all="ignore"):
        return np.column_stack([np.interp(places, index, column) for column in points.T])
