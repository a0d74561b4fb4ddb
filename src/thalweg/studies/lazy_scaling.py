"""Study 5, lazy training: one network, its output scaled by α.

The model is α (f(w, x) − f(w_0, x)), and the larger α, the less its parameters have to move. Laziness is
measured by the distance to the linearised model's descent, by the drift of the tangent kernel, and by how
fast both vanish with α, for a ReLU network and for a smooth one.
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
from thalweg.studies import Drawing, Findings, regression
from thalweg.studies.settings import at_least, different, setting

if TYPE_CHECKING:
    from thalweg.problem import Problem

TITLE = "Lazy training: scale the output, and the parameters stand still"

# The records that are measured against α, with their names in pictures.
MEASURES = {"relative_movement": "movement", "kernel_drift": "drift", "to_linear": "distance"}
NETWORKS = {"relu": "ReLU", "tanh": "tanh"}


@dataclasses.dataclass(frozen=True)
class Settings(regression.DataSettings):
    """What can be changed."""

    n_samples: int = setting(10, "number of samples")
    width: int = setting(8, "width of the ReLU network's hidden layers")
    depth: int = setting(5, "hidden layers of the ReLU network")
    alphas: tuple[float, ...] = setting((1.0, 100.0, 1000.0), "the scales α of the output")
    lr: float = setting(0.01, "learning rate, divided by α²")
    fast_lr: float = setting(0.1, "a second learning rate at the largest α, divided by α²")
    steps: int = setting(10_000, "steps of every descent")
    every: int = setting(10, "record every so many steps")
    smooth_width: int = setting(50, "width of the smooth network, of tanh")
    smooth_depth: int = setting(1, "hidden layers of the smooth network")
    sweep: tuple[float, ...] = setting(
        (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 400.0, 550.0, 750.0, 1000.0),
        "the α that both networks are measured at",
    )
    window: tuple[float, ...] = setting((300.0, 1000.0), "the α that slopes are fitted to")


def labels(settings: Settings) -> dict[str, str]:
    """The descents of the ReLU network: the node's name -> what pictures call it."""
    named = {f"alpha-{alpha:g}": f"α = {alpha:g}" for alpha in settings.alphas}
    largest = max(settings.alphas)
    return named | {"fast": f"α = {largest:g}, rate {settings.fast_lr:g}/α²"}


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """Descents at each α beside those of the linearised model, and both networks against α."""
    import thalweg as tw

    different(settings, "alphas", "sweep")
    if len(settings.window) != 2:
        raise InputError(f"setting 'window' must be two numbers; {settings.window} given.")
    at_least(settings, depth=1, smooth_depth=1)
    table = regression.data(settings)
    grid = table["x_grid"].values
    relu = _network("mlp", settings.width, settings.depth, table, settings)
    smooth = _network("tanh-mlp", settings.smooth_width, settings.smooth_depth, table, settings)
    rates = [*((alpha, settings.lr) for alpha in settings.alphas)]
    rates.append((max(settings.alphas), settings.fast_lr))
    nodes = {"data": table}
    network_functions: list[xr.Dataset] = []
    scaled_functions: list[xr.Dataset] = []
    for name, (alpha, lr) in zip(labels(settings), rates, strict=True):
        problem = tw.scale_output(relu, relu.params, alpha)
        path, linear = _descents(problem, lr / alpha**2, settings, settings.every)
        nodes[f"path/{name}"], nodes[f"linear/{name}"] = path, linear
        nodes[f"parameters/{name}"] = regression.parameters(relu, path)
        moments = {"initialisation": path["start"], "after training": path["final"]}
        network_functions.append(regression.functions(relu, moments, grid))
        tangent = tw.linearize(problem, relu.params)
        of_tangent = {"after training, linearised": linear["final"]}
        moments_of_both = (
            regression.functions(problem, moments, grid),
            regression.functions(tangent, of_tangent, grid),
        )
        scaled_functions.append(xr.concat(moments_of_both, "moment", data_vars=["yhat_grid"]))
    descents = xr.Variable("descent", list(labels(settings).values()))
    for name, functions in (("network", network_functions), ("scaled", scaled_functions)):
        nodes[f"functions/{name}"] = xr.concat(functions, descents, data_vars=["yhat_grid"])
    nodes["against_alpha/relu"] = _against_alpha(relu, settings, kinks=True)
    nodes["against_alpha/tanh"] = _against_alpha(smooth, settings, kinks=False)
    return nodes


