"""A model fitted to a table: what `thalweg descend` runs.

It is not one of the ready-made studies, since the data are the user's, but a study all the same, so that it
is saved, drawn, reported and run again like one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from thalweg import blocks, names, plots, results
from thalweg.errors import InputError, unknown
from thalweg.plots.style import plain
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import setting
from thalweg.studies.texts import assignments, options_of

TITLE = "A model fitted to a table"

_ROWS = 1024  # samples whose Jacobian is held at a time
_STATIONARY = 1e-20  # a share of squares that is nothing but rounding
_CLOSE = 1e-3  # of the whole improvement: a descent that gains less in its last tenth has converged


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    x: tuple[str, ...] = setting((), "feature columns")
    y: str = setting("", "target column")
    model: str = setting("line", "line, polynomial:3, mlp:16,16 or tanh-mlp:16,16")
    loss: str = setting("mse", "mse, l1, huber:1.0, smooth_l1:1.0 or bce_with_logits")
    standardize: bool = setting(False, "scale the columns to mean 0 and standard deviation 1")
    optimizer: str = setting("SGD", "an optimizer of thalweg, by name")
    lr: float | None = setting(None, "learning rate; by default the optimizer's own")
    options: str = setting("", "further options of the optimizer, as in momentum=0.9,nesterov=true")
    steps: int | None = setting(None, "number of steps")
    epochs: int | None = setting(None, "number of passes through the data")
    batch_size: int | None = setting(None, "samples per step; all of them by default")
    shuffle: bool = setting(False, "a new order each epoch")
    start: str = setting("", "starting point by parameter, as in weight=6,bias=-3")
    seed: int = setting(0, "seed of random starts and of shuffling")
    plane: tuple[str, ...] = setting((), "two parameters to draw the landscape over")
    window: tuple[float, ...] = setting((), "the landscape's range, across and up: x0,x1,y0,y1")
    points: int = setting(101, "grid points of the landscape along each axis")


@np.errstate(over="ignore", invalid="ignore")  # a diverged fit is data, not a warning
def run(settings: Settings, data: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """The data as fitted, the descent, and the landscape where there are two parameters to draw."""
    import thalweg as tw
    from thalweg.catalogue import models
    from thalweg.optimizers import by_name

    x, y = np.asarray(data["x"], float), np.asarray(data["y"], float)
    scales = _scales(x, y, settings)
    xs = (x - scales["x_mean"]) / scales["x_scale"]
    ys = (y - scales["y_mean"]) / scales["y_scale"]
    features = xs[:, 0] if xs.shape[1] == 1 else xs
    model = models.by_name(settings.model, xs.shape[1])
    problem = tw.Problem(
        model.predict, settings.loss, features, ys, params=model.params, init=model.init
    )
    if settings.shuffle and settings.batch_size is None:
        raise InputError("shuffle needs batch_size: without it each step sees all samples.")
    starts = _start(problem, settings)
    axes = _axes(problem.names, settings)
    options = _options(settings)
    path = tw.descend(
        problem,
        by_name(settings.optimizer, **options),
        steps=settings.steps,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        shuffle=settings.shuffle,
        seed=settings.seed,
        starts=starts,
        record=["grad_norm", "risk", "relative_movement"],
        every=_every(settings, problem.n_samples),
    )
    if starts is not None:
        path = path.isel(run=0, drop=True)
    table = xr.Dataset(
        {"x": (("sample", "feature"), x), "y": ("sample", y)},
        coords={"feature": np.array(settings.x)},
    )
    final = path["final"].values
    fitted = table.copy()
    fitted["yhat"] = (
        "sample",
        _predict(problem, final, features, settings) * scales["y_scale"] + scales["y_mean"],
    )
    if x.shape[1] == 1 and np.isfinite(final).all():
        room = 0.5 * (x.min() == x.max())
        grid = np.linspace(x.min() - room, x.max() + room, 400)
        scaled_grid = (grid - scales["x_mean"][0]) / scales["x_scale"][0]
        fitted["x_grid"] = ("grid", grid)
        yhat = _predict(problem, final, scaled_grid, settings)
        fitted["yhat_grid"] = ("grid", yhat * scales["y_scale"] + scales["y_mean"])
    for name, value in scales.items():
        fitted[name] = ("feature", value) if name.startswith("x_") else ((), value)
    for name, point in (("gradient", final), ("gradient_at_start", path["start"].values)):
        gradient = problem.gradient(problem.unflatten(point))
        fitted[name] = ("param", np.asarray(problem.flatten(gradient)))
    fitted = fitted.assign_coords(names.coords(problem.names))
    fitted["slope_left"] = _slope_left(problem, final)
    nodes = {"data": table, "path": path, "fit": fitted}
    if axes:
        window = _window(path, axes, settings)
        plane = tw.coordinate_plane(problem, window, settings.points, at=_finite_point(path))
        nodes["landscape"] = tw.landscape(problem, plane)
    return nodes


def _predict(problem: Any, vector: np.ndarray, x: np.ndarray, settings: Settings) -> np.ndarray:
    """What is drawn beside the targets: the predictions, for logits as probabilities."""
    predicted = np.asarray(problem.predict(problem.unflatten(vector), x))
    return 1 / (1 + np.exp(-predicted)) if _is_logistic(settings) else predicted


def _is_logistic(settings: Settings) -> bool:
    return settings.loss == "bce_with_logits"


def _slope_left(problem: Any, vector: np.ndarray) -> float:
    """The share of the samples' slopes that the model could still follow, NaN where it is not informative.

    With the pointwise slopes s = ∂ℓ/∂ŷ and the Jacobian J = ∂ŷ/∂w the gradient is Jᵀs/n, which ignores the
    part of s orthogonal to J's range; the share is ‖P_J s‖²/‖s‖². Unlike the gradient's norm it does not
    depend on the parameters' scales, and for squared errors and a model linear in its parameters it is the
    share of the risk that can still be removed. At a minimum on a kink, a few samples' slopes remain. A
    model with nearly as many parameters as samples can always follow, so the share says nothing there.
    """
    import jax
    import jax.numpy as jnp

    if 2 * problem.size > problem.n_samples or not np.isfinite(vector).all():
        return float("nan")
    point = jnp.asarray(vector)

    @jax.jit
    def part(x: Any, y: Any) -> Any:
        """The Jacobian's rows and the slopes of some samples: (rows, p + 1)."""

        def predict(w: Any) -> Any:
            return problem.predict(problem.unflatten(w), x)

        slopes = jax.grad(lambda yhat: problem.loss(yhat, y).sum())(predict(point))
        return jnp.column_stack([jax.jacfwd(predict)(point), slopes])

    # In blocks: R of [J s] has the same singular values as [J s], and is small.
    r = np.zeros((0, problem.size + 1))
    for first in range(0, problem.n_samples, _ROWS):
        rows = slice(first, first + _ROWS)
        stacked = np.vstack([r, part(problem.x[rows], problem.y[rows])])
        if not np.isfinite(stacked).all():
            return float("nan")
        r = np.asarray(np.linalg.qr(stacked, mode="r"))
    jacobian, slopes = r[:, :-1], r[:, -1]
    sizes = np.linalg.norm(jacobian, axis=0)
    jacobian = jacobian[:, sizes > 0] / sizes[sizes > 0]
    whole = float(slopes @ slopes)
    if whole == 0 or jacobian.shape[1] == 0:
        return float("nan")
    followed = jacobian @ np.linalg.lstsq(jacobian, slopes, rcond=None)[0]
    return float(followed @ followed) / whole


