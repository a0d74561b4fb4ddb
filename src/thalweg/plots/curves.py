"""Records against the step: losses, movements, norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg import results
from thalweg.errors import InputError, is_whole, one_of, unknown
from thalweg.plots import legends, lines, members, style, ticks
from thalweg.plots.members import Named, Paths

LABELS = {
    "risk": "empirical risk",
    "expected": "expected risk",
    "lr": "learning rate",
    "grad_norm": r"gradient norm $\|\nabla L\|$",
    "movement": r"movement $\|w_t - w_0\|$",
    "relative_movement": r"movement $\|w_t - w_0\|\,/\,\|w_0\|$",
    "kernel_drift": r"kernel drift $\|\Theta_t - \Theta_0\|\,/\,\|\Theta_0\|$",
    "successive_change": r"successive change $\|w_t - w_{t-1}\|\,/\,\|w_t\|$",
}
_SCALES = ("linear", "log")


def record(
    path: Paths,
    name: str | Sequence[str],
    *,
    ax: Axes | None = None,
    x: str = "linear",
    y: str = "log",
    band: tuple[float, float] | None = (0.1, 0.9),
    title: str | None = None,
    label: str | None = None,
    dash: int | None = None,
    color: str | None = None,
) -> Axes:
    """A scalar record against the step, or against time where the trajectory has a coordinate `time`.

    Each combination of swept values is a line of its own. Several runs are drawn as their median and
    a band between two quantiles, over the runs that did not diverge; the diverged ones are dotted
    lines. Of several records each has a dash, and a series has one colour in all. Called again with
    the same axes, it goes on with the next styles.

    Args:
        path: a trajectory, or several by name.
        name: one of its records with one number a step and member, or several of one unit, as in
            ["risk", "held_out"].
        ax: where to draw; a new figure without it.
        x, y: "linear" or "log". On a log axis step (or time) 0, and values at or below zero, are
            left out; a note below the axes says so.
        band: the band's two quantiles; None draws each run.
        title: a title; the record's name without it.
        label: the name in the legend of a trajectory that is given alone.
        dash: the number of the dash that all lines of a record have, and from which several records
            count; without it lines take the next ones.
        color: one colour for all of them, matplotlib's; without it they take the next ones.

    Returns:
        The axes.

    Raises:
        InputError: a record that is not there or not a scalar, or none; an unknown scale, impossible
            quantiles.
    """
    paths = members.named(path, label)
    if dash is not None and not is_whole(dash):
        raise InputError(f"dash must be a whole number; {dash!r:.80} given.")
    dash = None if dash is None else int(dash)
    dashes = [dash] * len(paths)
    return draw(paths, name, dashes, ax=ax, x=x, y=y, band=band, title=title, color=color)


def draw(
    paths: Named,
    name: str | Sequence[str],
    dashes: Sequence[int | None],
    *,
    ax: Axes | None,
    x: str,
    y: str,
    band: tuple[float, float] | None = (0.1, 0.9),
    title: str | None = None,
    color: str | None = None,
) -> Axes:
    """`record`, with a dash for each trajectory."""
    check_scales(x, y)
    if band is not None:
        style.check_quantiles(band)
    style.check_color(color)
    names = members.listed(name)
    along, columns = read(paths, names)
    ax = style.new_axes(ax)
    ticks.scale(ax, x, y)
    if along == "step":
        ticks.whole(ax.xaxis)
    before, first = ax.dataLim.y1, style.styles_taken(ax)
    drawn: list[lines.Lines] = []
    for i, words in enumerate(map(_words, names)):
        taken = first
        for (text, each), dash in zip(paths, dashes, strict=True):
            prefix = style.plain(text) if text else ""
            if len(names) > 1:
                prefix, dash = style.joined(prefix, words, by=": "), (dash or 0) + i
            steps, values = columns[len(drawn)]
            lost = members.diverged(each)
            drawn.append(lines.Lines(ax, steps, values, lost, x, y, words, dash, color, taken))
            drawn[-1].draw(members.by_sweep(each), prefix, band)
            taken = drawn[-1].taken
    if x == "log" and any((steps <= 0).any() for steps, _ in columns):
        style.note(ax, f"{along} 0 not shown (log axis)")
    if not any(np.isfinite(each.raw).any() for each in drawn):
        style.note(ax, "no finite values")
    low = sum(int((each.raw <= 0).sum()) for each in drawn)
    if y == "log" and low:
        style.note(ax, f"{style.count_of(low, 'value')} ≤ 0 not shown (log axis)")
    lines.show_diverged(ax, drawn, y, before)
    lines.without_margin(ax, y)
    path = paths[0][1]
    labels = [style.label_of(path[name], LABELS.get(name, style.plain(name))) for name in names]
    ax.set(xlabel=style.label_of(path[along], along), ylabel=", ".join(dict.fromkeys(labels)))
    *more, last = dict.fromkeys(map(_words, names))
    style.titled(ax, title, style.joined(", ".join(more), last, by=" and "))
    legends.add(ax)
    return ax


def check_scales(x: str, y: str) -> None:
    """Check the scales of two axes."""
    one_of("x", x, _SCALES)
    one_of("y", y, _SCALES)


def read(paths: Named, names: Sequence[str]) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
    """What trajectories are drawn against, "step" or "time", and, for each record, each one's with it.

    Raises:
        InputError: a record that is not there or not a scalar, or none at all; some trajectories
            against time and others not.
    """
    if not names:
        raise InputError("at least one record is needed; none given.")
    along, *others = {_clock(each) for _, each in paths}
    if others:
        raise InputError(
            "some trajectories have a time, others steps alone: draw them apart, or give a descent the time "
            "of its steps, path.assign_coords(time=lr * path['step'])."
        )
    columns = []
    for name in names:
        for text, each in paths:
            with members.about(text):
                columns.append((each[along].values, _read(each, name)))
    return along, columns


def loss(
    path: Paths,
    *,
    ax: Axes | None = None,
    x: str = "linear",
    y: str = "log",
    band: tuple[float, float] | None = (0.1, 0.9),
    title: str | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """The loss against the step: that of the batch the step used, before its update.

    Arguments, returned axes and errors are those of `record`.
    """
    return record(path, "loss", ax=ax, x=x, y=y, band=band, title=title, label=label, color=color)


def movement(
    path: Paths,
    name: str | None = None,
    *,
    ax: Axes | None = None,
    x: str = "linear",
    y: str = "linear",
    band: tuple[float, float] | None = (0.1, 0.9),
    title: str | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """How far the parameters are from where they started, against the step.

    Args:
        name: the record; without it `relative_movement` or `movement`, whichever there is.

    The other arguments, the returned axes and the errors are those of `record`. Where a start has
    norm zero its relative movement is the absolute one; a note says so.
    """
    paths = members.named(path, label)
    if name is None:
        kinds = ("relative_movement", "movement")
        available = [n for n in kinds if all(n in each for _, each in paths)]
        if not available:
            which = "this trajectory has" if len(paths) == 1 else "these trajectories share"
            raise InputError(
                f"{which} no record of the movement: descend with "
                "record=['relative_movement'], or say with name= which record it is."
            )
        name = available[0]
    title = "Movement from the start" if title is None else title
    dashes = [None] * len(paths)
    ax = draw(paths, name, dashes, ax=ax, x=x, y=y, band=band, title=title, color=color)
    starts = [each["start"] for _, each in paths if "start" in each]
    if name == "relative_movement" and starts:
        zero = np.concatenate(
            [~s.values.any(axis=s.get_axis_num("param"), keepdims=True).ravel() for s in starts]
        )
        if zero.any():
            which = "" if zero.all() else f" for {int(zero.sum())} of {zero.size} starts"
            style.note(ax, f"absolute{which}: the start is zero")
    return ax


def label_of(name: str) -> str:
    """The axis label of a record."""
    return LABELS.get(name, style.plain(name).replace("_", " "))


def _words(name: str) -> str:
    """What a title and a legend call a record: its label without the formula."""
    return label_of(name).split(" $")[0]


def _clock(path: xr.Dataset) -> str:
    """The coordinate that a trajectory is drawn against: "time" where it has that one, else "step"."""
    has_time = "time" in path.coords and path["time"].dims == ("step",)
    return "time" if has_time else "step"


def _read(path: xr.Dataset, name: str) -> np.ndarray:
    """The record (step, …members), with NaN where it is not finite."""
    dims = {"step", *results.member_dims(path)}
    if not isinstance(name, str) or name not in path.data_vars:
        scalars = [str(n) for n, v in path.data_vars.items() if set(v.dims) == dims]
        raise InputError(
            f"{unknown('record', name, scalars)} Others are recorded by a descent, as in "
            "record=['grad_norm'], or measured afterwards by thalweg.measure."
        )
    extra = [str(d) for d in path[name].dims if d not in dims]
    if "step" not in path[name].dims:
        raise InputError(f"{name!r} is not recorded step by step.")
    if extra:
        found = ", ".join(map(str, path[name].dims))
        raise InputError(
            f"{name!r} is not one number per step: its dimensions are {found}. Select one, as in "
            f"path.isel({extra[0]}=0)."
        )
    values = path[name].transpose("step", *results.member_dims(path)).values.astype(float)
    values[~np.isfinite(values)] = np.nan
    return values


def final(path: xr.Dataset, name: str) -> np.ndarray:
    """A scalar record at the last recorded step, on the member dimensions."""
    return _read(path, name)[-1]
