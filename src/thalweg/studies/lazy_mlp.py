"""Study 5, lazy training: ReLU networks, deep and shallow, narrow and wide, well and badly started.

Each network learns a function of one variable from a handful of samples. Recorded are the loss and
how far the parameters move, in all and by layer, and how much of it in each step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import xarray as xr

from thalweg import names, plots, results
from thalweg.plots import style
from thalweg.studies import Drawing, Findings, regression
from thalweg.studies.settings import at_least, different, setting

TITLE = "Lazy training: networks, and how far their parameters move"


@dataclasses.dataclass(frozen=True)
class Settings(regression.DataSettings):
    """What can be changed."""

    deep_width: int = setting(10, "units in each hidden layer of the deep network")
    deep_layers: int = setting(5, "hidden layers of the deep network")
    deep_steps: int = setting(10_000, "steps of the deep network")
    deep_lr: float = setting(0.1, "learning rate of the deep network")
    shallow_width: int = setting(10, "hidden units of the shallow networks")
    runs: int = setting(10, "starts of the shallow networks, and of the badly initialised ones")
    shallow_steps: int = setting(5_000, "steps of the shallow networks")
    shallow_lr: float = setting(0.001, "learning rate of the shallow networks")
    widths: tuple[int, ...] = setting((5, 10, 100, 1000), "hidden units that are compared")
    widths_steps: int = setting(50_000, "steps of each width")
    widths_lr: float = setting(0.002, "learning rate of each width")
    bad_width: int = setting(100, "hidden units of the badly initialised networks")
    shocks: int = setting(2, "the steps that spoil their initialisation")
    shock_lr: float = setting(1.0, "the learning rate of those steps")
    bad_steps: int = setting(1_000, "steps of the badly initialised networks after that")
    bad_lr: float = setting(0.001, "the learning rate after that")
    every: int = setting(10, "record every so many steps; the badly initialised, every step")


def _record() -> dict[str, object]:
    import thalweg as tw

    return {
        "params": False,
        "risk": True,
        "relative_movement": True,
        "successive_change": True,
        "moved": tw.movement_by_parameter,
    }


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """For each part the descents, the functions before and after, and the parameters."""
    from functools import partial

    import thalweg as tw
    from thalweg.catalogue import models

    different(settings, "widths")
    at_least(settings, deep_width=1, deep_layers=1, shallow_width=1, bad_width=1)
    at_least(settings, runs=1, shocks=0, bad_steps=0)
    table = regression.data(settings)
    x, y, grid = (table[name].values for name in ("x", "y", "x_grid"))
    nodes = {"data": table}

    def network(*hidden: int) -> tw.Problem:
        init = partial(models.init_mlp, (1, *hidden, 1))
        return tw.Problem(models.mlp, "mse", x, y, init=init)

    def train(problem: tw.Problem, lr: object, **options: object) -> xr.Dataset:
        shared = {"seed": settings.seed, "record": _record(), **regression.batches(settings)}
        return tw.descend(problem, tw.SGD(lr=lr), **{"every": settings.every, **shared, **options})

    def keep(part: str, problem: tw.Problem, path: xr.Dataset) -> None:
        moments = {"initialisation": path["start"], _after(path): path["final"]}
        nodes[f"path/{part}"] = path
        nodes[f"parameters/{part}"] = regression.parameters(problem, path)
        nodes[f"functions/{part}"] = regression.functions(problem, moments, grid)

    deep = network(*[settings.deep_width] * settings.deep_layers)
    keep("deep", deep, train(deep, settings.deep_lr, steps=settings.deep_steps))
    shallow = network(settings.shallow_width)
    path = train(shallow, settings.shallow_lr, steps=settings.shallow_steps, runs=settings.runs)
    keep("shallow", shallow, path)
    for width in settings.widths:
        one = network(width)
        keep(f"width-{width}", one, train(one, settings.widths_lr, steps=settings.widths_steps))
    each = [nodes.pop(f"functions/width-{width}") for width in settings.widths]
    together = xr.concat(
        [f["yhat_grid"] for f in each], xr.Variable("width", list(settings.widths))
    )
    nodes["functions/widths"] = each[0].drop_vars("yhat_grid").assign(yhat_grid=together)

    bad = network(settings.bad_width)
    path = train(
        bad,
        lambda step: settings.shock_lr if step < settings.shocks else settings.bad_lr,
        steps=settings.shocks + settings.bad_steps,
        runs=settings.runs,
        every=1,
    )
    # the same starts again, up to the end of the large steps
    spoilt = train(bad, settings.shock_lr, steps=settings.shocks, runs=settings.runs)
    keep("bad", bad, path)
    moments = {
        "initialisation": path["start"],
        f"after {style.count_of(settings.shocks, 'step')} at {settings.shock_lr:g}": spoilt[
            "final"
        ],
        _after(path): path["final"],
    }
    inside = np.linspace(x.min(), x.max(), regression.GRID)
    nodes["functions/bad"] = regression.functions(bad, moments, inside)
    return nodes


def _after(path: xr.Dataset) -> str:
    return f"after {int(path['step'][-1]):,} steps"


def titles(settings: Settings) -> dict[str, str]:
    """The parts as panels name them."""
    layers = style.count_of(settings.deep_layers, "hidden layer")
    runs = style.count_of(settings.runs, "start")
    return {
        "deep": f"Deep: {layers} of {settings.deep_width}, lr {settings.deep_lr:g}",
        "shallow": f"Shallow: width {settings.shallow_width}, {runs}, lr {settings.shallow_lr:g}",
        "widths": f"Shallow: widths compared, lr {settings.widths_lr:g}",
        "bad": f"Badly started: width {settings.bad_width}, "
        f"lr {settings.shock_lr:g}, then {settings.bad_lr:g}",
    }


def _paths(tree: xr.DataTree, settings: Settings, part: str) -> dict[str, xr.Dataset]:
    """The trajectories of a part by their names in a legend."""
    if part != "widths":
        return {"": results.part(tree, f"path/{part}")}
    return {f"width {w}": results.part(tree, f"path/width-{w}") for w in settings.widths}


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Targets and data; each part's functions; losses, movements and changes of all parts."""
    table = results.part(tree, "data")
    titles_by_part = titles(settings)
    yield (
        "data",
        Drawing.of(
            plots.targets(table),
            "What is to be learnt? Three targets, and the samples of the one that is used here.",
        ),
    )
    captions = {
        "deep": "What is a deep network before it learns, and after? Close to a constant, and then bent "
        "where the samples bend.",
        "shallow": "Do all starts of a small network learn the same function? Thin lines, one per start.",
        "widths": "What does width change? The same samples, steps and learning rate for each width.",
        "bad": "What does a spoilt start lead to? The networks at initialisation, after the large steps "
        "(note the scale), and after the small ones, over the range of the data.",
    }
    for part, caption in captions.items():
        models = results.part(tree, f"functions/{part}")
        figure = plots.functions(table, models, title=titles_by_part[part], sharey=part != "bad")
        yield part, Drawing.of(figure, caption)
    for name, y, title, caption in (
        ("risk", "log", "Loss", "Who fits, and how fast? The mean squared error over all samples."),
        (
            "relative_movement",
            "log",
            "Movement",
            "Who moves, and how far? The movement over all parameters, in units of the start's norm.",
        ),
        (
            "successive_change",
            "log",
            "Successive change",
            "When do they move? The change in each step, in units of the parameters' norm.",
        ),
    ):
        figure, axes = plots.grid(2, 2, title=title)
        for ax, (part, text) in zip(axes.flat, titles_by_part.items(), strict=True):
            for label, path in _paths(tree, settings, part).items():
                plots.record(path, name, ax=ax, x="log", y=y, title=text, label=label)
        yield title.lower().replace(" ", "_"), Drawing.of(figure, caption)
    widest = max(settings.widths)
    figure, axes = plots.grid(2, 2, title="Movement by parameter")
    for ax, (part, text) in zip(axes.flat, titles_by_part.items(), strict=True):
        node = f"width-{widest}" if part == "widths" else part
        text = f"Shallow: width {widest}" if part == "widths" else text.partition(", lr")[0]
        path = results.part(tree, f"path/{node}")
        plots.movement_by_parameter(path, ax=ax, x="log", y="log", title=text)
    yield (
        "movement_by_parameter",
        Drawing.of(
            figure,
            "Which layer moves? Weights and biases of each layer, in units of their own norms at the "
            "start.",
        ),
    )
    moved = moved_by_width(tree, settings)
    yield (
        "movement_by_width",
        Drawing.of(
            plots.curve(
                moved,
                "width",
                x="log",
                y="log",
                slope=_widest_two(moved) or False,
                title="Movement against width",
                label="movement",
            ),
            "Does width make lazy? The movement at the last step against the width; theory has a slope "
            "of −1 for wide networks.",
        ),
    )


