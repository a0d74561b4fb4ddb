"""Records against the step: losses, movements, norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from thalweg import results
from thalweg.errors import InputError, is_whole, one_of, unknown
from thalweg.plots import legends, members, style, ticks
from thalweg.plots.members import Named, Paths, Series

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
_MARKS = 8  # markers along a curve, about
_NO_MARGIN = 1e280  # beyond this the axis has no margin, which could overflow
# Limits follow a diverging run up to this multiple of what the others reach: next to 1e300 nothing else would
# be visible.
_HEADROOM = {"log": 1e3, "linear": 2.0}


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
    names = listed(name)
    along, columns = read(paths, names)
    ax = style.new_axes(ax)
    ticks.scale(ax, x, y)
    if along == "step":
        ticks.whole(ax.xaxis)
    before, first = ax.dataLim.y1, style.styles_taken(ax)
    drawn: list[_Curves] = []
    for i, words in enumerate(map(_words, names)):
        taken = first
        for (text, each), dash in zip(paths, dashes, strict=True):
            prefix = style.plain(text) if text else ""
            if len(names) > 1:
                prefix, dash = style.joined(prefix, words, by=": "), (dash or 0) + i
            steps, values = columns[len(drawn)]
            lost = members.diverged(each)
            curves = _Curves(ax, steps, values, lost, x, y, words, dash, color, taken)
            groups = members.by_sweep(each)
            if len(groups) > members.MOST:
                curves.crowd(groups, prefix, band)
            else:
                for group in groups:
                    curves.series(group, prefix, band)
            drawn.append(curves)
            taken = curves.taken
    if x == "log" and any((steps <= 0).any() for steps, _ in columns):
        style.note(ax, f"{along} 0 not shown (log axis)")
    if not any(np.isfinite(curves.raw).any() for curves in drawn):
        style.note(ax, "no finite values")
    low = sum(int((curves.raw <= 0).sum()) for curves in drawn)
    if y == "log" and low:
        style.note(ax, f"{style.count_of(low, 'value')} ≤ 0 not shown (log axis)")
    _show_diverged(ax, drawn, y, before)
    _without_margin(ax, y)
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


def listed(names: str | Sequence[str]) -> list[Any]:
    """One record's name, or several, as a list."""
    return list(names) if isinstance(names, list | tuple) else [names]


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


def _without_margin(ax: Axes, y: str) -> None:
    """Drop the margin of a log axis near the largest float, where matplotlib would overflow."""
    if y == "log" and ax.dataLim.y1 > _NO_MARGIN:
        ax.margins(y=0)


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
    if extra or "step" not in path[name].dims:
        raise InputError(
            f"{name!r} is not one number per step: its dimensions are {', '.join(map(str, path[name].dims))}."
            + (f" Select one, as in path.isel({extra[0]}=0)." if extra else "")
        )
    values = path[name].transpose("step", *results.member_dims(path)).values.astype(float)
    values[~np.isfinite(values)] = np.nan
    return values


def final(path: xr.Dataset, name: str) -> np.ndarray:
    """A scalar record at the last recorded step, on the member dimensions."""
    return _read(path, name)[-1]


