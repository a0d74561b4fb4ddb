"""Study 1: the stochastic landscape of a two-parameter network.

f(x) = w1·relu(w2·x) is fitted to y = 2x + ε by SGD, one sample per step. Every step descends another
landscape, the pointwise risk of its sample; the mean of these over the samples is the empirical risk, and
over the distribution the expected risk.

For x ~ U(−1, 1) and either sign of w2 the unit is active on half of the inputs, so that with a slope
a and noise σ the expected risk is ½(⅓(w1w2)² − ⅔a·w1w2 + ⅔a²) + σ².

A step of SGD is w1 ← w1 − s·w2, w2 ← w2 − s·w1 with s = 2η(f(x) − y)x where the unit is on, else 0, so
that it multiplies w1² − w2² by 1 − s²: paths stay close to a hyperbola, and on a diagonal for good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import animations, panels
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, setting
from thalweg.studies.texts import options_of

TITLE = "The stochastic landscape of a two-parameter network"

_MOST = 50  # most steps with a figure of their own


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the data, of random starts and of shuffling")
    n_samples: int = setting(100, "number of samples")
    slope: float = setting(2.0, "slope a of the line y = a·x + ε")
    noise: float = setting(3.0, "standard deviation σ of ε")
    model: str = setting("relu", "relu: w1·relu(w2·x); linear: w1·w2·x")
    optimizer: str = setting("SGD", "an optimizer of thalweg, by name")
    lr: float = setting(0.01, "learning rate")
    options: str = setting("", "further options of the optimizer, as in momentum=0.9,nesterov=true")
    batch_size: int = setting(1, "samples per step")
    epochs: int = setting(1, "passes through the data")
    shuffle: bool = setting(False, "a new order each epoch; otherwise the data's own")
    start: tuple[float, ...] | str = setting((3.0, -4.0), "w1,w2; or random, from U(−0.1, 0.1)")
    window: tuple[float, ...] = setting((-5.0, 5.0), "the landscape's range, in both weights")
    points: int = setting(100, "grid points along each axis")
    every: int = setting(10, "a figure for every so many steps, for at most fifty of them")
    at: tuple[int, ...] = setting((), "the steps to draw, in place of every so many")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The data, the landscape with all three risks, and the descent."""
    import thalweg as tw
    from thalweg.catalogue import data, models
    from thalweg.optimizers import by_name

    if settings.model not in ("relu", "linear"):
        raise InputError(f"setting 'model' must be relu or linear; {settings.model!r} given.")
    at_least(settings, points=2, n_samples=1, noise=0)
    x, y = data.noisy_line(
        settings.n_samples, slope=settings.slope, noise=settings.noise, seed=settings.seed
    )
    relu = settings.model == "relu"
    problem = tw.Problem(
        models.relu_product if relu else models.linear_product,
        "mse",
        x,
        y,
        params=dict(zip(("w1", "w2"), _start(settings), strict=True)),
        expected=_expected_risk(relu, settings.slope, settings.noise),
    )
    plane = tw.coordinate_plane(
        problem, {"w1": _pair(settings, "window"), "w2": _pair(settings, "window")}, settings.points
    )
    surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
    path = tw.descend(
        problem,
        by_name(settings.optimizer, lr=settings.lr, **options_of(settings.options)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        shuffle=settings.shuffle,
        seed=settings.seed,
        record=["grad", "risk", "expected"] + (["batch"] if settings.batch_size < len(x) else []),
    )
    outside = [step for step in settings.at if not 0 <= step < path.sizes["step"] - 1]
    if outside:
        raise InputError(
            f"setting 'at': step {outside[0]} was not taken; give steps from 0 to "
            f"{path.sizes['step'] - 2}."
        )
    table = xr.Dataset({"x": ("sample", x), "y": ("sample", y)})
    return {"data": table, "landscape": surface, "path": path}


def _expected_risk(relu: bool, slope: float, noise: float) -> Any:
    """The expected risk over x ~ U(−1, 1) and ε ~ N(0, noise²), as a function of the parameters."""
    from jax.tree_util import Partial

    return Partial(_relu_risk if relu else _linear_risk, float(slope), float(noise))


def _relu_risk(slope: Any, noise: Any, w: dict[str, Any]) -> Any:
    product = w["w1"] * w["w2"]
    return 0.5 * (product**2 / 3 - 2 * slope * product / 3 + 2 * slope**2 / 3) + noise**2


def _linear_risk(slope: Any, noise: Any, w: dict[str, Any]) -> Any:
    return (w["w1"] * w["w2"] - slope) ** 2 / 3 + noise**2


def _start(settings: Settings) -> tuple[float, float]:
    if isinstance(settings.start, str):
        if settings.start != "random":
            raise InputError(
                f"setting 'start' must be two numbers as in 3,-4, or random; {settings.start!r} given."
            )
        # a separate random stream, so that a random start does not change the data
        w1, w2 = np.random.default_rng([settings.seed, 1]).uniform(-0.1, 0.1, 2)
        return float(w1), float(w2)
    return _pair(settings, "start")


def _pair(settings: Settings, name: str) -> tuple[float, float]:
    values = getattr(settings, name)
    if len(values) != 2:
        raise InputError(f"setting {name!r} must be two numbers, as in -5,5; {values!r} given.")
    return values[0], values[1]


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Three panels for chosen steps, the empirical landscape with the whole path, the animation."""
    surface, path = results.part(tree, "landscape"), results.part(tree, "path")
    samples = _samples(path, settings)
    for step in _chosen(samples, settings):
        sample = int(samples[step])
        zero = not path["grad"].values[step].any()
        yield (
            f"step-{step:03d}",
            Drawing.of(
                plots.step_panels(surface, path, step, sample=sample),
                f"What does step {step} see? It descends the pointwise risk of sample {sample} (left), "
                + (
                    "whose gradient is zero at the iterate: it stays where it is."
                    if zero
                    else "along the arrow, −0.1 times the stochastic gradient."
                )
                + " Levels and colours are the same in all three panels.",
            ),
        )
    ax = plots.contour(
        surface,
        path,
        center=panels.middle_risk(surface),
        title="Empirical risk and the whole trajectory",
    )
    yield (
        "path",
        Drawing.of(
            ax,
            "Where does a descent on single samples lead? The empirical risk, which no step saw, with "
            "every iterate.",
        ),
    )
    if len(samples):
        yield (
            "animation",
            Drawing.of(
                lambda: animations.pointwise(
                    surface, path, sample=None if "batch" in path else int(samples[0])
                ),
                "The landscape under the iterate changes with every step, for each sample has its own: "
                "the pointwise risk of the step's sample, the arrow of its gradient, and the "
                "trajectory so far.",
            ),
        )
    ax = plots.loss(path, x="linear", title="Loss of each step's batch")
    yield (
        "loss",
        Drawing.of(
            ax,
            "The loss each step saw, before its update. It jumps from sample to sample, and says "
            "little about progress.",
        ),
    )
    ax = plots.record(path, "risk", y="linear", label="empirical", title="Risks along the path")
    plots.record(path, "expected", y="linear", label="expected", ax=ax)
    ax.set(title="Risks along the path", ylabel="risk")
    yield (
        "risks",
        Drawing.of(
            ax,
            "Does it get better? The empirical and the expected risk along the path: flat where the "
            "unit was off, and up now and then.",
        ),
    )


def _samples(path: xr.Dataset, settings: Settings) -> np.ndarray:
    """The sample of each step until the path diverged; none where a step uses several."""
    if settings.batch_size != 1:
        return np.empty(0, int)
    lost = int(path["diverged_at"])
    steps = path.sizes["step"] - 1 if lost < 0 else min(lost, path.sizes["step"] - 1)
    if "batch" not in path:
        return np.zeros(steps, int)  # the only sample
    return path["batch"].values[:steps, 0]


def _chosen(samples: np.ndarray, settings: Settings) -> list[int]:
    """The steps that have a figure of their own."""
    if settings.at:
        return [step for step in settings.at if step < len(samples)]
    return list(range(0, len(samples), max(settings.every, -(-len(samples) // _MOST), 1)))


def _derivation(settings: Settings) -> str:
    """Where the formula of the expected risk comes from."""
    if settings.model == "linear":
        return (
            "The expected risk: y − f(x) = (a − w1w2)·x + ε, and E x² = ⅓ for x ~ U(−1, 1), so that "
            "E (y − f)² = ⅓(w1w2 − a)² + σ²."
        )
    return (
        "The expected risk: for either sign of w2 the unit is on for half of the inputs, where "
        "y − f(x) = (a − w1w2)·x + ε, and off for the others, where y − f(x) = a·x + ε. With E x² = ⅓ on "
        "each half, E (y − f)² = ½·⅓(w1w2 − a)² + ½·⅓a² + σ² = ½(⅓(w1w2)² − ⅔a·w1w2 + ⅔a²) + σ²; "
        "for a = 2 and σ = 3 that is ½(8/3 − (4/3)·w1w2 + (1/3)·w1²w2²) + 9."
    )


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    path, surface = results.part(tree, "path"), results.part(tree, "landscape")
    empirical = surface["empirical"]
    w1, w2 = (float(v) for v in path["final"].sel(param=["w1", "w2"]).values)
    lowest = empirical.argmin(dim=["w1", "w2"])
    taken = path["grad"].values[:-1]
    taken = np.abs(taken[np.isfinite(taken).all(axis=1)]).max(axis=1)
    still = f"{int((taken == 0).sum())} of {len(taken)}"
    squares = path["params"].sel(param="w1") ** 2 - path["params"].sel(param="w2") ** 2
    numbers = {
        "last iterate": f"w1 = {w1:.6g}, w2 = {w2:.6g}",
        "status": _status(path),
        "empirical risk, first to last": _first_to_last(path["risk"]),
        "expected risk, first to last": _first_to_last(path["expected"]),
        "lowest empirical risk on the grid": (
            f"{float(empirical.min()):.6g} at w1 = {float(empirical.w1[lowest['w1']]):.3g}, "
            f"w2 = {float(empirical.w2[lowest['w2']]):.3g}"
        ),
        "steps with no gradient": still,
        "w1² − w2², first to last": _first_to_last(squares),
    }
    return Findings(
        numbers,
        (
            "Each step goes down another landscape: that of its own sample. No single one looks like "
            "the empirical risk, their mean, and a step may well go up on it.",
            "The expected risk depends on the product w1·w2 alone, and for each sign of w2 so does the "
            "empirical risk. Hence the hyperbolas: a whole curve of minima where the product is right, "
            "and a saddle at the origin.",
            _derivation(settings),
            _standing_still(settings),
            "A step multiplies w1² − w2² by 1 − s², with s = 2η(f(x) − y)x and the learning rate η: plain "
            "SGD follows the hyperbola of its start closely, and from w1 = ±w2 it never leaves the "
            "diagonal.",
        ),
    )


def _status(path: xr.Dataset) -> str:
    lost = int(path["diverged_at"])
    return str(path["status"].values) + (f" at step {lost}" if lost >= 0 else "")


def _first_to_last(record: xr.DataArray) -> str:
    """The first and the last finite value."""
    values = record.values[np.isfinite(record.values)]
    return f"{values[0]:.6g} → {values[-1]:.6g}" if values.size else "never finite"


def _standing_still(settings: Settings) -> str:
    """A sentence on how steps of zero gradient affect the path."""
    if settings.model == "linear":
        return (
            "Both partial derivatives vanish at the origin, whatever the sample: a descent that starts "
            "there stays there, though it is a saddle."
        )
    return (
        "Where w2·x ≤ 0 for a step's sample, the unit is off, the gradient is zero and the path "
        "stands still for that step. Only the samples on one side of x = 0 are ever learnt from as "
        "long as w2 keeps its sign; at w2 = 0 none is, and the path stays there for good."
    )
