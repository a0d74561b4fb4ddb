"""Trajectories and points on a landscape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from thalweg import names, projection, results
from thalweg.errors import InputError
from thalweg.plots import legends, members, strands, style
from thalweg.plots.strands import Strand

_LITTLE = 0.1  # of a path's movement: where a plane shows less, a note says how little
_MARK_EVERY = 0.12  # distance between markers along a path, relative to the window


def path(
    surface: xr.Dataset,
    path: members.Paths,
    *,
    ax: Axes,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw a trajectory on axes that show a landscape; call it again for another one.

    Up to ten members have a colour, a dash and a marker of their own and are named by their swept
    values; more of them share a style by swept value, or one. A circle is where a member starts, a star
    where it ends, a cross the last finite iterate of one that diverged. The landscape's window stays as
    it is: a note below the axes says how many paths leave it, and how far iterates lie off the plane,
    where the contours are not the risk on the path.

    Args:
        surface: the landscape that was drawn.
        path: a trajectory with recorded parameters, or several by name.
        ax: the axes that show the landscape.
        label: the name in the legend of a trajectory that is given alone.
        color: one colour for all members.

    Raises:
        InputError: a path of other parameters, or without recorded ones.
    """
    style.check_color(color)
    for name, each in named(surface, path, label):
        look = None if color is None else style.style(style.styles_taken(ax), color=color)
        draw(surface, each, ax, name, look=look)
    return ax


def named(
    surface: xr.Dataset, path: members.Paths | None, label: str | None = None
) -> members.Named:
    """The trajectories to draw on a landscape by their names, if any, each checked to be of its parameters:
    before there is a figure, which an error would leave behind empty."""
    several = [] if path is None else members.named(path, label)
    results.plane_axes(surface)  # raises if it is no landscape
    for name, each in several:
        with members.about(name):
            projection.points_of(surface, each)
            if not each.sizes["step"]:
                raise InputError("this trajectory has no recorded steps.")
    return several


@dataclass(frozen=True, eq=False)
class Trail:
    """The artists of a series, which can be shown up to any of its recorded steps.

    Args:
        x, y: (recorded steps, members) coordinates, NaN where they are not finite.
        lost: (members) which of them diverge.
        lines: one per member, in this order.
        marks: per member, the iterates that have a marker.
        rim: the white outline beneath all lines.
        start, end, cross: markers at the members' starts, current iterates, and last finite iterates.
    """

    x: np.ndarray
    y: np.ndarray
    lost: np.ndarray
    lines: tuple[Line2D, ...]
    marks: tuple[list[int], ...]
    rim: Line2D
    start: Line2D
    end: Line2D
    cross: Line2D

    @property
    def artists(self) -> tuple[Line2D, ...]:
        """All artists, from bottom to top."""
        return self.rim, *self.lines, self.start, self.end, self.cross

    def until(self, row: int) -> None:
        """Show the iterates up to and including this recorded step; nothing at −1."""
        for artist in self.artists:
            artist.set_visible(row >= 0)
        if row < 0:
            return
        x, y = self.x[: row + 1], self.y[: row + 1]
        for line, marks, across, up in zip(self.lines, self.marks, x.T, y.T, strict=True):
            line.set_data(across, up)
            line.set_markevery([mark for mark in marks if mark <= row])
        self.rim.set_data(members.in_a_row(x), members.in_a_row(y))
        for artist, place in zip(
            (self.start, self.end, self.cross), strands.ends(x, y, self.lost), strict=True
        ):
            artist.set_data(*place)


def draw(
    surface: xr.Dataset,
    path: xr.Dataset,
    ax: Axes,
    label: str | None,
    *,
    end: str = "end",
    look: style.Style | None = None,
) -> list[Trail]:
    """`path`, with a legend entry `end` for the last iterate and an optional style for all members."""
    _framed(ax, surface)
    x, y = coordinates(ax, surface, path, label)
    trails = [_trail(ax, strand) for strand in strands.each(ax, path, x, y, label, look)]
    strands.legend_of_ends(ax, path, x, y, end)
    legends.add(ax)
    return trails


