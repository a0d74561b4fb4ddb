"""Study 8: when is a step small enough?

Gradient descent on a rippled function from many starts, with small and with large steps, compared with the
gradient flow that it approximates; and which minimum every start of the window reaches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import style
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, different, setting

TITLE = "When is a step small enough?"

SIZES = ("small", "large")
COLORS = (style.COLORS[0], "#B2182B")  # blue and red


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the random starts")
    runs: int = setting(100, "number of starts, uniform on (−spread, spread)²")
    spread: float = setting(1.5, "half the side of the square of starts")
    small_lr: float = setting(1e-4, "the small step")
    large_lr: float = setting(2e-3, "the large step")
    steps: int = setting(10_000, "steps of every descent")
    every: int = setting(1, "record every so many steps")
    window: float = setting(3.0, "half the side of the window")
    points: int = setting(301, "grid points of the contours along each axis")
    levels: int = setting(50, "contour levels")
    lrs: tuple[float, ...] = setting(
        (2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5),
        "steps whose distance from the flow is measured, at the time that the small ones reach",
    )
    basin_points: int = setting(1000, "starts of the basin map along each axis; 0 for no map")
    basin_steps: int = setting(10_000, "the basin map's budget: steps of every start")
    dtype: str = setting("float32", "precision of the basin map; all else is in float64")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The landscape, descents and flow from the same starts, their distances, and two basin maps."""
    import thalweg as tw

    _check(settings)
    problem = tw.Problem.from_catalogue("ripples")
    window = (-settings.window, settings.window)
    plane = tw.coordinate_plane(problem, {"x": window, "y": window}, settings.points)
    rng = np.random.default_rng(settings.seed)
    starts = rng.uniform(-settings.spread, settings.spread, (settings.runs, 2))
    nodes = {"landscape": tw.landscape(problem, plane)}
    options: dict[str, Any] = {"steps": settings.steps, "starts": starts, "every": settings.every}
    for size, lr in zip(SIZES, _lrs(settings), strict=True):
        path = tw.descend(problem, tw.SGD(lr=lr), **options)
        nodes[f"descent/{size}"] = path.assign_coords(time=("step", lr * path["step"].values))
    until = settings.steps * np.array(_lrs(settings))
    times = np.unique(np.concatenate([np.linspace(0, t, 201) for t in until]))
    if until[0]:  # early times too, for a logarithmic axis
        times = np.union1d(times, np.geomspace(settings.small_lr, until[0], 101))
    # narrow valleys make the flow stiff: the explicit solver would need a hundred times as many steps
    nodes["flow"] = tw.gradient_flow(problem, times=times, starts=starts, solver="stiff")
    nodes["distance"] = _distances(settings, problem, starts, nodes["flow"])
    if settings.basin_points:
        coarse = tw.Problem.from_catalogue("ripples", dtype=settings.dtype)
        grid = tw.coordinate_plane(coarse, {"x": window, "y": window}, settings.basin_points)
        for size, lr in zip(SIZES, _lrs(settings), strict=True):
            nodes[f"basins/{size}"] = tw.basins(coarse, tw.SGD(lr=lr), grid, settings.basin_steps)
    return nodes


def _distances(
    settings: Settings, problem: Any, starts: np.ndarray, flow: xr.Dataset
) -> xr.Dataset:
    """How far the descents of each learning rate are from the flow, at the time of the small steps."""
    import thalweg as tw

    time = settings.small_lr * settings.steps
    at_time = flow["params"].isel(step=int(np.argmin(abs(flow["time"].values - time)))).values
    distances, steps = [], []
    for lr in settings.lrs:
        count = max(round(time / lr), 1)
        path = tw.descend(
            problem,
            tw.SGD(lr=time / count),
            steps=count,
            starts=starts,
            record={"params": False},
            every=count,
        )
        distances.append(np.linalg.norm(path["final"].values - at_time, axis=0))
        steps.append(count)
    # the learning rates as used: they divide the time into whole steps
    used = time / np.array(steps, float)
    return xr.Dataset(
        {"distance": (("lr", "run"), np.array(distances)), "steps": ("lr", steps)},
        coords={"lr": used, "run": np.arange(settings.runs)},
        attrs={"time": time},
    )


def _lrs(settings: Settings) -> tuple[float, float]:
    return settings.small_lr, settings.large_lr