def _network(kind: str, width: int, depth: int, table: xr.Dataset, settings: Settings) -> Problem:
    import jax

    import thalweg as tw
    from thalweg.catalogue import models

    model = models.by_name(f"{kind}:{','.join([str(width)] * depth)}")
    assert model.init is not None
    start = model.init(jax.random.key(settings.seed))
    return tw.Problem(model.predict, "mse", table["x"].values, table["y"].values, params=start)


def _descents(
    problem: Problem, lr: float, settings: Settings, every: int
) -> tuple[xr.Dataset, xr.Dataset]:
    """A problem's descent and that of its linearisation, with `to_linear`, the distance between the
    two iterates in units of the start's norm, in place of the iterates."""
    import thalweg as tw

    how: dict[str, Any] = {
        "steps": settings.steps,
        "every": every,
        "seed": settings.seed,
        **regression.batches(settings),
    }
    path = tw.descend(
        problem,
        tw.SGD(lr=lr),
        record={
            "relative_movement": True,
            "successive_change": True,
            "kernel_drift": tw.kernel_drift,
            "moved": tw.movement_by_parameter,
        },
        **how,
    )
    linear = tw.descend(
        tw.linearize(problem, problem.params),
        tw.SGD(lr=lr),
        record=["relative_movement", "successive_change"],
        **how,
    )
    # one of them may have stopped early, where it diverged
    both = xr.align(path["params"], linear["params"])
    apart = np.sqrt(((both[0] - both[1]) ** 2).sum("param", skipna=False))
    path["to_linear"] = apart / np.linalg.norm(path["start"])
    path["to_linear"].attrs["long_name"] = (
        "distance from the linearised descent, ‖w − w_lin‖ / ‖w₀‖"
    )
    return path.drop_vars("params"), linear.drop_vars("params")


def _against_alpha(problem: Problem, settings: Settings, kinks: bool) -> xr.Dataset:
    """Measurements at the end of the descents at every α of the sweep: `MEASURES`, the loss and, for a ReLU
    network, the number of pairs (unit, sample) at which the unit's sign is another at the end."""
    import thalweg as tw

    rows = []
    for alpha in settings.sweep:
        scaled = tw.scale_output(problem, problem.params, alpha)
        path, _ = _descents(scaled, settings.lr / alpha**2, settings, max(settings.steps, 1))
        row = path[[*MEASURES, "loss"]].isel(step=-1, drop=True)
        if kinks:
            before, after = (_sides(problem, path[when].values) for when in ("start", "final"))
            row["switched"] = int((before != after).sum()) if path["status"] == "completed" else -1
            row.attrs["n_sides"] = before.size
        rows.append(row)
    scales = xr.Variable("alpha", list(settings.sweep), {"long_name": "scale α"})
    together = xr.concat(rows, scales, combine_attrs="override")
    return together.assign_attrs(n_parameters=problem.size)