def moved_by_width(tree: xr.DataTree, settings: Settings) -> xr.DataArray:
    """The relative movement (width) at the last step, widths in ascending order."""
    widths = sorted(settings.widths)
    paths = [results.part(tree, f"path/width-{width}") for width in widths]
    moved = [float(path["relative_movement"][-1]) for path in paths]
    return xr.DataArray(
        moved, {"width": widths}, name="movement", attrs={"long_name": "movement at the last step"}
    )


def _widest_two(moved: xr.DataArray) -> tuple[float, float] | None:
    """The two largest widths, where both moved and are finite."""
    ends = moved[-2:]
    usable = np.isfinite(ends.values) & (ends.values > 0)
    return (float(ends["width"][0]), float(ends["width"][1])) if usable.sum() == 2 else None


def bends(path: xr.Dataset, low: float, high: float) -> dict[str, np.ndarray]:
    """How many hidden units of a shallow network bend between `low` and `high` (members,), at the
    start and at the end. Unit i bends at x = −b_i/w_i; one that does not is linear on the data."""
    every = names.found(path) or ()
    counts = {}
    for moment in ("start", "final"):
        vectors = path[moment].transpose("param", ...).values.reshape(len(every), -1)
        bias, weight = (vectors[names.within(every, f"l1.{kind}")] for kind in ("bias", "weight"))
        # without a division: −b/w lies between iff w·low + b and w·high + b differ in sign
        counts[moment] = ((weight * low + bias) * (weight * high + bias) < 0).sum(axis=0)
    return counts


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    titles_by_part = titles(settings)
    nodes = {
        "deep": titles_by_part["deep"],
        "shallow": titles_by_part["shallow"],
        **{f"width-{w}": f"Shallow: width {w}" for w in settings.widths},
        "bad": titles_by_part["bad"],
    }
    numbers = {}
    for node, name in nodes.items():
        path = results.part(tree, f"path/{node}")
        count = regression.count(results.part(tree, f"parameters/{node}"))
        steps = style.count_of(int(path["step"][-1]), "step")
        numbers[f"{name}: {count:,} parameters, {steps}"] = regression.course(path)
    data = results.part(tree, "data")
    x, y = data["x"].values, data["y"].values
    line = _best_line(x, y)
    numbers["loss of the best straight line"] = f"{line:.4g}"
    bad = results.part(tree, "path/bad")
    bent = bends(bad, x.min(), x.max())
    numbers["badly started: units that bend within the data"] = (
        f"{regression.spread(bent['start'])} at the start, {regression.spread(bent['final'])} at the end"
    )
    rows = regression.rows(
        {name: results.part(tree, f"parameters/{node}") for node, name in nodes.items()}
    )
    title = "Parameters, before and after training"
    if settings.runs > 1:
        title += f" (medians over {settings.runs} starts where there are as many)"
    return Findings(numbers, _sentences(tree, settings, line, bent), (), {title: rows})


