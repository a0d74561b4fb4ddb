"""Study 5, lazy training: in one dimension.

h(x, w) = f(x, w) (w − w₀) is zero at the start w₀, and its tangent there is f(x, w₀) (w − w₀). Scaled
by α, both are fitted to one sample. For large α they stay close to the start, where their losses coincide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import legends, style
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import different, setting

if TYPE_CHECKING:
    from thalweg.problem import Problem

TITLE = "Lazy training in one dimension"

MODELS = {"model": "scaled model", "linear": "its linearisation"}
_COLUMNS = 4  # panels in a row


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    alphas: tuple[float, ...] = setting(
        (1.0, 5.0, 10.0, 50.0, 100.0, 1000.0, 2000.0, 10000.0), "the scales α of the output"
    )
    start: float = setting(1.5, "w₀")
    sample: tuple[float, ...] = setting((1.5, 3.0), "x,y, the one sample")
    points: int = setting(5000, "points of each curve")
    shown_x: float = setting(2.0, "x of the function that is drawn first")
    shown_start: float = setting(0.4, "w₀ of the function that is drawn first")
    shown_window: tuple[float, ...] = setting((-1.0, 1.0), "the range of w it is drawn over")
    window: float = setting(2.0, "the losses are drawn on w₀ ± this/α^(3/4)")
    quiz: bool = setting(False, "leave titles and labels as question marks")


def labels(settings: Settings) -> dict[str, float]:
    """The nodes' names -> α."""
    return {f"alpha-{alpha:g}": alpha for alpha in settings.alphas}


def f(x: Any, w: Any) -> Any:
    """wx/2 + log(1 + w²) x/5 + sin(e^{2w})/10."""
    import jax.numpy as jnp

    return w * x / 2 + jnp.log1p(w**2) * x / 5 + 0.1 * jnp.sin(jnp.exp(2 * w))


def _h(start: Any, params: dict[str, Any], x: Any) -> Any:
    return f(x, params["w"]) * (params["w"] - start)


def _half_square(alpha: Any, yhat: Any, y: Any) -> Any:
    return (yhat - y) ** 2 / (2 * alpha**2)


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """h and its tangent, and for every α the losses of both along w."""
    import jax

    import thalweg as tw

    different(settings, "alphas")
    if len(settings.sample) != 2 or len(settings.shown_window) != 2:
        raise InputError("settings 'sample' and 'shown_window' are two numbers each.")
    if settings.points < 2 or not settings.window > 0:
        raise InputError(
            f"settings: at least two points and a window above 0 are needed; {settings.points} and "
            f"{settings.window:g} given."
        )
    x, y = settings.sample
    shown = _problem(settings.shown_x, 0.0, settings.shown_start, 1.0)
    low, high = settings.shown_window
    grid = np.linspace(low, high, settings.points)
    drawn = [
        np.asarray(jax.vmap(problem.predict, (0, None))({"w": grid}, shown.x))[:, 0]
        for problem in (shown, tw.linearize(shown, shown.params))
    ]
    nodes = {
        "function": xr.Dataset(
            {"h": (("curve", "w"), np.stack(drawn))}, {"curve": ["h", "its tangent"], "w": grid}
        )
    }
    gaps = []
    for name, alpha in labels(settings).items():
        problem = _problem(x, y, settings.start, alpha)
        scaled = tw.scale_output(problem, problem.params, alpha)
        reach = settings.window / alpha**0.75
        plane = tw.coordinate_plane(
            scaled, {"w": (settings.start - reach, settings.start + reach)}, settings.points
        )
        tangent = tw.linearize(scaled, problem.params)
        surfaces = [tw.landscape(one, plane) for one in (scaled, tangent)]
        nodes |= {f"{what}/{name}": s for what, s in zip(MODELS, surfaces, strict=True)}
        losses = [surface["empirical"].values for surface in surfaces]
        gaps.append(np.abs(losses[0] - losses[1]).max() / losses[1].max())
    nodes["gap"] = xr.Dataset(
        {"gap": ("alpha", gaps, {"long_name": "largest gap / largest loss of the linearisation"})},
        {"alpha": ("alpha", list(settings.alphas), {"long_name": "scale α"})},
    )
    return nodes