def _scales(x: np.ndarray, y: np.ndarray, settings: Settings) -> dict[str, Any]:
    """What the columns are shifted and scaled by: means and standard deviations, or 0 and 1."""
    if not settings.standardize:
        return {
            "x_mean": np.zeros(x.shape[1]),
            "x_scale": np.ones(x.shape[1]),
            "y_mean": 0.0,
            "y_scale": 1.0,
        }
    for name, column in zip((*settings.x, settings.y), (*x.T, y), strict=True):
        # not by the deviation: that of seven times 0.1 is 1e-17, and that of 1e-200 and 2e-200 is 0
        if column.min() == column.max():
            raise InputError(
                f"column {name!r} is constant, so it cannot be standardized; leave it out."
            )
        deviation = column.std()
        if not 0 < deviation < np.inf:
            raise InputError(
                f"column {name!r} cannot be standardized: its standard deviation is {deviation:g} in "
                "floating point; change its units."
            )
    if _is_logistic(settings):
        # the targets are classes, 0 and 1: they keep their values
        return {"x_mean": x.mean(0), "x_scale": x.std(0), "y_mean": 0.0, "y_scale": 1.0}
    return {"x_mean": x.mean(0), "x_scale": x.std(0), "y_mean": y.mean(), "y_scale": y.std()}


def _options(settings: Settings) -> dict[str, Any]:
    """The optimizer's options: the learning rate, and what `options` says."""
    options = options_of(settings.options)
    if settings.lr is not None:
        if "lr" in options:
            raise InputError("the learning rate was given twice: as lr, and among the options.")
        options["lr"] = settings.lr
    return options


