"""The parts of an interactive landscape: contours beside a surface, a path and points on both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex, to_rgba

from thalweg import names, projection, results
from thalweg.plots import bands, paths, style
from thalweg.plots.bands import Bands
from thalweg.plots.canvas import CAMERA, Canvas, axis, plain
from thalweg.plots.ground import Ground
from thalweg.plots.members import Named
from thalweg.plots.tracks import IN_HOVER, Panel, Series, Track, frames

_FLOOR = 0.15  # distance of the floor below the surface, relative to the surface's height
_LIFT = 0.015  # distance of paths and points above the surface, relative to the picture's height
_LARGEST = 1e37  # the largest height that graphics cards, in single precision, can draw
_NOTED = (
    0.01  # differences between recorded loss and surface beyond this share of its height are noted
)
_LIGHT = {"ambient": 0.75, "diffuse": 0.45, "specular": 0.05, "roughness": 0.9, "fresnel": 0.0}
_PIXELS = 1_000  # across and up, of the map beneath the contours
_SHADOW, _MISSING = "#8a8f98", "#cccccc"


def ground(
    canvas: Canvas, landscape: xr.Dataset, values: np.ndarray, log: bool, positive: bool
) -> Ground:
    """The landscape as ground, with NaN for heights that cannot be drawn, which are counted in a note."""
    x, y = (landscape[name].values.astype(float) for name in results.plane_axes(landscape))
    across, up = np.argsort(x), np.argsort(y)
    values = values[np.ix_(across, up)]
    missing = np.zeros(values.shape, bool)
    with np.errstate(invalid="ignore"):
        for why, these in (
            ("not finite", ~np.isfinite(values)),
            ("≤ 0 (log scale)", (values <= 0) & positive),
            (f"beyond ±{_LARGEST:g}", np.isfinite(values) & (np.abs(values) > _LARGEST)),
        ):
            if these.any():
                canvas.note(f"left out (grey): {these.sum():,} of {these.size:,} points {why}")
                missing |= these
    canvas.note(style.BATCH_NORM.get(results.batch_norm_of(landscape) or "", ""))
    return Ground(x[across], y[up], np.where(missing, np.nan, values), log)


def draw(canvas: Canvas, landscape: xr.Dataset, ground: Ground, chosen: Bands, name: str) -> None:
    """Contours and surface, and the colour bar of both.

    The contours' colour scale steps at the levels, so that the risks themselves are the data. The surface's
    scale has 256 colours, too few for narrow steps: its data are the numbers of the bands.
    """
    edges = _edges(ground, chosen)
    number = np.arange(len(edges))
    across, up = map(plain, results.plane_axes(landscape))
    hover_text = (
        f"{across} = %{{x:.5g}}<br>{up} = %{{y:.5g}}<br>{plain(name)} = %{{z:.5g}}<extra></extra>"
    )
    shared = {
        "x": ground.x,
        "y": ground.y,
        "z": ground.height.T,
        "showscale": False,
        "name": plain(name),
        "hovertemplate": hover_text,
    }
    canvas.add(
        "Contour",
        **shared,
        contours={"coloring": "heatmap"},
        line={"width": 0},  # plotly's lines are evenly spaced, and not at these levels
        colorscale=_stepped(edges, chosen.colors),
        zmin=edges[0],
        zmax=edges[-1],
        connectgaps=False,
    )
    even = {"colorscale": _stepped(number, chosen.colors), "cmin": 0, "cmax": int(number[-1])}
    band = np.interp(ground.height, edges, number).astype("f4")
    canvas.add("Surface", **shared, surfacecolor=band.T, lighting=_LIGHT, **even)
    ticks, texts = chosen.ticks_and_texts()
    words = f"<br>({chosen.words})" if chosen.words else ""
    bar = {
        "title": {"text": plain(name) + words, "side": "right"},
        "tickvals": np.interp(ticks, edges, number),
        "ticktext": texts,
        "x": 0.397,
        "thickness": 16,
        "len": 1.0,
    }
    # An empty trace that carries a colour bar in which all bands are equally high.
    canvas.add(
        "Scatter",
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [0], "showscale": True, "colorbar": bar, **even},
        showlegend=False,
        hoverinfo="skip",
    )


def draw_beneath(canvas: Canvas, ground: Ground, chosen: Bands) -> None:
    """A picture of the contours beneath them, for a figure that is animated.

    From one frame to the next, plotly takes the contours away and draws them anew, and on many a machine
    the frame after that comes before they are seen. It leaves a picture where it is.
    """
    x, y = (np.linspace(along[0], along[-1], _PIXELS) for along in (ground.x, ground.y))
    height = replace(ground, log=False).at(x, y[:, None])  # as plotly interpolates
    band = np.searchsorted(_edges(ground, chosen), height) - 1
    colors = chosen.colors[np.clip(band, 0, len(chosen.colors) - 1)]
    canvas.beneath(np.where(np.isnan(height)[..., None], to_rgba(_MISSING), colors), x, y)


def _edges(ground: Ground, chosen: Bands) -> np.ndarray:
    """The levels, and the ends of the bands beyond them."""
    inside = bands.finite(ground.height)
    low = [inside.min()] if chosen.extend in ("min", "both") else []
    high = [inside.max()] if chosen.extend in ("max", "both") else []
    return np.concatenate([low, chosen.edges, high])


def draw_paths(
    canvas: Canvas,
    landscape: xr.Dataset,
    ground: Ground,
    several: Named,
) -> list[int]:
    """Trajectories on the contours, on the surface and on the floor; returns the slider's steps."""
    placed: list[_Placed] = []
    for label, path in several:
        taken = sum(len(each.track.series) for each in placed)
        track = Track.of(path, label, taken)
        placed.append(_placed(canvas, landscape, ground, track, label))
    if not placed:
        return []
    # all outlines first: one would hide the lines that were drawn before it
    for each in placed:
        for series, (across, up, _) in each.lines:
            rim = {"color": "white", "width": 2 * _width(series)}
            canvas.add("Scatter", x=across, y=up, line=rim, **_silent(series))
    for each in placed:
        _draw_track(canvas, ground, each)
    symbols = [
        [each.flat, (*each.flat, _lifted(ground, each.height, 2 * _LIFT))] for each in placed
    ]
    for each, panels in zip(placed, symbols, strict=True):
        each.track.mark_ends(canvas, panels, each.finite)
    steps = frames([each.track for each in placed])
    floor, _ = _floor_and_ceiling(ground)
    for each, panels in zip(placed, symbols, strict=True):
        each.track.mark_now(canvas, panels, steps[0], floor)
    return steps


