"""Power laws: a measured quantity against a scale, on log–log axes."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg.errors import InputError
from thalweg.plots import style


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of log y against log x by least squares, over what is positive; NaN below two points."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    fit = (x > 0) & (y > 0) & np.isfinite(y)
    return float(np.polyfit(np.log(x[fit]), np.log(y[fit]), 1)[0]) if fit.sum() > 1 else np.nan


def power_law(
    values: xr.DataArray,
    *,
    fit: tuple[float, float] | None = None,
    expected: float | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """A quantity against its first dimension, on log–log axes, with the slope that it has.

    Several runs are drawn as thin lines and their median as a thick one.

    Args:
        values: (x,) or (x, run): positive numbers; others are left out, and counted.
        fit: the range of x over which the slope of the median is fitted; all of it without.
        expected: a slope to compare with: a dashed line of it, through the first point of the fit.
        ax: where to draw; a new figure without it.
        title: a title.
        label: the name in the legend.

    Raises:
        InputError: another number of dimensions.
    """
    if values.ndim not in (1, 2):
        raise InputError(f"power_law draws (x,) or (x, run); {dict(values.sizes)} given.")
    across = str(values.dims[0])
    order = np.argsort(values[across].values)
    x = values[across].values[order].astype(float)
    y = values.values[order].astype(float).reshape(len(x), -1)
    shown = np.where((y > 0) & np.isfinite(y) & (x > 0)[:, None], y, np.nan)
    ax = style.new_axes(ax)
    ax.set_xscale("log")
    ax.set_yscale("log")
    look = style.style(style.styles_taken(ax))
    gid = f"{style.SERIES}-{style.styles_taken(ax)}"
    left_out = int(np.isnan(shown).sum())
    if left_out:
        style.note(ax, f"{style.count_of(left_out, 'value')} not positive or not finite, left out")
    runs = shown.shape[1]
    if runs > 1:
        for run in shown.T:
            ax.plot(x, run, color=look.color, lw=0.5, alpha=0.25, label="_run", gid=gid)
    there = ~np.isnan(shown).all(axis=1)
    x, middle = x[there], np.array([np.nanmedian(row) for row in shown[there]])
    low, high = fit or (0.0, np.inf)
    used = (x >= low * (1 - 1e-9)) & (x <= high * (1 + 1e-9))
    found = slope(x[used], middle[used])
    words = style.joined(
        label,
        f"median of {runs} runs (thin lines)" if runs > 1 else None,
        f"slope {found:.3f}" + (" where drawn thick" if fit else "") if used.sum() > 1 else None,
    )
    ax.plot(
        x, middle, color=look.color, marker=look.marker, ms=5, lw=1.2, label=words or None, gid=gid
    )
    if fit and used.any():
        ax.plot(x[used], middle[used], color=look.color, lw=3.5, label="_fit", gid=gid)
    if expected is not None and used.any():
        first = np.flatnonzero(used)[0]
        line = 0.6 * middle[first] * (x[used] / x[first]) ** expected
        ax.plot(x[used], line, color="black", ls="--", lw=1.2, label=f"slope {expected:g}")
    ax.set(xlabel=style.label_of(values[across], style.plain(across)))
    ax.set_ylabel(style.label_of(values, style.plain(values.name or "value")))
    style.titled(ax, title, f"{values.name or 'value'} against {across}")
    style.legend(ax)
    return ax
