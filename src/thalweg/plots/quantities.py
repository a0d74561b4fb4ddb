"""A quantity against a coordinate: what was measured for each width, α or learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg.errors import InputError, one_of, unknown
from thalweg.plots import curves, legends, style, ticks
from thalweg.plots.members import MOST

_MARKS = 12  # markers along a curve, about
_MIDDLES = {"median": np.nanmedian, "mean": np.nanmean}


def curve(
    values: xr.DataArray,
    along: str | None = None,
    *,
    over: str | Sequence[str] | None = None,
    middle: str = "median",
    band: tuple[float, float] | str | None = (0.1, 0.9),
    slope: bool | tuple[float, float] = False,
    points: bool | None = None,
    line: bool = True,
    x: str = "linear",
    y: str = "linear",
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """A quantity against a coordinate, with its spread and, on log axes, its slope.

    Each combination of the dimensions that are neither drawn along nor pooled is a line of its own.
    Called again with the same axes, it goes on with the next styles.

    Args:
        values: the quantity. Its name, `long_name` and `units`, and those of the coordinate, label
            the axes. What is not finite is left out, and counted below the axes.
        along: the coordinate drawn across: a dimension or a numeric coordinate on one; the only
            dimension that is not pooled without it.
        over: the dimension or dimensions that are pooled; `run`, where there is one, without it.
        middle: what stands for the pooled values: "median" or "mean".
        band: the spread about it: two quantiles; "error", two standard errors of the mean to
            either side; or None.
        slope: fit a straight line to the logarithms, and name its slope in the legend: True for all
            points, or the window of the coordinate to fit on. Needs x="log" and y="log".
        points: a marker at each point; without it at about a dozen of them; False for none.
        line: a line through them.
        x, y: "linear" or "log". On a log axis values at or below zero are left out, and counted.
        ax: where to draw; a new figure without it.
        title: a title; the names of both axes without it.
        label: what the legend calls the quantity.
        color: one colour for all of its curves, matplotlib's; without it they take the next ones.

    Returns:
        The axes.

    Raises:
        InputError: a coordinate or dimension that is not there, an impossible band, an unknown
            scale, a slope on axes that are not both logarithmic.
    """
    if not isinstance(values, xr.DataArray):
        raise InputError(
            f"a labelled array (xarray.DataArray) was expected, as in dataset['loss']; "
            f"{type(values).__name__} given."
        )
    one_of("x", x, ("linear", "log"))
    one_of("y", y, ("linear", "log"))
    one_of("middle", middle, tuple(_MIDDLES))
    _check_band(band, middle)
    if slope is not None and not isinstance(slope, bool):
        _check_window("slope must be True, False or", slope)
    if slope is not False and (x, y) != ("log", "log"):
        raise InputError("a slope is fitted to logarithms: give x='log' and y='log' with slope=.")
    style.check_color(color)
    pooled = _pooled(values, over)
    along, dim = _along(values, along, pooled)
    rest = [str(d) for d in values.dims if d != dim and d not in pooled]
    place = values[along].values.astype(float)
    order = np.argsort(place, kind="stable")
    place = place[order]
    numbers = style.numbers("values", values.transpose(dim, *rest, *pooled).values)[order]
    held = numbers.shape[: 1 + len(rest)]
    numbers = numbers.reshape(*held, math.prod(numbers.shape[len(held) :]))  # of no places, too
    text = curves.label_of(str(values.name)) if values.name is not None else "value"
    ax = style.new_axes(ax)
    ticks.scale(ax, x, y)
    place, numbers = _shown(ax, place, numbers, x)
    indices = list(np.ndindex(*numbers.shape[1:-1]))
    taken = style.styles_taken(ax)
    alone = len(indices) <= MOST
    words = _pooled_words(pooled, numbers.shape[-1], middle, band if alone else None)
    low = 0
    for i, index in enumerate(indices):
        look = style.style(taken + (i if alone else 0), color=color)
        gid = f"{style.SERIES}-{taken + (i if alone else 0)}"
        which = style.count_of(len(indices), "curve")
        if alone:
            which = style.coordinates_text(values, rest, index)
        who = style.joined(style.plain(label) if label else "", which, by=": ")
        name = style.joined(who, words, by=": ")
        column = numbers[(slice(None), *index)]
        center = _middle(column, middle)
        shown = np.where(center > 0, center, np.nan) if y == "log" else center
        low += int((center <= 0).sum()) if y == "log" else 0
        marked = not line or (alone if points is None else points)
        every = max(1, len(place) // _MARKS) if points is None and line else 1
        marks = range(0, len(place), every) if marked else ()
        ax.plot(
            place,
            shown,
            color=look.color,
            ls=look.dash if line else "",
            lw=1.6 if alone else 0.8,
            alpha=1 if alone else style.thin(len(indices)),
            **style.markers(shown, look.marker, marks),
            mfc=None if line else "none",
            ms=4.5,
            label=(name or text) if alone or i == 0 else "_curve",
            gid=gid,
        )
        if alone and band is not None and numbers.shape[-1] > 1:
            low_end, high_end = _spread(column, center, band)
            style.fill(ax, place, low_end, high_end, y, look.color, "band")
        if alone and slope is not False:
            _draw_slope(ax, place, center, None if slope is True else slope, look, who)
    if low:
        style.note(ax, f"{style.count_of(low, 'value')} ≤ 0 not shown (log axis)")
    ax.set(
        xlabel=style.label_of(values[along], style.plain(along)),
        ylabel=style.label_of(values, text),
    )
    style.titled(ax, title, f"{text} against {style.plain(along)}")
    legends.add(ax)
    return ax


def log_slope(x: Any, y: Any, window: tuple[float, float] | None = None) -> float:
    """The slope of log y against log x: the least-squares line through the points.

    Points that are not positive and finite, or lie outside the window of x (its ends belong to it),
    are left out; NaN where fewer than two different x remain.

    Raises:
        InputError: x and y of different lengths.
    """
    x, y = style.numbers("x", x).ravel(), style.numbers("y", y).ravel()
    if x.shape != y.shape:
        raise InputError(
            f"a slope needs as many x as y; {style.count_of(x.size, 'x')} and {y.size:,} y given."
        )
    keep = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    if window is not None:
        _check_window("window must be", window)
        keep &= (x >= window[0]) & (x <= window[1])
    a, b = np.log(x[keep]), np.log(y[keep])
    if not (a != a[:1]).any():  # compared before centring, whose rounding could hide equality
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a @ a))


# Reading -----------------------------------------------------------------------------------------


def _pooled(values: xr.DataArray, over: str | Sequence[str] | None) -> list[str]:
    if over is None:
        return ["run"] if "run" in values.dims else []
    names = [over] if isinstance(over, str) else list(over)
    for name in names:
        if name not in values.dims:
            raise unknown("dimension", name, [str(d) for d in values.dims])
    return names


def _along(values: xr.DataArray, along: str | None, pooled: list[str]) -> tuple[str, str]:
    """The coordinate to draw along, and its dimension."""
    left = [str(d) for d in values.dims if d not in pooled]
    if along is None:
        if len(left) != 1:
            raise InputError(
                f"say with along= which dimension is drawn across; there are {', '.join(left) or 'none'}."
            )
        along = left[0]
    coordinate_names = [str(name) for name, c in values.coords.items() if c.ndim == 1]
    if along not in values.dims and along not in coordinate_names:
        raise unknown("coordinate", along, [*dict.fromkeys([*left, *coordinate_names])])
    coordinate = values[along]
    dim = str(coordinate.dims[0])
    if dim in pooled:
        raise InputError(f"{along!r} cannot be drawn along and pooled over.")
    if coordinate.dtype.kind not in "iuf":
        raise InputError(f"the coordinate {along!r} is not numbers; it cannot be drawn along.")
    return along, dim


def _shown(
    ax: Axes, place: np.ndarray, numbers: np.ndarray, x: str
) -> tuple[np.ndarray, np.ndarray]:
    """The places and numbers that can be drawn; others are dropped or NaN, and counted in a note."""
    if x == "log" and (place <= 0).any():
        style.note(ax, f"{style.count_of(int((place <= 0).sum()), 'place')} ≤ 0 not shown")
        place, numbers = place[place > 0], numbers[place > 0]
    lost = int((~np.isfinite(numbers)).sum())
    if lost:
        style.note(ax, f"{lost:,} of {style.count_of(numbers.size, 'value')} not finite, left out")
    return place, np.where(np.isfinite(numbers), numbers, np.nan)


def _check_window(must: str, window: Any) -> None:
    if np.isnan(style.pair(window)).any():
        raise InputError(f"{must} two numbers, where it begins and ends; {window!r:.80} given.")


def _check_band(band: Any, middle: str) -> None:
    if band is None:
        return
    if isinstance(band, str):
        one_of("band", band, ("error",))
        if middle != "mean":
            raise InputError("band='error' is of the mean: give middle='mean' with it.")
    else:
        style.check_quantiles(band)


def _pooled_words(pooled: list[str], count: int, middle: str, band: Any) -> str:
    """ "median of 10 runs, 10–90 %": what one curve stands for."""
    if not pooled or count == 1:
        return ""
    what = style.plain(pooled[0]) if len(pooled) == 1 else "value"
    text = f"{middle} of {style.count_of(count, what)}"
    if band == "error":
        return f"{text} ± 2 standard errors"
    return text if band is None else f"{text}, {100 * band[0]:g}–{100 * band[1]:g} %"


# Middles, spreads, slopes ------------------------------------------------------------------------


def _middle(column: np.ndarray, middle: str) -> np.ndarray:
    """The median or mean (places,) over the finite ones of the values (places, pooled)."""
    center = np.full(len(column), np.nan)
    has_values = np.isfinite(column).any(axis=1)
    center[has_values] = _MIDDLES[middle](column[has_values], axis=1)
    return center


def _spread(column: np.ndarray, center: np.ndarray, band: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full((2, len(column)), np.nan)
    count = np.isfinite(column).sum(axis=1)
    if band == "error":
        enough = count > 1
        error = np.nanstd(column[enough], axis=1, ddof=1) / np.sqrt(count[enough])
        low[enough], high[enough] = center[enough] - 2 * error, center[enough] + 2 * error
    else:
        enough = count > 0
        if enough.any():
            low[enough], high[enough] = np.nanquantile(column[enough], band, axis=1)
    return low, high


def _draw_slope(
    ax: Axes,
    place: np.ndarray,
    center: np.ndarray,
    window: tuple[float, float] | None,
    look: style.Style,
    who: str,
) -> None:
    """Draw the fitted line over its window, with its slope in the legend."""
    slope = log_slope(place, center, window)
    with np.errstate(invalid="ignore"):
        used = (place > 0) & (center > 0)
    if window is not None:
        used &= (place >= window[0]) & (place <= window[1])
    if not np.isfinite(slope):
        style.note(ax, style.joined(who, "no slope: fewer than two points to fit", by=": "))
        return
    at, log = place[used], np.log(center[used])
    ends = np.array([at.min(), at.max()])
    fitted = np.exp(log.mean() + slope * (np.log(ends) - np.log(at).mean()))
    text = style.joined(who, f"slope {slope:.3g}".replace("-", "−"), by=": ")
    if window is not None:
        low, high = (f"{float(style.number(end)):g}" for end in ends)
        text += f" (fit from {low} to {high})"
    # Dotted, on a broad band of the series' colour: visible beside the series, and in greyscale.
    ax.plot(ends, fitted, color=style.shade(0), lw=1, ls=(0, (1, 1)), zorder=3, label=text)
    ax.plot(ends, fitted, color=look.color, lw=5, alpha=0.25, zorder=1, label="_slope")
