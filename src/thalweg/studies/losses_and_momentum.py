"""Study 2: one line, four losses, and what momentum does.

A line is fitted to a slight parabola by full-batch descent under four losses and five variants of
SGD, and every path is drawn on the landscape it descends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, setting

TITLE = "One line, four losses, and what momentum does"

LOSSES = {"mse": "MSE", "l1": "L1", "huber": "Huber", "smooth_l1": "smooth L1"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    data_seed: int = setting(20240215, "seed of NumPy's legacy generator, for the data")
    n_samples: int = setting(50, "number of samples")
    lr: float = setting(0.1, "learning rate")
    steps: int = setting(100, "steps of full-batch descent")
    momentum: float = setting(0.9, "momentum μ of the variants that have it")
    weight_decay: float = setting(2.0, "weight decay λ of the variant that has it")
    dampening: float = setting(0.8, "dampening of the variant that has it")
    huber_delta: float = setting(1.0, "δ of the Huber loss")
    smooth_l1_beta: float = setting(1.0, "β of the smooth L1 loss")
    start: tuple[float, ...] = setting((6.0, -3.0), "weight,bias")
    window: tuple[float, ...] = setting((-5.0, 8.0), "the landscape's range, in both parameters")
    points: int = setting(101, "grid points along each axis")


def variants(settings: Settings) -> dict[str, tuple[str, dict[str, Any]]]:
    """The optimizers: name -> (title, options of SGD)."""
    momentum, decay, damp = settings.momentum, settings.weight_decay, settings.dampening
    return {
        "plain": ("plain", {}),
        "momentum": (f"momentum {momentum:g}", {"momentum": momentum}),
        "nesterov": (f"Nesterov momentum {momentum:g}", {"momentum": momentum, "nesterov": True}),
        "weight_decay": (
            f"Nesterov momentum {momentum:g}, weight decay {decay:g}",
            {"momentum": momentum, "nesterov": True, "weight_decay": decay},
        ),
        "dampening": (
            f"momentum {momentum:g}, dampening {damp:g}",
            {"momentum": momentum, "dampening": damp},
        ),
    }


def _half_square(decay: Any, w: dict[str, Any]) -> Any:
    return 0.5 * decay * (w["weight"] ** 2 + w["bias"] ** 2)


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """For each loss its landscape, without and with the penalty of weight decay, and five paths."""
    from jax.tree_util import Partial

    import thalweg as tw
    from thalweg.catalogue import data, models

    if len(settings.start) != 2 or len(settings.window) != 2:
        raise InputError("settings 'start' and 'window' are two numbers each, as in 6,-3.")
    at_least(settings, points=2, n_samples=1)
    x, y = data.curved_line(settings.n_samples, seed=settings.data_seed)
    start = {"weight": settings.start[0], "bias": settings.start[1]}
    specs = {
        "mse": "mse",
        "l1": "l1",
        "huber": f"huber:{settings.huber_delta!r}",
        "smooth_l1": f"smooth_l1:{settings.smooth_l1_beta!r}",
    }
    window = (settings.window[0], settings.window[1])
    nodes: dict[str, xr.Dataset] = {"data": xr.Dataset({"x": ("sample", x), "y": ("sample", y)})}
    for loss, spec in specs.items():
        problem = tw.Problem(models.line, spec, x, y, params=start)
        penalised = tw.Problem(
            models.line,
            spec,
            x,
            y,
            params=start,
            penalty=Partial(_half_square, np.float32(settings.weight_decay)),
        )
        plane = tw.coordinate_plane(problem, {"bias": window, "weight": window}, settings.points)
        nodes[f"landscape/{loss}"] = tw.landscape(problem, plane)
        nodes[f"penalised/{loss}"] = tw.landscape(penalised, plane)
        for name, (_, options) in variants(settings).items():
            nodes[f"path/{loss}/{name}"] = tw.descend(
                problem, tw.SGD(lr=settings.lr, **options), steps=settings.steps
            )
    nodes["fit"] = _fitted(nodes["data"], nodes["path/mse/plain"])
    return nodes


def _fitted(table: xr.Dataset, path: xr.Dataset) -> xr.Dataset:
    x = table["x"].values
    grid = np.linspace(x.min(), x.max(), 200)
    final = path["final"]
    weight, bias = float(final.sel(param="weight")), float(final.sel(param="bias"))
    return table.assign(
        yhat=("sample", weight * x + bias),
        x_grid=("grid", grid),
        yhat_grid=("grid", weight * grid + bias),
    )


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The points, the fit, the MSE landscape three ways, and per variant a figure with four losses."""
    table = results.part(tree, "data")
    mse = results.part(tree, "landscape/mse")
    plain = results.part(tree, "path/mse/plain")
    ax = plots.points(table)
    yield "points", Drawing.of(ax, "The data: a slight parabola with a little noise.")
    ax = plots.fit(results.part(tree, "fit"))
    ax.set_title("The line that plain descent on the MSE ends at")
    yield (
        "fit",
        Drawing.of(ax, "The fitted line. It cannot follow the curve: that is the model's bias."),
    )
    ax = plots.contour(mse, title="MSE")
    yield "landscape", Drawing.of(ax, "The MSE as a function of bias and weight: one bowl.")
    ax = plots.heatmap(mse, title="MSE")
    yield "heatmap", Drawing.of(ax, "The same as a heat map, one cell a grid point.")
    ax = plots.contour(mse, plain, title="MSE, plain gradient descent")
    yield (
        "path",
        Drawing.of(ax, f"{settings.steps} steps of plain gradient descent at {settings.lr:g}."),
    )
    for name, (title, _) in variants(settings).items():
        yield (
            name,
            Drawing.of(
                _four(tree, "landscape", name, title),
                f"SGD, {title}: its path on the landscape of each loss.",
            ),
        )
    title = variants(settings)["weight_decay"][0]
    yield (
        "weight_decay_penalised",
        Drawing.of(
            _four(tree, "penalised", "weight_decay", f"{title}, on the penalised risk"),
            "The same paths on the risk they do descend, with the penalty ½λ‖w‖² added: here they end "
            "at the bottom.",
        ),
    )