def _trail(ax: Axes, strand: Strand) -> Trail:
    look, many = strand.look, strand.many
    columns = [*zip(strand.x.T, strand.y.T, strict=True)]
    marks = [[] if many or strand.alone else _marks(ax, *column) for column in columns]
    rim = _rim(ax, strand.x, strand.y, style.rim(look.color), wide=1.7 if many else 3.2)
    lines = [
        ax.plot(
            *column,
            color=look.color,
            ls=strands.dash_of(look, many, left),
            lw=0.8 if many else 1.6,
            alpha=_alpha(len(columns)),
            marker=None if many or strand.alone else look.marker,
            markevery=marked,
            ms=4.5,
            zorder=3,
            label=f"_{strand.name}",
            gid=strand.gid,
        )[0]
        for column, marked, left in zip(columns, marks, strand.lost, strict=True)
    ]
    strands.legend_entries(ax, strand, marked=not strand.alone)
    looks = [strands.end_looks(kind, look.color, many) for kind in strands.ENDS]
    ends = [ax.plot([], [], ls="", zorder=4, **each)[0] for each in looks]
    trail = Trail(strand.x, strand.y, strand.lost, tuple(lines), tuple(marks), rim, *ends)
    trail.until(len(strand.x) - 1)
    return trail


def mark(
    surface: xr.Dataset,
    point: Any,
    *,
    ax: Axes,
    label: str,
    marker: str = "P",
    color: str | None = None,
) -> Axes:
    """Mark a point of parameter space, such as a known minimum, on axes that show a landscape.

    Args:
        surface: the landscape that was drawn.
        point: by name, as in {"x": 1.0, "y": 2.0}; or (p,) in the landscape's order of parameters, an
            array or a DataArray.
        ax: the axes that show the landscape.
        label: its name in the legend; it also says how far off the plane the point lies.
        marker, color: matplotlib's; by default a plus in the colour of text.

    Raises:
        InputError: not one point of the landscape's parameters.
    """
    style.check_color(color)
    style.check_marker(marker)
    _framed(ax, surface)
    (across, up), off = place_of(surface, point, label)
    text = entry_of(label, off)
    color = style.shade(0) if color is None else color
    looks = {"marker": marker, "color": color, "mec": style.shade(1), "ms": 10}
    ax.plot([across], [up], ls="", zorder=5, label=text, **looks)
    if not strands.is_inside(ax, across, up):
        style.note(ax, f"{style.plain(label)} lies outside the window")
    legends.add(ax)
    return ax


