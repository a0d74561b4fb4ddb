"""Matrices as heat maps, and the distribution of their eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator

from thalweg.errors import InputError, first_line, one_of, real
from thalweg.plots import bands, curves, histograms, legends, style, ticks

_NUMBER = "thalweg-number"
_BRIGHTNESS = (0.299, 0.587, 0.114)  # what red, green and blue add to how bright a colour seems


def matrix(
    values: Any,
    *,
    scale: str = "linear",
    limits: tuple[float, float] | None = None,
    center: float | None = None,
    colorbar: bool | str = True,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """A matrix as a heat map: rows downwards, columns across, one cell per entry.

    Cells are equally wide; the ticks name their coordinates, such as the step of a column or the
    eigenvalue of a row. Two matrices are compared by the same limits. Where all cells are large enough the
    numbers stand in them, to three significant digits.

    Args:
        values: two dimensions, rows first; a labelled array's dimensions name the axes, and its name,
            `long_name` and `units` the colour bar. What is not finite is grey, and counted.
        scale: "linear" or "log" colours; with "log" entries at or below zero are grey, and counted.
        limits: the values of the first and the last colour; those of the entries without it. What
            lies beyond has the last colour, and the colour bar says so.
        center: a value at which a map from blue (low) to red (high) changes colour, in the middle of
            the limits. Without one the map is sequential.
        colorbar: whether to draw one, or its label.
        ax: where to draw; a new figure without it.
        title: a title; the matrix's name without it.

    Returns:
        The axes.

    Raises:
        InputError: values of another number of dimensions, an unknown scale, limits that do not
            increase (or are not positive, with "log"), a centre together with "log".
    """
    numbers = style.numbers("values", values)
    table = values if isinstance(values, xr.DataArray) else xr.DataArray(numbers)
    if not isinstance(values, xr.DataArray) and table.ndim == 2:
        table = table.rename(dict(zip(table.dims, ("row", "column"), strict=True)))
    if table.ndim != 2 or not table.size:
        raise InputError(
            f"a matrix with rows and columns was expected; the shape {table.shape} given."
        )
    one_of("scale", scale, ("linear", "log"))
    norm = _norm(numbers, scale, limits, center)
    ax = style.new_axes(ax, (5.4, 4.6))
    missing = ~np.isfinite(numbers)
    if missing.any():
        style.note(ax, f"grey: {missing.sum():,} of {numbers.size:,} entries not finite")
    low = ~missing & (numbers <= 0) if scale == "log" else np.zeros_like(missing)
    if low.any():
        style.note(ax, f"grey: {low.sum():,} of {numbers.size:,} entries ≤ 0 (log colours)")
    rows, columns = numbers.shape
    mesh = ax.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_array(numbers, missing | low),
        norm=norm,
        cmap=style.SEQUENTIAL if center is None else style.DIVERGING,
        rasterized=True,
    )
    ax.set_facecolor(style.MISSING)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.set_aspect("equal" if rows == columns else "auto")
    for axis, dim in ((ax.yaxis, table.dims[0]), (ax.xaxis, table.dims[1])):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(_tick(table[dim])))
        axis.set_label_text(style.label_of(table[dim], style.plain(dim)))
    _write(ax, mesh, np.where(missing | low, np.nan, numbers))
    text = curves.label_of(str(table.name)) if table.name is not None else "entry"
    if colorbar:
        inside = numbers[~(missing | low)]
        bar = style.figure_of(ax).colorbar(
            mesh,
            ax=ax,
            label=colorbar if isinstance(colorbar, str) else style.label_of(table, text),
            extend=bands.passed(inside, *mesh.get_clim()),
        )
        if scale == "log":
            ticks.log(bar.ax.yaxis, decades=3, named=3)  # a bar is long
    style.titled(ax, title, "matrix" if table.name is None else text)
    return ax


def spectrum(
    eigenvalues: Any,
    *,
    density: xr.DataArray | None = None,
    edges: tuple[float, ...] = (),
    bins: Any = 20,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """The distribution of eigenvalues, with a density from theory.

    The bars' areas are shares of all eigenvalues. Eigenvalues that are zero to rounding have a share
    but no width: they are left out, and counted below the axes.

    Args:
        eigenvalues: an array; all its entries are taken together.
        density: a density, per unit of the eigenvalue, on the one coordinate that it has; its name
            is the legend's.
        edges: eigenvalues to mark, such as the ends of a density.
        bins: how many bins over the non-zero eigenvalues, or their edges.
        ax: where to draw; a new figure without it.
        title: a title; "Spectrum" without it.
        label: what the legend calls the eigenvalues.

    Returns:
        The axes.

    Raises:
        InputError: a density of several dimensions.
    """
    if density is not None and (not isinstance(density, xr.DataArray) or density.ndim != 1):
        raise InputError("density= must be a labelled array on one coordinate, the eigenvalue.")
    every = style.numbers("eigenvalues", eigenvalues).ravel()
    finite = every[np.isfinite(every)]
    size = np.abs(finite).max(initial=0)
    zero = np.abs(finite) <= max(finite.size, 1) * np.finfo(float).eps * size
    shown = finite[~zero]
    counts, cuts = _counted(shown, bins)
    marked = _places(edges)
    ax = style.new_axes(ax)
    look = style.style(style.styles_taken(ax))
    ax.stairs(
        counts / (max(finite.size, 1) * np.diff(cuts)),
        cuts,
        fill=True,
        alpha=0.4,
        color=look.color,
        label=style.joined(
            label and style.plain(label), style.count_of(shown.size, "eigenvalue"), by=": "
        ),
        gid=f"{style.SERIES}-{style.styles_taken(ax)}",
    )
    if density is not None:
        name = "density" if density.name is None else style.plain(density.name)
        gid = f"{style.SERIES}-{style.styles_taken(ax)}"
        other = style.style(style.styles_taken(ax))
        at, room = density[density.dims[0]].values, ax.get_ylim()[1]
        ax.plot(at, density.values, color=other.color, ls=other.dash, lw=1.8, label=name, gid=gid)
        highest = np.nanmax(density.values, initial=0)
        if shown.size and highest > 3 * room:  # a density may have a pole
            ax.set_ylim(0, 1.5 * room)
            style.note(ax, f"{name} goes on beyond the axis, up to {style.number(highest)}")
    for i, edge in enumerate(marked):
        text = "edges " + ", ".join(f"{e:.4g}" for e in marked)
        ax.axvline(
            edge, color=style.shade(0.3), lw=1, ls=style.DASHES[1], label="_edge" if i else text
        )
    if zero.any():
        style.note(ax, f"{zero.sum():,} of {finite.size:,} eigenvalues are zero: no bar")
    if finite.size < every.size:
        style.note(ax, f"{every.size - finite.size:,} of {every.size:,} not finite, left out")
    ax.set(xlabel="eigenvalue", ylabel="density (share per unit)")
    style.titled(ax, title, "spectrum")
    legends.add(ax)
    return ax


def _write(ax: Axes, mesh: QuadMesh, shown: np.ndarray) -> None:
    """Write the numbers into the cells, if each has room for it on paper; NaN stays empty."""
    rows, columns = shown.shape
    size = FontProperties(size="small").get_size_in_points() / 72  # inches, the height of a line
    box = ax.get_window_extent()
    # a part of the width and height is left for the colour bar and labels, which are laid out later
    wide, high = 0.75 * np.array([box.width, box.height]) / style.figure_of(ax).dpi
    if ax.get_aspect() == 1:
        wide = high = min(wide, high)
    if rows * 1.5 * size > high or columns * size > wide:
        return
    texts = [[style.number(value).replace("-", "−") for value in row] for row in shown]
    if columns * 0.65 * size * (1 + max(len(text) for row in texts for text in row)) > wide:
        return
    for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
        light = np.dot(mesh.to_rgba(shown[row, column])[:3], _BRIGHTNESS) > 0.5
        ax.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize="small",
            color="black" if light else "white",
            gid=_NUMBER,
        )


def _counted(values: np.ndarray, bins: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many values each bin holds, and the bins' edges; numpy's rules have names."""
    if not isinstance(bins, str):
        return np.histogram(values, histograms.even_edges(values, histograms.checked(bins)))
    try:
        return np.histogram(values, histograms.even_edges(values, bins))
    except ValueError as error:
        raise InputError(f"bins: {first_line(error)}.") from None


