"""Study 5, lazy training: linear models on few and on many sinusoidal features.

A linear head on sines and cosines is trained on a handful of samples, with few features, with many,
and from ten starts. What is measured is how fast it fits, and how far its parameters have to move.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.plots import style
from thalweg.studies import Drawing, Findings, regression
from thalweg.studies.settings import at_least, setting

TITLE = "Lazy training: linear models, narrow and wide"

PARTS = ("narrow", "wide", "many")


@dataclasses.dataclass(frozen=True)
class Settings(regression.DataSettings):
    """What can be changed."""

    lr: float = setting(0.01, "learning rate")
    narrow_dimension: int = setting(8, "features of the narrow model, an even number")
    narrow_steps: int = setting(10_000, "steps of the narrow model")
    wide_dimension: int = setting(200, "features of the wide model")
    wide_steps: int = setting(100, "steps of the wide model")
    many_dimension: int = setting(100, "features of the model that has many starts")
    many_steps: int = setting(10_000, "steps of the model that has many starts")
    runs: int = setting(10, "how many starts that model has")
    frequency: float = setting(2.0, "ω/π of the features sin(jωx), cos(jωx)")
    first: int = setting(0, "the first j; 0 gives a dead sine and a second bias, 1 leaves them out")
    every: int = setting(1, "record every so many steps")


def _plan(settings: Settings) -> dict[str, tuple[int, int, int | None]]:
    """The parts: name -> (dimension, steps, runs)."""
    return {
        "narrow": (settings.narrow_dimension, settings.narrow_steps, None),
        "wide": (settings.wide_dimension, settings.wide_steps, None),
        "many": (settings.many_dimension, settings.many_steps, settings.runs),
    }


def labels(settings: Settings) -> dict[str, str]:
    """The parts as legends name them."""
    return {part: f"dimension {plan[0]}" for part, plan in _plan(settings).items()}


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """For each part the descent, the functions before and after, the parameters, and the limit."""
    from functools import partial

    import thalweg as tw
    from thalweg.catalogue import models

    at_least(settings, runs=1)
    table = regression.data(settings)
    x, y = table["x"].values, table["y"].values
    nodes = {"data": table}
    for part, (dimension, steps, runs) in _plan(settings).items():
        features = partial(
            models.fourier_features,
            dimension=dimension,
            frequency=settings.frequency * math.pi,
            first=settings.first,
        )
        problem = tw.Problem(
            models.mlp, "mse", features(x), y, init=partial(models.init_mlp, (dimension, 1))
        )
        path = tw.descend(
            problem,
            tw.SGD(lr=settings.lr),
            steps=steps,
            runs=runs,
            seed=settings.seed,
            every=settings.every,
            record={
                "params": False,
                "risk": True,
                "relative_movement": True,
                "moved": tw.movement_by_parameter,
            },
            **regression.batches(settings),
        )
        # twelve points per shortest wave, so that the drawn curve reaches its peaks
        waves = settings.frequency * (settings.first + dimension // 2)
        grid = np.linspace(-1, 1, max(regression.GRID, 1 + math.ceil(12 * abs(waves))))
        moments = {"initialisation": path["start"], f"after {steps:,} steps": path["final"]}
        nodes[f"path/{part}"] = path
        nodes[f"functions/{part}"] = regression.functions(problem, moments, grid, features(grid))
        nodes[f"parameters/{part}"] = regression.parameters(problem, path)
        nodes[f"limit/{part}"] = limit(np.asarray(features(x)), y, path["start"])
    return nodes


def limit(features: np.ndarray, y: np.ndarray, start: xr.DataArray) -> xr.Dataset:
    """Where gradient descent on a linear model ends: the best fit that is nearest to its start.

    Args:
        features: (n, dimension). The head is their weights after one bias.
        y: (n,).
        start: (param, …runs).

    Returns:
        `risk`, the mean squared error of the best fit; `relative_movement` (…runs), ‖w_∞ − w_0‖ /
        ‖w_0‖; `rank` and `fastest`, the rank of the features with the bias, and the largest learning
        rate 2/λ_max that is stable on the full batch.
    """
    design = np.column_stack([np.ones(len(y)), features])
    flat = start.transpose("param", ...).values.reshape(design.shape[1], -1)
    step, _, rank, singular = np.linalg.lstsq(design, y[:, None] - design @ flat, rcond=None)
    error = design @ (flat + step) - y[:, None]
    moved = np.linalg.norm(step, axis=0) / np.linalg.norm(flat, axis=0)
    return xr.Dataset(
        {
            "risk": float((error[:, 0] ** 2).mean()),
            "relative_movement": (start.dims[1:], moved.reshape(start.shape[1:])),
            "rank": int(rank),
            # the Hessian of the mean squared error is 2/n ΦᵀΦ
            "fastest": float(len(y) / singular[0] ** 2),
        }
    )


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Targets and data; each model before and after; losses and movements of all."""
    table = results.part(tree, "data")
    names = labels(settings)
    yield (
        "data",
        Drawing.of(
            plots.targets(table),
            "What is to be learnt? Three targets, and the samples of the one that is used here.",
        ),
    )
    captions = {
        "narrow": "Can few features fit the samples? What the narrow model is before and after.",
        "wide": "And many? The wide model goes through what it has seen, and between the samples it "
        "follows its features, not the target.",
        "many": "Does it depend on the start? Each thin line is one of the models, before and after.",
    }
    for part in PARTS:
        path = results.part(tree, f"path/{part}")
        runs = style.count_of(path.sizes["run"], "start") if "run" in path.sizes else None
        title = style.joined(f"Linear model of {names[part]}", runs)
        models = results.part(tree, f"functions/{part}")
        yield part, Drawing.of(plots.functions(table, models, title=title), captions[part])
    ax = None
    for part in PARTS:
        path = results.part(tree, f"path/{part}")
        ax = plots.record(path, "risk", ax=ax, x="log", y="log", label=names[part], title="Loss")
    yield (
        "loss",
        Drawing.of(
            ax,
            "How fast does each fit? The mean squared error over all samples, both axes logarithmic.",
        ),
    )
    ax = None
    for part in PARTS:
        path = results.part(tree, f"path/{part}")
        ax = plots.movement(path, ax=ax, x="log", label=names[part])
    yield (
        "movement",
        Drawing.of(
            ax,
            "How far does each have to go? The movement over all parameters, in units of the start's "
            "norm.",
        ),
    )
    figure, axes = plots.grid(1, len(PARTS), title="Movement of weights and bias")
    for ax, part in zip(axes.flat, PARTS, strict=True):
        path = results.part(tree, f"path/{part}")
        plots.movement_by_parameter(path, ax=ax, x="log", title=names[part].capitalize())
    yield (
        "movement_by_parameter",
        Drawing.of(
            figure,
            "Which of the parameters move? The head's weights and its bias, each in units of its own "
            "norm at the start.",
        ),
    )


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    names = labels(settings)
    paths = {part: results.part(tree, f"path/{part}") for part in PARTS}
    limits = {part: results.part(tree, f"limit/{part}") for part in PARTS}
    tables = {part: results.part(tree, f"parameters/{part}") for part in PARTS}
    numbers, warnings = {}, []
    for part in PARTS:
        name, path, end = names[part], paths[part], limits[part]
        fastest = float(end["fastest"])
        numbers[f"{name}: parameters"] = f"{regression.count(tables[part])}"
        numbers[f"{name}: {int(path['step'][-1]):,} steps"] = regression.course(path)
        numbers[f"{name}: steps to 1 % of the first loss"] = _steps(path)
        numbers[f"{name}: the nearest best fit"] = (
            f"loss {float(end['risk']):.3g}, movement "
            f"{regression.spread(end['relative_movement'].values.ravel())}"
        )
        numbers[f"{name}: largest stable learning rate"] = f"{fastest:.4g}"
        if settings.lr > fastest:
            warnings.append(
                f"{name}: the learning rate {settings.lr:g} is above 2/λ_max = {fastest:.4g}, and "
                "full-batch descent on this model grows without bound."
            )
    title = "Parameters, before and after training"
    if settings.runs > 1:
        title += f" (medians of {settings.runs} starts for {names['many']})"
    rows = regression.rows({names[part]: tables[part] for part in PARTS})
    sentences = _sentences(tree, paths, limits, settings)
    return Findings(numbers, sentences, tuple(warnings), {title: rows})