def _four(tree: xr.DataTree, surfaces: str, name: str, title: str) -> Any:
    """2 × 2 panels, one per loss, with its landscape and the path of variant `name`."""
    figure, axes = plots.grid(2, 2, title=f"SGD, {title}")
    for ax, (loss, label) in zip(axes.flat, LOSSES.items(), strict=True):
        plots.contour(
            results.part(tree, f"{surfaces}/{loss}"),
            results.part(tree, f"path/{loss}/{name}"),
            ax=ax,
            title=label,
        )
    return figure


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    losses = results.part(tree, "path/mse/plain")["loss"].values
    numbers = {
        f"MSE, plain, step {step}": f"{losses[step]:.6g}"
        for step in sorted({0, 1, len(losses) - 2, len(losses) - 1})
        if 0 <= step < len(losses)
    }
    for loss, label in LOSSES.items():
        for name, (title, _) in variants(settings).items():
            path = results.part(tree, f"path/{loss}/{name}")
            bias, weight = path["final"].values
            state = (
                "" if str(path["status"].values) == "completed" else f" ({path['status'].values})"
            )
            loss_text = f"loss {path['loss'].values[-1]:.5g}"
            if name == "weight_decay":
                penalty = 0.5 * settings.weight_decay * (bias**2 + weight**2)
                lowest = float(results.part(tree, f"penalised/{loss}")["empirical"].min())
                loss_text += (
                    f", {path['loss'].values[-1] + penalty:.5g} with the penalty "
                    f"(lowest on the grid: {lowest:.5g})"
                )
            numbers[f"{label}, {title}"] = (
                f"{loss_text} at bias {bias:.4f}, weight {weight:.4f}{state}"
            )
    same = np.array_equal(
        results.part(tree, "path/huber/plain")["params"],
        results.part(tree, "path/smooth_l1/plain")["params"],
    )
    ones = settings.huber_delta == settings.smooth_l1_beta == 1
    equal = "Huber and smooth L1 differ by the factor β and the place of their bend."
    if ones:
        equal = "Huber with δ = 1 and smooth L1 with β = 1 are the same function" + (
            ", and their paths agree to the last bit." if same else "."
        )
    return Findings(
        numbers,
        (
            "The MSE's gradient shrinks towards the bottom, so plain descent slows down by itself; "
            "the L1 loss has slopes of nearly constant size, and a fixed step keeps jumping across its "
            "valley.",
            "Momentum overshoots and swings, Nesterov's variant swings less, and dampening makes "
            "momentum's steps shorter.",
            "Weight decay pulls towards the origin: on the plain landscape its path seems to stop on a "
            "slope, and on the penalised one it ends at the bottom.",
            equal,
        ),
    )
