"""Landscapes: filled contours, heat maps, and risks along a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet

from thalweg import results
from thalweg.errors import InputError, is_whole, one_of, unknown
from thalweg.plots import bands, legends, members, paths, style, ticks
from thalweg.plots.bands import Bands
from thalweg.plots.members import Named, Paths


def contour(
    surface: xr.Dataset,
    path: Paths | None = None,
    *,
    risk: str = "empirical",
    sample: int | None = None,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    filled: bool = True,
    colorbar: bool | str = True,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """A landscape of two axes as contours: the first axis across, the second up.

    Each band between two levels has one colour; colours are spread evenly over the bands, whose
    levels the colour bar gives. What is not finite is grey, and counted below the axes.

    Args:
        surface: a landscape.
        path: a trajectory to draw on it, or several by name, as `path` does.
        risk: "empirical", "expected" or "pointwise"; the last needs `sample`.
        sample: which sample's pointwise risk.
        levels: "quantile" (each band holds equally many points of the grid), "linear", "log" (risks
            at or below zero are left out, and counted), a number of evenly spaced bands, or the
            levels themselves.
        n_levels: how many bands "quantile", "linear" and "log" make; with a centre, half of them on
            each side.
        center: a risk at which a map from blue (low) to red (high) changes colour. Without one the
            map is sequential.
        filled: bands; False for lines.
        colorbar: whether to draw one, or its label.
        ax: where to draw; a new figure without it.
        title: a title; the risk's name without it.
        label: the name in the legend of a path that is given alone.

    Returns:
        The axes, whose limits are the landscape's.

    Raises:
        InputError: a landscape that does not have two axes (see `profile` for one), a risk that it does
            not hold, fewer than 2 × 2 points, impossible levels, a path of other parameters or without
            recorded ones.
    """
    values = risk_values(surface, risk, sample)
    check_grid(values)
    drawn = paths.named(surface, path, label)
    chosen = bands.choose(values, levels, n_levels, center)
    ax = style.new_axes(ax)
    lines = draw_contours(ax, surface, values, chosen, filled=filled, log=is_log(levels))
    colorbar = colorbar if filled or lines is not None else False
    _finish(ax, surface, drawn, chosen, risk, sample, colorbar, title, lines)
    return ax


def heatmap(
    surface: xr.Dataset,
    path: Paths | None = None,
    *,
    risk: str = "empirical",
    sample: int | None = None,
    levels: Any = "quantile",
    n_levels: int = 50,
    center: float | None = None,
    colorbar: bool | str = True,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """A landscape of two axes as a heat map: one cell around each point of the grid, no interpolation.

    Arguments, returned axes and errors are those of `contour`; any number of points will do.
    """
    values = risk_values(surface, risk, sample)
    drawn = paths.named(surface, path, label)
    chosen = bands.choose(values, levels, n_levels, center)
    ax = style.new_axes(ax)
    _draw_cells(ax, surface, values, chosen, log=is_log(levels))
    _finish(ax, surface, drawn, chosen, risk, sample, colorbar, title)
    return ax


def profile(
    surface: xr.Dataset,
    *,
    risks: str | tuple[str, ...] | list[str] | None = None,
    y: str = "linear",
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """Risks along a line: a landscape of one axis.

    Args:
        surface: a landscape of one axis.
        risks: which of its risks; the empirical and the expected one without it. The pointwise risk is
            one thin line per sample.
        y: "linear" or "log"; on a log axis risks at or below zero are left out, and counted.
        ax: where to draw; a new figure without it.
        title: a title.
        label: what the landscape is called in the legend.

    Raises:
        InputError: a landscape that does not have one axis, a risk that it does not hold.
    """
    (axis,) = _axes(surface, 1)
    one_of("y", y, ("linear", "log"))
    held = [r for r in results.RISKS if r in surface]
    wanted = [r for r in held if r != "pointwise"] or held
    if risks is not None:
        wanted = members.listed(risks)
        if not wanted:
            raise InputError("risks= names no risk.")
    columns = {risk: _held(surface, risk).transpose(..., axis).values for risk in wanted}
    ax = style.new_axes(ax)
    ticks.scale(ax, y=y)
    taken = style.styles_taken(ax)
    x = surface[axis].values
    left_out = {"not finite": 0, "≤ 0 (log axis)": 0}
    for i, (risk, values) in enumerate(columns.items()):
        values = np.array(values, float)
        left_out["not finite"] += int((~np.isfinite(values)).sum())
        values[~np.isfinite(values)] = np.nan
        if y == "log":
            left_out["≤ 0 (log axis)"] += int((values <= 0).sum())
            values[values <= 0] = np.nan
        look = style.style(taken + i)
        name = style.joined(label and style.plain(label), risk_name(surface, risk, None), by=": ")
        gid = f"{style.SERIES}-{taken + i}"
        if values.ndim == 1:
            lone = style.markers(values, look.marker)
            ax.plot(x, values, color=look.color, ls=look.dash, label=name, gid=gid, **lone)
            continue
        name += f" ({style.count_of(len(values), 'sample')})"
        for row in values:
            looks = {"lw": 0.6, "alpha": 0.4, "ms": 3, **style.markers(row, look.marker)}
            ax.plot(x, row, color=look.color, gid=gid, label=f"_{name}", **looks)
        ax.plot([], [], color=look.color, lw=0.6, label=name)
    ax.set(xlabel=style.label_of(surface[axis], style.plain(axis)), ylabel="risk")
    for why, count in left_out.items():
        if count:
            style.note(ax, f"{style.count_of(count, 'value')} {why} not shown")
    style.note_batch_norm(ax, results.batch_norm_of(surface))
    # a line through two points says on its axis from which to which
    along = "the line" if "long_name" in surface[axis].attrs else style.plain(axis)
    style.titled(ax, title, f"risk along {along}")
    legends.add(ax)
    return ax


# Reading a landscape -------------------------------------------------------------------------


def _axes(surface: xr.Dataset, count: int) -> tuple[str, ...]:
    axes = tuple(axis for axis in results.plane_axes(surface) if axis in surface.dims)
    if len(axes) != count:
        hint = {1: "draw it with profile", 2: "draw it with contour or heatmap"}.get(
            len(axes), "choose a plane of one or two"
        )
        raise InputError(
            f"this picture needs a landscape of {'one axis' if count == 1 else 'two axes'}; "
            f"this one has {len(axes)} ({', '.join(axes)}): {hint}."
        )
    return axes


def _held(surface: xr.Dataset, risk: str) -> xr.DataArray:
    if not isinstance(risk, str) or risk not in surface or risk not in results.RISKS:
        raise unknown("risk", risk, [r for r in results.RISKS if r in surface])
    return surface[risk]


def risk_values(surface: xr.Dataset, risk: str, sample: Any) -> np.ndarray:
    """The risk in double precision, (points across, points up)."""
    across, up = _axes(surface, 2)
    values = _held(surface, risk)
    if risk == "pointwise":
        n = surface.sizes["sample"]
        if not is_whole(sample) or not 0 <= sample < n:
            raise InputError(
                f"the pointwise risk needs sample=, a number from 0 to {n - 1}; {sample!r} given."
            )
        values = values.isel(sample=int(sample))
    elif sample is not None:
        raise InputError(f"sample= belongs to the pointwise risk; risk={risk!r} given.")
    return values.transpose(across, up).values.astype(float)


def risk_name(surface: xr.Dataset, risk: str, sample: int | None) -> str:
    """ "pointwise risk, sample 3", "empirical risk + penalty"; a plain function's is the risk."""
    settings = results.settings_of(surface)
    name = "risk" if risk == "empirical" and settings.get("n_samples") == 0 else f"{risk} risk"
    if settings.get("penalty") and risk != "pointwise":
        name += " + penalty"
    return style.joined(name, None if sample is None else f"sample {int(sample)}")


