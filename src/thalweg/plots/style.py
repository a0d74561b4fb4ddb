"""The style of pictures: colours, dashes and markers, labels, legends and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Polygon
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator

from thalweg.errors import InputError, real

# Okabe and Ito's colours, which colour-blind readers can distinguish, without the yellow, which is hard to
# see on white. The cycles' lengths are coprime: 7 × 5 series differ in colour or dash, and print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BLACK = COLORS[-1]  # replaced by the text colour of the reader's matplotlib style
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (2, 1.2)),
    (0, (8, 2, 2, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P")
DIVERGED_DASH = (0, (1, 1.5))

SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
MISSING = "0.8"  # the colour of a point without a value

SERIES = "thalweg-series"  # gid prefix of artists that took a style, so that the next call takes the next one
BAND = "thalweg-band"
RIM = "thalweg-rim"
LAST = "thalweg-last"  # legend entries that come after all others
BATCH_NORM = {
    "frozen": "batch norm with frozen statistics",
    "recomputed": "batch norm with the statistics at each point",
}
_NOTE = "thalweg-note"
_HAIR = "\N{HAIR SPACE}"


@dataclass(frozen=True)
class Style:
    """How one series is drawn."""

    color: str
    dash: Any
    marker: str


def style(index: int, dash: int | None = None, color: str | None = None) -> Style:
    """The style of the series with this index; `dash` overrides the index of its dash, `color` its colour."""
    dash = index if dash is None else dash
    own = COLORS[index % len(COLORS)]
    return Style(
        color or (shade(0) if own == _BLACK else own),
        DASHES[dash % len(DASHES)],
        MARKERS[index % len(MARKERS)],
    )


def faded(color: str, level: float) -> str:
    """A colour blended with the background of the reader's matplotlib style: level 1 is the background."""
    ground = np.ones(3)
    for layer in ("figure.facecolor", "axes.facecolor"):
        *over, opaque = to_rgba(plt.rcParams[layer])
        ground += opaque * (over - ground)
    red, green, blue = to_rgb(color) + level * (ground - to_rgb(color))
    return to_hex((red, green, blue))


def shade(level: float) -> str:
    """A shade from the text colour (level 0) to the background (level 1) of the reader's matplotlib style."""
    return faded(plt.rcParams["text.color"], level)


def rim(color: str) -> str:
    """The outline of a line on a map: white, or the background's colour for a line in the text colour."""
    return shade(1) if color == shade(0) else "white"


def styles_taken(ax: Axes) -> int:
    """How many series earlier calls drew on these axes."""
    return len({a.get_gid() for a in ax.get_children() if str(a.get_gid()).startswith(SERIES)})


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.0, 4.4)) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        check_axes(ax)
        return ax
    return plt.subplots(figsize=size, layout="constrained")[1]


def check_axes(ax: object) -> None:
    """Raise an InputError unless one pair of axes was given, and not all of a figure's."""
    if not isinstance(ax, Axes):
        raise InputError(
            f"ax must be one of matplotlib's axes, as in plt.subplots()[1]; {type(ax).__name__} given."
        )


def new_figure(size: tuple[float, float]) -> Figure:
    """A new figure of this size in inches."""
    return plt.figure(figsize=size, layout="constrained")


def thin(count: int) -> float:
    """The opacity of each of `count` lines in one style: lighter the more there are."""
    return max(0.15, min(0.6, 20 / count))


def markers(values: np.ndarray, marker: str, places: Iterable[int] = ()) -> dict[str, Any]:
    """Marker options for a line through these values: at `places`, and at isolated values between missing
    ones, which a line alone would not show."""
    finite = np.pad(np.isfinite(values), 1)
    lone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])
    every = sorted({*places, *lone.tolist()})
    return {"marker": marker if every else None, "markevery": every}


def figure_of(ax: Axes) -> Figure | SubFigure:
    """The figure, or the part of one, that holds the axes."""
    return ax.get_figure()  # pyright: ignore[reportReturnType]


# Words ---------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Escape text for matplotlib: dollar signs do not start mathematics, and a leading underscore does not
    hide an entry from legends."""
    shown = str(text).replace("$", r"\$")
    return f"{_HAIR}{shown}" if shown.startswith("_") else shown


def number(value: float) -> str:
    """A number to three significant digits."""
    return f"{value:.3g}"


def value_text(value: Any) -> str:
    """A coordinate's value as a legend names it."""
    value = value.item() if isinstance(value, np.generic) else value
    return f"{value:g}" if isinstance(value, float) else plain(value)


def coordinates_text(
    data: xr.Dataset | xr.DataArray, dims: Sequence[str], index: Sequence[int]
) -> str:
    """ "lr = 0.1": the coordinates at an index on these dimensions; text coordinates without their names."""
    parts = []
    for dim, i in zip(dims, index, strict=True):
        value = data[dim].values[i]
        text = value_text(value)
        parts.append(text if isinstance(value, str) else f"{plain(dim)} = {text}")
    return joined(*parts)


