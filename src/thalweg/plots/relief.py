"""The parts of an interactive landscape: contours beside a surface, a path and points on both."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from thalweg import names, results
from thalweg.errors import InputError
from thalweg.plots import bands, paths, style
from thalweg.plots.bands import Bands
from thalweg.plots.canvas import CAMERA, Canvas, axis, plain
from thalweg.plots.ground import Ground
from thalweg.plots.tracks import IN_HOVER, Track

_FLOOR = 0.15  # of the surface's height: how far below it the floor lies
_LIFT = 0.015  # of the picture's height: how far above the surface paths and points are drawn
_LARGEST = 1e37  # what a graphics card, which computes in single precision, can draw
_NOTED = 0.01  # of the surface's height: a difference between it and the recorded loss that is said
_LIGHT = {"ambient": 0.75, "diffuse": 0.45, "specular": 0.05, "roughness": 0.9, "fresnel": 0.0}
_SHADOW, _MISSING = "#8a8f98", "#cccccc"


def ground(
    canvas: Canvas, landscape: xr.Dataset, values: np.ndarray, log: bool, positive: bool
) -> Ground:
    """The heights that can be drawn; the others are counted below the figure."""
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
    return Ground(x[across], y[up], np.where(missing, np.nan, values), log)


def draw(canvas: Canvas, landscape: xr.Dataset, ground: Ground, chosen: Bands, name: str) -> None:
    """Contours and surface, and the colour bar of both.

    The contours' colour scale has its steps at the levels, so that what is drawn are the risks
    themselves. The surface's has 256 colours and no room for narrow steps: it is coloured by the
    number of the band.
    """
    inside = bands.finite(ground.height)
    low = [inside.min()] if chosen.extend in ("min", "both") else []
    high = [inside.max()] if chosen.extend in ("max", "both") else []
    edges = np.concatenate([low, chosen.edges, high])
    number = np.arange(len(edges))
    across, up = map(plain, results.plane_axes(landscape))
    told = (
        f"{across} = %{{x:.5g}}<br>{up} = %{{y:.5g}}<br>{plain(name)} = %{{z:.5g}}<extra></extra>"
    )
    shared = {
        "x": ground.x,
        "y": ground.y,
        "z": ground.height.T,
        "showscale": False,
        "name": plain(name),
        "hovertemplate": told,
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
    # A trace of no points, for a colour bar in which all bands are equally high.
    canvas.add(
        "Scatter",
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [0], "showscale": True, "colorbar": bar, **even},
        showlegend=False,
        hoverinfo="skip",
    )


def draw_path(
    canvas: Canvas, landscape: xr.Dataset, ground: Ground, path: xr.Dataset, label: str | None
) -> list[tuple[int, int]]:
    """The path on the contours, on the surface and on the floor; returns the slider's rows and steps."""
    track = Track.of(path, label)
    results.points_of(landscape, path)  # of the same parameters
    points = xr.DataArray(track.params, dims=("step", "run", "param"))
    with np.errstate(all="ignore"):  # a run on its way to infinity
        where = results.project(landscape, points)
        off = paths.off_plane(landscape, track.params, where)
    x, y = (where[name].values for name in results.plane_axes(landscape))
    there = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(there, x, np.nan), np.where(there, y, np.nan)
    seen = ground.inside(x, y)
    flat = np.where(seen, x, np.nan), np.where(seen, y, np.nan)
    height = ground.at(*flat)
    canvas.note(track.note)
    leaving = int((there & ~seen).any(axis=0).sum())
    if leaving:
        canvas.note(paths.leaving_text(leaving, len(track.lost)))
    if off:
        canvas.note(f"iterates lie up to {style.number(off)} off the plane")
    _note_difference(canvas, ground, height, track.loss)
    floor, _ = _floor_and_ceiling(ground)
    more = {"height here": height}
    if off:
        more["off the plane"] = where["residual"].values
    panels = [flat, (*flat, _lifted(ground, height))]
    for series in track.series:
        vertices = ground.over(x[:, series.columns], y[:, series.columns])
        across, up, on_ground = (c.astype("f4") for c in vertices)  # half the page's size
        above = _lifted(ground, on_ground)
        on_floor = np.where(np.isnan(across), np.nan, floor).astype("f4")
        wide = 2.4 if len(series.columns) == 1 else 1.2
        look = {"color": series.color, "dash": series.dash}
        silent = {"mode": "lines", "hoverinfo": "skip", "legendgroup": series.name}
        in_legend = silent | {"name": plain(series.name), "showlegend": True}
        hidden = silent | {"showlegend": False}
        rim = {"color": "white", "width": 2 * wide}
        canvas.add("Scatter", x=across, y=up, line=rim, **hidden)
        canvas.add("Scatter", x=across, y=up, line=look | {"width": wide}, **in_legend)
        # solid: a 3-D line begins its dashes anew at every vertex
        line = {"color": series.color, "width": 2.5 * wide}
        canvas.add("Scatter3d", x=across, y=up, z=above, line=line, **hidden)
        shadow = {"color": _SHADOW, "width": 1.5 * wide}
        canvas.add("Scatter3d", x=across, y=up, z=on_floor, line=shadow, **hidden)
        track.mark_iterates(canvas, series, panels, more)
    panels = [flat, (*flat, _lifted(ground, height, 2 * _LIFT))]  # symbols above the line
    track.mark_ends(canvas, panels, there)
    rows = track.frames()
    track.mark_now(canvas, panels, rows[0], floor)
    return [(row, int(track.step[row])) for row in rows]


