"""How far each parameter tensor moved: weights and biases, layer by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg import names, results
from thalweg.errors import InputError, one_of
from thalweg.plots import curves, legends, members, style, ticks

_INSIDE = 6  # most legend entries that fit inside the axes


def movement_by_parameter(
    path: xr.Dataset,
    name: str = "moved",
    *,
    ax: Axes | None = None,
    x: str = "linear",
    y: str = "linear",
    title: str | None = None,
) -> Axes:
    """The movement of each parameter tensor against the step.

    A layer has a colour, and its weights, biases and what else it holds a dash each. Of several
    members the median is drawn, diverged ones left out; a note below the axes says so.

    Args:
        path: a trajectory with a record {name: thalweg.movement_by_parameter}.
        name: the record's name.
        ax: where to draw; a new figure without it.
        x, y: "linear" or "log". On a log axis step 0, and values at zero, are left out.
        title: a title; "Movement by parameter" without it.

    Raises:
        InputError: a record that is not there, an unknown scale.
    """
    members.check_trajectory(path)
    one_of("x", x, ("linear", "log"))
    one_of("y", y, ("linear", "log"))
    records = _records(path, name)
    tensors = list(records)
    ax = style.new_axes(ax)
    ticks.scale(ax, x, y)
    ticks.whole(ax.xaxis)
    kept = ~members.diverged(path)
    steps = path["step"].values
    shown = steps >= 1 if x == "log" else steps >= 0
    if not shown.all():
        style.note(ax, "step 0 not shown (log axis)")
    if kept.size > 1 or not kept.all():
        swept = [style.plain(dim) for dim in results.member_dims(path) if dim != "run"]
        left = style.count_of(int(kept.sum()), "descent" if swept else "run")
        over = f"over {', '.join(swept)}" if swept else ""
        gone = f"{(~kept).sum():,} diverged" if not kept.all() else None
        style.note(ax, style.joined(f"median of {style.joined(left, over, by=' ')}", gone))
    layers = list(dict.fromkeys(_split(tensor)[0] for tensor in tensors))
    kinds = list(dict.fromkeys(_split(tensor)[1] for tensor in tensors))
    zero = [tensor for tensor in tensors if _starts_at_zero(path, tensor)]
    # Weights come first, and so get the solid line.
    kinds.sort(key=lambda kind: kind != "weight")
    for i, tensor in enumerate(tensors):
        layer, kind = _split(tensor)
        moved = records[tensor].transpose("step", *results.member_dims(path)).values
        middle = _median(moved.reshape(len(steps), -1)[:, kept.ravel()])
        if y == "log":
            middle = np.where(middle > 0, middle, np.nan)
        ax.plot(
            steps[shown],
            middle[shown],
            color=style.COLORS[layers.index(layer) % len(style.COLORS)],
            ls=style.DASHES[kinds.index(kind) % len(style.DASHES)],
            lw=1.6 if kind == "weight" else 1.2,
            **style.markers(middle[shown], "o"),
            label=style.plain(tensor),
            gid=f"{style.SERIES}-{i}",
        )
    if zero:
        style.note(ax, f"absolute for {', '.join(map(style.plain, zero))}: the start is zero")
    ax.set(xlabel=style.label_of(path["step"], "step"), ylabel=curves.LABELS["relative_movement"])
    style.titled(ax, title, "movement by parameter")
    if len(tensors) <= _INSIDE:
        legends.add(ax)
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="x-small")
    return ax


def _records(path: xr.Dataset, name: str) -> dict[str, xr.DataArray]:
    """The record of each tensor: along `param` where all are scalars, else one variable per tensor."""
    if name in path and "param" in path[name].dims:
        each = names.found(path) or range(path.sizes["param"])
        return {str(p): path[name].isel(param=i) for i, p in enumerate(each)}
    prefix = f"{name}_"
    records = {
        str(key).removeprefix(prefix): record
        for key, record in path.data_vars.items()
        if str(key).startswith(prefix)
    }
    if not records:
        raise InputError(
            f"this trajectory has no record {name!r} of its tensors' movements: descend with "
            f"record={{{name!r}: thalweg.movement_by_parameter}}."
        )
    return records


def _split(tensor: str) -> tuple[str, str]:
    """A tensor's layer and its kind: "l1.weight" → ("l1", "weight")."""
    layer, _, kind = tensor.rpartition(".")
    return layer, kind


def _median(values: np.ndarray) -> np.ndarray:
    """The median over members (step, members); NaN where there are none."""
    return np.median(values, axis=1) if values.shape[1] else np.full(len(values), np.nan)


def _starts_at_zero(path: xr.Dataset, tensor: str) -> bool:
    """Whether a tensor is zero at some member's start."""
    rows = names.within(names.found(path) or (), tensor)
    start = path["start"].transpose("param", ...).values[rows]
    return not start.any(axis=0).all()
