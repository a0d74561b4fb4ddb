"""The edge of stability: how sharp does an optimizer let the landscape become?

Full-batch descents of a small tanh network at several learning rates, with the largest eigenvalue of the
Hessian recorded along the way; Adam for comparison, with that of its preconditioned Hessian; and the whole
spectrum at the start and at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.plots import style
from thalweg.stability import stability_threshold
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, different, setting

TITLE = "The edge of stability"

_WIDTH, _POINTS = 0.1, 1001  # the width of the spectra's Gaussians, and the size of their grids
_LATE = 4  # medians are over the last 1/_LATE of a run


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the data and of the start")
    n_samples: int = setting(30, "samples, uniform on (−1, 1)²")
    width: int = setting(8, "width of the hidden layers")
    depth: int = setting(2, "hidden layers, with tanh")
    lrs: tuple[float, ...] = setting((0.1, 0.15, 0.25), "learning rates of gradient descent")
    momentum: float = setting(0.0, "momentum of gradient descent")
    adam_lrs: tuple[float, ...] = setting((0.003, 0.01), "learning rates of Adam")
    steps: int = setting(6000, "steps of every descent")
    every: int = setting(20, "measure the sharpness every so many steps")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The descents with their sharpness, and the spectra at the start and at the end."""
    import jax

    import thalweg as tw
    from thalweg.catalogue import models

    _check(settings)
    rng = np.random.default_rng(settings.seed)
    x = rng.uniform(-1, 1, (settings.n_samples, 2))
    y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
    widths = (2, *[settings.width] * settings.depth, 1)
    start = models.init_mlp(widths, jax.random.key(settings.seed))
    problem = tw.Problem(models.tanh_mlp, "mse", x, y, params=start)
    options: dict[str, Any] = {"steps": settings.steps, "every": settings.every}
    descent = tw.descend(
        problem,
        tw.SGD(lr=list(settings.lrs), momentum=settings.momentum),
        record={"sharpness": tw.sharpness, "params": False},
        **options,
    )
    adam = tw.descend(
        problem,
        tw.Adam(lr=list(settings.adam_lrs)),
        record={
            "sharpness": tw.sharpness,
            "preconditioned_sharpness": tw.preconditioned_sharpness,
            "params": False,
        },
        **options,
    )
    nodes = {
        "data": xr.Dataset({"x": (("sample", "input"), x), "y": ("sample", y)}),
        "path/gradient-descent": descent,
        "path/adam": adam,
    }
    points: dict[str, Any] = {"start": problem.flatten(start)}
    if (descent["status"] != "diverged").any():
        points["end"] = descent["final"].sel(lr=_last(descent)).values
    for when, point in points.items():
        operator = tw.hessian(problem, np.asarray(point))
        nodes[f"spectrum/{when}"] = operator.density(width=_WIDTH, points=_POINTS)
    return nodes


def _check(settings: Settings) -> None:
    at_least(settings, n_samples=1, width=1, every=1, depth=0, steps=0)
    different(settings, "lrs", "adam_lrs")


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """Sharpness and loss of gradient descent, Adam's sharpness, and the spectra."""
    descent, adam = (results.part(tree, f"path/{name}") for name in ("gradient-descent", "adam"))
    yield (
        "sharpness",
        Drawing.of(
            plots.sharpness(descent, title="Sharpness under gradient descent"),
            "How sharp does gradient descent let the landscape become? The largest eigenvalue of the "
            "Hessian rises. Where it comes to the limit of what the step allows (dotted) it hovers there, "
            "so that a larger step ends in a flatter place.",
        ),
    )
    yield (
        "loss",
        Drawing.of(
            plots.loss(descent, title="Loss under gradient descent"),
            "Is the descent unstable, then? Beyond the limit the loss no longer falls at every step, and "
            "yet it goes on falling over many of them.",
        ),
    )
    ax = plots.sharpness(
        adam,
        "preconditioned_sharpness",
        preconditioned=True,
        y="log",
        title="Sharpness that Adam sees",
    )
    ax.set_ylabel("largest eigenvalue of P⁻¹H")
    yield (
        "adam",
        Drawing.of(
            ax,
            "Does Adam have an edge too? It divides its step by a running size of the gradient, entry by "
            "entry, and what counts is the largest eigenvalue of the Hessian so divided. Its limit is "
            "38/lr.",
        ),
    )
    yield (
        "adam_plain",
        Drawing.of(
            plots.sharpness(adam, title="Sharpness under Adam"),
            "And the plain Hessian under Adam? It has no limit to stop at: where the gradient has been "
            "large, Adam's steps are short, and the landscape may become as sharp as it likes.",
        ),
    )
    ax = None
    for when in ("start", "end"):
        if when in tree["spectrum"].children:
            name = when if when == "start" else f"end, lr = {_last(descent):g}"
            ax = plots.density(results.part(tree, f"spectrum/{when}"), ax=ax, label=name)
    assert ax is not None
    style.titled(ax, "Eigenvalues of the Hessian", "")
    yield (
        "spectrum",
        Drawing.of(
            ax,
            "Is the whole landscape sharp at the end? Most eigenvalues are near zero at both ends; a few "
            "stand apart, and the largest of them is the one at the edge.",
        ),
    )