def draw_point(
    canvas: Canvas, landscape: xr.Dataset, ground: Ground, text: str, point: Any
) -> None:
    """A point of parameter space on the contours and on the surface."""
    where = results.project(landscape, point)
    if where["residual"].ndim:
        raise InputError(
            f"point {text!r} must be one point; {dict(where['residual'].sizes)} given."
        )
    x, y = (where[name].values for name in results.plane_axes(landscape))
    if not ground.inside(x, y):
        canvas.note(f"{text} lies outside the window")
        return
    height = ground.at(x, y)
    there = (names.found(landscape) or ())[:IN_HOVER]
    told = dict(zip(there, np.asarray(point, float), strict=False))
    told["height here"] = height
    off = paths.off_plane(landscape, point, where)
    if off:
        told["off the plane"] = off
    canvas.mark(text, [(x, y), (x, y, _lifted(ground, height, 2 * _LIFT))], told)


def layout(landscape: xr.Dataset, ground: Ground, name: str) -> dict[str, Any]:
    """Contours on the left, the surface on the right, with the same axes."""
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
        "xaxis": x | {"domain": [0, 0.385], "title_standoff": 4},
        "yaxis": y,
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
    """Between which heights the surface and the floor are drawn."""
    inside = bands.finite(ground.height)
    inside = np.log10(inside) if ground.log else inside
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 1.0)
    span = high - low or max(abs(high), 1.0)
    low, high = low - _FLOOR * span, high + 0.03 * span
    return (10**low, 10**high) if ground.log and not exponents else (low, high)


def _lifted(ground: Ground, height: np.ndarray, share: float = _LIFT) -> np.ndarray:
    """A little above the heights: lines and symbols on the surface itself would be half sunk in it."""
    low, high = _floor_and_ceiling(ground, exponents=True)
    room = share * (high - low)
    return height * 10**room if ground.log else height + room


def _note_difference(canvas: Canvas, ground: Ground, height: np.ndarray, loss: np.ndarray) -> None:
    """Say by how much the path's own losses differ from the heights at which it is drawn."""
    inside = bands.finite(ground.height)
    with np.errstate(all="ignore"):
        differ = bands.finite(np.abs(loss - height))
    largest = differ.max(initial=0)
    if inside.size and largest > _NOTED * (inside.max() - inside.min()):
        canvas.note(
            "the path is drawn at the surface's height; its recorded loss, in the hover, differs from "
            f"it by up to {style.number(largest)}"
        )


def _stepped(edges: np.ndarray, colors: np.ndarray) -> list[tuple[float, str]]:
    """A colour scale with one colour between each two edges."""
    place = (edges - edges[0]) / (edges[-1] - edges[0])
    both = zip(colors, itertools.pairwise(place), strict=True)
    return [(float(p), to_hex(color)) for color, two in both for p in two]