def _steps(path: xr.Dataset) -> str:
    steps = regression.steps_to(path, 0.01)
    finite = steps[np.isfinite(steps)]
    if not finite.size:
        return f"not within {int(path['step'][-1]):,}"
    text = regression.spread(finite)
    return text if finite.size == steps.size else f"{text}, {finite.size} of {steps.size} starts"


def _sentences(
    tree: xr.DataTree,
    paths: Mapping[str, xr.Dataset],
    limits: Mapping[str, xr.Dataset],
    settings: Settings,
) -> tuple[str, ...]:
    names, n = labels(settings), settings.n_samples
    best = float(limits["narrow"]["risk"])
    rank = int(limits["narrow"]["rank"])
    narrow = (
        f"The model of {names['narrow']} cannot fit the {n} samples: its features and bias have rank "
        f"{rank}, and the best head leaves a loss of {best:.3g}."
        if best > 1e-12
        else f"The model of {names['narrow']} can fit the {n} samples: its features and bias have rank "
        f"{rank}."
    )
    moved = {
        part: np.median(regression.values(path, "relative_movement"))
        for part, path in paths.items()
        if regression.values(path, "relative_movement").size
    }
    far = "; ".join(
        f"{names[part]}: {value:.3g}, and the best fit nearest to the start is "
        f"{np.median(limits[part]['relative_movement']):.3g} away"
        for part, value in moved.items()
    )
    many = regression.values(paths["many"], "risk")
    starts = (
        f"From the {paths['many']['status'].size} starts of {names['many']} the losses end between "
        f"{many.min():.3g} and {many.max():.3g}"
        if many.size
        else f"No start of {names['many']} stayed finite"
    )
    away = regression.distances(
        results.part(tree, "data"), results.part(tree, "functions/wide")
    ).values.ravel()
    return (
        narrow,
        f"Movements over all parameters: {far}. Under PyTorch's initialisation the head's norm is "
        "about 1/√3 whatever the dimension d, and the shortest way to a fit shrinks as 1/√d: a wide "
        "linear model is lazy because many features share the work.",
        "Each residual falls at the rate lr·2λ/n of its direction, and the eigenvalues λ of ΦΦᵀ grow "
        "with the dimension: that is why more features need fewer steps at the same learning rate.",
        f"{starts}: a convex problem with more features than samples has a perfect fit near every "
        "start."
        if many.size and settings.many_dimension >= n
        else f"{starts}.",
        f"Fitting is not learning: over [−1, 1] the function of {names['wide']} is {away[0]:.3g} (root "
        f"mean square) from its target at the start and {away[-1]:.3g} at the end. The features "
        "repeat with a period of 2π/ω, and between the samples little holds the start's own waves down.",
    )
