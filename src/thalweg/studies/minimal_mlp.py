"""Study 1: the stochastic landscape of a two-parameter network.

f(x) = w1·relu(w2·x) is fitted to y = 2x + ε by SGD, one sample a step. Every step descends another
landscape, the pointwise risk of its sample; their mean is the empirical risk, and the mean over the
distribution, the expected risk.

For x ~ U(−1, 1) and either sign of w2 the unit is active on half of the inputs, so that with a slope
a and noise σ the expected risk is ½(⅓(w1w2)² − ⅔a·w1w2 + ⅔a²) + σ².
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.studies import Drawing, Findings, setting

TITLE = "The stochastic landscape of a two-parameter network"


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
    batch_size: int = setting(1, "samples a step")
    epochs: int = setting(1, "passes through the data")
    shuffle: bool = setting(False, "a new order each epoch; otherwise the data's own")
    start: tuple[float, ...] | str = setting((3.0, -4.0), "w1,w2; or random, from U(−0.1, 0.1)")
    window: tuple[float, ...] = setting((-5.0, 5.0), "the landscape's range, in both weights")
    points: int = setting(100, "grid points along each axis")
    every: int = setting(10, "a figure for every so many steps")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The data, the landscape with all three risks, and the descent."""
    import thalweg as tw
    from thalweg.catalogue import data, models
    from thalweg.optimizers import by_name

    if settings.model not in ("relu", "linear"):
        raise InputError(f"setting 'model' must be relu or linear; {settings.model!r} given.")
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
        problem, {"w1": _pair(settings.window), "w2": _pair(settings.window)}, settings.points
    )
    surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
    path = tw.descend(
        problem,
        by_name(settings.optimizer, lr=settings.lr),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        shuffle=settings.shuffle,
        seed=settings.seed,
        record=["grad", "risk", "expected"] + (["batch"] if settings.batch_size < len(x) else []),
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
        # its own stream, so that a random start does not change the data
        w1, w2 = np.random.default_rng([settings.seed, 1]).uniform(-0.1, 0.1, 2)
        return float(w1), float(w2)
    return _pair(settings.start)


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) != 2:
        raise InputError(f"two numbers were expected, as in -5,5; {values!r} given.")
    return values[0], values[1]


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Three panels for every so many steps, and the empirical landscape with the whole path."""
    surface, path = results.part(tree, "landscape"), results.part(tree, "path")
    last = path.sizes["step"] - 1
    if "batch" in path and settings.batch_size == 1:
        for step in range(0, last, max(settings.every, 1)):
            sample = int(path["batch"].values[step, 0])
            yield (
                f"step-{step:03d}",
                Drawing.of(
                    plots.step_panels(surface, path, step, sample=sample),
                    f"Step {step}, which descends the pointwise risk of sample {sample}. The arrow is "
                    "−0.1 times the stochastic gradient; where there is none, it is zero.",
                ),
            )
    ax = plots.contour(
        surface, path, center=_middle(surface), title="Empirical risk and the whole trajectory"
    )
    yield "path", Drawing.of(ax, "The empirical risk with every iterate of the descent.")
    ax = plots.loss(path, x="linear")
    ax.set_title("Loss of each step's batch")
    yield "loss", Drawing.of(ax, "The loss each step saw, before its update.")


def _middle(surface: xr.Dataset) -> float:
    """The expected risk at the grid's middle, the centre of the study's colours."""
    expected = surface["expected"].values
    return float(expected[expected.shape[0] // 2, expected.shape[1] // 2])


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
    gradients = np.abs(path["grad"].values[:-1]).max(axis=1)
    still = float((gradients == 0).sum()) / max(len(gradients), 1)
    numbers = {
        "last iterate": f"w1 = {w1:.6g}, w2 = {w2:.6g}",
        "status": str(path["status"].values),
        "empirical risk, first to last": f"{path['risk'].values[0]:.6g} → {path['risk'].values[-1]:.6g}",
        "expected risk, first to last": (
            f"{path['expected'].values[0]:.6g} → {path['expected'].values[-1]:.6g}"
        ),
        "lowest empirical risk on the grid": (
            f"{float(empirical.min()):.6g} at w1 = {float(empirical.w1[lowest['w1']]):.3g}, "
            f"w2 = {float(empirical.w2[lowest['w2']]):.3g}"
        ),
        "steps with no gradient": f"{100 * still:.0f} %",
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
            "Where w2·x ≤ 0 for a step's sample, the unit is off, the gradient is zero and the path "
            "stands still for that step.",
        ),
    )
