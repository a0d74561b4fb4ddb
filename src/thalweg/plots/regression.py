"""Functions of one variable: the targets to be learnt, and models before and after training.

`data` is a dataset with `x` and `y` on `sample`, and the target functions `y_grid` (target, grid) at
`x_grid` (grid). The coordinate `target` holds their names and `formula` their formulas; the attribute
`target` names the one that was sampled. `models` is a dataset with `x_grid` (grid) and `yhat_grid`
(moment, grid, …members).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from thalweg.errors import InputError
from thalweg.plots import fits, legends, members, style

_PANEL = (4.2, 3.6)  # inches
_LEGEND = 0.6  # inches for the legend below


def targets(data: xr.Dataset, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """The functions to be learnt, and the samples of one of them.

    Args:
        data: see the module.
        ax: where to draw; a new figure without it.
        title: a title; "Targets and data" without it.

    Raises:
        InputError: a variable that is missing.
    """
    _check(data, "x", "y", "x_grid", "y_grid", "target")
    sampled = data.attrs.get("target")
    ax = style.new_axes(ax)
    for i, name in enumerate(data["target"].values):
        look = style.style(i)
        text = style.plain(name)
        if "formula" in data:
            text += f": {style.plain(data['formula'].values[i])}"
        ax.plot(
            data["x_grid"],
            data["y_grid"].isel(target=i),
            color=look.color,
            ls=look.dash,
            lw=2.2 if name == sampled else 1.2,
            label=text,
            gid=f"{style.SERIES}-{i}",
        )
    title = "Targets and data" if title is None else title
    return fits.points(data, ax=ax, title=title, label=style.joined("data", sampled, by=": "))


def functions(
    data: xr.Dataset,
    models: xr.Dataset,
    *,
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
    sharey: bool = True,
) -> Figure | SubFigure:
    """Models drawn as functions, one panel per moment, with the data and what was to be learnt.

    Runs are thin lines, all of one style; each combination of the other dimensions has its own, up to
    ten of them. Functions that are not finite are left out, and a note says how many.

    Args:
        data, models: see the module.
        figure: where to draw, empty; a new one without it.
        title: a title above the panels.
        sharey: whether all panels have the same vertical axis.

    Raises:
        InputError: a variable or a dimension that is missing.
    """
    _check(data, "x", "y", "x_grid", "y_grid")
    _check(models, "x_grid", "yhat_grid")
    if not {"moment", "grid"} <= set(models["yhat_grid"].dims):
        raise InputError(
            f"'yhat_grid' needs the dimensions moment and grid; it has {models['yhat_grid'].dims}."
        )
    _check(models, "moment")
    if data.attrs.get("target") is not None:
        _check(data, "target")
    moments = [str(moment) for moment in models["moment"].values]
    figure = style.figure_for(figure, (_PANEL[0] * len(moments), _PANEL[1] + _LEGEND))
    axes = figure.subplots(1, len(moments), sharex=True, sharey=sharey, squeeze=False)[0]
    series = _series(models)
    grid = models["x_grid"].values
    for ax, moment in zip(axes, moments, strict=True):
        yhat = models["yhat_grid"].sel(moment=moment).transpose("grid", ...).values.astype(float)
        _target(ax, data, grid)
        fits.points(data, ax=ax, title=style.plain(moment[:1].upper() + moment[1:]))
        # the points stay visible above many models
        looks = {"mfc": style.shade(1), "mec": style.shade(0), "mew": 1}
        ax.lines[-1].set(zorder=5, **looks)
        ax.locator_params(axis="x", nbins=5)
        lost = 0
        for i, one in enumerate(series):
            lost += _draw(ax, grid, yhat, one, i)
        if lost:
            every = sum(len(one.members) for one in series)
            style.note(ax, f"{lost:,} of {style.count_of(every, 'model')} not finite (diverged)")
        if sharey:
            ax.label_outer()
    legends.share(figure, axes, columns=3 if len(moments) < 3 else 5)
    if title:
        figure.suptitle(title)
    return figure


def _series(models: xr.Dataset) -> list[members.Series]:
    """One series per combination of the members' dimensions other than the run; a single one if too many."""
    values = models["yhat_grid"]
    dims = [str(d) for d in values.dims if d not in ("moment", "grid")]
    groups = members.without_runs(dims, [values.sizes[d] for d in dims])
    if len(groups) > members.MOST:
        every = tuple(index for group in groups for index in group)
        return [members.Series(style.count_of(len(every), "model"), every)]
    series = []
    for group in groups:
        parts = [
            _coordinate(models, dim, i)
            for dim, i in zip(dims, group[0], strict=True)
            if dim != "run"
        ]
        runs = style.count_of(len(group), "run") if len(group) > 1 else None
        text = style.joined(style.joined(*parts), runs, by=": ") or "model"
        series.append(members.Series(text, group))
    return series


def _coordinate(models: xr.Dataset, dim: str, i: int) -> str:
    """ "width 10"; a text coordinate stands by itself."""
    value = models[dim].values[i]
    text = style.value_text(value)
    return text if isinstance(value, str) else f"{style.plain(dim)} {text}"


def _target(ax: Axes, data: xr.Dataset, grid: np.ndarray) -> None:
    """Draw the function that was sampled, over the range of the models' grid."""
    sampled = data.attrs.get("target")
    if sampled is None:
        return
    x, y = data["x_grid"].values, data["y_grid"].sel(target=sampled).values
    inside = (x >= grid.min()) & (x <= grid.max())
    looks = {"color": style.shade(0.2), "ls": (0, (1, 1.2)), "lw": 1.4}
    ax.plot(x[inside], y[inside], zorder=4, label="target", **looks)


def _draw(ax: Axes, grid: np.ndarray, yhat: np.ndarray, series: members.Series, i: int) -> int:
    """Draw the finite members of a series; returns how many are not finite."""
    look, gid = style.style(i), f"{style.SERIES}-{i}"
    many = len(series.members) > 1
    curves = [yhat[(slice(None), *index)] for index in series.members]
    kept = [curve for curve in curves if np.isfinite(curve).all()]
    for curve in kept:
        ax.plot(
            grid,
            curve,
            color=look.color,
            ls="-" if many else look.dash,
            lw=0.8 if many else 1.3,
            alpha=style.thin(len(curves)) if many else 1,
            marker="o" if len(grid) == 1 else None,
            ms=3,
            zorder=3,
            label="_model",
            gid=gid,
        )
    dash = "-" if many else look.dash
    ax.plot([], [], color=look.color, ls=dash, lw=1.6, label=series.label, gid=gid)
    return len(curves) - len(kept)


def _check(dataset: object, *names: str) -> None:
    if not isinstance(dataset, xr.Dataset):
        raise InputError(f"a dataset was expected; {type(dataset).__name__} given.")
    for name in names:
        if name not in dataset.variables:
            held = ", ".join(map(str, dataset.variables))
            raise InputError(f"this dataset has no {name!r}; it has {held}.")