def place_of(
    surface: xr.Dataset, point: Any, label: str
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """A point's coordinates across and up, and its distance from the plane.

    Raises:
        InputError: not one point of the landscape's parameters.
    """
    point = names.vector(point, names.found(surface))
    where = projection.project(surface, point)
    if where["residual"].ndim:
        raise InputError(
            f"point {label!r} must be one point; {dict(where['residual'].sizes)} given."
        )
    across, up = (where[axis].values for axis in _two_axes(surface))
    return (across, up), projection.off_plane(surface, point, where)


def points_by_name(points: Any) -> Mapping[str, Any]:
    """Points to mark, by what they are called."""
    if points is not None and not members.are_several(points):
        raise InputError(
            "points= are given by what they are called, as in {'minimum': [3.0, 2.0]}; "
            f"{type(points).__name__} given."
        )
    return points or {}


def entry_of(label: str, off: float) -> str:
    """A marked point's legend entry, with its distance from the plane."""
    return style.joined(style.plain(label), f"{style.number(off)} off the plane" if off else None)


def coordinates(
    ax: Axes, surface: xr.Dataset, path: xr.Dataset, label: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A trajectory's coordinates (step, …members) across and up, NaN where they are not finite.

    Notes on the axes say what the picture cannot show, and of which path where it has a label.
    """
    members.check_trajectory(path)
    across, up = _two_axes(surface)
    dims = ("step", *results.member_dims(path))
    with np.errstate(all="ignore"):  # a run on its way to infinity
        where = projection.project(surface, path).transpose(*dims)
        off = off_plane_text(surface, path["params"], where)
    x, y = (np.where(np.isfinite(where[a]), where[a], np.nan) for a in (across, up))
    outside = np.isfinite(x) & np.isfinite(y) & ~strands.is_inside(ax, x, y)
    leaving, total = int(outside.any(axis=0).sum()), int(np.prod(x.shape[1:]))
    name = label and style.plain(label)
    if leaving:
        style.note(ax, style.joined(name, leaving_text(leaving, total), by=": "))
    if off:
        style.note(ax, style.joined(name, off, by=": "))
    return x, y


def leaving_text(leaving: int, total: int) -> str:
    """ "2 of 5 paths leave the window"."""
    if total == 1:
        return "the path leaves the window"
    verb = "leaves" if leaving == 1 else "leave"
    return f"{leaving:,} of {style.count_of(total, 'path')} {verb} the window"


def frame(ax: Axes, surface: xr.Dataset, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Set the limits to the landscape's window, turn autoscaling off, and label the axes."""
    across, up = _two_axes(surface)
    ax.set_autoscale_on(False)
    if isinstance(ax.xaxis.get_major_locator(), MaxNLocator):
        # with more ticks, a minus sign looks like a dash between two labels
        ax.locator_params(axis="x", nbins=5)
    ax.set(
        xlim=x,
        ylim=y,
        xlabel=style.label_of(surface[across], style.plain(across)),
        ylabel=style.label_of(surface[up], style.plain(up)),
    )


def _framed(ax: Axes, surface: xr.Dataset) -> None:
    """Give axes on which no landscape was drawn yet its window."""
    style.check_axes(ax)
    if ax.get_autoscale_on():
        x, y = (surface[axis].values for axis in _two_axes(surface))
        frame(ax, surface, (x.min(), x.max()), (y.min(), y.max()))


def _two_axes(surface: xr.Dataset) -> tuple[str, str]:
    axes = results.plane_axes(surface)
    if len(axes) != 2:
        raise InputError(f"paths are drawn on planes of two axes; this one has {', '.join(axes)}.")
    return axes[0], axes[1]


def off_plane_text(surface: xr.Dataset, points: xr.DataArray, where: xr.Dataset) -> str:
    """How far a path's points (step, …, param) lie off the plane, and how little of its movement the plane
    shows, so that it is not taken for a short path; "" for a path in the plane."""
    off = projection.off_plane(surface, points, where)
    if not off:
        return ""
    text = f"iterates lie up to {style.number(off)} off the plane"
    share = projection.share_of_movement(surface, points, where)
    little = f"which shows {100 * share:.2g} % of their movement" if share < _LITTLE else None
    return style.joined(text, little)


def _rim(ax: Axes, x: np.ndarray, y: np.ndarray, color: str, wide: float) -> Line2D:
    """A white outline beneath a series' lines, so that they stand out from the colours of the map.

    One artist for all lines: if each had its own outline, it would hide other lines.
    """
    row = members.in_a_row(x), members.in_a_row(y)
    return ax.plot(*row, color=color, lw=wide, zorder=2.5, label="_rim", gid=style.RIM)[0]


def _alpha(count: int) -> float:
    """The opacity of each of `count` lines: lighter the more there are, but always visible."""
    return 1.0 if count == 1 else max(0.35, min(0.9, 60 / count))


def _marks(ax: Axes, x: np.ndarray, y: np.ndarray) -> list[int]:
    """The iterates that get a marker, evenly spaced along the path, even where steps become small."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    place = np.column_stack([(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)])
    finite = np.flatnonzero(np.isfinite(place).all(axis=1))
    steps = np.diff(np.clip(place[finite], -1, 2), axis=0)
    along = np.cumsum(np.hypot(*steps.T)) // _MARK_EVERY
    return finite[1:][np.diff(along, prepend=0) > 0].tolist()
