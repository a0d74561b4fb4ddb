"""Study 3: a line, an outlier, and on to polynomials.

A line, a quadratic and a polynomial are fitted to a noisy parabola with one outlier, by least squares
in closed form and by descent on the mean absolute error (MAE). On the way a small function is
differentiated, and the computation and its reverse pass are drawn as graphs.

The least MAE of each model is known: it is the solution of a linear program, and says how far short
of it each descent stops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import interactive
from thalweg.studies import Drawing, Findings, polynomials
from thalweg.studies.settings import at_least, setting

TITLE = "A line, an outlier, and on to polynomials"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    data_seed: int = setting(42, "seed of NumPy's legacy generator, for the data")
    n_samples: int = setting(100, "number of samples")
    noise: float = setting(0.7, "standard deviation of the noise")
    outlier: tuple[float, ...] = setting((-1.5, 10.0), "x,y in the first sample's place; or empty")
    theta: float = setting(1.0, "θ, where z is differentiated")
    around: float = setting(1.0, "the first landscapes' reach about the least-squares line")
    window: tuple[float, ...] = setting(
        (-1.0, 1.0, -0.5, 5.0), "the descent's landscape: intercept from,to, slope from,to"
    )
    points: int = setting(50, "grid points along each axis")
    line_lr: float = setting(6.0, "line: learning rate a of a/(t + 1)")
    line_steps: int = setting(50, "line: steps of full-batch descent")
    quadratic_lr: float = setting(10.0, "quadratic, full batch: learning rate a of a/(t + 1)")
    quadratic_steps: int = setting(500, "quadratic, full batch: steps")
    batch_size: int = setting(10, "samples per step of the mini-batch descents")
    sgd_lr: float = setting(1.0, "quadratic, mini-batches: learning rate a of a/(epoch + 1)")
    sgd_epochs: int = setting(20, "quadratic, mini-batches: epochs")
    adam_lr: float = setting(0.1, "quadratic, Adam: learning rate")
    adam_epochs: int = setting(100, "quadratic, Adam: epochs")
    degree: int = setting(12, "degree of the polynomial")
    polynomial_lr: float = setting(0.01, "polynomial, Adam: learning rate")
    polynomial_epochs: int = setting(500, "polynomial, Adam: epochs")
    shown_batch: int = setting(20, "samples in each of the mini-batches that are shown")
    seed: int = setting(0, "seed of the shuffling")


def fits(settings: Settings) -> dict[str, tuple[str, str]]:
    """The fits: name -> (title, model)."""
    return {
        "least-squares": ("line, least squares", "line"),
        "line": ("line, MAE by gradient descent", "line"),
        "quadratic-full": ("quadratic, MAE by gradient descent", "quadratic"),
        "quadratic-batches": ("quadratic, MAE by mini-batch SGD", "quadratic"),
        "quadratic-adam": ("quadratic, MAE by Adam", "quadratic"),
        "polynomial": (f"degree {settings.degree}, MAE by Adam", "polynomial"),
    }


def line(params: dict[str, Any], x: Any) -> Any:
    """intercept + slope·x."""
    return params["intercept"] + params["slope"] * x


def z(θ: Any) -> Any:
    """(1 − log(1 + e^θ))²: the function that is differentiated."""
    import jax.numpy as jnp

    return (1 - jnp.log(1 + jnp.exp(θ))) ** 2


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The landscapes about the least-squares line, the graphs, five descents, and all fits."""
    import thalweg as tw
    from thalweg.catalogue import data, models

    _check(settings)
    outlier = (settings.outlier[0], settings.outlier[1]) if settings.outlier else None
    x, y = data.parabola_with_outlier(
        settings.n_samples, noise=settings.noise, outlier=outlier, seed=settings.data_seed
    )
    # float32 parameters on float64 data, as in the reference: losses are then float64
    zero = np.float32(0)
    start = {"intercept": zero, "slope": zero}
    mse, mae = (tw.Problem(line, loss, x, y, params=start) for loss in ("mse", "l1"))
    quadratic = tw.Problem(models.polynomial, "l1", x, y, params=_zeros(2))
    polynomial = tw.Problem(models.polynomial, "l1", x, y, params=_zeros(settings.degree))
    exact = tw.Problem(line, "mse", x, y, params={"intercept": 0.0, "slope": 0.0})  # in float64
    least = np.asarray(exact.flatten(tw.least_squares(exact)))

    around = {
        name: (value - settings.around, value + settings.around)
        for name, value in zip(mse.names, least, strict=True)
    }
    window = dict(zip(mse.names, (settings.window[:2], settings.window[2:]), strict=True))
    batches = {"batch_size": settings.batch_size, "shuffle": True, "seed": settings.seed}
    per_epoch = -(-settings.n_samples // settings.batch_size)
    record = ["risk", "grad"]
    paths = {
        "line": tw.descend(
            mae,
            tw.SGD(lr=lambda t: settings.line_lr / (t + 1)),
            steps=settings.line_steps,
            record=record,
        ),
        "quadratic-full": tw.descend(
            quadratic,
            tw.SGD(lr=lambda t: settings.quadratic_lr / (t + 1)),
            steps=settings.quadratic_steps,
            record=record,
        ),
        "quadratic-batches": tw.descend(
            quadratic,
            tw.SGD(lr=lambda t: settings.sgd_lr / (t // per_epoch + 1)),
            epochs=settings.sgd_epochs,
            record=record,
            **batches,
        ),
        "quadratic-adam": tw.descend(
            quadratic,
            tw.Adam(lr=settings.adam_lr),
            epochs=settings.adam_epochs,
            record=record,
            **batches,
        ),
        "polynomial": tw.descend(
            polynomial,
            tw.Adam(lr=settings.polynomial_lr),
            epochs=settings.polynomial_epochs,
            record=record,
            **batches,
        ),
    }
    coefficients = {"least-squares": least} | {
        k: polynomials.final_coefficients(p) for k, p in paths.items()
    }
    degrees = {"line": 1, "quadratic": 2, "polynomial": settings.degree}
    return {
        "data": xr.Dataset({"x": ("sample", x), "y": ("sample", y)}),
        "least-squares": xr.Dataset({"params": ("param", least)}, {"param": list(mse.names)}),
        "landscape/mse": tw.landscape(mse, tw.coordinate_plane(mse, around, settings.points)),
        "landscape/mae": tw.landscape(mae, tw.coordinate_plane(mae, around, settings.points)),
        "landscape/descent": tw.landscape(mae, tw.coordinate_plane(mae, window, settings.points)),
        "graph/forward": tw.computation_graph(z, settings.theta),
        "graph/reverse": tw.computation_graph(z, settings.theta, reverse=True),
        "batches": _batches(quadratic, settings),
        **{f"path/{name}": path for name, path in paths.items()},
        **{f"fit/{name}": polynomials.fit(x, y, params) for name, params in coefficients.items()},
        **{
            f"exact/{name}": polynomials.fit(x, y, polynomials.least_absolute(x, y, degree))
            for name, degree in degrees.items()
        },
    }


def _check(settings: Settings) -> None:
    if len(settings.outlier) not in (0, 2):
        raise InputError("setting 'outlier' is two numbers, as in -1.5,10, or empty.")
    if len(settings.window) != 4:
        raise InputError("setting 'window' is four numbers, as in -1,1,-0.5,5.")
    at_least(settings, n_samples=1, degree=1, points=2, batch_size=1, shown_batch=1)


def _zeros(degree: int) -> dict[str, Any]:
    return {f"c{power}": np.float32(0) for power in range(degree + 1)}


def _batches(problem: Any, settings: Settings) -> xr.Dataset:
    """The mini-batches of one epoch, with each one's loss and gradient at the start."""
    import thalweg as tw

    # With a learning rate of 0 every batch sees the same parameters.
    whole = settings.shown_batch >= settings.n_samples
    path = tw.descend(
        problem,
        tw.SGD(lr=0.0),
        epochs=1,
        batch_size=settings.shown_batch,
        shuffle=True,
        seed=settings.seed,
        record=["grad"] if whole else ["grad", "batch"],
    ).isel(step=slice(-1))
    index = np.arange(settings.n_samples)[None] if whole else path["batch"].values
    return xr.Dataset(
        {
            "batch": (("step", "in_batch"), index),
            "loss": ("step", path["loss"].values),
            "grad": (("step", "param"), path["grad"].values),
        },
        {"param": path["param"].values},
    )


# Figures ---------------------------------------------------------------------------------------


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The data and the line, landscapes, graphs, batches, every descent and every fit."""
    yield (
        "data",
        Drawing.of(
            plots.points(results.part(tree, "data")),
            "What is fitted? A noisy parabola, and one outlier on the upper left.",
        ),
    )
    yield _residuals(tree, settings, "least-squares")
    yield from _landscapes(tree)
    yield from _graphs(tree, settings)
    yield from _line_descent(tree, settings)
    yield _batch_panels(tree, settings)
    yield from _quadratics(tree, settings)
    yield _residuals(tree, settings, "polynomial")
    ax = plots.fit(_all_fits(tree, settings), title="All fits")
    yield (
        "fits",
        Drawing.of(
            ax,
            "What does each model and loss make of the data? Least squares lets the outlier tilt its "
            "line; under the MAE the lines and curves pass through the crowd.",
        ),
    )
    yield _gaps(tree, settings)


def _residuals(tree: xr.DataTree, settings: Settings, name: str) -> tuple[str, Drawing]:
    title = fits(settings)[name][0]
    fit = results.part(tree, f"fit/{name}")
    figure = plots.fit_and_residuals(fit, title=f"{title[0].upper()}{title[1:]}")
    losses = f"MSE {float(fit['mse']):.4g}, MAE {float(fit['mae']):.4g}"
    return f"fit-{name}", Drawing.of(
        figure,
        f"What does the fit ({title}) leave unexplained? Each residual as a segment, and against x: "
        f"{losses}.",
    )


def _landscapes(tree: xr.DataTree) -> Iterator[tuple[str, Drawing]]:
    least = results.part(tree, "least-squares")["params"]
    bottom = {
        "mse": "Where is the MSE of the line least? At the least-squares point, the bottom of a bowl "
        "with elliptic contours.",
        "mae": "And the MAE? It is made of flat facets that meet where a sample lies on the line, and "
        "its bottom lies elsewhere, at another slope.",
    }
    for loss, caption in bottom.items():
        surface = results.part(tree, f"landscape/{loss}")
        name = loss.upper()
        ax = plots.contour(surface, title=f"{name} about the least-squares line")
        plots.mark(surface, least, ax=ax, label="least squares")
        yield f"landscape-{loss}", Drawing.of(ax, caption)
        yield (
            f"surface-{loss}",
            Drawing.of(
                lambda surface=surface, name=name: interactive.surface(
                    surface,
                    points={"least squares": least.values},
                    title=f"{name} about the least-squares line",
                ),
                f"The same {name} as contours and as a surface that can be turned.",
            ),
        )


def _graphs(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    yield (
        "graph",
        Drawing.of(
            lambda: plots.graph(
                results.part(tree, "graph/forward"),
                title="z(θ) = (1 − log(1 + exp θ))², step by step",
            ),
            f"How is z computed at θ = {settings.theta:g}? One box per operation, with the value it "
            "makes.",
        ),
    )
    yield (
        "graph-reverse",
        Drawing.of(
            lambda: plots.graph(
                results.part(tree, "graph/reverse"), title="z(θ) and its reverse pass"
            ),
            "And its derivative? From the bottom of the right column up, each box multiplies by one "
            "local derivative, which needs a value of the left column where a dashed line leads to it. "
            "At the top stands ∂z/∂θ.",
        ),
    )


def _line_descent(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    surface, path = results.part(tree, "landscape/descent"), results.part(tree, "path/line")
    least = results.part(tree, "least-squares")["params"]
    ax = plots.contour(surface, path, title="MAE of the line, and gradient descent from zero")
    plots.mark(surface, least, ax=ax, label="least squares")
    yield (
        "descent-line",
        Drawing.of(
            ax,
            f"Where do {settings.line_steps} steps with learning rate {settings.line_lr:g}/(t + 1) "
            "lead? Across the valley and back at first, then down to the bottom, a line steeper than "
            "that of least squares, whose slope the outlier lowers.",
        ),
    )
    yield _residuals(tree, settings, "line")


def _batch_panels(tree: xr.DataTree, settings: Settings) -> tuple[str, Drawing]:
    batches = results.part(tree, "batches").isel(step=slice(6))
    titles = [
        f"Batch {k + 1}: MAE {float(loss):.3g}" for k, loss in enumerate(batches["loss"].values)
    ]
    figure = plots.batches(
        results.part(tree, "data"),
        batches["batch"].values,
        titles=titles,
        title=f"The first epoch in mini-batches of {min(settings.shown_batch, settings.n_samples)}",
    )
    return "batches", Drawing.of(
        figure,
        "What does a mini-batch hold? A random part of the data: an epoch goes through every sample "
        "once, and each batch has its own loss, here at parameters of zero.",
    )


def _quadratics(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    for name, (title, model) in fits(settings).items():
        if model != "quadratic":
            continue
        path = results.part(tree, f"path/{name}")
        least = {"least MAE": results.part(tree, "exact/quadratic")["coefficients"].values}
        yield (
            f"path-{name}",
            Drawing.of(
                lambda path=path, title=title, least=least: interactive.path3d(
                    path, points=least, title=f"The way of the {title}"
                ),
                f"Which way do the three coefficients go ({title})? The colour is the time.",
            ),
        )
        yield _residuals(tree, settings, name)


def _all_fits(tree: xr.DataTree, settings: Settings) -> xr.Dataset:
    """All fitted curves on one grid."""
    names = fits(settings)
    parts = [results.part(tree, f"fit/{name}") for name in names]
    curves = np.stack([part["yhat_grid"].values for part in parts])
    table = parts[0][["x", "y", "x_grid"]].assign_coords(fit=[title for title, _ in names.values()])
    return table.assign(yhat_grid=(("fit", "grid"), curves))


def _gaps(tree: xr.DataTree, settings: Settings) -> tuple[str, Drawing]:
    """How far above the least MAE of its model each descent is."""
    ax = None
    for name, (title, model) in fits(settings).items():
        if name not in tree["path"].children:
            continue
        path = results.part(tree, f"path/{name}")
        least = float(results.part(tree, f"exact/{model}")["mae"])
        gap = (path["risk"] - least).assign_attrs(long_name="MAE − least MAE of the model")
        ax = plots.record(
            path.assign(gap=gap),
            "gap",
            ax=ax,
            x="log",
            label=title,
            title="How far each stops short",
        )
    assert ax is not None
    return "gap", Drawing.of(
        ax,
        "How far from its model's least MAE is each descent? Falling learning rates settle down; Adam "
        "at a fixed rate keeps jumping, the polynomial most.",
    )


# Findings --------------------------------------------------------------------------------------


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    intercept, slope = results.part(tree, "least-squares")["params"].values
    graph = results.part(tree, "graph/reverse")
    value, derivative = (
        float(graph["value"].values[graph["kind"].values == kind][0])
        for kind in ("output", "gradient")
    )
    θ = settings.theta
    by_hand = -2 * (1 - np.logaddexp(0, θ)) / (1 + np.exp(-θ))
    path = results.part(tree, "path/line")
    gradient = dict(zip(path["param"].values.tolist(), path["grad"].values[0], strict=True))
    batches = results.part(tree, "batches")
    farthest = np.abs(results.part(tree, "data")["x"].values).max()
    jump = settings.polynomial_lr * np.sum(farthest ** np.arange(settings.degree + 1))
    numbers = {
        "least-squares line": f"intercept {intercept:.8f}, slope {slope:.8f}",
        f"z at θ = {θ:g}": f"{value:.16g}",
        "its derivative, by the reverse pass": f"{derivative:.16g}",
        "its derivative, by the formula": f"{by_hand:.16g}",
        "MAE of the line at zero": f"{path['loss'].values[0]:.15g}",
        "gradient of that MAE at zero": ", ".join(f"{k} {v:.9g}" for k, v in gradient.items()),
        "MAE of the mini-batches at zero": ", ".join(
            f"{v:.4g}" for v in batches["loss"].values[:6]
        ),
    }
    rows = [("fit", "MSE", "MAE", "least MAE of the model", "stops short by", "status")]
    warnings = []
    for name, (title, model) in fits(settings).items():
        fit = results.part(tree, f"fit/{name}")
        least = float(results.part(tree, f"exact/{model}")["mae"])
        mae = float(fit["mae"])
        status = "exact for the MSE"
        if name in tree["path"].children:
            status = str(results.part(tree, f"path/{name}")["status"].values)
            if status == "diverged":
                warnings.append(f"{title} diverged: lower its learning rate.")
        rows.append(
            (title, f"{float(fit['mse']):.6g}", f"{mae:.6g}", f"{least:.6g}",
             f"{mae - least:.3g}", status)
        )  # fmt: skip
    return Findings(
        numbers,
        (
            "Squared errors make the outlier's residual count by its square: it tilts the "
            "least-squares line. The MAE counts every residual by its length, and its line leaves the "
            "outlier where it is.",
            "By the chain rule, with s = 1 + e^θ, dz/dθ = 2(1 − log s) · (−1) · 1/s · e^θ: the factors "
            "of the reverse pass, from the output back to θ.",
            "The MAE's gradient is a mean of signs and does not shrink towards the bottom, so the "
            "learning rate has to: 1/(t + 1) covers any distance and still comes to rest.",
            "A mini-batch costs a part of a full step, and its gradient is not the full one; only on average "
            "over the batches is it right. A falling learning rate averages that noise out; at a fixed one "
            "Adam keeps jumping about the minimum.",
            "The least MAE is a linear program's, exact to rounding, and the table says how far above "
            "it each descent stops. The polynomial's steps are coarse where |x| is large: a step of "
            f"{settings.polynomial_lr:g} in every coefficient moves the curve by up to {jump:.3g} at "
            f"|x| = {farthest:.3g}, and by {settings.polynomial_lr:g} at 0.",
        ),
        tuple(warnings),
        {"Final losses": tuple(rows)},
    )
