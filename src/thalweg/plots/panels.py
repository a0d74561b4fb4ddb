"""Several panels in one figure: grids of axes, and the three risks side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from thalweg import results
from thalweg.errors import InputError
from thalweg.plots import bands, members, paths, style, surfaces
from thalweg.plots.bands import Bands

_PANEL = (4.4, 3.8)  # inches, colour bar included


def grid(rows: int, columns: int, *, title: str | None = None) -> tuple[Figure, np.ndarray]:
    """A new figure with rows × columns axes, laid out so that nothing overlaps.

    Returns:
        The figure, and its axes as an array (rows, columns), each to be given as `ax=`.

    Raises:
        InputError: fewer than one row or column.
    """
    if rows < 1 or columns < 1:
        raise InputError(f"a grid needs at least one row and one column; {rows} × {columns} given.")
    figure = style.new_figure((_PANEL[0] * columns, _PANEL[1] * rows))
    if title:
        figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False)


def risks(
    surface: xr.Dataset,
    path: xr.Dataset | None = None,
    *,
    sample: int,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Figure | SubFigure:
    """The pointwise, the empirical and the expected risk side by side.

    The levels are those of the empirical and the expected risk together; the left panel's end bands
    reach out to its own range. One colour bar serves all three.

    Args:
        surface: a landscape with all three risks on two axes.
        path: a trajectory, drawn on all three.
        sample: the sample of the pointwise risk.
        levels, n_levels, center: as for `contour`.
        figure: where to draw, empty; a new one without it.
        title: a title above all three.
        label: the path's name in the legends.

    Raises:
        InputError: a risk that the landscape does not hold, and what `contour` raises.
    """
    figure, axes = _three(surface, sample, levels, n_levels, center, figure)
    if path is not None:
        for ax in axes:
            paths.trace(surface, path, ax=ax, label=label)
    if title:
        figure.suptitle(title)
    return figure


def step_panels(
    surface: xr.Dataset,
    path: xr.Dataset,
    step: int,
    *,
    sample: int | None = None,
    arrow: float | None = 0.1,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """One step of stochastic gradient descent, against the three risks.

    Left the pointwise risk of the step's sample, the iterate, and an arrow along the negative
    gradient; in the middle the empirical risk and the trajectory so far; right the expected risk and
    the iterate. Levels and colours are those of `risks`.

    Args:
        surface: a landscape with all three risks on two axes.
        path: a trajectory of one member, with recorded `grad` (for the arrow) and `batch`.
        step: one of its recorded steps.
        sample: the sample; the one that the step used without it.
        arrow: the arrow is −arrow × gradient, as long as that is; None for no arrow.
        levels, n_levels: as for `contour`.
        center: the risk between blue and red; without it the expected risk at the middle of the
            grid, the point with index n // 2 on each axis.
        figure: where to draw, empty; a new one without it.

    Raises:
        InputError: several members, a step or a record that the path does not hold, and what
            `contour` raises.
    """
    members.check_trajectory(path)
    if path["status"].size != 1:
        raise InputError(
            f"step_panels draws one member; this trajectory has {dict(path['status'].sizes)}. "
            "Select one, as in path.isel(run=0)."
        )
    path = path.isel(dict.fromkeys(results.member_dims(path), 0))
    if step not in path["step"].values:
        raise InputError(f"step {step!r} is not among the recorded steps of this trajectory.")
    now = path.sel(step=[step])
    if arrow is not None and "grad" not in path:
        raise InputError(
            "the arrow needs the gradient: descend with record=['grad'], or give arrow=None."
        )
    sample = _sample(now) if sample is None else sample
    if center is None:
        expected = surfaces.risk_values(surface, "expected", None)
        center = float(expected[tuple(n // 2 for n in expected.shape)])
    figure, axes = _three(surface, sample, levels, n_levels, center, figure)
    left, middle, right = axes
    for ax in (left, right):
        _iterate(ax, surface, now)
    if arrow is not None:
        _arrow(left, surface, now, arrow)
    so_far = path.sel(step=path["step"].values <= step)
    look = style.Style("black", "-", "o")
    paths.draw(surface, so_far, middle, "trajectory so far", end=f"iterate {step}", look=look)
    for ax in (left, right):
        style.legend(ax)
    figure.suptitle(f"Step {step}, sample {sample}")
    return figure


def _three(
    surface: xr.Dataset,
    sample: int,
    levels: Any,
    n_levels: int,
    center: float | None,
    figure: Figure | SubFigure | None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    names = ("pointwise", "empirical", "expected")
    values = {
        name: surfaces.risk_values(surface, name, sample if name == "pointwise" else None)
        for name in names
    }
    together = np.concatenate([values["empirical"].ravel(), values["expected"].ravel()])
    chosen = bands.choose(together, levels, n_levels, center)
    figure = figure or style.new_figure((12.6, 4.3))
    axes = list(figure.subplots(1, 3, sharex=True, sharey=True))
    log = isinstance(levels, str) and levels == "log"
    for ax, name in zip(axes, names, strict=True):
        used = chosen
        if chosen is not None and name == "pointwise":
            used = chosen.stretched(values[name])
            _say_stretched(ax, chosen, used)
        surfaces.draw_contours(ax, surface, values[name], used, log=log)
        one = sample if name == "pointwise" else None
        style.titled(ax, None, surfaces.risk_name(surface, name, one))
        ax.label_outer()
    if chosen is not None:
        words = style.joined(chosen.words, "of empirical and expected risk", by=",\n")
        chosen.colorbar(axes, f"risk ({words})")
    return figure, axes


def _say_stretched(ax: Axes, shared: Bands, own: Bands) -> None:
    ends = [own.edges[i] for i in (0, -1) if own.edges[i] != shared.edges[i]]
    if ends:
        reach = " and ".join(map(style.number, ends))
        style.note(ax, f"end {'bands reach' if len(ends) > 1 else 'band reaches'} to {reach} here")


def _sample(now: xr.Dataset) -> int:
    if "batch" not in now:
        raise InputError(
            "this trajectory does not say which sample a step used: descend with record=['batch'], or "
            "give sample=."
        )
    used = now["batch"].values.ravel()
    used = used[used >= 0]
    if used.size != 1:
        raise InputError(f"this step used {used.size} samples: say which one with sample=.")
    return int(used[0])


def _iterate(ax: Axes, surface: xr.Dataset, now: xr.Dataset) -> None:
    x, y = paths.coordinates(ax, surface, now)
    ax.plot(
        x,
        y,
        ls="",
        marker="o",
        ms=8,
        mfc="black",
        mec="white",
        zorder=4,
        label=f"iterate {int(now['step'].values[0])}",
    )


def _arrow(ax: Axes, surface: xr.Dataset, now: xr.Dataset, scale: float) -> None:
    """An arrow along −scale × gradient; along its part in the plane where there are more parameters."""
    gradient = now["grad"].values[0]
    where = f"−{scale:g} × stochastic gradient"
    if not np.isfinite(gradient).all():
        return
    if not gradient.any():
        ax.plot([], [], ls="", label="stochastic gradient is zero")
        return
    params = now["params"].values[0].astype(float)
    ends = results.project(surface, np.stack([params, params - scale * gradient]))
    (x0, x1), (y0, y1) = (ends[a].values for a in results.plane_axes(surface))
    if len(params) > 2:
        where += ", its part in the plane"
    ax.quiver(
        [x0],
        [y0],
        [x1 - x0],
        [y1 - y0],
        angles="xy",
        scale_units="xy",
        scale=1,
        color="black",
        width=0.012,
        edgecolor="white",
        linewidth=0.6,
        zorder=3,
    )
    ax.plot([], [], ls="", marker=r"$\rightarrow$", color="black", ms=12, label=where)