def _sides(problem: Problem, vector: np.ndarray) -> np.ndarray:
    """Whether each hidden unit of a ReLU network is above zero, at each sample."""
    hidden, above = np.asarray(problem.x)[:, None], []
    for layer in list(problem.unflatten(vector).values())[:-1]:
        hidden = hidden @ layer["weight"].T + layer["bias"]
        above.append(hidden > 0)
        hidden = np.maximum(hidden, 0)
    return np.concatenate(above, axis=1)


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Functions, losses and movements at each α; then what makes it a measurement."""
    table = results.part(tree, "data")
    names = labels(settings)
    paths = {text: results.part(tree, f"path/{name}") for name, text in names.items()}
    linear = {text: results.part(tree, f"linear/{name}") for name, text in names.items()}
    yield (
        "data",
        Drawing.of(
            plots.targets(table),
            "What is to be learnt? Three targets, and the samples of the one that is used here.",
        ),
    )
    figure = plots.functions(
        table,
        results.part(tree, "functions/scaled"),
        title=r"The model, $\alpha\,(f(w, x) - f(w_0, x))$",
    )
    yield (
        "functions",
        Drawing.of(
            figure,
            "What does each model learn? All begin at zero. In the middle the scaled network after "
            "training, on the right its linearisation after as many steps: the larger α, the more "
            "they are one.",
        ),
    )
    figure = plots.functions(
        table,
        results.part(tree, "functions/network"),
        title="The network inside, $f(w, x)$, without its scale",
    )
    yield (
        "network",
        Drawing.of(
            figure,
            "And what became of the network itself? At a large α it is, to the eye, the one that was "
            "drawn: the scale makes much of a change that cannot be seen.",
        ),
    )
    figure, axes = plots.grid(1, 2, title="Loss")
    for ax, (title, group) in zip(
        axes.flat, {"scaled network": paths, "its linearisation": linear}.items(), strict=True
    ):
        _together(group, "loss", ax=ax, x="log", title=title[0].upper() + title[1:])
    axes[0, 1].sharey(axes[0, 0])
    yield (
        "loss",
        Drawing.of(
            figure,
            "How fast does each fit? The linearised models are all the same descent in other units, "
            "and lie on one curve where the rate is the same; the networks join it as α grows.",
        ),
    )
    yield (
        "movement",
        Drawing.of(
            _together(paths, "relative_movement", x="log", title="Movement from the start"),
            "How far do the parameters go? A hundred times the scale, a hundredth of the way.",
        ),
    )
    yield (
        "successive_change",
        Drawing.of(
            _together(paths, "successive_change", x="log", title="Change from step to step"),
            "How much does one step change, in units of the parameters' norm? As 1/α, from the "
            "first step on. Where a curve becomes a band, steps go back and forth across a kink.",
        ),
    )
    figure, axes = plots.grid(1, 2, title="Movement by parameter")
    for ax, name in zip(axes.flat, (min(settings.alphas), max(settings.alphas)), strict=True):
        text = names[f"alpha-{name:g}"]
        plots.movement_by_parameter(paths[text], ax=ax, x="log", y="log", title=text)
    legends.share(figure, list(axes.flat), columns=6)
    yield (
        "movement_by_parameter",
        Drawing.of(
            figure,
            "Which parameters move? Each tensor's movement in units of its own norm, at the smallest "
            "and at the largest α: the shares are much alike, at another height.",
        ),
    )
    yield (
        "to_linear",
        Drawing.of(
            _together(paths, "to_linear", x="log", title="Distance to the linearised descent"),
            "How far is each descent from that of its linearised model, step by step? Jumps are units "
            "that change sides at a sample: there the network's slope changes, and its tangent's not.",
        ),
    )
    yield (
        "kernel_drift",
        Drawing.of(
            _together(paths, "kernel_drift", x="log", title="Drift of the tangent kernel"),
            "Does the tangent kernel stay what it was? Where it does, training is that of a linear "
            "model, with the kernel of the start.",
        ),
    )
    yield (
        "against_alpha",
        Drawing.of(
            _scaling(tree, settings),
            "How do movement, kernel drift and distance fall with α? For the smooth network as 1/α, "
            "1/α and 1/α²: straight lines on log–log axes. For the ReLU network only from where no "
            "unit changes sides any more.",
        ),
    )


def _together(paths: dict[str, xr.Dataset], name: str, *, ax: Any = None, **options: Any) -> Any:
    """A record of several descents on the same axes."""
    for text, path in paths.items():
        ax = plots.record(path, name, ax=ax, label=text, **options)
    return ax


def _scaling(tree: xr.DataTree, settings: Settings) -> Any:
    window = (settings.window[0], settings.window[1])
    figure = style.new_figure((13.5, 4.4))
    axes = figure.subplots(1, 3, width_ratios=(4, 5, 3.4))
    figure.suptitle(f"After {settings.steps:,} steps, against α")
    sizes = {"relu": settings.width, "tanh": settings.smooth_width}
    for ax, (name, text) in zip(axes, NETWORKS.items(), strict=False):
        measured = results.part(tree, f"against_alpha/{name}")
        for measure, words in MEASURES.items():
            plots.curve(
                measured[measure],
                x="log",
                y="log",
                slope=window if name == "tanh" else False,
                ax=ax,
                title=f"{text} network of width {sizes[name]}",
                label=words,
            )
        ax.set_ylabel("relative to the start")
    axes[1].set_ylim(bottom=axes[1].get_ylim()[0] / 300)  # room for the slopes in the legend
    switched = results.part(tree, "against_alpha/relu")["switched"]
    switched = switched.where(switched >= 0).assign_attrs(
        long_name="pairs on another side at the end"
    )
    plots.curve(switched, x="log", ax=axes[2], title="ReLU network: changes of side", label="pairs")
    return figure


def _still(relu: xr.Dataset) -> float:
    """The smallest α from which on all units end with the sign they began with; NaN if one does not at the
    largest α."""
    ordered = relu.sortby("alpha")
    moving = np.flatnonzero(ordered["switched"].values != 0)
    later = ordered["alpha"].values[moving[-1] + 1 if moving.size else 0 :]
    return float(later[0]) if later.size else float("nan")


def slopes(measured: Any, window: tuple[float, ...]) -> dict[str, float]:
    """The log–log slope of each measure against α, on a window of α."""
    return {
        name: plots.log_slope(measured["alpha"], measured[name], (window[0], window[1]))
        for name in MEASURES
    }


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    relu, tanh = (results.part(tree, f"against_alpha/{name}") for name in NETWORKS)
    names = labels(settings)
    numbers = {
        "parameters": f"ReLU {relu.attrs['n_parameters']:,}, tanh {tanh.attrs['n_parameters']:,}"
    }
    lost = []
    for name, text in names.items():
        path, linear = (results.part(tree, f"{what}/{name}") for what in ("path", "linear"))
        if str(path["status"].values) == "diverged":
            lost.append(text)
        numbers[f"{text}: loss, first to last"] = (
            f"{path['loss'].values[0]:.5g} → {path['loss'].values[-1]:.5g} (linearised "
            f"{linear['loss'].values[-1]:.5g})"
        )
        numbers[f"{text}: movement, kernel drift, distance to linearised"] = ", ".join(
            f"{path[measure].values[-1]:.4g}" for measure in MEASURES
        )
    switched, alphas = relu["switched"].values, relu["alpha"].values
    still = _still(relu)
    windows = {"tanh": settings.window, "relu": (still, max(alphas))}
    for name, (low, high) in windows.items():
        if np.isfinite(low):
            numbers[f"{NETWORKS[name]}: slopes over α = {low:g} … {high:g}"] = ", ".join(
                f"{MEASURES[what]} {value:.4f}"
                for what, value in slopes(tree[f"against_alpha/{name}"], (low, high)).items()
            )
    numbers["ReLU: pairs of a unit and a sample on another side at the end, by α"] = ", ".join(
        f"{a:g}: {k if k >= 0 else 'diverged'}" for a, k in zip(alphas, switched, strict=True)
    )
    crossing = (
        f"Here no unit ends on another side than it began on from α = {still:g} on, and there drift "
        "and distance drop to the smooth network's laws."
        if np.isfinite(still)
        else "Here units still end on another side at the largest α: larger ones would be needed."
    )
    return Findings(
        numbers,
        (
            "With a learning rate of η/α² a step changes the parameters by −(η/α) times a gradient "
            "that does not depend on α at the start, and the output α f by η times the tangent kernel. "
            "So every α learns at the same speed, and moves by 1/α.",
            "A kernel that moves by 1/α with the parameters is, for large α, the kernel of the start: "
            "training is that of a linear model. The two descents differ by the second order of the "
            "movement, 1/α² (Chizat, Oyallon and Bach, 2019).",
            "ReLU has kinks. A unit that crosses zero at a sample changes the tangent kernel by a step "
            f"whose size does not depend on α: only how many do so. {crossing}",
            "A loss that stays above zero here is no lack of parameters: the small eigenvalues of the "
            "kernel are slow, and a lazy model cannot learn better features while it waits. A model "
            "that is not lazy can: its kernel moves towards what it learns.",
            "Lazy is not good in itself: between the samples a lazy model answers with what the random "
            "network at the start can express by a small change of its parameters.",
        ),
        tuple(f"{text} diverged." for text in lost),
        {
            "Parameters": regression.rows(
                {names[n]: results.part(tree, f"parameters/{n}") for n in names}
            )
        },
    )