def is_log(levels: Any) -> bool:
    """Whether the levels are spaced by their logarithms, so that risks ≤ 0 cannot be drawn."""
    return isinstance(levels, str) and levels == "log"


# Drawing -------------------------------------------------------------------------------------


def draw_contours(
    ax: Axes,
    surface: xr.Dataset,
    values: np.ndarray,
    chosen: Bands | None,
    *,
    filled: bool = True,
    log: bool = False,
) -> ContourSet | None:
    """Draw contours, with limits, axis labels, and notes on what is left out; returns the lines, if any."""
    check_grid(values)
    across, up = results.plane_axes(surface)
    x, y = surface[across].values, surface[up].values
    shown = drawable(ax, surface, values, log, "grey: " if filled else "")
    lines = None
    if chosen is not None and filled:
        options = {"cmap": chosen.cmap, "norm": chosen.norm, "extend": chosen.extend}
        ax.contourf(x, y, shown.T, levels=chosen.edges, **options)
    elif chosen is not None:
        # matplotlib would warn that no level lies within the values; a note says it better.
        if ((chosen.edges > shown.min()) & (chosen.edges < shown.max())).any():
            lines = ax.contour(x, y, shown.T, levels=chosen.edges, colors=chosen.line_colors)
        else:
            style.note(ax, "no level lies within the risks' range")
    if filled:
        ax.set_facecolor(style.MISSING)
    paths.frame(ax, surface, (x.min(), x.max()), (y.min(), y.max()))
    return lines