@dataclass(frozen=True, eq=False)
class _Placed:
    """A track on the ground.

    Args:
        track: its iterates.
        lines: by series, across, up and height: cut at the window, and with a vertex at each grid line.
        flat: (n, members) the iterates across and up, NaN outside the window.
        height: (n, members) of the ground there.
        finite: (n, members) which iterates are finite, wherever they lie.
        more: (n, members) what hovers say besides.
    """

    track: Track
    lines: list[tuple[Series, Panel]]
    flat: tuple[np.ndarray, np.ndarray]
    height: np.ndarray
    finite: np.ndarray
    more: dict[str, np.ndarray]


def _placed(
    canvas: Canvas, landscape: xr.Dataset, ground: Ground, track: Track, label: str | None
) -> _Placed:
    """Where a track lies, with notes on what the picture does not show of it."""
    points = xr.DataArray(track.params, dims=("step", "run", "param"))
    with np.errstate(all="ignore"):  # a run on its way to infinity
        where = projection.project(landscape, points)
        off = paths.off_plane_text(landscape, points, where)
    x, y = (where[name].values for name in results.plane_axes(landscape))
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, np.nan), np.where(finite, y, np.nan)
    visible = ground.inside(x, y)
    flat = np.where(visible, x, np.nan), np.where(visible, y, np.nan)
    height = ground.at(*flat)
    _note(canvas, label, track.note)
    leaving = int((finite & ~visible).any(axis=0).sum())
    if leaving:
        _note(canvas, label, paths.leaving_text(leaving, len(track.lost)))
    _note(canvas, label, off)
    _note(canvas, label, _difference_text(ground, height, track.loss))
    more = {"height here": height}
    if off:
        more["off the plane"] = where["residual"].values
    lines = []
    for series in track.series:
        vertices = ground.over(x[:, series.columns], y[:, series.columns])
        if not vertices[0].size:  # plotly leaves a trace without points out of the legend
            vertices = np.full((3, 1), np.nan)
        # single precision halves the page's size
        lines.append((series, [c.astype("f4") for c in vertices]))
    return _Placed(track, lines, flat, height, finite, more)


def _draw_track(canvas: Canvas, ground: Ground, placed: _Placed) -> None:
    """A track's lines, on the contours, on the surface and on the floor, and a dot for each iterate."""
    floor, _ = _floor_and_ceiling(ground)
    panels = [placed.flat, (*placed.flat, _lifted(ground, placed.height))]
    for series, (across, up, on_ground) in placed.lines:
        above = _lifted(ground, on_ground)
        on_floor = np.where(np.isnan(across), np.nan, floor).astype("f4")
        wide, hidden = _width(series), _silent(series)
        in_legend = hidden | {"name": plain(series.name), "showlegend": True}
        look = {"color": series.color, "dash": series.dash, "width": wide}
        canvas.add("Scatter", x=across, y=up, line=look, **in_legend)
        # solid: in 3-D, plotly restarts dashes at every vertex
        line = {"color": series.color, "width": 2.5 * wide}
        canvas.add("Scatter3d", x=across, y=up, z=above, line=line, **hidden)
        shadow = {"color": _SHADOW, "width": 1.5 * wide}
        canvas.add("Scatter3d", x=across, y=up, z=on_floor, line=shadow, **hidden)
        placed.track.mark_iterates(canvas, series, panels, placed.more)


