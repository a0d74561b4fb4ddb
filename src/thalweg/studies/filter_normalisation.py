"""Filter normalisation: how far a picture of a network's landscape may be trusted.

Two networks that compute the same function, drawn along random directions with and without filter
normalisation; and then, with it, networks of growing depth, narrow, with and without skip connections.
These are the claims of Li et al. (2018), "Visualizing the loss landscape of neural nets", that hold at this
scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import legends, style
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, different, setting

TITLE = "Filter normalisation"

KINDS = ("plain", "skip")
CHANCE = float(np.log(2))  # the risk of predicting probability ½ for every sample
TRAINED = 0.1  # below this final loss a network counts as trained
_NAMES = {"plain": "plain", "skip": "with skip connections"}
_NORMALIZATIONS = {"filter": "filter-normalised", "none": "not normalised"}
_LEVELS = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the data, of the starts and of the directions")
    n_samples: int = setting(200, "samples, of two spirals")
    width: int = setting(10, "width of the hidden layers, with ReLU")
    depths: tuple[int, ...] = setting((3, 9, 33), "hidden layers, odd numbers")
    lr: float = setting(0.003, "learning rate of Adam")
    steps: int = setting(800, "full-batch steps")
    runs: int = setting(5, "starts of each network")
    scale: float = setting(10.0, "one layer times, and the next divided by, this number")
    points: int = setting(51, "points along each axis of the planes")
    span: float = setting(1.0, "how far planes and lines go, in lengths of the weights themselves")
    lines: int = setting(5, "random lines through each trained network")
    line_points: int = setting(201, "points along a line")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The descents, planes through what they end at, and lines through it."""
    import thalweg as tw
    from thalweg.catalogue import data, models

    _check(settings)
    x, y = data.spirals(settings.n_samples, seed=settings.seed)
    nodes = {"data": xr.Dataset({"x": (("sample", "input"), x), "y": ("sample", y)})}
    shape = (len(KINDS), len(settings.depths), settings.runs, settings.lines, settings.line_points)
    along = np.full(shape, np.nan)
    first = None
    for i, depth in enumerate(settings.depths):
        widths = (2, *[settings.width] * depth, 1)
        for k, (kind, network) in enumerate(
            zip(KINDS, (models.mlp, models.residual_mlp), strict=True)
        ):
            init = _init(widths, kind == "skip")
            problem = tw.Problem(network, "bce_with_logits", x, y, init=init)
            path = tw.descend(
                problem,
                tw.Adam(lr=settings.lr),
                steps=settings.steps,
                runs=settings.runs,
                seed=settings.seed,
                record={"params": False},
            )
            nodes[f"path/{kind}-{depth}"] = path
            trained = path["loss"].values[-1] < TRAINED
            shown = int(np.argmax(trained))  # the first that is trained, or else the first
            ends = [
                problem.unflatten(end) for end in path["final"].transpose("run", "param").values
            ]
            for number in np.flatnonzero(trained).tolist():
                along[k, i, number] = _along_lines(problem, ends[number], settings)
            plane = tw.random_plane(
                problem,
                ends[shown],
                seed=settings.seed,
                points=settings.points,
                span=(-settings.span, settings.span),
            )
            nodes[f"plane/{kind}-{depth}"] = tw.landscape(problem, plane)
            first = first or (problem, ends[shown])
    assert first is not None
    nodes |= _invariance(*first, settings)
    nodes["lines"] = _lines(along, settings)
    return nodes


@functools.cache  # one function object per shape, so that a second run of the study compiles nothing
def _init(widths: tuple[int, ...], residual: bool) -> Any:
    from thalweg.catalogue import models

    return functools.partial(models.init_he, widths, residual=residual)


def _invariance(problem: Any, params: Any, settings: Settings) -> dict[str, xr.Dataset]:
    """Planes through a network and through the same function with other weights."""
    import thalweg as tw

    rescaled = dict(params)
    # ReLU(c·z) = c·ReLU(z) for c > 0: the second layer undoes the scale of the first
    rescaled["l1"] = {name: settings.scale * value for name, value in params["l1"].items()}
    rescaled["l2"] = {**params["l2"], "weight": params["l2"]["weight"] / settings.scale}

    def plane_of(point: Any, normalize: str, span: float) -> tw.Plane:
        return tw.random_plane(
            problem,
            point,
            seed=settings.seed,
            normalize=normalize,
            points=settings.points,
            span=(-span, span),
        )

    # The plain Gaussian plane goes as far as the filter-normalised one of the original.
    lengths = {
        normalize: np.linalg.norm(plane_of(params, normalize, 1.0).directions, axis=1).mean()
        for normalize in _NORMALIZATIONS
    }
    return {
        f"invariance/{normalize}-{name}": tw.landscape(
            problem, plane_of(point, normalize, settings.span * lengths["filter"] / length)
        )
        for normalize, length in lengths.items()
        for name, point in (("original", params), ("rescaled", rescaled))
    }