def _check(settings: Settings) -> None:
    if not 0 < settings.small_lr < settings.large_lr:
        raise InputError("settings: 0 < small_lr < large_lr is needed.")
    if settings.runs < 1 or settings.steps < 0 or settings.basin_points < 0:
        raise InputError("settings: runs must be at least 1, steps and basin_points at least 0.")
    if settings.basin_points == 1:
        raise InputError("settings: basin_points must be 0 (no map) or at least 2.")
    if not (settings.spread > 0 and settings.window > 0):
        raise InputError("settings: spread and window must be above 0.")
    at_least(settings, points=2, levels=2)
    different(settings, "lrs")


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Every path on the contours, final values, distances from the flow, and the basin maps."""
    surface = results.part(tree, "landscape")
    paths = {size: results.part(tree, f"descent/{size}") for size in SIZES}
    flow = results.part(tree, "flow")
    yield (
        "paths",
        Drawing.of(
            _all_paths(surface, paths, settings),
            f"Where do small steps go, and where large ones? All {settings.runs} starts, "
            f"{settings.steps:,} steps each. Small steps slide into the nearest valley and creep along "
            "it. Large ones cannot stay where the curvature passes 2/lr: they are thrown from valley to "
            "valley until they come to a flat one.",
        ),
    )
    yield (
        "final_values",
        Drawing.of(
            plots.histogram(
                {_named(size, settings): path for size, path in paths.items()},
                title="Where the descents end, on the same bins",
            ),
            "Which steps end lower? The function's value at the last iterate of each run.",
        ),
    )
    yield (
        "flow",
        Drawing.of(
            _beside_flow(surface, paths, flow, settings),
            "What would infinitely small steps do? The flow (black) from the first "
            f"{min(_FEW, settings.runs)} starts, to the time that each step size reaches. Small steps "
            "follow it. Large ones get further in as many steps, and end elsewhere.",
        ),
    )
    ax = None
    for name, path in {**{_named(s, settings): p for s, p in paths.items()}, "flow": flow}.items():
        ax = plots.loss(
            _thin(path), x="log", y="linear", ax=ax, label=name, title="Risk against time"
        )
    assert ax is not None
    yield (
        "time",
        Drawing.of(
            ax,
            "Is it the step or the time that counts? Against time, steps × lr, the small steps lie on "
            "the flow; the large ones leave it at once.",
        ),
    )
    yield (
        "distance",
        Drawing.of(
            _distance_figure(results.part(tree, "distance"), settings),
            "How far from the flow is a descent? Euler's method is of order one: once steps are small "
            "enough, half the step is half the distance, a line of slope 1.",
        ),
    )
    if settings.basin_points:
        yield from _maps(tree, settings)


_FEW = 12  # starts beside the flow


def _maps(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    maps = {size: results.part(tree, f"basins/{size}") for size in SIZES}
    losses = [m["minimum_loss"].values[m["reached"].values > 0] for m in maps.values()]
    together = np.concatenate(losses)
    ends = (float(together.min()), float(together.max())) if together.size else None
    for size, basin_map in maps.items():
        title = f"Minimum reached within {settings.basin_steps:,} {_named(size, settings)}"
        yield (
            f"basins_{size}",
            Drawing.of(
                plots.basins(basin_map, title=title),
                f"Which minimum does each start reach with {size} steps? The minima that most starts "
                "reach have colours and numbers; light grey has not arrived within the budget, and the "
                "map does not say where it would.",
            ),
        )
    figure, axes = plots.grid(1, 2, title="The value at the minimum reached")
    for ax, (size, basin_map) in zip(axes[0], maps.items(), strict=True):
        title = _named(size, settings).capitalize()
        plots.basins(basin_map, by="loss", loss_range=ends, ax=ax, title=title)
    yield (
        "basins_loss",
        Drawing.of(
            figure,
            "Do larger steps find lower minima? The same two maps, coloured by the value at the "
            "minimum, on one scale.",
        ),
    )


def _named(size: str, settings: Settings) -> str:
    return f"{size} steps, lr {_lrs(settings)[SIZES.index(size)]:g}"


def _thin(path: xr.Dataset, rows: int = 2000) -> xr.Dataset:
    """At most `rows` rows of a path: all of the early ones, and some of the others."""
    count = path.sizes["step"]
    if count <= rows:
        return path
    late = np.linspace(rows // 2, count - 1, rows // 2).round().astype(int)
    return path.isel(step=np.unique(np.append(np.arange(rows // 2), late)))


def _pair(title: str) -> tuple[Figure, Any]:
    figure = style.new_figure((11.4, 4.6))
    figure.suptitle(title)
    return figure, figure.subplots(1, 2)


def _pale(ax: Axes) -> None:
    """Fade the contours, so that a hundred paths stand out."""
    ax.axhspan(*ax.get_ylim(), color=style.shade(1), alpha=0.65, lw=0, zorder=1.5, label="_veil")
    style.note(ax, "contours are paled under the paths")


def _wide(ax: Axes, points: float) -> None:
    for line in ax.lines:
        if str(line.get_gid()).startswith(style.SERIES):
            line.set(linewidth=points, alpha=0.9)


def _all_paths(surface: xr.Dataset, paths: dict[str, xr.Dataset], settings: Settings) -> Figure:
    figure, axes = _pair("Every path")
    for ax, size, color in zip(axes, SIZES, COLORS, strict=True):
        title = _named(size, settings).capitalize()
        plots.contour(surface, levels=settings.levels, ax=ax, title=title)
        _pale(ax)
        plots.path(
            surface,
            _thin(paths[size]),
            ax=ax,
            label=f"lr {_lrs(settings)[SIZES.index(size)]:g}",
            color=color,
        )
        _wide(ax, 1.2)
    return figure


def _beside_flow(
    surface: xr.Dataset, paths: dict[str, xr.Dataset], flow: xr.Dataset, settings: Settings
) -> Figure:
    figure, axes = _pair("Descent and flow to the same time")
    few = {"run": slice(0, _FEW)}
    for ax, size, color in zip(axes, SIZES, COLORS, strict=True):
        until = float(paths[size]["time"][-1])
        plots.contour(
            surface,
            levels=settings.levels,
            colorbar=False,
            ax=ax,
            title=f"{_named(size, settings).capitalize()}, to time {until:g}",
        )
        _pale(ax)
        plots.path(surface, _thin(paths[size]).isel(few), ax=ax, label=f"{size} steps", color=color)
        _wide(ax, 2.2)  # wide enough to show on both sides of a flow drawn on top
        followed = flow.isel({"step": flow["time"].values <= until * (1 + 1e-12), **few})
        plots.path(surface, followed, ax=ax, label="flow", color=style.shade(0))
    return figure


def _distance_figure(table: xr.Dataset, settings: Settings) -> Axes:
    distance = table["distance"].assign_attrs(
        long_name=f"distance from the flow at time {table.attrs['time']:g}"
    )
    distance = distance.assign_coords(lr=distance["lr"].assign_attrs(long_name="learning rate"))
    return plots.curve(
        distance,
        "lr",
        over="run",
        slope=_followed(settings),
        x="log",
        y="log",
        title="Distance from the flow: order one for small steps",
    )


def _followed(settings: Settings) -> tuple[float, float]:
    """The learning rates over which the order is fitted, give or take rounding."""
    return 0.0, settings.small_lr * (1 + 1e-9)


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    numbers: dict[str, str] = {}
    for size in SIZES:
        path = results.part(tree, f"descent/{size}")
        last = path["loss"].values[-1]
        last = last[np.isfinite(last)]
        lost = int((path["status"] == "diverged").sum())
        if last.size:
            numbers[f"{_named(size, settings)}: final value"] = (
                f"median {np.median(last):.4g}, from {last.min():.4g} to {last.max():.4g}"
                + (f"; {lost} diverged" if lost else "")
            )
    flow = results.part(tree, "flow")
    taken = (flow["accepted"] + flow["rejected"]).values
    numbers["the flow's solver"] = f"{int(np.median(taken))} steps a run in the median" + (
        f"; {int((flow['status'] != 'completed').sum())} runs not completed"
        if (flow["status"] != "completed").any()
        else ""
    )
    table = results.part(tree, "distance")
    middle = table["distance"].median("run").values
    for lr, value in zip(table["lr"].values, middle, strict=True):
        numbers[f"distance from the flow, lr {lr:.3g}"] = f"median {value:.3g}"
    order = plots.log_slope(table["lr"].values, middle, _followed(settings))
    numbers["order: slope for lr up to the small one"] = f"{order:.3f}"
    sentences = [
        "Gradient descent is Euler's method for the flow dw/dt = −∇L, with the learning rate as its "
        "step. A step is small enough, as a follower of the flow, when the distance between the two "
        "shrinks in proportion to it; the figure of distances shows where that begins.",
        "It is small enough to come to rest when it is below 2/λ, λ being the largest curvature at the "
        "minimum: narrow minima let only small steps stay. So large steps choose among minima, by their "
        "width and not by their depth.",
    ]
    if settings.basin_points:
        for size in SIZES:
            numbers.update(_of_map(results.part(tree, f"basins/{size}"), size, settings))
        sentences += [
            "A start counts as arrived once it is in a ball about a minimum in which all curvatures lie "
            "between 0 and 2/lr, as sampled: from there every further step brings it nearer, so the "
            "minimum that it will reach is known before it is reached. Starts that the budget did not "
            "bring that far are grey: for small steps because they are slow, for large ones because many "
            "starts are thrown about among valleys that are too narrow for them.",
            f"The maps are computed in {settings.dtype}: a start that lies on a boundary between basins "
            "to within rounding may fall on either side. All else is in float64.",
        ]
    return Findings(numbers, tuple(sentences))


def _of_map(found: xr.Dataset, size: str, settings: Settings) -> dict[str, str]:
    basin, reached = found["basin"].values, found["reached"].values
    rests = found["radius"].values > 0
    inside = (abs(found["minima"].values) <= settings.window).all(axis=1)
    words = {
        "arrived within the budget": f"{100 * (basin >= 0).mean():.1f} % of {basin.size:,} starts",
        "not there yet": f"{100 * (basin == -1).mean():.1f} %",
        "minima found in the window": f"{int(inside.sum())}, of which "
        f"{int((inside & rests).sum())} let these steps rest",
        "minima reached": f"{int((reached > 0).sum())}, the most popular by "
        f"{100 * reached.max(initial=0) / basin.size:.1f} % of the starts",
    }
    if (basin == -2).any():
        words["diverged"] = f"{100 * (basin == -2).mean():.2g} %"
    if found.attrs["interrupted"]:
        words["interrupted"] = "before the budget was spent"
    return {f"{_named(size, settings)}: {key}": value for key, value in words.items()}
