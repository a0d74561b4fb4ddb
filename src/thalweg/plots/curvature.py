"""Curvature: spectral densities, sharpness along a descent, and how much a plane shows of a path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from thalweg.errors import InputError, one_of, whole_number
from thalweg.plots import curves, legends, members, style, ticks
from thalweg.plots.members import Paths
from thalweg.results import batch_norm_of, is_of_batches, member_dims
from thalweg.stability import KNOWN, rule_of, stability_threshold

# The axis follows a limit of stability up to this multiple of the sharpness: where a schedule ends at a
# learning rate of 0 the limit becomes infinite, and the sharpness beside it a flat line.
_ROOM_FOR_LIMITS = {"linear": 3.0, "log": 100.0}


def density(
    spectrum: xr.Dataset,
    *,
    y: str = "log",
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """A spectral density.

    Args:
        spectrum: a dataset with `density` (eigenvalue,), as `Curvature.density` gives it.
        y: "log" or "linear". A log axis goes down to a millionth of the largest density.
        ax: where to draw; a new figure without it.
        title: a title; "Spectral density" without it.
        label: the spectrum's name in the legend.

    Returns:
        The axes.

    Raises:
        InputError: another dataset, an unknown scale.
    """
    one_of("y", y, ("linear", "log"))
    if not isinstance(spectrum, xr.Dataset) or "density" not in spectrum:
        raise InputError("a spectral density was expected, as Curvature.density gives it.")
    ax = style.new_axes(ax)
    taken = style.styles_taken(ax)
    look = style.style(taken)
    values = spectrum["density"].values
    ax.plot(
        spectrum["eigenvalue"].values,
        values,
        color=look.color,
        ls=look.dash,
        lw=1.6,
        label=style.plain(label) if label else "density",
        gid=f"{style.SERIES}-{taken}",
    )
    style.drop_notes(ax)  # an earlier density's, which those below replace
    if y == "log":
        ticks.scale(ax, y="log")
        drawn = [np.max(line.get_ydata()) for line in ax.lines]
        low = max(drawn) * 1e-6
        ax.set_ylim(low, 3 * max(drawn))
        if (values < low).any():
            style.note(ax, f"densities below {style.number(low)} are not shown")
    ax.set(xlabel="eigenvalue", ylabel="density of eigenvalues")
    width = float(spectrum.attrs["width"])
    style.note(
        ax, f"each eigenvalue drawn as a Gaussian of standard deviation {style.number(width)}"
    )
    style.note_batch_norm(ax, batch_norm_of(spectrum))
    style.titled(ax, title, "spectral density")
    legends.add(ax)
    return ax


def sharpness(
    path: Paths,
    name: str = "sharpness",
    *,
    preconditioned: bool | None = None,
    x: str = "linear",
    y: str = "linear",
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes:
    """Sharpness along a descent, and the largest at which its optimizer is stable, where that is known.

    Args:
        path: a trajectory that recorded it, or several by name: record={"sharpness": thalweg.sharpness}.
        name: the record's name.
        preconditioned: whether it is the preconditioned Hessian's (thalweg.preconditioned_sharpness):
            the limit of Adam and its like is for that one, and SGD's for the Hessian itself. By
            default, whether the record's name begins with "preconditioned".
        x, y: "linear" or "log".
        ax: where to draw; a new figure without it.
        title: a title; "Sharpness" without it.
        label: the name in the legend of a trajectory that is given alone.

    Returns:
        The axes.

    Raises:
        InputError: a record that is not there, an unknown scale.
    """
    paths = members.named(path, label)
    # before there is a figure, which an error would leave behind empty
    curves.read(paths, [name])
    for text, each in paths:
        before = {} if ax is None else _series(ax)
        ax = curves.record(each, name, ax=ax, x=x, y=y, title=title or "Sharpness", label=text)
        alone = len(paths) == 1 and not before
        style.note_batch_norm(ax, batch_norm_of(each, name))
        _add_limit(ax, each, name, preconditioned, before, alone, text and style.plain(text))
    assert ax is not None
    return ax


def _add_limit(
    ax: Axes,
    path: xr.Dataset,
    name: str,
    preconditioned: bool | None,
    before: dict[str, Any],
    alone: bool,
    label: str | None,
) -> None:
    """The limit of stability beside the sharpness of a trajectory; `before` are the series of others."""
    optimizer = rule_of(path)
    if preconditioned is None:
        preconditioned = name.startswith("preconditioned")
    if preconditioned is (optimizer == "SGD") or optimizer not in KNOWN:
        return
    try:
        limits = stability_threshold(path)
    except InputError:  # a recorded loop's learning rates may be unknown
        style.note(ax, style.joined(label, "its limit of stability is not known", by=": "))
        return
    if is_of_batches(path):
        style.note(ax, style.joined(label, "the limit is that of full batches", by=": "))
    steps = path["step"].values
    swept = [str(d) for d in limits.dims if d != "step"]
    places = np.ndindex(*(limits.sizes[d] for d in swept))
    rows = [limits.isel(dict(zip(swept, place, strict=True))) for place in places]
    steady = [float(limit) for limit in rows if limit.ndim == 0]
    text = "limit of stability"
    if len(steady) == len(rows):
        text = f"stable below {', '.join(map(style.number, steady))}"
    text = style.joined(label, text, by=": ")
    drawn = [color for name, color in _series(ax).items() if name not in before]
    colors = _limits_colors(path, swept, drawn, alone)
    lines = [np.broadcast_to(np.asarray(limit.values, float), steps.shape) for limit in rows]
    y = ax.get_yscale()
    _draw_limits(ax, steps, lines, colors, text, _top(path, name, lines, y))
    if y == "linear":  # room for the legend above curves that fill the width
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.35 * (high - low), auto=None)
    every = np.concatenate(lines)
    if (every > ax.get_ylim()[1]).any():
        infinite = " and is infinite at some steps" if np.isinf(every).any() else ""
        leaves = f"the limit of stability leaves the window{infinite}"
        style.note(ax, style.joined(label, leaves, by=": "))
    legends.add(ax)


def _top(path: xr.Dataset, name: str, limits: list[np.ndarray], y: str) -> float:
    """How far up the axis follows the limits: some way above the sharpness, or up to where each is lowest."""
    kept = path[name].where(path["status"] != "diverged").values
    lowest = [limit[np.isfinite(limit)].min(initial=np.inf) for limit in limits]
    highest = kept[np.isfinite(kept)].max(initial=0)
    return max(_ROOM_FOR_LIMITS[y] * highest, *(low for low in lowest if np.isfinite(low)), 0.0)


def _draw_limits(
    ax: Axes, steps: np.ndarray, limits: list[np.ndarray], colors: list[Any], text: str, top: float
) -> None:
    """Draw limits of stability on axes that follow them up to `top`."""
    for i, (limit, color) in enumerate(zip(limits, colors, strict=True)):
        line = Line2D(
            steps,
            limit,
            color=color,
            ls=style.DIVERGED_DASH,
            lw=1.4,
            zorder=1.5,
            label="_limit" if i else text,
        )
        ax.add_artist(line)  # add_line would let it set the limits
        ax.update_datalim(np.column_stack([steps, limit])[limit <= top])
    ax.autoscale_view()


def _series(ax: Axes) -> dict[str, Any]:
    """The colour of each series on the axes, in the order in which they were drawn."""
    colors: dict[str, Any] = {}
    for line in ax.lines:
        if str(line.get_gid()).startswith(style.SERIES):
            colors.setdefault(str(line.get_gid()), line.get_color())
    return colors


def _limits_colors(path: xr.Dataset, swept: list[str], colors: list[Any], alone: bool) -> list[Any]:
    """A colour for each limit: that of its curve; black where it is the only one, or where there are too many
    curves for each to have a colour."""
    count = math.prod(path.sizes[d] for d in swept)
    dims = [d for d in member_dims(path) if d != "run"]  # a series holds all runs
    if (count == 1 and alone) or len(colors) != math.prod(path.sizes[d] for d in dims):
        return [style.shade(0)] * count
    places = np.arange(len(colors)).reshape([path.sizes[d] for d in dims])
    of_limit = xr.DataArray(places, dims=dims).isel({d: 0 for d in dims if d not in swept})
    return [colors[int(i)] for i in of_limit.transpose(*swept).values.ravel()]


def explained_variance(
    plane: xr.Dataset,
    *,
    components: int = 10,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """How much of a path's variance each principal component explains, beside a random walk's.

    Args:
        plane: a `pca_plane`'s dataset, or a landscape on it.
        components: how many to draw, at most.
        ax: where to draw; a new figure without it.
        title: a title.

    Returns:
        The axes.

    Raises:
        InputError: another dataset.
    """
    if not isinstance(plane, xr.Dataset) or "explained_variance" not in plane:
        raise InputError("a plane of principal components was expected, as pca_plane gives it.")
    count = min(whole_number("components", components, 1), plane.sizes["component"])
    ax = style.new_axes(ax)
    at = np.arange(1, count + 1)
    for i, (name, text) in enumerate(
        {
            "explained_variance": "this path",
            "random_walk_variance": f"random walk of {plane.attrs['plane_iterates']:,} iterates",
        }.items()
    ):
        look = style.style(i)
        ax.plot(
            at,
            100 * plane[name].values[:count],
            color=look.color,
            ls=look.dash,
            marker=look.marker,
            ms=4.5,
            label=text,
            gid=f"{style.SERIES}-{i}",
        )
    ax.set(xlabel="principal component", ylabel="variance explained (%)", ylim=(0, None))
    ticks.whole(ax.xaxis, most=12)
    style.titled(ax, title, "variance explained by principal components")
    legends.add(ax)
    return ax
