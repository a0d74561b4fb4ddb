"""Several panels in one figure: grids of axes, and the three risks side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.quiver import Quiver

from thalweg import projection, results
from thalweg.errors import InputError, is_whole, real, whole_number
from thalweg.plots import bands, legends, members, paths, style, surfaces
from thalweg.plots.bands import Bands

SO_FAR = "trajectory so far"
_PANEL = (4.4, 3.8)  # inches, colour bar included


def grid(rows: int, columns: int, *, title: str | None = None) -> tuple[Figure, np.ndarray]:
    """A new figure with rows × columns axes, laid out so that nothing overlaps.

    Returns:
        The figure, and its axes as an array (rows, columns), each to be given as `ax=`.

    Raises:
        InputError: fewer than one row or column.
    """
    rows, columns = whole_number("rows", rows, 1), whole_number("columns", columns, 1)
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
            paths.path(surface, path, ax=ax, label=label)
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
    path = one_member(path, "step_panels", arrow)
    if not is_whole(step) or step not in path["step"].values:
        raise InputError(f"step {step!r} is not among the recorded steps of this trajectory.")
    now = path.sel(step=[step])
    sample = sample_of(now) if sample is None else sample
    center = middle_risk(surface) if center is None else center
    figure, axes = _three(surface, sample, levels, n_levels, center, figure)
    left, middle, right = axes
    for ax in (left, right):
        _iterate(ax, surface, now)
    if arrow is not None:
        _arrow(left, surface, now, arrow)
    so_far = path.sel(step=path["step"].values <= step)
    paths.draw(surface, so_far, middle, SO_FAR, end=f"iterate {step}", look=look())
    for ax in (left, right):
        legends.add(ax)
    figure.suptitle(f"Step {step}, sample {sample}")
    return figure


def look() -> style.Style:
    """The style of a panel's trajectory."""
    return style.Style(style.shade(0), "-", "o")


def one_member(path: xr.Dataset, who: str, arrow: float | None) -> xr.Dataset:
    """The only member's trajectory; an InputError for several members, or an arrow without gradients."""
    members.check_trajectory(path)
    if path["status"].size != 1:
        raise InputError(
            f"{who} draws one member; this trajectory has {dict(path['status'].sizes)}. "
            "Select one, as in path.isel(run=0)."
        )
    if arrow is not None and not np.isfinite(real(arrow)):
        raise InputError(f"arrow must be a finite number, or None; {arrow!r:.80} given.")
    if arrow is not None and "grad" not in path:
        raise InputError(
            "the arrow needs the gradient: descend with record=['grad'], or give arrow=None."
        )
    return path.isel(dict.fromkeys(results.member_dims(path), 0))


def middle_risk(surface: xr.Dataset) -> float:
    """The expected risk at the middle of the grid, the point with index n // 2 on each axis."""
    expected = surfaces.risk_values(surface, "expected", None)
    return float(expected[tuple(n // 2 for n in expected.shape)])


def shared_bands(
    surface: xr.Dataset, levels: Any, n_levels: int, center: float | None
) -> Bands | None:
    """The bands of the empirical and the expected risk together."""
    together = [surfaces.risk_values(surface, name, None) for name in ("empirical", "expected")]
    return bands.choose(np.stack(together), levels, n_levels, center)


def draw_pointwise(
    ax: Axes, surface: xr.Dataset, sample: int, shared: Bands | None, levels: Any
) -> None:
    """The pointwise risk in the shared colours, the end bands reaching out to its own range."""
    values = surfaces.risk_values(surface, "pointwise", sample)
    own_bands = None
    if shared is not None:
        own_bands = shared.stretched(values)
        _say_stretched(ax, shared, own_bands)
    surfaces.draw_contours(ax, surface, values, own_bands, log=surfaces.is_log(levels))


def shared_colorbar(axes: Axes | list[Axes], shared: Bands | None) -> None:
    """One colour bar for all panels with shared bands."""
    if shared is not None:
        words = style.joined(shared.words, "of empirical and expected risk", by=",\n")
        shared.colorbar(axes, f"risk ({words})")


def _three(
    surface: xr.Dataset,
    sample: int,
    levels: Any,
    n_levels: int,
    center: float | None,
    figure: Figure | SubFigure | None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    surfaces.risk_values(surface, "pointwise", sample)  # raises before anything is drawn
    shared = shared_bands(surface, levels, n_levels, center)
    figure = style.figure_for(figure, (12.6, 4.3))
    axes = list(figure.subplots(1, 3, sharex=True, sharey=True))
    for ax, name in zip(axes, ("pointwise", "empirical", "expected"), strict=True):
        if name == "pointwise":
            draw_pointwise(ax, surface, sample, shared, levels)
        else:
            values = surfaces.risk_values(surface, name, None)
            surfaces.draw_contours(ax, surface, values, shared, log=surfaces.is_log(levels))
        one = sample if name == "pointwise" else None
        style.titled(ax, None, surfaces.risk_name(surface, name, one))
        ax.label_outer()
    shared_colorbar(axes, shared)
    return figure, axes


def _say_stretched(ax: Axes, shared: Bands, own: Bands) -> None:
    ends = [own.edges[i] for i in (0, -1) if own.edges[i] != shared.edges[i]]
    if ends:
        reach = " and ".join(map(style.number, ends))
        style.note(ax, f"end {'bands reach' if len(ends) > 1 else 'band reaches'} to {reach} here")


def sample_of(now: xr.Dataset) -> int:
    """The one sample that a step used."""
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
        mfc=style.shade(0),
        mec=style.shade(1),
        zorder=4,
        label=f"iterate {int(now['step'].values[0])}",
    )


def _arrow(ax: Axes, surface: xr.Dataset, now: xr.Dataset, scale: float) -> None:
    """Draw an arrow along −scale × gradient; a zero gradient is noted in the legend instead."""
    ends = arrow_ends(surface, now, scale)
    if ends is not None:
        draw_arrow(ax, ends)
        name_arrow(ax, arrow_name(surface, scale))
    elif not now["grad"].values.any():
        ax.plot([], [], ls="", label="stochastic gradient is zero")


def name_arrow(ax: Axes, name: str) -> None:
    """Add the arrow's entry to the legend, which is drawn later."""
    ax.plot([], [], ls="", marker=r"$\rightarrow$", color=style.shade(0), ms=12, label=name)


def arrow_name(surface: xr.Dataset, scale: float) -> str:
    """The arrow's legend entry; with more than two parameters it is the gradient's projection."""
    name = f"−{scale:g} × stochastic gradient"
    return f"{name}, its part in the plane" if surface.sizes["param"] > 2 else name


def arrow_ends(surface: xr.Dataset, now: xr.Dataset, scale: float) -> np.ndarray | None:
    """The start and end of the arrow along −scale × gradient on the plane, (2, 2): (end, axis).

    None where the gradient is zero or not finite.
    """
    gradient = now["grad"].values[0].astype(float)
    if not (gradient.any() and np.isfinite(gradient).all()):
        return None
    params = now["params"].values[0].astype(float)
    ends = projection.project(surface, np.stack([params, params - scale * gradient]))
    return np.stack([ends[axis].values for axis in results.plane_axes(surface)], axis=1)


def draw_arrow(ax: Axes, ends: np.ndarray) -> Quiver:
    """An arrow between two points (2, 2) of the axes."""
    return ax.quiver(
        *ends[0],
        *(ends[1] - ends[0]),
        angles="xy",
        scale_units="xy",
        scale=1,
        color=style.shade(0),
        width=0.012,
        edgecolor=style.shade(1),
        linewidth=0.6,
        zorder=3,
    )