def _last(descent: xr.Dataset) -> float:
    """The largest learning rate that did not diverge."""
    return float(descent["lr"].values[descent["status"].values != "diverged"].max())


def late(path: xr.Dataset, record: str) -> xr.DataArray:
    """The median of a record over the last quarter of a run, over the limit of stability."""
    rows = path[record].isel(step=slice(-max(path.sizes["step"] // _LATE, 1), None))
    return rows.median("step") / stability_threshold(path)


def _who_arrived(descent: xr.Dataset, share: xr.DataArray) -> str:
    """A sentence on which learning rates reached the edge: their late median is within a tenth of it."""
    arrived = np.abs(share.values - 1) <= 0.1
    rates = [f"{lr:g}" for lr in descent["lr"].values[~arrived]]
    if not rates:
        return "Here all of them do."
    who = f"lr = {' and '.join(rates)}"
    return f"Not so here for {who}: within these steps the sharpness did not settle there."


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    descent, adam = (results.part(tree, f"path/{name}") for name in ("gradient-descent", "adam"))
    numbers = {"sharpness at the start": f"{float(descent['sharpness'][0, 0]):.3g}"}
    share, adam_share = late(descent, "sharpness"), late(adam, "preconditioned_sharpness")
    risen = descent["loss"].diff("step") > 0
    rises = risen.sum("step") / max(risen.sizes["step"], 1)
    rows = [("optimizer", "learning rate", "limit", "median sharpness / limit", "final loss")]
    for name, path, shares in (("gradient descent", descent, share), ("Adam", adam, adam_share)):
        limits = stability_threshold(path).values
        for i, lr in enumerate(path["lr"].values):
            loss = path["loss"].values[-1, i]
            rows.append(
                (
                    name,
                    f"{lr:g}",
                    f"{limits[i]:.4g}",
                    f"{float(shares[i]):.3f}",
                    "diverged" if path["status"].values[i] == "diverged" else f"{loss:.3g}",
                )
            )
    for i, lr in enumerate(descent["lr"].values):
        numbers[f"lr = {lr:g}: median sharpness of the last quarter over its limit"] = (
            f"{float(share[i]):.3f}"
        )
        numbers[f"lr = {lr:g}: recorded steps between which the loss rose"] = (
            f"{100 * float(rises[i]):.0f} %"
        )
    return Findings(
        numbers,
        (
            "On a quadratic gradient descent with step η is stable exactly while the curvature is below "
            "2/η (2(1 + μ)/η with momentum μ). On a network the curvature changes along the way, and "
            "rises as long as it can: this is progressive sharpening (Cohen et al., 2021).",
            "At the limit it does not blow up. Oscillations along the sharpest direction grow, drive the "
            "iterate to where it is less sharp, and die down: the sharpness hovers at the limit. "
            + _who_arrived(descent, share),
            "Where it does, the learning rate chooses how flat the minimum is. A curvature bound that would "
            "guarantee descent at every step is not respected, and the loss falls nevertheless.",
        ),
        tables={"At the edge": rows},
    )
