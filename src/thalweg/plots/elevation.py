"""A landscape as a surface in three dimensions, for print. `thalweg.plotly.surface` is one to turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.colors import LightSource
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from thalweg import results
from thalweg.errors import InputError, real
from thalweg.plots import bands, legends, paths, strands, style, surfaces
from thalweg.plots.bands import Bands
from thalweg.plots.ground import Ground
from thalweg.plots.members import Paths

# Grid lines along an axis: with more, a picture takes seconds, and a cell is smaller than a pixel
_MOST_LINES = 150
_SUN = LightSource(azdeg=225, altdeg=50)
_DARKEST = 0.55  # of a cell that the sun does not reach


def surface(
    landscape: xr.Dataset,
    path: Paths | None = None,
    *,
    risk: str = "empirical",
    sample: int | None = None,
    points: Mapping[str, Any] | None = None,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    log: bool = False,
    view: tuple[float, float] = (30.0, -125.0),
    colorbar: bool | str = True,
    ax: Axes3D | None = None,
    title: str | None = None,
    label: str | None = None,
) -> Axes3D:
    """A landscape of two axes as a surface, in the colours of `contour`.

    A path is laid on the surface: an iterate is drawn at the landscape's height where it is or, off the
    plane, where the nearest point of the plane is. Paths and points are seen through the surface. What is
    not finite leaves a hole, and is counted below the axes.

    Args:
        landscape: as `thalweg.landscape` returns it.
        path: a trajectory to draw on it, or several by name, cut at the landscape's window.
        risk: "empirical", "expected" or "pointwise"; the last needs `sample`.
        sample: which sample's pointwise risk.
        points: points of parameter space to mark, by what they are called, such as a known minimum: the
            parameters by name, as in {"x": 1.0, "y": 2.0}, or (p,) in the landscape's order.
        levels, n_levels, center: the colours' bands, as for `contour`.
        log: heights on a log scale; risks at or below zero are left out, and counted.
        view: from where to look, in degrees: above the plane of the axes, and around it.
        colorbar: whether to draw one, or its label.
        ax: where to draw: axes with projection="3d"; a new figure without it.
        title: a title; the risk's name without it.
        label: the name in the legend of a path that is given alone.

    Raises:
        InputError: what `contour` raises; axes of two dimensions.
    """
    values = surfaces.risk_values(landscape, risk, sample)
    surfaces.check_grid(values, "a surface needs")
    drawn = paths.named(landscape, path, label)
    marked = {
        text: paths.place_of(landscape, p, text) for text, p in paths.points_by_name(points).items()
    }
    elevation, azimuth = _angles(view)
    log = log or surfaces.is_log(levels)
    chosen = bands.choose(
        np.where(values > 0, values, np.nan) if log else values, levels, n_levels, center
    )
    name = surfaces.risk_name(landscape, risk, sample)
    ax = _axes(ax)
    ground = _ground(ax, landscape, values, log)
    _frame(ax, landscape, ground, name)
    ax.view_init(elevation, azimuth)
    if chosen is not None:
        _draw(ax, ground, chosen)
    surfaces.finish(ax, chosen, name, colorbar, title)
    style.note_batch_norm(ax, results.batch_norm_of(landscape))
    for text, each in drawn:
        _draw_path(ax, landscape, ground, each, text)
    for text, (where, off) in marked.items():
        _draw_point(ax, ground, text, where, off)
    legends.add(ax)
    return ax


def _angles(view: Any) -> tuple[float, float]:
    angles = [real(angle) for angle in view] if np.iterable(view) else []
    if len(angles) != 2 or not np.isfinite(angles).all():
        raise InputError(
            f"view must be two angles in degrees, as in (30, -125); {view!r:.80} given."
        )
    return angles[0], angles[1]


def _axes(ax: Any) -> Axes3D:
    if ax is None:
        options = {"subplot_kw": {"projection": "3d"}, "layout": "constrained"}
        return plt.subplots(figsize=(6.4, 5.0), **options)[1]
    if not isinstance(ax, Axes3D):
        raise InputError(
            "ax must be axes of three dimensions, as in plt.figure().add_subplot(projection='3d'); "
            f"{type(ax).__name__} given."
        )
    return ax


def _ground(ax: Axes3D, landscape: xr.Dataset, values: np.ndarray, log: bool) -> Ground:
    """The landscape with ascending axes, and NaN where it has no height."""
    shown = surfaces.drawable(ax, landscape, values, log, "hole: ").filled(np.nan)
    x, y = (landscape[name].values.astype(float) for name in results.plane_axes(landscape))
    across, up = np.argsort(x), np.argsort(y)
    return Ground(x[across], y[up], shown[np.ix_(across, up)], log)


def _frame(ax: Axes3D, landscape: xr.Dataset, ground: Ground, name: str) -> None:
    paths.frame(ax, landscape, *((along[0], along[-1]) for along in (ground.x, ground.y)))
    inside = _drawn(ground, bands.finite(ground.height))
    low, high = (inside.min(), inside.max()) if inside.size else (0.0, 1.0)
    room = 0.02 * ((high - low) or max(abs(high), 1.0))
    ax.set(zlim=(low - room, high + room), zlabel=name)
    ax.zaxis.set_major_locator(MaxNLocator(6, integer=ground.log and high - low > 2))
    if ground.log:  # matplotlib has no log scale in three dimensions
        ax.set_zlabel(f"{name} (log scale)")
        ax.zaxis.set_major_formatter(lambda exponent, _: f"{10.0**exponent:.4g}")
    ax.computed_zorder = False  # matplotlib's order by distance puts lines beneath what they lie on


def _drawn(ground: Ground, height: np.ndarray) -> np.ndarray:
    """Heights as they are drawn: exponents on a log scale."""
    return np.log10(height) if ground.log else height


def _draw(ax: Axes3D, ground: Ground, chosen: Bands) -> None:
    """The surface in cells between neighbouring grid lines; a cell at a missing height is left out."""
    across, up = (_some(along) for along in (ground.x, ground.y))
    if len(across) * len(up) < ground.height.size:
        style.note(ax, f"drawn from {len(across)} × {len(up)} of the grid's lines")
    x, y = np.meshgrid(ground.x[across], ground.y[up], indexing="ij")
    vertices = np.stack([x, y, _drawn(ground, ground.height[np.ix_(across, up)])], axis=-1)
    corners = (vertices[:-1, :-1], vertices[1:, :-1], vertices[1:, 1:], vertices[:-1, 1:])
    cells = np.stack(corners, axis=2).reshape(-1, 4, 3)
    cells = cells[np.isfinite(cells).all(axis=(1, 2))]
    if not len(cells):
        return
    middle = cells[..., 2].mean(axis=1)
    colors = chosen.cmap(chosen.norm(10.0**middle if ground.log else middle))
    colors[:, :3] *= _light(ax, cells)[:, None]
    ax.add_collection3d(
        Poly3DCollection(
            cells, facecolors=colors, linewidths=0, antialiased=False, rasterized=True, zorder=1
        )
    )


def _light(ax: Axes3D, cells: np.ndarray) -> np.ndarray:
    """How brightly cells (n, 4, 3) are lit, from 0 to 1: by their slopes in the picture."""
    low, high = np.transpose([ax.get_xlim(), ax.get_ylim(), ax.get_zlim()])
    corners = np.moveaxis((cells - low) / (high - low), 1, 0)
    normals = np.cross(corners[2] - corners[0], corners[3] - corners[1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return _DARKEST + (1 - _DARKEST) * np.clip(normals @ _SUN.direction, 0, 1)


def _some(along: np.ndarray) -> np.ndarray:
    """The numbers of the grid lines that are drawn, evenly spread, the first and the last among them."""
    return np.unique(
        np.linspace(0, len(along) - 1, min(len(along), _MOST_LINES)).round().astype(int)
    )


def _draw_path(
    ax: Axes3D, landscape: xr.Dataset, ground: Ground, path: xr.Dataset, label: str | None
) -> None:
    x, y = paths.coordinates(ax, landscape, path, label)
    for each in strands.each(ax, path, x, y, label):
        across, up, height = ground.over(each.x, each.y)
        line = across, up, _drawn(ground, height)
        wide = 0.9 if each.many else 1.8
        ax.plot(*line, color=style.rim(each.look.color), lw=2.2 * wide, zorder=2.5, gid=style.RIM)
        ax.plot(
            *line, color=each.look.color, ls="-" if each.many else each.look.dash, lw=wide, zorder=3,
            label=f"_{each.name}", gid=each.gid,
        )  # fmt: skip
        strands.legend_entries(ax, each, marked=False)
        for kind, place in zip(strands.ENDS, strands.ends(each.x, each.y, each.lost), strict=True):
            spot = place[:, ground.inside(*place)]
            looks = strands.end_looks(kind, each.look.color, each.many)
            ax.plot(*spot, _drawn(ground, ground.at(*spot)), ls="", zorder=4, **looks)
    strands.legend_of_ends(ax, path, x, y)


def _draw_point(ax: Axes3D, ground: Ground, text: str, where: Any, off: float) -> None:
    if not ground.inside(*where):
        style.note(ax, f"{style.plain(text)} lies outside the window")
        return
    place = (*([v] for v in where), [_drawn(ground, ground.at(*where))])
    looks = {"marker": "P", "color": style.shade(0), "mec": style.shade(1), "ms": 10}
    ax.plot(*place, ls="", zorder=5, label=paths.entry_of(text, off), **looks)