def _places(edges: Any) -> list[float]:
    places = [real(edge) for edge in edges] if np.iterable(edges) else [np.nan]
    if not np.isfinite(places).all():
        raise InputError(f"edges must be a list of eigenvalues to mark; {edges!r:.80} given.")
    return places


def _norm(
    numbers: np.ndarray,
    scale: str,
    limits: tuple[float, float] | None,
    center: float | None,
) -> Normalize:
    if scale == "log" and center is not None:
        raise InputError("center= belongs to linear colours; scale='log' given.")
    center = None if center is None else bands.checked_center(center)
    if limits is not None:
        low, high = style.pair(limits)
        if not (np.isfinite([low, high]).all() and low < high and (scale == "linear" or low > 0)):
            kind = "two increasing positive numbers" if scale == "log" else "two increasing numbers"
            raise InputError(f"limits must be {kind}; {limits!r:.80} given.")
    else:
        kept = numbers[np.isfinite(numbers) & ((numbers > 0) | (scale == "linear"))]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (1.0, 10.0)
        if low == high:
            low, high = (low / 2, high * 2) if scale == "log" else (low - 0.5, high + 0.5)
    if center is not None:
        half = max(abs(low - center), abs(high - center))
        low, high = center - half, center + half
    return (LogNorm if scale == "log" else Normalize)(low, high)


def _tick(coordinate: xr.DataArray) -> Any:
    """A tick formatter: the coordinate's value at the tick's index."""
    values = coordinate.values

    def text(at: float, _: Any) -> str:
        index = round(at)
        if not 0 <= index < len(values) or abs(at - index) > 1e-6:
            return ""
        value = values[index]
        return f"{value:.3g}" if isinstance(value, np.floating) else style.value_text(value)

    return text