def _start(problem: Any, settings: Settings) -> np.ndarray | None:
    if not settings.start:
        return None
    if problem.params is None:
        raise InputError(
            f"model {settings.model!r} starts at random, from the seed; start= is for named parameters."
        )
    point = np.array(problem.flatten(problem.params), float)
    for name, text in assignments("start", settings.start):
        index = problem.layout.index(name)
        try:
            point[index] = float(text)
        except ValueError:
            point[index] = np.nan
        if not np.isfinite(point[index]):
            raise InputError(f"start: {name} needs a finite number; {text!r} given.")
    return point[None]


def _every(settings: Settings, n_samples: int) -> int:
    """How often to record: at most some thousand rows, enough for every curve that is drawn."""
    steps = settings.steps or 0
    if settings.epochs:
        steps = settings.epochs * -(-n_samples // (settings.batch_size or n_samples))
    return max(1, steps // 5000)


def _axes(names: Sequence[str], settings: Settings) -> tuple[str, ...]:
    if settings.plane and len(settings.plane) != 2:
        raise InputError(
            f"plane: two parameters were expected, as in bias,weight; {','.join(settings.plane)} given."
        )
    axes = settings.plane or (tuple(names) if len(names) == 2 else ())
    for axis in axes:
        if axis not in names:
            raise unknown("parameter", axis, names)
    if settings.window and not axes:
        raise InputError(
            f"window: no landscape is drawn of {len(names)} parameters; say over which two with plane."
        )
    if len(settings.window) not in (0, 4):
        raise InputError(
            f"window: four numbers were expected, x0,x1,y0,y1; {settings.window} given."
        )
    if axes and axes[0] == axes[1]:
        raise InputError(f"plane: two different parameters were expected; {axes[0]!r} given twice.")
    if axes and settings.points < 2:
        raise InputError(f"points must be at least 2 to draw a landscape; {settings.points} given.")
    if axes:
        _check_grid(axes, settings)
    return axes


def _check_grid(axes: tuple[str, ...], settings: Settings) -> None:
    """An InputError for a landscape that cannot be computed, before the descent, which would be lost."""
    from thalweg import planes

    points = settings.points
    blocks.check_memory(8 * points**2, f"a landscape of {points} × {points} points", "lower points")
    if settings.window:
        for axis, ends in zip(axes, (settings.window[:2], settings.window[2:]), strict=True):
            planes.grid_of(axis, ends, points)


def _window(
    path: xr.Dataset, axes: tuple[str, ...], settings: Settings
) -> dict[str, tuple[float, float]]:
    """The window that was asked for, or one around the path with a margin."""
    if settings.window:
        return {axes[0]: settings.window[:2], axes[1]: settings.window[2:]}  # type: ignore[dict-item]
    window = {}
    for axis in axes:
        values, every = np.zeros(1), names.found(path) or ()
        if axis in every:
            place = {"param": every.index(axis)}
            values = path["params"].isel(place).values
            values = values[np.isfinite(values)]
            if not len(values):
                values = path["start"].isel(place).values.reshape(-1)
        # A diverged path spans many decades; show only the surroundings of its start.
        low, high = np.min(values), np.max(values)
        if high - low > 1e6 * (1 + abs(values[0])):
            low = high = values[0]
        room = 0.3 * (high - low) or 1 + abs(low)
        window[axis] = (float(low - room), float(high + room))
    return window


def _finite_point(path: xr.Dataset) -> np.ndarray:
    final = path["final"].values
    return final if np.isfinite(final).all() else path["start"].values


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The fit and its residuals, the loss, the movement, and the landscape with the path."""
    path, fitted = results.part(tree, "path"), results.part(tree, "fit")
    if fitted.sizes["feature"] == 1 and "x_grid" in fitted:
        x, y = plain(settings.x[0]), plain(settings.y)
        flat = fitted.assign(x=("sample", fitted["x"].values[:, 0]))
        ax = plots.fit(flat)
        ax.set(
            xlabel=x,
            ylabel=f"probability of {y}" if _is_logistic(settings) else y,
            title=f"{settings.model} under {settings.loss}",
        )
        yield "fit", Drawing.of(ax, "The data and the fitted model, in the table's units.")
        if not _is_logistic(settings):
            ax = plots.residual_scatter(flat)
            ax.set(xlabel=x, ylabel=f"{y} − fit", title="Residuals")
            yield "residuals", Drawing.of(ax, "What the model leaves unexplained.")
    if "landscape" in tree.children:
        ax = plots.contour(
            results.part(tree, "landscape"),
            path,
            title=f"Empirical risk ({settings.loss}) and the path",
        )
        yield (
            "landscape",
            Drawing.of(ax, "The empirical risk and the optimizer's path across it."),
        )
    ax = plots.record(path, "risk")
    ax.set_title("Empirical risk")
    yield "loss", Drawing.of(ax, "The empirical risk over all samples at each recorded step.")
    ax = plots.record(path, "grad_norm")
    ax.set_title("Gradient norm")
    yield "gradient", Drawing.of(ax, "The norm of each step's gradient.")


def not_converged(tree: xr.DataTree) -> str | None:
    """Why a descent has clearly not converged; None otherwise."""
    path = results.part(tree, "path")
    status = str(path["status"].values)
    if status == "diverged":
        return (
            f"the descent diverged at step {int(path['diverged_at'].values)}: lower the learning rate, "
            "or standardize the columns"
        )
    if status == "interrupted":
        return f"the descent was interrupted at step {int(path['step'].values[-1])}"
    risk = path["risk"].values
    whole = risk[0] - risk.min()
    left = float(results.part(tree, "fit")["slope_left"])
    stationary = left < _STATIONARY
    if whole <= 0 and risk[-1] > risk[0] and not (stationary and np.isclose(risk[-1], risk[0])):
        return "the risk is not lower than at the start: lower the learning rate"
    # it may have started there: then the risk has no way to fall, and what follows would compare roundings
    if len(risk) < 2 or stationary:
        return None
    tenth = max(1, len(risk) // 10)
    # Compare the lowest risks of the last two tenths, as a fixed step keeps jumping across a kink's minimum.
    before, last = risk[-2 * tenth : -tenth], risk[-tenth:]
    fell = (before.min() if len(before) else risk[0]) - last.min()
    if fell > _CLOSE * whole:
        return (
            f"the risk still fell by {100 * fell / whole:.2g} % of its whole way in the last tenth of "
            "the steps: take more steps, or a larger learning rate"
        )
    if left * risk[-1] > _CLOSE * whole:
        return (
            f"the gradient is not yet small: {100 * left:.2g} % of the {_residuals(tree)} are within the "
            "model's reach; standardize the columns, take more steps, or try another learning rate"
        )
    return None


def _smooth(tree: xr.DataTree) -> bool:
    """Whether the gradient vanishes at a minimum: at a kink of the L1 loss it need not."""
    return results.settings_of(tree)["loss"].split(":")[0] != "l1"


def _residuals(tree: xr.DataTree) -> str:
    """What `slope_left` is a share of, in words: for squared errors the slopes are the residuals."""
    squared = results.settings_of(tree)["loss"] == "mse"
    return "residuals" if squared else "loss's slopes at the samples"


def _gradient_norm(tree: xr.DataTree, which: str = "gradient") -> float:
    """The norm of the gradient of the risk on all data, at the last iterate or at the start."""
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(results.part(tree, "fit")[which].values))


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    path, fitted = results.part(tree, "path"), results.part(tree, "fit")
    status, final = str(path["status"].values), path["final"].values
    left = float(fitted["slope_left"])
    numbers = {
        "status": status,
        "samples": f"{tree['data'].sizes['sample']}",
        "risk, first to last": f"{path['risk'].values[0]:.6g} → {path['risk'].values[-1]:.6g}",
        "gradient norm at the end": f"{_gradient_norm(tree):.3g} "
        f"(at the start {_gradient_norm(tree, 'gradient_at_start'):.3g})",
    }
    if np.isfinite(left):
        numbers[f"share of the {_residuals(tree)} within the model's reach (0 at a minimum)"] = (
            f"{left:.2g}"
        )
    units = " (standardized)" if settings.standardize else ""
    if len(final) <= 20:
        for name, value in zip(path["param"].values, final, strict=True):
            numbers[f"{name}{units}"] = f"{value:.6g}"
    if settings.standardize and settings.model == "line" and not _is_logistic(settings):
        scale = float(fitted["y_scale"])
        by_name = dict(zip(path["param"].values.tolist(), final, strict=True))
        weights = np.array([v for k, v in by_name.items() if k != "bias"])
        slopes = weights * scale / fitted["x_scale"].values
        offset = by_name["bias"] * scale + float(fitted["y_mean"])
        offset -= float(slopes @ fitted["x_mean"].values)
        for column, slope in zip(settings.x, slopes, strict=True):
            numbers[f"slope of {column} (table's units)"] = f"{slope:.6g}"
        numbers["intercept (table's units)"] = f"{offset:.6g}"
    problem = not_converged(tree)
    sentences = (
        "The risk is the mean of the loss over the samples"
        + (", of the standardized columns." if settings.standardize else "."),
    )
    if np.isfinite(left):
        what = _residuals(tree)
        sentences += (
            f"The {what} within the model's reach are the share, of their sum of squares, that lies in the "
            "directions in which a small change of the parameters moves the predictions.",
        )
    if not _smooth(tree):
        sentences += (
            "The L1 loss has kinks, one for each sample: its gradient is not zero at the minimum, "
            "where the path jumps from one side to the other.",
        )
    return Findings(numbers, sentences, (f"Not converged: {problem}.",) if problem else ())