def _draw_cells(
    ax: Axes, surface: xr.Dataset, values: np.ndarray, chosen: Bands | None, log: bool
) -> None:
    across, up = results.plane_axes(surface)
    x, y = cell_edges(surface[across].values), cell_edges(surface[up].values)
    shown = drawable(ax, surface, values, log, "grey: ")
    if chosen is not None:
        ax.pcolormesh(x, y, shown.T, cmap=chosen.cmap, norm=chosen.norm, rasterized=True)
    ax.set_facecolor(style.MISSING)
    paths.frame(ax, surface, (x.min(), x.max()), (y.min(), y.max()))


def check_grid(values: np.ndarray, what: str = "contours need") -> None:
    """An InputError where there are no four neighbouring points."""
    if min(values.shape) < 2:
        raise InputError(
            f"{what} at least 2 × 2 points; this landscape has {' × '.join(map(str, values.shape))}. "
            "Use plot.heatmap."
        )


def cell_edges(points: np.ndarray) -> np.ndarray:
    """(n + 1,) the edges of cells about n points: half-way between them."""
    points = np.asarray(points, float)
    if len(points) == 1:
        return points[0] + np.array([-0.5, 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def drawable(
    ax: Axes, surface: xr.Dataset, values: np.ndarray, log: bool, how: str
) -> np.ma.MaskedArray:
    """The values that can be drawn; the others are counted below the axes."""
    missing = ~np.isfinite(values)
    interrupted = surface.attrs.get("interrupted")
    if missing.all():
        style.note(ax, "no risk was computed" if interrupted else "no risk is finite")
    elif missing.any():
        why = "not finite, or not computed before Ctrl-C" if interrupted else "not finite"
        style.note(ax, f"{how}{missing.sum():,} of {missing.size:,} points {why}")
    if log:
        low = ~missing & (values <= 0)
        if low.any():
            style.note(ax, f"{how}{low.sum():,} of {low.size:,} points ≤ 0 (log levels)")
        missing = missing | low
    return np.ma.masked_array(values, missing)


def _finish(
    ax: Axes,
    surface: xr.Dataset,
    drawn: Named,
    chosen: Bands | None,
    risk: str,
    sample: int | None,
    colorbar: bool | str,
    title: str | None,
    lines: ContourSet | None = None,
) -> None:
    """Colour bar, title, what the risks depend on, and paths."""
    finish(ax, chosen, risk_name(surface, risk, sample), colorbar, title, lines)
    style.note_batch_norm(ax, results.batch_norm_of(surface))
    for name, path in drawn:
        paths.draw(surface, path, ax, name)


def finish(
    ax: Axes,
    chosen: Bands | None,
    name: str,
    colorbar: bool | str,
    title: str | None,
    lines: ContourSet | None = None,
) -> None:
    """Colour bar and title."""
    if colorbar and chosen is not None:
        words = f"\n({chosen.words})" if chosen.words else ""
        chosen.colorbar(ax, colorbar if isinstance(colorbar, str) else name + words, lines)
    style.titled(ax, title, name)