def _best_line(x: np.ndarray, y: np.ndarray) -> float:
    """The mean squared error of the least-squares line."""
    design = np.column_stack([np.ones_like(x), x])
    return float(((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).mean())


def _sentences(
    tree: xr.DataTree, settings: Settings, line: float, bent: dict[str, np.ndarray]
) -> tuple[str, ...]:
    deep = results.part(tree, "parameters/deep")
    relative = (deep["moved"] / deep["norm_start"]).values
    span = np.ptp(results.part(tree, "functions/deep")["yhat_grid"].values, axis=1)
    sentences = [
        f"The deep network starts close to a constant: over [−1, 1] its function spans {span[0]:.3g}, "
        f"and {span[-1]:.3g} after training. Depth shrinks what comes through at this initialisation. "
    ]
    if np.isfinite(relative).all():
        most, least = (str(deep["tensor"].values[f(relative)]) for f in (np.argmax, np.argmin))
        sentences[0] += (
            f"Of its tensors {most} moved most, by {relative.max():.3g} of its norm, and {least} least, "
            f"by {relative.min():.3g}."
        )
    shallow = regression.values(results.part(tree, "path/shallow"), "risk")
    if shallow.size:
        median = float(np.median(shallow))
        text = (
            f"After {settings.shallow_steps:,} steps at {settings.shallow_lr:g} the shallow networks "
            f"have a median loss of {median:.3g}; the best straight line has {line:.3g}."
        )
        if line / 2 < median < 2 * line:
            text += (
                " By then they have learnt little more than a line, from every start the same one."
            )
        sentences.append(text)
    moved = moved_by_width(tree, settings)
    ends = ", ".join(
        f"{m:.3g} at width {int(w)}" for w, m in zip(moved["width"], moved, strict=True)
    )
    widest = results.part(tree, f"parameters/width-{max(settings.widths)}").sel(tensor="l2.weight")
    text = f"The movement over all parameters is {ends}"
    if _widest_two(moved):
        (a, b), (m, n) = moved["width"].values[-2:], moved.values[-2:]
        slope = f"{np.log(n / m) / np.log(b / a):.2f}".replace("-", "−")
        text += f", a slope of {slope} between the widest two"
    head = float(widest["moved"] / widest["norm_start"])
    sentences.append(
        f"{text}. It is the hidden layer that is lazy: the output weights of the widest network moved by "
        f"{head:.3g} of their own norm, which is about 1/√3 at any width, while the hidden layer's grows "
        "with the root of the width and hides them."
    )
    sentences.append(
        "Width also makes each step larger in function space, as more units answer to the same learning "
        "rate: part of what the widths differ in is how far along they are."
    )
    sentences.append(_spoilt(tree, settings, line, bent))
    return tuple(sentences)


def _spoilt(tree: xr.DataTree, settings: Settings, line: float, bent: dict[str, np.ndarray]) -> str:
    """What became of the badly started networks."""
    risk = regression.values(results.part(tree, "path/bad"), "risk")
    if not risk.size:
        return "No badly started network stayed finite."
    ends = results.part(tree, "functions/bad")["yhat_grid"].values[-1]
    data = results.part(tree, "data")["y"].values
    flat = (np.ptp(ends, axis=0) <= 0.01 * np.ptp(data)).sum()
    before, after = np.median(bent["start"]), np.median(bent["final"])
    text = (
        f"Of the {settings.bad_width} units of a badly started network {before:.3g} bend among the "
        f"samples at the start (median), and {after:.3g} at the end. {flat} of {ends.shape[1]} networks "
        "end flat, to a hundredth of the data's range; the median loss is "
        f"{np.median(risk):.4g}, and that of the best straight line {line:.4g}."
    )
    if after < before / 2:
        text += (
            " The large steps pushed the bends out of the data, and the small ones, which fit what is "
            "left with a line, do not bring them back."
        )
    return text
