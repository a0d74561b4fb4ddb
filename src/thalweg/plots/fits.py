"""Data, fitted curves and residuals.

A fit is a dataset with `x` and `y` on `sample`; with `x_grid` on `grid` and `yhat_grid` on `grid` and
any further dimensions (runs, swept values, models); and with `yhat` on `sample` for residuals. The
attributes `long_name` and `units` of `x` and `y` become axis labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from thalweg.errors import InputError
from thalweg.plots import legends, style
from thalweg.plots.members import MOST


def points(
    data: xr.Dataset, *, ax: Axes | None = None, title: str | None = None, label: str = "data"
) -> Axes:
    """The data alone.

    Args:
        data: `x` and `y` on `sample`.
        ax: where to draw; a new figure without it.
        title: a title; "Data" without it.
        label: what the legend calls them.

    Raises:
        InputError: a variable that is missing or has other dimensions.
    """
    x, y = _columns(data, "x", "y")
    ax = style.new_axes(ax)
    _say_missing(ax, x, y)
    ax.plot(
        x,
        y,
        ls="",
        marker="o",
        ms=5,
        mfc=style.shade(0.55),
        mec=style.shade(1),
        mew=0.5,
        zorder=2,
        label=style.plain(label),
    )
    ax.set(xlabel=style.label_of(data["x"], "x"), ylabel=style.label_of(data["y"], "y"))
    style.titled(ax, title, "Data")
    legends.add(ax)
    return ax


def fit(
    data: xr.Dataset, *, ax: Axes | None = None, title: str | None = None, label: str = "fit"
) -> Axes:
    """Fitted curves with their data.

    Up to ten curves have styles of their own and are named by their coordinates; more share one.

    Args:
        data: `x`, `y` on `sample`; `x_grid` on `grid`; `yhat_grid` on `grid` and any others.
        ax: where to draw; a new figure without it.
        title: a title; "Fit" without it.
        label: what the legend calls a single curve.

    Raises:
        InputError: a variable that is missing or has other dimensions.
    """
    (grid,) = _columns(data, "x_grid", dim="grid")
    curves = _variable(data, "yhat_grid")
    if "grid" not in curves.dims:
        raise InputError(f"'yhat_grid' needs the dimension 'grid'; it has {curves.dims}.")
    ax = points(data, ax=ax, title="Fit" if title is None else title)
    dims = [str(d) for d in curves.dims if d != "grid"]
    values = curves.transpose("grid", *dims).values.astype(float)
    indices = list(np.ndindex(*values.shape[1:]))
    taken = style.styles_taken(ax)
    apart = max(len(grid) // 6, 1)  # markers
    for i, index in enumerate(indices):
        column = values[(slice(None), *index)]
        whole = np.isfinite(column).all()
        alone = len(indices) <= MOST
        look = style.style(taken + (i if alone else 0))
        # markers distinguish several curves in greyscale; each curve has its own offset
        several = alone and taken + len(indices) > 1
        marks = range((taken + i) % 5 * apart // 5, len(grid), apart) if several else ()
        name = style.coordinates_text(data, dims, index) or style.plain(label)
        if not alone:
            name = style.count_of(len(indices), "fit") if i == 0 else "_fit"
        elif not whole:
            name += " (not finite)"
        ax.plot(
            grid,
            np.where(np.isfinite(column), column, np.nan),
            color=look.color,
            ls=look.dash,
            lw=1.8 if alone else 0.8,
            **style.markers(column, look.marker, marks),
            ms=4.5,
            alpha=1 if alone else style.thin(len(indices)),
            zorder=3,
            label=name,
            gid=f"{style.SERIES}-{taken + (i if alone else 0)}",
        )
    lost = int((~np.isfinite(values)).any(axis=0).sum())
    if lost and len(indices) > MOST:
        style.note(ax, f"{style.count_of(lost, 'fit')} not finite")
    legends.add(ax)
    return ax


def residuals(data: xr.Dataset, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Residuals as segments from the fit to the points, with the fitted curve where it is given.

    Args:
        data: `x`, `y` and `yhat` on `sample`; `x_grid` and `yhat_grid` on `grid`, if there are any.
        ax: where to draw; a new figure without it.
        title: a title; "Residuals" without it.

    Raises:
        InputError: a variable that is missing or has other dimensions.
    """
    (x, y, yhat), curve = _for_residuals(data)
    ax = points(data, ax=ax, title="Residuals" if title is None else title)
    look = style.style(style.styles_taken(ax))
    both = np.isfinite(x) & np.isfinite(y) & np.isfinite(yhat)
    ax.vlines(
        x[both],
        yhat[both],
        y[both],
        colors=style.COLORS[1],
        lw=1,
        zorder=1.5,
        label="residual y − ŷ",
    )
    gid = f"{style.SERIES}-{style.styles_taken(ax)}"
    if curve:
        ax.plot(*curve, color=look.color, lw=1.8, zorder=3, label="fit", gid=gid)
    else:
        ax.plot(x, yhat, ls="", marker="_", color=look.color, ms=8, zorder=3, label="fit", gid=gid)
    _say_missing(ax, x, y, yhat)
    legends.add(ax)
    return ax


def fit_and_residuals(
    data: xr.Dataset, *, figure: Figure | SubFigure | None = None, title: str | None = None
) -> Figure | SubFigure:
    """A fit twice: residuals as segments on the data, and against x about a line at zero.

    Args:
        data: as for `residuals`.
        figure: where to draw, empty; a new one without it.
        title: a title above both panels.

    Raises:
        InputError: a variable that is missing or has other dimensions.
    """
    _for_residuals(data)  # before there is a figure, which an error would leave behind empty
    figure = style.figure_for(figure, (9.6, 4.0))
    left, right = figure.subplots(1, 2)
    residuals(data, ax=left, title="Data, fit and residuals")
    residual_scatter(data, ax=right)
    if title:
        figure.suptitle(title)
    return figure