def _along_lines(problem: Any, params: Any, settings: Settings) -> np.ndarray:
    """The risk (lines, points) along random lines through the parameters."""
    import thalweg as tw

    rows = []
    for line in range(settings.lines):
        plane = tw.random_plane(
            problem,
            params,
            seed=settings.seed + line,
            directions=1,
            points=settings.line_points,
            span=(-settings.span, settings.span),
        )
        rows.append(tw.landscape(problem, plane)["empirical"].values)
    return np.stack(rows)


def _lines(loss: np.ndarray, settings: Settings) -> xr.Dataset:
    """Risks along lines (kind, depth, run, line, points), with each line's basin radius and number of further
    minima."""
    dims = ("kind", "depth", "run", "line")
    distance = np.linspace(-settings.span, settings.span, settings.line_points)
    finite = np.isfinite(loss).all(axis=-1)
    quantities = {
        "radius": (radius(loss, distance), "radius of the basin"),
        "minima": (minima(loss), "further minima on a line"),
    }
    summaries = {
        name: (dims, np.where(finite, values, np.nan), {"long_name": words})
        for name, (values, words) in quantities.items()
    }
    words = "distance along a filter-normalised direction"
    return xr.Dataset(
        {"loss": ((*dims, "distance"), loss), **summaries},
        coords={
            "kind": list(KINDS),
            "depth": ("depth", list(settings.depths), {"long_name": "hidden layers"}),
            "distance": ("distance", distance, {"long_name": words}),
        },
    )


