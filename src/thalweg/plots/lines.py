"""The lines of one record: for each combination of swept values a line, or the median of its runs and a band;
and those of runs that diverge, which do not set the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from thalweg.plots import style
from thalweg.plots.members import MOST, Series

_MARKS = 8  # markers along a curve, about
_NO_MARGIN = 1e280  # beyond this the axis has no margin, which could overflow
# Limits follow a diverging run up to this multiple of what the others reach: next to 1e300 nothing else would
# be visible.
_HEADROOM = {"log": 1e3, "linear": 2.0}


@dataclass
class Lines:
    """The lines of one record of one trajectory."""

    ax: Axes
    steps: np.ndarray
    raw: np.ndarray  # the record (step, …members)
    lost: np.ndarray  # which members diverged
    x: str
    y: str
    words: str  # the legend entry of a single line without a label
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

    def draw(self, groups: list[Series], prefix: str, band: tuple[float, float] | None) -> None:
        """Draw all series. `prefix` begins their legend entries; `band` is two quantiles, or None."""
        if len(groups) > MOST:
            self._crowd(groups, prefix, band)
            return
        for group in groups:
            self._series(group, prefix, band)

    def _series(self, group: Series, prefix: str, band: tuple[float, float] | None) -> None:
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

    def _crowd(self, groups: list[Series], prefix: str, band: tuple[float, float] | None) -> None:
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


def show_diverged(ax: Axes, drawn: Sequence[Lines], y: str, before: float) -> None:
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
    without_margin(ax, y)
    ax.autoscale_view()
    if above:
        them = "the diverged run leaves" if above == 1 else f"{above:,} diverged runs leave"
        style.note(ax, f"{them} the window")


def without_margin(ax: Axes, y: str) -> None:
    """Drop the margin of a log axis near the largest float, where matplotlib would overflow."""
    if y == "log" and ax.dataLim.y1 > _NO_MARGIN:
        ax.margins(y=0)


def _quantile(runs: np.ndarray, q: float) -> np.ndarray:
    """The quantile over runs (step, run); NaN at a step where one of them has no value."""
    return np.quantile(runs, q, axis=1)


def _median_text(count: int, band: tuple[float, float]) -> str:
    if count == 1:
        return "the 1 run that did not diverge"
    return f"median of {count:,} runs, {100 * band[0]:g}–{100 * band[1]:g} %"
