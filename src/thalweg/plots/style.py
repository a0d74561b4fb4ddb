"""The style of pictures: colours, dashes and markers, words and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.markers import MarkerStyle

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


def check_color(color: object) -> None:
    """Raise an InputError unless a colour is one of matplotlib's, or None."""
    if color is not None and not is_color_like(color):
        raise InputError(
            f"color must be one of matplotlib's, as in 'tab:blue' or '#0072b2'; {color!r:.80} given."
        )


def check_marker(marker: Any) -> None:
    """Raise an InputError unless a marker is one of matplotlib's."""
    try:
        MarkerStyle(marker)
    except (TypeError, ValueError):
        raise InputError(
            f"marker must be one of matplotlib's, as in 'o' or '*'; {marker!r:.80} given."
        ) from None


def figure_for(figure: Any, size: tuple[float, float]) -> Figure | SubFigure:
    """The given figure, or part of one, or a new one of this size in inches."""
    if figure is None:
        return new_figure(size)
    if not isinstance(figure, (Figure, SubFigure)):
        raise InputError(
            f"figure must be one of matplotlib's, as in plt.figure(); {type(figure).__name__} given."
        )
    return figure


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


def numbers(what: str, values: Any) -> np.ndarray:
    """Values in double precision; an InputError where they are no real numbers, or ragged."""
    try:
        array = np.asarray(values)
        if values is not None and array.dtype.kind not in "USTcmM":
            return array.astype(float)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{what} must be real numbers; {values!r:.80} given.")


def pair(ends: Any) -> tuple[float, float]:
    """Two numbers as floats; NaN for what is none, and for anything but a pair."""
    both = [real(end) for end in ends] if np.iterable(ends) else []
    return (both[0], both[1]) if len(both) == 2 else (np.nan, np.nan)


def check_quantiles(band: tuple[float, float]) -> None:
    """Raise an InputError unless a band lies between two increasing quantiles."""
    low, high = pair(band)
    if not 0 <= low < high <= 1:
        raise InputError(f"band must be two increasing quantiles from 0 to 1; {band!r:.80} given.")


# Notes ---------------------------------------------------------------------------------------


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


def fill(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, y: str, color: str, label: str
) -> None:
    """A band between two curves; on a "log" axis, where it does not reach down to 0."""
    if y == "log":
        if (low <= 0).any():
            note(ax, "no band where it reaches down to 0")
        low = np.where(low > 0, low, np.nan)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0, gid=BAND, label=f"_{label}")
