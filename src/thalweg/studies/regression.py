"""Shared by the studies of regression in one dimension.

The nodes: targets and data; the models' functions before and after training; tables of their parameters.
JAX is needed only to make them, not to read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg.studies.settings import setting

if TYPE_CHECKING:
    from thalweg.problem import Problem

GRID = 401  # points on [−1, 1]: every 0.005, the targets' kinks among them


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Settings of the data, and of the order in which a descent takes them."""

    target: str = setting("middle", "what is learnt: simple, middle or complex")
    n_samples: int = setting(15, "number of samples")
    noise: float = setting(0.0, "standard deviation of the noise")
    batch_size: int | None = setting(
        None, "samples per step, first in the data's order, then reshuffled; none for all of them"
    )
    seed: int = setting(0, "seed of the data, the initialisations and the batches")


def batches(settings: DataSettings) -> dict[str, Any]:
    """The arguments of `descend` that set batches and order as in the settings."""
    if settings.batch_size is None:
        return {}
    return {"batch_size": settings.batch_size, "shuffle": "after_first"}


def data(settings: DataSettings) -> xr.Dataset:
    """The data `x`, `y` (sample), and all targets as `y_grid` (target, grid) at `x_grid` (grid).

    The attribute `target` says which of them was sampled.
    """
    from thalweg.catalogue.data import TARGETS, regression

    x, y = regression(settings.target, settings.n_samples, noise=settings.noise, seed=settings.seed)
    grid = np.linspace(-1, 1, GRID)
    return xr.Dataset(
        {
            "x": ("sample", x),
            "y": ("sample", y),
            "x_grid": ("grid", grid),
            "y_grid": (("target", "grid"), np.stack([t(grid) for t in TARGETS.values()])),
        },
        coords={
            "target": list(TARGETS),
            "formula": ("target", [t.formula for t in TARGETS.values()]),
        },
        attrs={"target": settings.target},
    )


def functions(
    problem: Problem, moments: Mapping[str, xr.DataArray], grid: np.ndarray, inputs: Any = None
) -> xr.Dataset:
    """A model's functions at some moments, for every member of a trajectory.

    Args:
        problem: whose model it is.
        moments: name -> parameters (param, …members), such as a trajectory's `start` and `final`.
        grid: where to evaluate, (grid,).
        inputs: what the model is given there, where that is not `grid` itself: its features.

    Returns:
        `x_grid` (grid) and `yhat_grid` (moment, grid, …members), NaN where a member diverged.
    """
    import jax

    predict = jax.jit(jax.vmap(problem.predict, (0, None)))
    drawn = []
    for vectors in moments.values():
        sizes = {str(d): n for d, n in vectors.sizes.items() if d != "param"}
        flat = vectors.transpose("param", *sizes).values.reshape(problem.size, -1)
        yhat = np.asarray(predict(problem.unflatten(flat.T), grid if inputs is None else inputs))
        members = {d: vectors[d] for d in sizes if d in vectors.coords}
        shape = (len(grid), *sizes.values())
        drawn.append(xr.DataArray(yhat.T.reshape(shape), members, ("grid", *sizes)))
    together = xr.concat(drawn, xr.Variable("moment", list(moments)))
    return xr.Dataset({"x_grid": ("grid", grid), "yhat_grid": together})


def parameters(problem: Problem, path: xr.Dataset) -> xr.Dataset:
    """A model's parameter tensors: `shape` and `size` (tensor), and `norm_start`, `norm_final` and
    `moved` (tensor, …members), the norms ‖w_0‖, ‖w_T‖ and ‖w_T − w_0‖ of each."""
    layout = problem.layout
    first = np.cumsum((0, *layout.sizes))[:-1]
    dims = ("tensor", *(str(d) for d in path["start"].dims if d != "param"))

    def norms(vectors: xr.DataArray) -> tuple[tuple[str, ...], np.ndarray]:
        squares = vectors.transpose("param", ...).values.astype(float) ** 2
        return dims, np.sqrt(np.add.reduceat(squares, first, axis=0))

    return xr.Dataset(
        {
            "shape": ("tensor", [" × ".join(map(str, s)) or "scalar" for s in layout.shapes]),
            "size": ("tensor", list(layout.sizes)),
            "norm_start": norms(path["start"]),
            "norm_final": norms(path["final"]),
            "moved": norms(path["final"] - path["start"]),
        },
        coords={"tensor": list(layout.leaf_names)},
    )