def label_of(variable: xr.DataArray, default: str) -> str:
    """An axis label: the variable's `long_name` and `units`; `default` as it stands without."""
    text = plain(variable.attrs["long_name"]) if "long_name" in variable.attrs else default
    units = variable.attrs.get("units")
    return f"{text} ({plain(units)})" if units else text


def joined(*parts: str | None, by: str = ", ") -> str:
    """Join the parts that are not empty."""
    return by.join(part for part in parts if part)


def count_of(count: int, what: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def titled(ax: Axes, title: str | None, default: str) -> None:
    """Set the title given, or else the default with a capital letter; "" leaves it empty."""
    ax.set_title(default[0].upper() + default[1:] if title is None else title)


def check_quantiles(band: tuple[float, float]) -> None:
    """Raise an InputError unless a band lies between two increasing quantiles."""
    low, high = map(real, band) if np.iterable(band) and len(band) == 2 else (1, 0)
    if not 0 <= low < high <= 1:
        raise InputError(f"band must be two increasing quantiles from 0 to 1; {band!r:.80} given.")


# Legends and notes ---------------------------------------------------------------------------


def note(ax: Axes, text: str) -> None:
    """Add a note below the axes; further notes go below the first."""
    for artist in ax.texts:
        if artist.get_gid() == _NOTE:
            if text not in artist.get_text().split("\n"):
                artist.set_text(f"{artist.get_text()}\n{text}")
            return
    solid = ax.name == "3d"  # where the axis labels lie depends on the view
    ax.annotate(
        text,
        xy=(0.5, -0.04 if solid else 0),
        xycoords="axes fraction" if solid else ax.xaxis.label,
        xytext=(0, -3),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize="small",
        color=shade(0.3),
        gid=_NOTE,
    )


def note_batch_norm(ax: Axes, policy: str | None) -> None:
    """Say which statistics batch norm took: with other ones risks and curvatures may differ tenfold."""
    if policy is not None:
        note(ax, BATCH_NORM[policy])


def notes(ax: Axes) -> list[str]:
    """The notes below the axes."""
    return [line for t in ax.texts if t.get_gid() == _NOTE for line in t.get_text().split("\n")]


def drop_notes(ax: Axes) -> None:
    """Remove the notes below the axes."""
    for artist in list(ax.texts):
        if artist.get_gid() == _NOTE:
            artist.remove()


def legend(ax: Axes) -> None:
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


def fill(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, y: str, color: str, label: str
) -> None:
    """A band between two curves; on a "log" axis, where it does not reach down to 0."""
    if y == "log":
        if (low <= 0).any():
            note(ax, "no band where it reaches down to 0")
        low = np.where(low > 0, low, np.nan)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0, gid=BAND, label=f"_{label}")


class _Ticks(LogLocator):
    """matplotlib's ticks of a log axis, clipped: on axes beyond about 1e220 they may overflow."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        return super().tick_values(max(low, 1e-200), min(high, 1e200))


class _Labels(LogFormatterSciNotation):
    """matplotlib's labels of a log axis, but plain numbers where it spans few decades of short ones: 0.4 and
    0.6 instead of 4 × 10⁻¹ and 6 × 10⁻¹."""

    def __init__(self, decades: float, **options: Any) -> None:
        super().__init__(**options)
        self._ratio = 2 * 10**decades

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        low, high = sorted(self.axis.get_view_interval())  # pyright: ignore[reportOptionalMemberAccess]
        short = low > 5e-4 and high < 2e4 and high < self._ratio * low
        return f"{x:.6g}" if text and short else text


def log_ticks(axis: Axis, decades: float = 2, named: float = 1.5) -> None:
    """The ticks and labels of a log axis: plain numbers up to about `decades`, and up to `named` decades not
    only at powers of ten."""
    axis.set_major_locator(_Ticks())
    axis.set_minor_locator(_Ticks(subs=None))
    axis.set_major_formatter(_Labels(decades))
    axis.set_minor_formatter(_Labels(decades, minor_thresholds=(named, 0.4)))


def scale(ax: Axes, x: str | None = None, y: str | None = None) -> None:
    """Make the axes "linear" or "log"; what is not given stays."""
    for kind, axis, change in ((x, ax.xaxis, ax.set_xscale), (y, ax.yaxis, ax.set_yscale)):
        if kind:
            change(kind)
        if kind == "log":
            log_ticks(axis)


def whole_ticks(axis: Axis, most: int | str = "auto") -> None:
    """Ticks only at whole numbers, and at least one; a log axis keeps its own ticks."""
    locator = axis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(nbins=most, integer=True, min_n_ticks=1)


def shared_legend(figure: Figure | SubFigure, axes: Sequence[Axes], columns: int = 3) -> None:
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


_CELLS = 40
_PLACES = {
    f"{vertical} {horizontal}": (across, up)
    for vertical, up in (("upper", 1.0), ("lower", 0.0), ("center", 0.5))
    for horizontal, across in (("right", 1.0), ("left", 0.0), ("center", 0.5))
    if (vertical, horizontal) != ("center", "center")
}


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