def _width(series: Series) -> float:
    return 2.4 if len(series.columns) == 1 else 1.2


def _silent(series: Series) -> dict[str, Any]:
    """Options of a line that has no hover and no legend entry of its own."""
    shared = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    return shared | {"legendgroup": series.name}


def _note(canvas: Canvas, label: str | None, text: str) -> None:
    """A note about one of the paths, by its name where it has one."""
    canvas.note(style.joined(label, text, by=": ") if text else "")


def draw_point(
    canvas: Canvas, landscape: xr.Dataset, ground: Ground, text: str, point: Any
) -> None:
    """A point of parameter space on the contours and on the surface."""
    point = names.vector(point, names.found(landscape))
    (x, y), off = paths.place_of(landscape, point, text)
    if not ground.inside(x, y):
        canvas.note(f"{text} lies outside the window")
        return
    height = ground.at(x, y)
    shown_names = (names.found(landscape) or ())[:IN_HOVER]
    hover_values = dict(zip(shown_names, np.asarray(point, float), strict=False))
    hover_values["height here"] = height
    if off:
        hover_values["off the plane"] = off
    canvas.mark(text, [(x, y), (x, y, _lifted(ground, height, 2 * _LIFT))], hover_values)


def layout(landscape: xr.Dataset, ground: Ground, name: str) -> dict[str, Any]:
    """The figure's layout: contours on the left, the surface on the right, with the same axes."""
    across, up = results.plane_axes(landscape)
    titles = (style.label_of(landscape[a], a).replace(r"\$", "$") for a in (across, up))
    x, y = (
        axis(text) | {"range": [float(along[0]), float(along[-1])]}
        for text, along in zip(titles, (ground.x, ground.y), strict=True)
    )
    z = axis(name + (" (log scale)" if ground.log else ""))
    z["range"] = list(_floor_and_ceiling(ground, exponents=True))
    if ground.log:
        z["type"] = "log"
    return {
        # without a grid, which contours hide: in an animation it would be seen whenever they are away
        "xaxis": x | {"domain": [0, 0.385], "title_standoff": 4, "showgrid": False},
        "yaxis": y | {"showgrid": False},
        "plot_bgcolor": _MISSING,
        "scene": {
            "domain": {"x": [0.52, 1], "y": [0, 1]},
            "xaxis": x,
            "yaxis": y,
            "zaxis": z,
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.75},
            "camera": CAMERA,
        },
    }


def _floor_and_ceiling(ground: Ground, exponents: bool = False) -> tuple[float, float]:
    """The z range of the picture: from the floor to just above the surface."""
    inside = bands.finite(ground.height)
    inside = np.log10(inside) if ground.log else inside
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 1.0)
    span = high - low or max(abs(high), 1.0)
    low, high = low - _FLOOR * span, high + 0.03 * span
    return (10**low, 10**high) if ground.log and not exponents else (low, high)


def _lifted(ground: Ground, height: np.ndarray, share: float = _LIFT) -> np.ndarray:
    """Heights raised a little above the surface, which would otherwise half hide lines and symbols."""
    low, high = _floor_and_ceiling(ground, exponents=True)
    room = share * (high - low)
    return height * 10**room if ground.log else height + room


def _difference_text(ground: Ground, height: np.ndarray, loss: np.ndarray) -> str:
    """By how much the path's recorded losses differ from the heights at which it is drawn; "" for little."""
    inside = bands.finite(ground.height)
    with np.errstate(all="ignore"):
        differ = bands.finite(np.abs(loss - height))
    largest = differ.max(initial=0)
    if not inside.size or largest <= _NOTED * (inside.max() - inside.min()):
        return ""
    return (
        "the path is drawn at the surface's height; its recorded loss, in the hover, differs from "
        f"it by up to {style.number(largest)}"
    )


def _stepped(edges: np.ndarray, colors: np.ndarray) -> list[tuple[float, str]]:
    """A plotly colour scale with one colour between each pair of neighbouring edges."""
    place = (edges - edges[0]) / (edges[-1] - edges[0])
    both = zip(colors, itertools.pairwise(place), strict=True)
    return [(float(p), to_hex(color)) for color, two in both for p in two]