@dataclass
class _Curves:
    """The curves of one record of a trajectory."""

    ax: Axes
    steps: np.ndarray
    raw: np.ndarray  # the record (step, …members)
    lost: np.ndarray  # which members diverged
    x: str
    y: str
    words: str  # the legend entry of a single curve without a label
    dash: int | None
    color: str | None
    taken: int  # how many styles are
    # the first values of diverging runs, shown or not, and all that are shown
    diverging: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin = self._positive(self.raw[:1])
        if self.x == "log":
            self.raw, self.steps = self.raw[self.steps > 0], self.steps[self.steps > 0]

    @cached_property
    def values(self) -> np.ndarray:
        """The record where the axes can show it."""
        return self._positive(self.raw)

    def series(self, group: Series, prefix: str, band: tuple[float, float] | None) -> None:
        """Draw all runs of one combination of swept values."""
        look, gid = self._next()
        name = style.joined(prefix, group.label, by=": ")
        kept = [m for m in group.members if not self.lost[m]]
        gone = [m for m in group.members if self.lost[m]]
        if len(group.members) == 1:
            if kept:
                self._line(kept[0], look, gid, label=name or self.words, marked=bool(name))
            else:
                text = f"{name or self.words} (diverged)"
                self._diverging(gone[0], look, gid, ls=look.dash, label=text)
            return
        if kept and band is not None:
            self._median(
                kept, look, gid, band, style.joined(name, _median_text(len(kept), band), by=": ")
            )
        for i, m in enumerate(kept if band is None else []):
            text = style.joined(name, style.count_of(len(kept), "run"), by=": ")
            self._line(m, look, gid, label=None if i else text, lw=0.9, alpha=0.5)
        for i, m in enumerate(gone):
            text = style.joined(name, f"{len(gone):,} diverged", by=": ")
            self._diverging(
                m, look, gid, ls=style.DIVERGED_DASH, label=None if i else text, lw=0.9, alpha=0.6
            )

    def crowd(self, groups: list[Series], prefix: str, band: tuple[float, float] | None) -> None:
        """Draw more combinations than a legend can name: thin lines in one style, without bands."""
        look, gid = self._next()
        text = style.count_of(len(groups), "setting")
        runs = len(groups[0].members)
        gone = [m for g in groups for m in g.members if self.lost[m]]
        if runs > 1:
            what = "median of up to" if gone else "median of"
            text += f", {what} {runs} runs" if band is not None else f", {runs} runs each"
        text = style.joined(prefix, text, by=": ")
        thin: dict[str, Any] = {"lw": 0.8, "alpha": style.thin(len(groups))}
        for group in groups:
            kept = [m for m in group.members if not self.lost[m]]
            if band is not None and len(kept) > 1:
                self._plot(_quantile(self._of(kept), 0.5), look, gid, **thin)
            else:
                for m in kept:
                    self._line(m, look, gid, **thin)
        self.ax.plot([], [], color=look.color, lw=1.4, label=text)
        for i, m in enumerate(gone):
            text = style.joined(prefix, f"{len(gone):,} diverged", by=": ")
            self._diverging(
                m, look, gid, ls=style.DIVERGED_DASH, label=None if i else text, lw=0.8, alpha=0.6
            )

    def _positive(self, values: np.ndarray) -> np.ndarray:
        """The values, with NaN where a log axis cannot show them."""
        return np.where(values > 0, values, np.nan) if self.y == "log" else values

    def _next(self) -> tuple[style.Style, str]:
        look, gid = style.style(self.taken, self.dash, self.color), f"{style.SERIES}-{self.taken}"
        self.taken += 1
        return look, gid

    def _of(self, chosen: list[tuple[int, ...]]) -> np.ndarray:
        """Values (step, len(chosen)) of members, unmasked: quantiles of positive values alone are biased."""
        return np.stack([self.raw[(slice(None), *m)] for m in chosen], axis=1)

    def _median(
        self,
        kept: list[tuple[int, ...]],
        look: style.Style,
        gid: str,
        band: tuple[float, float],
        label: str,
    ) -> None:
        runs = self._of(kept)
        low, middle, high = (_quantile(runs, q) for q in (band[0], 0.5, band[1]))
        self._plot(middle, look, gid, label=label, marked=True)
        style.fill(self.ax, self.steps, low, high, self.y, look.color, label)

    def _line(self, member: tuple[int, ...], look: style.Style, gid: str, **options: Any) -> None:
        self._plot(self.values[(slice(None), *member)], look, gid, **options)

    def _plot(
        self,
        values: np.ndarray,
        look: style.Style,
        gid: str,
        *,
        marked: bool = False,
        **options: Any,
    ) -> None:
        values = self._positive(values)
        options = {"lw": 1.6, "ls": look.dash, "ms": 4.5, **options}
        options["label"] = options.get("label") or "_line"
        options |= style.markers(values, look.marker, self._marks() if marked else ())
        self.ax.plot(self.steps, values, color=look.color, gid=gid, **options)

    def _diverging(
        self, member: tuple[int, ...], look: style.Style, gid: str, **options: Any
    ) -> None:
        """A line that does not set the limits, with a cross at its last finite value."""
        values = self.values[(slice(None), *member)]
        finite_rows = np.flatnonzero(np.isfinite(values))
        options = {"lw": 1.6, **options}
        options["label"] = options.get("label") or "_diverged"
        line = Line2D(
            self.steps,
            values,
            color=look.color,
            gid=gid,
            marker="X",
            ms=6,
            markevery=finite_rows[-1:].tolist(),
            **options,
        )
        self.ax.add_artist(line)  # add_line would let it set the limits
        self.diverging.append((self.begin[(slice(None), *member)], values))

    def _marks(self) -> list[int]:
        """The steps that get a marker, evenly spaced on the axis."""
        n = len(self.steps)
        if self.x == "log":
            return sorted({int(i) for i in np.geomspace(1, max(n, 1), _MARKS) - 1} if n else [])
        return list(range(0, n, max(1, n // _MARKS)))


def _show_diverged(ax: Axes, drawn: Sequence[_Curves], y: str, before: float) -> None:
    """Extend the limits to the diverging runs, but only a little beyond the other runs: those of all
    trajectories or, where none is left, what was drawn `before` and reaches up to there."""
    diverging = [(curves.steps, *values) for curves in drawn for values in curves.diverging]
    if not diverging:
        return
    others = np.concatenate([curves.values[:, ~curves.lost].ravel() for curves in drawn])
    others = others[np.isfinite(others)]
    if y == "log" and not others.size and np.isfinite(before):
        others = np.array([before])
    highest = [others.max()] if others.size else []
    for _, begin, values in diverging:
        finite = np.concatenate([begin, values])
        highest += finite[np.isfinite(finite)][:1].tolist()
    if not highest:
        return
    cap = max(highest) + (_HEADROOM[y] - 1) * abs(max(highest))
    if y == "log" and not others.size:  # there is nothing else to keep visible
        cap = np.inf
    above = 0
    for steps, _, values in diverging:
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        shown = values <= cap
        above += not shown.all()
        # the x limits include the steps at which the run is above the cap
        level = values[:1].clip(max=max(highest)).repeat(len(steps))
        ax.update_datalim(np.column_stack([steps, level]))
        ax.update_datalim(np.column_stack([steps, values])[shown])
    _without_margin(ax, y)
    ax.autoscale_view()
    if above:
        them = "the diverged run leaves" if above == 1 else f"{above:,} diverged runs leave"
        style.note(ax, f"{them} the window")


def _quantile(runs: np.ndarray, q: float) -> np.ndarray:
    """The quantile over runs (step, run); NaN at a step where one of them has no value."""
    return np.quantile(runs, q, axis=1)


def _median_text(count: int, band: tuple[float, float]) -> str:
    if count == 1:
        return "the 1 run that did not diverge"
    return f"median of {count:,} runs, {100 * band[0]:g}–{100 * band[1]:g} %"