def radius(loss: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The smallest distance from the middle of a line (…, points) at which the risk exceeds that of chance;
    half the line's length where it never does."""
    above = np.where(loss > CHANCE, np.abs(distance), np.abs(distance).max())
    return above.min(axis=-1)


def minima(loss: np.ndarray) -> np.ndarray:
    """The number of local minima among the points of a line (…, points), except the one at its middle."""
    inner = (loss[..., 1:-1] < loss[..., :-2]) & (loss[..., 1:-1] <= loss[..., 2:])
    middle = (loss.shape[-1] - 1) // 2 - 1
    return inner.sum(axis=-1) - inner[..., middle]


def _check(settings: Settings) -> None:
    at_least(settings, n_samples=1, width=1, runs=1, lines=1, steps=0)
    for name in ("points", "line_points"):
        if getattr(settings, name) < 3 or getattr(settings, name) % 2 == 0:
            raise InputError(
                f"setting {name!r} must be an odd number of at least 3, so that the network itself is "
                f"among them; {getattr(settings, name)} given."
            )
    for name in ("scale", "span"):
        if not getattr(settings, name) > 0:
            raise InputError(f"setting {name!r} must be above 0; {getattr(settings, name)} given.")
    different(settings, "depths")
    if min(settings.depths) < 3 or any(depth % 2 == 0 for depth in settings.depths):
        raise InputError(
            f"setting 'depths' must be odd numbers of at least 3, as in 3,9,17; {settings.depths} given."
        )


# Figures -------------------------------------------------------------------------------------


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The data, the two ways to draw one function, and depth with and without skip connections."""
    yield (
        "data",
        Drawing.of(
            _draw_data(results.part(tree, "data")),
            "What is learnt? Two classes, wound into each other: a line does not part them.",
        ),
    )
    yield (
        "invariance",
        Drawing.of(
            _draw_invariance(tree),
            "Can a picture of the landscape be trusted? Left and right are one and the same function: "
            f"on the right the first layer is {settings.scale:g} times as large and the second one "
            "divided by as much. Along filter-normalised directions (above) the pictures agree; along "
            "plain Gaussian ones (below) the same function looks like another landscape.",
        ),
    )
    yield (
        "planes",
        Drawing.of(
            _draw_planes(tree, settings),
            "What does depth do to the landscape? Plain networks (above) have ever steeper and more "
            "rugged surroundings; with skip connections (below) much less so. One network each, the "
            "same levels in all panels, and the same seed for all directions.",
        ),
    )
    lines = results.part(tree, "lines")
    yield (
        "profiles",
        Drawing.of(
            _draw_profiles(lines, settings),
            "And over many lines? The median risk along random filter-normalised lines through all "
            "trained networks. The dotted line is the risk of chance, log 2.",
        ),
    )
    for name, title, caption in (
        (
            "minima",
            "Further minima on random lines",
            "How rugged is it? The number of further local minima along a line: deep plain networks are "
            "surrounded by many.",
        ),
        (
            "radius",
            "How far the basin reaches",
            "How wide is the basin? The distance, in lengths of the weights themselves, beyond which the "
            "network is no better than chance.",
        ),
    ):
        caption += " Starts that were not trained have no number, and are left out."
        yield name, Drawing.of(_draw_by_depth(lines, name, title), caption)
    deepest = max(settings.depths)
    ax = None
    for kind in KINDS:
        path = results.part(tree, f"path/{kind}-{deepest}")
        ax = plots.loss(path, ax=ax, label=_NAMES[kind])
    assert ax is not None
    style.titled(ax, f"Loss of {deepest} hidden layers", "")
    yield (
        "training",
        Drawing.of(
            ax,
            "Can they be trained? A start of a deep plain network may stay on a plateau for long, or for "
            "good; with skip connections the loss falls at once.",
        ),
    )


def _draw_data(data: xr.Dataset) -> Any:
    ax = style.new_axes(None, (4.8, 4.4))
    x, y = data["x"].values, data["y"].values
    for value, marker in ((0, "o"), (1, "^")):
        look = style.style(value)
        mine = y == value
        options = {"ls": "", "marker": marker, "ms": 4, "color": look.color}
        ax.plot(*x[mine].T, label=f"y = {value}", gid=f"{style.SERIES}-{value}", **options)
    ax.set(xlabel="x₁", ylabel="x₂", aspect="equal", title="Two spirals")
    legends.add(ax)
    return ax


def _levels(*surfaces: xr.Dataset) -> np.ndarray:
    """Levels for several landscapes: evenly spaced logarithms, over all but a tenth of the risks."""
    risks = np.concatenate([s["empirical"].values.ravel() for s in surfaces])
    risks = risks[np.isfinite(risks) & (risks > 0)]
    if not risks.size or risks.min() == risks.max():
        return np.array([0.5, 2.0])
    low, high = np.quantile(risks, [0.05, 0.95])
    return np.geomspace(low, max(high, 1.01 * low), _LEVELS)


def _draw_invariance(tree: xr.DataTree) -> Any:
    figure, axes = plots.grid(2, 2, title="One function, two sets of weights")
    for row, (normalize, words) in zip(axes, _NORMALIZATIONS.items(), strict=True):
        pair = [
            results.part(tree, f"invariance/{normalize}-{name}")
            for name in ("original", "rescaled")
        ]
        levels = _levels(*pair)
        for ax, surface, name in zip(row, pair, ("as trained", "rescaled"), strict=True):
            plots.contour(surface, levels=levels, ax=ax, title=f"{name}, {words}")
    return figure


def _draw_planes(tree: xr.DataTree, settings: Settings) -> Any:
    figure, axes = plots.grid(
        2, len(settings.depths), title="Filter-normalised planes through trained networks"
    )
    every = {
        (kind, depth): results.part(tree, f"plane/{kind}-{depth}")
        for kind in KINDS
        for depth in settings.depths
    }
    levels = _levels(*every.values())
    for row, kind in zip(axes, KINDS, strict=True):
        for ax, depth in zip(row, settings.depths, strict=True):
            title = f"{depth} hidden layers,\n{_NAMES[kind]}"
            plots.contour(every[kind, depth], levels=levels, ax=ax, title=title)
            end = results.part(tree, f"path/{kind}-{depth}")["loss"].values[-1]
            if not (end < TRAINED).any():
                style.note(ax, "none of the starts was trained")
    return figure


def _draw_profiles(lines: xr.Dataset, settings: Settings) -> Any:
    figure, (axes,) = plots.grid(1, 2, title="Risk along random lines")
    for ax, kind in zip(axes, KINDS, strict=True):
        for depth in settings.depths:
            values = lines["loss"].sel(kind=kind, depth=depth).dropna("run", how="all")
            if not values.sizes["run"]:
                style.note(ax, f"{depth} layers: none of the starts was trained")
                continue
            plots.curve(
                values.drop_vars(("kind", "depth")),
                "distance",
                over=("run", "line"),
                band=None,
                points=False,
                y="log",
                label=f"{depth} hidden layers",
                ax=ax,
            )
        ax.axhline(CHANCE, color=style.shade(0.3), lw=1, ls=":", label="chance, log 2")
        ax.set(
            title=_NAMES[kind],
            xlabel=lines["distance"].attrs["long_name"],
            ylabel="median empirical risk",
            yscale="log",
        )
    # the same limits for both panels, with room for the legend at the bottom
    low, high = (end(ax.get_ylim()[i] for ax in axes) for i, end in ((0, min), (1, max)))
    for ax in axes:
        ax.set_ylim(low / 1000, high)
        legends.add(ax)
    return figure


def _draw_by_depth(lines: xr.Dataset, name: str, title: str) -> Any:
    ax = None
    for kind in KINDS:
        # averaged over lines first: lines through one network are not independent samples
        values = lines[name].sel(kind=kind).drop_vars("kind").mean("line", keep_attrs=True)
        ax = plots.curve(
            values,
            "depth",
            over="run",
            middle="mean",
            band="error",
            label=_NAMES[kind],
            ax=ax,
            title=title,
        )
    return ax


# Findings ------------------------------------------------------------------------------------


def difference(tree: xr.DataTree, normalize: str) -> float:
    """The largest relative difference between the two landscapes of the one function."""
    one, two = (
        results.part(tree, f"invariance/{normalize}-{name}")["empirical"].values
        for name in ("original", "rescaled")
    )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        off = np.abs(two - one) / np.abs(one)
    off = off[np.isfinite(off)]
    return float(off.max()) if off.size else float("nan")


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    lines = results.part(tree, "lines")
    numbers = {
        f"{words}: largest relative difference between the two landscapes": (
            f"{difference(tree, normalize):.2g}"
        )
        for normalize, words in _NORMALIZATIONS.items()
    }
    rows = [
        (
            "hidden layers", "network", "parameters", "trained starts", "median final loss",
            "further minima on a line", "radius of the basin", "median risk at the ends",
        )
    ]  # fmt: skip
    for depth in settings.depths:
        for kind in KINDS:
            path = results.part(tree, f"path/{kind}-{depth}")
            end = path["loss"].values[-1]
            mine = lines.sel(kind=kind, depth=depth)
            ends = mine["loss"].isel(distance=[0, -1]).values
            rows.append(
                (
                    str(depth),
                    _NAMES[kind],
                    f"{path.sizes['param']:,}",
                    f"{int((end < TRAINED).sum())} of {len(end)}",
                    f"{np.median(end):.2g}",
                    _mean(mine["minima"].values),
                    _mean(mine["radius"].values),
                    f"{np.nanmedian(ends):.3g}" if np.isfinite(ends).any() else "–",
                )
            )
    return Findings(
        numbers,
        (
            "A ReLU network does not change when one layer is multiplied by a number and the next divided "
            "by it, but distances in its space of weights do. A plain Gaussian direction is a large step "
            "for the small layer and a small one for the large; so sharpness seen along it is a matter "
            "of units. A filter-normalised direction has in each filter the norm of the filter itself, "
            "and the picture is that of the function.",
            f"Narrow plain networks become hard with depth: {_at_ends(lines, 'plain')}. With a skip "
            f"connection around every two layers: {_at_ends(lines, 'skip')}.",
            f"Lines and planes are through networks that ended below a loss of {TRAINED:g}; the table says "
            "how many starts did. Those that did not are on the plateau of chance, where the gradient has "
            "died on its way through the layers.",
            "Two random directions out of hundreds or thousands show what is typical, and nothing of what "
            "is rare: a narrow valley that an optimizer follows does not lie in them.",
        ),
        tables={"Depth": rows},
    )


def _mean(values: np.ndarray) -> str:
    return f"{np.nanmean(values):.2f}" if np.isfinite(values).any() else "–"


def _at_ends(lines: xr.Dataset, kind: str) -> str:
    """The mean number of further minima at the smallest and at the largest depth."""
    depths = np.sort(lines["depth"].values)[[0, -1]]
    counts = [_mean(lines["minima"].sel(kind=kind, depth=d).values) for d in depths]
    return f"{counts[0]} further minima on a line at {depths[0]} hidden layers, {counts[1]} at {depths[1]}"