def _problem(x: float, y: float, start: float, alpha: float) -> Problem:
    """h fitted to one sample, with the loss (ŷ − y)² / (2α²), starting at w₀."""
    from jax.tree_util import Partial

    import thalweg as tw

    return tw.Problem(
        Partial(_h, np.float64(start)),
        Partial(_half_square, np.float64(alpha)),
        np.array([x]),
        np.array([y]),
        params={"w": start},
    )


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The function and its tangent; both losses for every α; how their gap closes."""
    function = results.part(tree, "function")
    ax = None
    for curve in function["curve"].values:
        ax = plots.curve(
            function["h"].sel(curve=curve),
            along="w",
            ax=ax,
            title=f"$h({settings.shown_x:g}, w)$ and its tangent at $w_0$",
            label=str(curve),
        )
    assert ax is not None
    ax.set_ylabel(f"h({settings.shown_x:g}, w)")
    _mark_start(ax, settings.shown_start)
    yield (
        "function",
        _drawing(
            ax.figure,
            settings,
            "What is a tangent good for? A function of one parameter that is zero at w₀, and its "
            "tangent there: the same near w₀, and soon two different things.",
        ),
    )
    names = labels(settings)
    columns = min(_COLUMNS, len(names))
    figure, axes = plots.grid(-(-len(names) // columns), columns, title="Loss along w, near w₀")
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, (name, alpha) in zip(axes.flat, names.items(), strict=False):
        for what, text in MODELS.items():
            surface = results.part(tree, f"{what}/{name}")
            plots.profile(surface, ax=ax, title=f"α = {alpha:g}", label=text)
        ax.set_ylabel("loss (αh − y)²/(2α²)")
        ax.locator_params(axis="x", nbins=4)
        _mark_start(ax, settings.start)
    legends.share(figure, list(axes.flat[: len(names)]))
    yield (
        "losses",
        _drawing(
            figure,
            settings,
            f"From which α on are the two losses one curve? Each panel has its own window, "
            f"w₀ ± {settings.window:g}/α^(3/4), and the larger α, the smaller it is.",
        ),
    )
    ax = plots.curve(
        results.part(tree, "gap")["gap"],
        x="log",
        y="log",
        slope=_last(settings),
        title="How the gap closes",
        label="gap",
    )
    yield (
        "gap",
        _drawing(
            ax.figure,
            settings,
            "How fast do they become one? The largest gap between the two losses on the window, in "
            "units of the largest loss, against α. In the end it falls as the window shrinks.",
        ),
    )


def _mark_start(ax: Any, start: float) -> None:
    ax.axvline(start, color=style.shade(0.5), lw=1, ls=style.DIVERGED_DASH, zorder=0, label="w₀")
    legends.add(ax)


def _last(settings: Settings) -> tuple[float, float]:
    """The window of α in which the slope is fitted: the last factor of ten, or the last two α."""
    *_, before, largest = sorted({0.0, *settings.alphas})
    return (min(largest / 10, before), largest)


def _drawing(figure: Any, settings: Settings, caption: str) -> Drawing:
    """The figure; in a quiz all its words are question marks."""
    if settings.quiz:
        for ax in figure.axes:
            ax.set(title="?", xlabel="?", ylabel="?")
        drawn = [*figure.legends, *filter(None, (ax.get_legend() for ax in figure.axes))]
        for text in (text for legend in drawn for text in legend.get_texts()):
            text.set_text("?")
        if figure.get_suptitle():
            figure.suptitle("?")
        caption = "What is drawn here, against what, and which curve is which?"
    return Drawing.of(figure, caption)


def slope(tree: xr.DataTree, settings: Settings) -> float:
    """The log–log slope of the gap against α, over the last factor of ten."""
    gap = results.part(tree, "gap")["gap"]
    return plots.log_slope(gap["alpha"], gap, _last(settings))


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    gap = results.part(tree, "gap")["gap"]
    low, high = _last(settings)
    numbers = {
        f"gap between the losses, α = {alpha:g}": f"{100 * value:.3g} % of the largest"
        for alpha, value in zip(gap["alpha"].values, gap.values, strict=True)
    }
    if np.isfinite(found := slope(tree, settings)):  # with a single α there is no slope
        numbers[f"log–log slope of the gap over α = {low:g} … {high:g}"] = f"{found:.3f}"
    for what, text in MODELS.items():
        name = list(labels(settings))[-1]
        surface = results.part(tree, f"{what}/{name}")
        lowest = float(surface["w"][int(surface["empirical"].values.argmin())])
        numbers[f"{text}, {name.replace('alpha-', 'α = ')}: lowest loss on the window at"] = (
            f"w₀ {lowest - settings.start:+.4g}"
        )
    if settings.quiz:
        return Findings({}, ("Name the curves, the axes and the panels, and say what changes.",))
    return Findings(
        numbers,
        (
            "Scaling the output by α lets the model reach its target with a step of about "
            "y/(α f(x, w₀)): the larger α, the nearer to the start the minimum lies.",
            "So near the start h and its tangent differ by the second order alone. On a window of "
            "width α^(−3/4) the scaled outputs are of order α^(1/4) and differ by α^(−1/2): in units "
            "of the largest loss, a gap that falls as α^(−3/4).",
            "Nothing was done to h: it is as crooked as before. The larger α, the closer one looks, "
            "and every smooth function is straight when looked at closely enough.",
            "How large α must be, the function decides: the sine of e^{2w} swings fast at w₀, and "
            "while the window holds one of its swings the two losses have little in common.",
        ),
    )