def batches(
    data: xr.Dataset,
    index: Any,
    *,
    titles: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
) -> Figure | SubFigure:
    """What mini-batches hold: one panel per batch, its samples among all the others.

    Args:
        data: `x` and `y` on `sample`.
        index: (batches, batch size), the samples of each; −1 where a batch is smaller.
        titles: of the panels; "Batch 1", … without them.
        figure: where to draw, empty; a new one without it.
        title: a title above all panels.

    Raises:
        InputError: a variable that is missing, no batches, or samples that are not among the data.
    """
    x, y = _columns(data, "x", "y")
    rows = np.atleast_2d(style.numbers("index", index))
    if not rows.size:
        raise InputError("index holds no batches.")
    index = np.nan_to_num(rows).astype(int)
    if rows.ndim != 2 or (index != rows).any():
        raise InputError(
            f"index must be whole numbers (batches, batch size); {rows.tolist()!r:.80} given."
        )
    for sample in (index.min(), index.max()):
        if not -1 <= sample < len(x):
            raise InputError(f"sample {sample} is not among the {len(x)} of the data.")
    if titles is not None and len(titles) != len(index):
        raise InputError(
            f"titles must be one for each of the {len(index)} batches; {len(titles)} given."
        )
    columns = min(len(index), 3)
    rows = -(-len(index) // columns)
    figure = style.figure_for(figure, (3.3 * columns, 2.9 * rows + 0.6))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    ground = style.shade(1)
    every = {"ls": "", "marker": "o", "ms": 4, "mfc": ground, "mec": style.shade(0.6), "mew": 0.8}
    in_batch = {
        "ls": "",
        "marker": "o",
        "ms": 5,
        "color": style.COLORS[0],
        "mec": ground,
        "mew": 0.5,
    }
    for n, ax in enumerate(axes.flat):
        if n >= len(index):
            ax.set_visible(False)
            continue
        inside = index[n][index[n] >= 0]
        ax.plot(x, y, label="data", zorder=2, **every)
        ax.plot(x[inside], y[inside], label="in the batch", zorder=3, **in_batch)
        _say_missing(ax, x[inside], y[inside])
        ax.set(xlabel=style.label_of(data["x"], "x"), ylabel=style.label_of(data["y"], "y"))
        style.titled(ax, titles[n] if titles else None, f"Batch {n + 1}")
        # not ax.label_outer: a panel above an empty cell would have no tick labels
        ax.tick_params(labelbottom=True)
        ax.yaxis.label.set_visible(n % columns == 0)
    legends.share(figure, [axes[0, 0]], columns=2)
    if title:
        figure.suptitle(title)
    return figure


def residual_scatter(data: xr.Dataset, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Residuals y − ŷ against x, about a line at zero.

    Args:
        data: `x`, `y` and `yhat` on `sample`.
        ax: where to draw; a new figure without it.
        title: a title; "Residuals" without it.

    Raises:
        InputError: a variable that is missing or has other dimensions.
    """
    x, y, yhat = _columns(data, "x", "y", "yhat")
    ax = style.new_axes(ax)
    _say_missing(ax, x, y, yhat)
    ax.axhline(0, color=style.shade(0.3), lw=1, label="zero")
    ax.vlines(
        x, 0, y - yhat, colors=style.COLORS[1], lw=1, alpha=0.5, zorder=1.5, label="_residual"
    )
    ax.plot(
        x,
        y - yhat,
        ls="",
        marker="o",
        ms=5,
        color=style.COLORS[1],
        mec=style.shade(1),
        mew=0.5,
        label="residual y − ŷ",
    )
    units = data["y"].attrs.get("units")
    ax.set(
        xlabel=style.label_of(data["x"], "x"),
        ylabel="residual y − ŷ" + (f" ({style.plain(units)})" if units else ""),
    )
    style.titled(ax, title, "Residuals")
    legends.add(ax)
    return ax


def _variable(data: Any, name: str) -> xr.DataArray:
    if not isinstance(data, xr.Dataset):
        raise InputError(f"a dataset with x and y was expected; {type(data).__name__} given.")
    if name not in data.variables:
        raise InputError(
            f"this dataset has no {name!r}; it has {', '.join(map(str, data.variables))}."
        )
    return data[name]


def _columns(data: Any, *names: str, dim: str = "sample") -> list[np.ndarray]:
    """One-dimensional variables along `dim`, in double precision, with NaN where not finite."""
    columns = []
    for name in names:
        variable = _variable(data, name)
        if variable.dims != (dim,):
            held = ", ".join(map(str, variable.dims)) or "none"
            raise InputError(f"{name!r} needs the one dimension {dim!r}; it has {held}.")
        values = variable.values.astype(float)
        columns.append(np.where(np.isfinite(values), values, np.nan))
    return columns


def _for_residuals(data: Any) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """x, y and ŷ of the samples, and the fitted curve where it is given."""
    columns = _columns(data, "x", "y", "yhat")
    curve = _columns(data, "x_grid", "yhat_grid", dim="grid") if "yhat_grid" in data else None
    return columns, curve


def _say_missing(ax: Axes, *columns: np.ndarray) -> None:
    missing = np.isnan(np.stack(columns)).any(axis=0)
    if missing.any():
        style.note(ax, f"{missing.sum():,} of {style.count_of(missing.size, 'point')} not finite")