# From the saved tree: no JAX from here on ---------------------------------------------------------


def values(path: xr.Dataset, name: str, step: int = -1) -> np.ndarray:
    """A scalar record at a recorded step, of the members that are finite there."""
    record = path[name].isel(step=step).values.ravel()
    return record[np.isfinite(record)]


def spread(values: np.ndarray) -> str:
    """ "0.21", or "0.21 (0.12 to 0.35)": the median of some values, and their range."""
    if not values.size:
        return "not finite"
    text = f"{np.median(values):.3g}"
    if values.size > 1:
        text += f" ({values.min():.3g} to {values.max():.3g})"
    return text


def course(path: xr.Dataset) -> str:
    """A descent in a line: the loss over all samples before and after, and the movement."""
    ends = [spread(values(path, "risk", step)) for step in (0, -1)]
    text = f"loss {ends[0]} → {ends[1]}, movement {spread(values(path, 'relative_movement'))}"
    lost = path["status"].values.ravel() != "completed"
    if lost.any():
        names = "/".join(sorted({str(s) for s in path["status"].values.ravel()[lost]}))
        text += f"; {lost.sum()} of {lost.size} {names}" if lost.size > 1 else f"; {names}"
    return text


def steps_to(path: xr.Dataset, share: float) -> np.ndarray:
    """The first recorded step where the loss is at most `share` of that at step 0 (members,); NaN
    where there is none."""
    risk = path["risk"].transpose("step", ...).values.reshape(path.sizes["step"], -1)
    reached = risk <= share * risk[0]
    first = path["step"].values[reached.argmax(axis=0)]
    return np.where(reached.any(axis=0), first, np.nan)


def distances(data: xr.Dataset, models: xr.Dataset) -> xr.DataArray:
    """The root mean square distance (moment, …members) of functions from their target, on the grid."""
    target = data["y_grid"].sel(target=data.attrs["target"]).values
    target_on_grid = np.interp(models["x_grid"].values, data["x_grid"].values, target)
    error = models["yhat_grid"] - xr.DataArray(target_on_grid, dims="grid")
    return (error**2).mean("grid") ** 0.5


def count(table: xr.Dataset) -> int:
    """The number of parameters of a model, from its table."""
    return int(table["size"].sum())


def rows(tables: Mapping[str, xr.Dataset]) -> list[tuple[str, ...]]:
    """The parameter tables of some models as the rows of one, for a report; the first is its head.

    Of several members the median is given, diverged ones left out.
    """
    out = [("model", "parameter", "shape", "number", "‖w₀‖", "‖w_T‖", "‖w_T − w₀‖ / ‖w₀‖")]
    for model, table in tables.items():
        norms = {k: table[k].transpose("tensor", ...).values for k in _NORMS}
        for i, tensor in enumerate(table["tensor"].values):
            shape, size = (table[k].values[i] for k in ("shape", "size"))
            out.append((model, str(tensor), str(shape), f"{size:,}", *_texts(norms, i)))
            model = ""
        whole = {k: np.sqrt((v**2).sum(axis=0, keepdims=True)) for k, v in norms.items()}
        out.append(("", "all", "", f"{count(table):,}", *_texts(whole, 0)))
    return out


_NORMS = ("norm_start", "norm_final", "moved")


def _texts(norms: Mapping[str, np.ndarray], i: int) -> tuple[str, str, str]:
    """Both norms and the movement of tensor i; the movement is absolute where it starts at zero."""
    start, final, moved = (norms[k][i].ravel() for k in _NORMS)
    zero = start == 0
    relative = moved / np.where(zero, 1, start)
    return _median(start), _median(final), _median(relative) + (" (absolute)" * bool(zero.any()))


def _median(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{np.median(values):.4g}" if values.size else "not finite"
