"""Trajectories in motion: on their landscape, on each step's own landscape, and beside the fit.

A frame shows what the static picture of the same step shows: the same functions draw it, from the
same numbers. Artists that do not change are drawn once.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thalweg import files, projection, results
from thalweg.errors import InputError, unknown
from thalweg.plots import films, fits, legends, members, pace, panels, paths, style, surfaces
from thalweg.plots.members import Named, Paths

__all__ = ["Animation", "fit", "path", "pointwise", "save"]

_SUFFIXES = (".mp4", ".gif", ".html")
_ITERATE = "iterate"
_LINE = 60  # characters of a title that fit on one line
_CONTROLS = 44  # pixels, the height of the player's controls


@dataclass(frozen=True, eq=False)
class Animation:
    """A figure, and what to draw on it for each frame.

    Args:
        figure: shows the last frame.
        draw: draws the frame with this number, and returns the artists that are not the same in all
            frames, from the bottom to the top.
        steps: the step that each frame shows.
        title: what it shows, in words.
        fps: frames a second.
        dpi: pixels an inch.
    """

    figure: Figure
    draw: Callable[[int], Sequence[Artist]]
    steps: tuple[int, ...]
    title: str
    fps: float = 10.0
    dpi: float = 100.0

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, each (height, width, 3) uint8."""
        before, dpi = self.figure.canvas, self.figure.dpi
        moving = self.draw(0)
        try:
            self.figure.set_dpi(self.dpi)
            canvas = FigureCanvasAgg(self.figure)
            for artist in moving:
                artist.set_animated(True)  # excluded from the static background below
            canvas.draw()
            still = canvas.copy_from_bbox(self.figure.bbox)
            for i in range(len(self.steps)):
                canvas.restore_region(still)
                moving = self.draw(i)
                for artist in sorted(moving, key=Artist.get_zorder):
                    artist.draw(canvas.get_renderer())
                yield np.array(canvas.buffer_rgba())[..., :3]
        finally:
            for artist in (*moving, *self.draw(len(self.steps) - 1)):
                artist.set_animated(False)
            self.figure.set_dpi(dpi)
            self.figure.set_canvas(before)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .mp4, .gif or .html; an existing file at `path` is replaced only once all is written.

        An .html page plays by itself, without a network. An .mp4 needs the extra `video`.

        Raises:
            InputError: another suffix, a folder that does not exist, an mp4 without that extra.
        """
        path = files.path_of(path)
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES:
            raise unknown("suffix of an animation's file", path.suffix or path.name, _SUFFIXES)
        with files.replacing(path) as scratch:
            if suffix == ".html":
                scratch.write_text(self.to_html(), encoding="utf-8")
            else:
                write = films.write_gif if suffix == ".gif" else films.write_mp4
                write(self.frames(), scratch, self.fps)
        return path

    def to_html(self) -> str:
        """A page with a player, which needs no network."""
        labels = [f"step {step:,}" for step in self.steps]
        return films.page(self.frames(), labels, self.fps, self.title)

    def _repr_html_(self) -> str:
        """The player in a frame of its own: notebooks show several on one page."""
        width, height = np.round(self.figure.get_size_inches() * self.dpi).astype(int)
        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" title="{html.escape(self.title)}" '
            f'style="width:100%;max-width:{width}px;height:{height + _CONTROLS}px;border:0"></iframe>'
        )


def save(animation: Animation, path: str | os.PathLike[str]) -> Path:
    """Write an animation as .mp4, .gif or .html: see `Animation.save`."""
    if not isinstance(animation, Animation):
        raise InputError(f"an animation was expected; {type(animation).__name__} given.")
    return animation.save(path)


def path(
    surface: xr.Dataset,
    path: Paths,
    *,
    risk: str = "empirical",
    sample: int | None = None,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    frames: int | Sequence[int] = 101,
    spacing: str = "even",
    fps: float = 10.0,
    dpi: float = 100.0,
    title: str | None = None,
    label: str | None = None,
) -> Animation:
    """A trajectory that grows on its landscape, all its members at once; or several together.

    The title names the step and its loss; over several members, the smallest and the largest. A member
    that diverges ends in a cross; when all have, the film ends.

    Args:
        surface: a landscape of two axes.
        path: a trajectory with recorded parameters, or several by name. One that begins after the others
            appears at its first step, and one that ends before them stays where it is.
        risk, sample, levels, n_levels, center: as for `contour`.
        frames: at most how many; or the recorded steps to show. At a step that a trajectory did not record
            it is shown at the last one before.
        spacing: of the frames along a path of more steps: "even", or "geometric" for most of them at
            the beginning. The first and the last step are always shown, and a note says how many are.
        fps: frames a second.
        dpi: pixels an inch.
        title: what stands before the step; the risk's name without it.
        label: the name in the legend of a path that is given alone.

    Raises:
        InputError: what `contour` raises; steps that the path did not record, no frames, fps or dpi
            that are not positive.
    """
    members.named(path, label)  # there has to be one
    several = paths.named(surface, path, label)
    trajectories = [each for _, each in several]
    steps, recorded = pace.steps_of(trajectories, frames, spacing)
    pace.check_speed(fps, dpi)
    ax = surfaces.contour(
        surface, risk=risk, sample=sample, levels=levels, n_levels=n_levels, center=center
    )
    name = ax.get_title() if title is None else title
    draw_paths = _growing(ax, surface, several)
    pace.say_left_out(ax, steps, recorded)
    says = [_says(trajectories, step) for step in steps]
    # if one frame's title needs two lines, all get two, so that nothing jumps
    by = ":\n" if max(map(len, says)) + len(name) > _LINE else ": "

    def draw(frame: int) -> list[Artist]:
        ax.set_title(style.joined(name, says[frame], by=by))
        return [*draw_paths(steps[frame]), ax.title]

    return _finished(ax, draw, steps, name, fps, dpi)


def pointwise(
    surface: xr.Dataset,
    path: xr.Dataset,
    *,
    sample: int | None = None,
    arrow: float | None = 0.1,
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    frames: int | Sequence[int] = 101,
    spacing: str = "even",
    fps: float = 5.0,
    dpi: float = 100.0,
) -> Animation:
    """Stochastic gradient descent on the landscape that each of its steps sees.

    The pointwise risk of the step's sample, the iterate, an arrow along the negative gradient, and
    the trajectory so far: the left panel of `step_panels`, with its levels and colours.

    Args:
        surface: a landscape of two axes with all three risks.
        path: a trajectory of one member, with recorded `grad` (for the arrow) and `batch`.
        sample: the sample; the one that each step uses without it.
        arrow: the arrow is −arrow × gradient, as long as that is; None for no arrow.
        levels, n_levels, center: as for `step_panels`.
        frames, spacing, fps, dpi: as for `path`.

    Raises:
        InputError: what `step_panels` and `path` raise.
    """
    path = panels.one_member(path, "pointwise", arrow)
    steps, recorded = pace.steps_of([path], frames, spacing)
    pace.check_speed(fps, dpi)
    where = projection.project(surface, path).sel(step=steps)
    finite = np.logical_and.reduce([np.isfinite(where[a]) for a in results.plane_axes(surface)])
    if finite.any():  # a diverged iterate has neither a place nor a sample
        steps = np.asarray(steps)[finite].tolist()
    now = [path.sel(step=[step]) for step in steps]
    samples = [panels.sample_of(step) if sample is None else sample for step in now]
    center = panels.middle_risk(surface) if center is None else center
    shared = panels.shared_bands(surface, levels, n_levels, center)
    ax = style.new_axes(None, (6.6, 4.9))
    panels.draw_pointwise(ax, surface, samples[-1], shared, levels)
    panels.shared_colorbar(ax, shared)
    changing: list[Artist] = list(ax.collections)
    style.drop_notes(ax)
    shown = path.sel(step=slice(None, steps[-1]))
    draw_path = _growing(ax, surface, [(panels.SO_FAR, shown)], panels.look())
    if arrow is not None:
        name = f"{panels.arrow_name(surface, arrow)}\n(none where it is zero)"
        panels.name_arrow(ax, name)
        legends.add(ax)
    pace.say_left_out(ax, steps, recorded)
    initial_notes = style.notes(ax)

    def draw(frame: int) -> list[Artist]:
        while changing:
            changing.pop().remove()
        style.drop_notes(ax)
        panels.draw_pointwise(ax, surface, samples[frame], shared, levels)
        changing.extend(ax.collections)
        ends = None if arrow is None else panels.arrow_ends(surface, now[frame], arrow)
        if ends is not None:
            changing.append(panels.draw_arrow(ax, ends))
        for line in initial_notes:
            style.note(ax, line)
        ax.set_title(_says([path], steps[frame], f"sample {samples[frame]}").capitalize())
        return [*changing, *ax.spines.values(), *draw_path(steps[frame]), *ax.texts, ax.title]

    title = "Pointwise risk of each step's sample, and the trajectory"
    # A spare line below the axes, for notes that only some frames have.
    return _finished(ax, draw, steps, title, fps, dpi, spare="\n")


def fit(
    table: xr.Dataset,
    surface: xr.Dataset,
    path: xr.Dataset,
    *,
    risk: str = "empirical",
    levels: Any = "quantile",
    n_levels: int = 20,
    center: float | None = None,
    frames: int | Sequence[int] = 101,
    spacing: str = "even",
    fps: float = 10.0,
    dpi: float = 100.0,
    title: str | None = None,
    label: str = "fit",
) -> Animation:
    """The model's curve beside the path: on the left the data and the curve at a step, on the right the
    landscape.

    The curves are data, which a descent records as it goes::

        grid = np.linspace(-2, 2, 200)
        path = tw.descend(problem, tw.SGD(lr=0.1), steps=100, record={
            "yhat_grid": lambda at: at.problem.predict(at.params, grid)})
        table = xr.Dataset({
            "x": ("sample", x), "y": ("sample", y), "x_grid": ("grid", grid),
            "yhat_grid": path["yhat_grid"].rename(yhat_grid_0="grid")})

    Args:
        table: `x` and `y` on `sample`, `x_grid` on `grid`, `yhat_grid` on `step`, `grid` and any
            others, whose steps are among the path's.
        surface: a landscape of two axes.
        path: a trajectory with recorded parameters.
        risk, levels, n_levels, center: as for `contour`.
        frames, spacing, fps, dpi: as for `path`.
        title: what stands before the step.
        label: what the legend calls a single curve.

    Raises:
        InputError: what `plot.fit` and `path` raise; curves without steps, or at other ones.
    """
    members.check_trajectory(path)
    if not isinstance(table, xr.Dataset) or "step" not in table.get("yhat_grid", table).dims:
        raise InputError(
            "the curves need a step: a table with 'yhat_grid' on (step, grid), as a descent records it."
        )
    common = path.sel(step=np.intersect1d(path["step"], table["step"]))
    if not common.sizes["step"]:
        raise InputError("the table's curves and the path have no step in common.")
    steps, recorded = pace.steps_of([common], frames, spacing)
    pace.check_speed(fps, dpi)
    figure, axes = panels.grid(1, 2, title="step")
    left, right = axes[0]
    surfaces.contour(surface, risk=risk, levels=levels, n_levels=n_levels, center=center, ax=right)
    draw_path = _growing(right, surface, [(None, path)])
    pace.say_left_out(right, steps, recorded)
    table = table.sel(step=steps)
    fits.fit(table.isel(step=-1), ax=left, title="Data and fit", label=label)
    curves = [line for line in left.lines if str(line.get_gid()).startswith(style.SERIES)]
    values = table["yhat_grid"].transpose("step", "grid", ...).values.astype(float)
    values = np.where(np.isfinite(values), values, np.nan).reshape(*values.shape[:2], -1)
    left.set_ylim(*_room(table["y"].values, values))

    def draw(frame: int) -> list[Artist]:
        for curve, heights in zip(curves, values[frame].T, strict=True):
            curve.set_ydata(heights)
        words = style.joined(title, _says([path], steps[frame]), by=": ")
        above = figure.suptitle(words if title else words.capitalize())
        left_artists = [left.get_legend(), *curves]
        return [*left_artists, *draw_path(steps[frame]), above]

    return _finished(left, draw, steps, title or "The fit and the path", fps, dpi)


# Shared by all animations --------------------------------------------------------------------


def _growing(
    ax: Axes,
    surface: xr.Dataset,
    several: Named,
    look: style.Style | None = None,
) -> Callable[[int], list[Artist]]:
    """Draw trajectories; returns a function that shows them up to a step, and returns their artists."""
    trails = [
        (path, trail)
        for label, path in several
        for trail in paths.draw(surface, path, ax, label, end=_ITERATE, look=look)
    ]
    if _ITERATE not in legends.ends_named(ax):
        # All members diverge or leave the window, so `draw` added no star; earlier frames do have one.
        looks = {"mfc": style.shade(0), "mec": style.shade(0), "ms": 7, "gid": style.LAST}
        ax.plot([], [], ls="", marker="*", label=_ITERATE, **looks)
        legends.add(ax)

    def draw(step: int) -> list[Artist]:
        for path, trail in trails:
            trail.until(members.row_at(path["step"].values, step))
        legend = ax.get_legend()
        assert legend is not None
        return [*(artist for _, trail in trails for artist in trail.artists), legend]

    return draw


def _says(trajectories: Sequence[xr.Dataset], step: int, *more: str) -> str:
    """ "step 12, loss 0.53": a frame's title."""
    lost = np.concatenate([each["diverged_at"].values.ravel() for each in trajectories])
    gone = int(((lost >= 0) & (lost <= step)).sum())
    recorded = [each for each in trajectories if "loss" in each]
    rows = [members.row_at(each["step"].values, step) for each in recorded]
    losses = [
        each["loss"].isel(step=row).values.ravel().astype(float)
        for each, row in zip(recorded, rows, strict=True)
        if row >= 0
    ]
    losses = np.concatenate(losses or [np.empty(0)])
    losses = losses[np.isfinite(losses)]
    text = None
    if losses.size:
        low, high = style.number(losses.min()), style.number(losses.max())
        text = f"loss {low}" if low == high else f"losses {low} to {high}"
        if all(map(results.is_of_batches, trajectories)) and not more:
            text = f"batch {text}"
    fate = None
    if gone:
        fate = "diverged" if lost.size == 1 else f"{gone:,} of {lost.size:,} diverged"
    return style.joined(f"step {step:,}", *more, text, fate)


def _room(y: np.ndarray, curves: np.ndarray) -> tuple[float, float]:
    """Axis limits that contain the data, and the curves up to one data range beyond them."""
    y = y[np.isfinite(y)]
    low, high = (float(y.min()), float(y.max())) if y.size else (0.0, 0.0)
    near = (high - low) or 1.0
    low = max(low - near, min(low, np.nanmin(curves, initial=low)))
    high = min(high + near, max(high, np.nanmax(curves, initial=high)))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _finished(
    ax: Axes,
    draw: Callable[[int], list[Artist]],
    steps: Sequence[int],
    title: str,
    fps: float,
    dpi: float,
    spare: str = "",
) -> Animation:
    """The animation, showing its last frame, with the layout fixed so that nothing jumps between frames."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    draw(len(steps) - 1)
    if spare:
        style.note(ax, spare)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    draw(len(steps) - 1)
    plt.close(figure)  # pyplot forgets it: it is shown as an animation
    return Animation(figure, draw, tuple(steps), title, fps, dpi)
