"""Interactive pictures of results, in plotly: turn them, read their numbers, step through time.

Each function returns a plotly figure: `figure.show()` opens it, and
`figure.write_html("x.html", auto_play=False)` keeps it. plotly is the extra `plotly`, imported when a
figure is made. As in the static pictures, no number is changed, and what a picture leaves out stands
below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from thalweg.errors import InputError, real, unknown
from thalweg.names import vector as vector_of
from thalweg.plots import bands, members, paths, relief, style, surfaces
from thalweg.plots.canvas import Canvas, axis, plain
from thalweg.plots.members import Paths, in_a_row
from thalweg.plots.tracks import Track, frames

__all__ = ["path3d", "surface"]

_CAMERA = {"eye": {"x": -1.1, "y": -1.45, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.1}}
_TIMES = np.linspace(0, 1, 11)  # positions at which the colour scale of the step is given


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
    title: str | None = None,
    label: str | None = None,
) -> Any:
    """A landscape of two axes as contours and, beside them, as an opaque surface in the same colours.

    The path is laid on the surface: an iterate is drawn at the landscape's height where it is or, off
    the plane, where the nearest point of the plane is, and all of it a hair higher (1.5 % of the
    picture's height, its symbols 3 %), so that the surface does not hide it. Hovering over it shows
    its own recorded loss, the step and the parameters; where the two differ by more than a
    hundredth of the surface's height (the loss of a batch, a path that leaves the plane, a coarse
    grid) a note says by how much. On the floor lies the path's shadow. A slider and a play button
    move a marker.

    Args:
        landscape: as `thalweg.landscape` returns it.
        path: a trajectory to draw on it, or several by name, cut at the landscape's window. At a step of the
            slider that one did not record, its marker is at the last one before; there is none before its
            first.
        risk: "empirical", "expected" or "pointwise"; the last needs `sample`.
        sample: which sample's pointwise risk.
        points: points of parameter space to mark, by what they are called, such as a known minimum: the
            parameters by name, as in {"x": 1.0, "y": 2.0}, or (p,) in the landscape's order.
        levels, n_levels, center: the colours' bands, as for `thalweg.plot.contour`.
        log: heights on a log scale; risks at or below zero are left out, and counted.
        title: a title; the risk's name without it.
        label: the name in the legend of a path that is given alone.

    Returns:
        A plotly figure, as wide as its page.

    Raises:
        InputError: what `thalweg.plot.contour` raises; `MissingExtra` where plotly is not installed.
    """
    canvas = Canvas()
    values = surfaces.risk_values(landscape, risk, sample)
    surfaces.check_grid(values, "a surface needs")
    several = paths.named(landscape, path, label)
    marked = paths.points_by_name(points)
    name = surfaces.risk_name(landscape, risk, sample)
    positive = log or (isinstance(levels, str) and levels == "log")
    ground = relief.ground(canvas, landscape, values, log, positive)
    chosen = bands.choose(ground.height, levels, n_levels, center)
    if chosen is not None:
        relief.draw(canvas, landscape, ground, chosen, name)
    steps = relief.draw_paths(canvas, landscape, ground, several)
    if steps and chosen is not None:
        relief.draw_beneath(canvas, ground, chosen)
    for text, point in marked.items():
        relief.draw_point(canvas, landscape, ground, text, point)
    title = name[0].upper() + name[1:] if title is None else title
    return canvas.figure(title, relief.layout(landscape, ground, name), steps)


def path3d(
    path: xr.Dataset,
    params: Sequence[str] | None = None,
    *,
    points: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Any:
    """A path in three of its parameters, as a line in 3-D coloured by the step.

    A circle marks where a member starts, a diamond where it ends, a cross the last finite iterate of
    one that diverged. Hovering shows the step, the loss and the parameters; a slider and a play button
    move a marker along the path. Iterates of diverged members that would leave the others a dot are
    left out, and counted.

    Args:
        path: a trajectory with recorded parameters.
        params: the names of three of them; the first three without it.
        points: points to mark, by what they are called: the three parameters by name, or (3,) in the order
            of `params`.
        title: a title.

    Returns:
        A plotly figure, as wide as its page.

    Raises:
        InputError: not three different parameters of the path; `MissingExtra` where plotly is not
            installed.
    """
    canvas = Canvas()
    track = Track.of(members.check_trajectory(path))
    names = _three(track.names, params)
    place = track.params[..., [track.names.index(name) for name in names]].astype(float)
    xyz = tuple(np.moveaxis(_in_sight(canvas, place, track.lost), -1, 0))
    canvas.note(track.note)
    first, last = int(track.step[0]), int(track.step[-1])
    map_ = matplotlib.colormaps[style.SEQUENTIAL]
    time = {
        # the lightest end of the map would not be visible on white
        "colorscale": [(float(t), to_hex(map_(0.9 * t))) for t in _TIMES],
        "cmin": first,
        "cmax": max(last, first + 1),
    }
    bar = {"title": {"text": "step", "side": "right"}, "len": 0.8, "thickness": 16, "x": 0.94}
    for i, series in enumerate(track.series):
        step = np.repeat(track.step[:, None].astype(float), len(series.columns), axis=1)
        color = {"color": in_a_row(step).tolist(), **time}
        canvas.add(
            "Scatter3d",
            **{k: in_a_row(c[:, series.columns]) for k, c in zip("xyz", xyz, strict=True)},
            mode="lines+markers",
            line={"width": 5, **color},
            marker={"size": 2.5, **color, "colorbar": bar, "showscale": i == 0},
            name=plain(series.name),
            showlegend=False,  # a line of many colours has no colour for its legend entry
            **track.hover(series),
        )
    track.mark_ends(canvas, [xyz], named=1 < len(track.lost) == len(track.series))
    for text, point in paths.points_by_name(points).items():
        vector = vector_of(point, names)
        vector = np.array([*map(real, vector)] if np.iterable(vector) else [])
        if vector.shape != (3,) or np.isnan(vector).any():
            raise InputError(f"point {text!r} needs 3 numbers; {point!r:.80} given.")
        canvas.mark(text, [vector.tolist()], dict(zip(names, vector, strict=True)))
    steps = frames([track])
    track.mark_now(canvas, [xyz], steps[0])
    scene = {f"{k}axis": axis(name) for k, name in zip("xyz", names, strict=True)}
    scene |= {"aspectmode": "cube", "camera": _CAMERA, "domain": {"x": [0, 0.92]}}
    title = f"The path in {', '.join(names)}" if title is None else title
    return canvas.figure(title, {"scene": scene}, steps)


def _three(known: Sequence[Any], names: Sequence[str] | None) -> Sequence[str]:
    if names is not None and not isinstance(names, list | tuple):
        raise InputError(f"params are the names of three parameters; {names!r:.80} given.")
    chosen = known[:3] if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise unknown("parameter", name, known)
    if len(chosen) != 3 or len(set(chosen)) != 3:
        given = ", ".join(chosen) or "none"
        raise InputError(f"path3d needs three different parameters; {given} given.")
    return chosen


def _in_sight(canvas: Canvas, place: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """(n, members, 3) with NaN for iterates of diverged members that lie far from all others.

    Iterates are kept within ten times the extent of the other members' paths and of all starts or, where all
    members diverge, within a thousand times the size of the starts.
    """
    place = np.where(np.isfinite(place).all(axis=-1, keepdims=True), place, np.nan)
    near = np.concatenate([place[0], place[:, ~lost].reshape(-1, 3)])
    near = near[np.isfinite(near).all(axis=1)]
    middle = near.mean(axis=0) if len(near) else np.zeros(3)
    size = 10 * np.abs(near - middle).max(initial=0)
    if lost.all():
        size = 1000 * np.abs(near).max(initial=1)
    with np.errstate(all="ignore"):
        far = (np.abs(place - middle).max(axis=-1) > size) & lost
    if far.any():
        said = style.count_of(int(far.sum()), "iterate")
        canvas.note(f"{said} of diverged paths, far from the others, not shown")
    return np.where(far[..., None], np.nan, place)
