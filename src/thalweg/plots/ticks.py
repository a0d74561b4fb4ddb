"""Linear and log axes, their ticks and tick labels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator


class _Ticks(LogLocator):
    """matplotlib's ticks of a log axis, clipped: on axes beyond about 1e220 they may overflow."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        return super().tick_values(max(low, 1e-200), min(high, 1e200))


class _Labels(LogFormatterSciNotation):
    """matplotlib's labels of a log axis, but plain numbers where it spans few decades of short ones: 0.4 and
    0.6 instead of 4 × 10⁻¹ and 6 × 10⁻¹."""

    def __init__(self, decades: float, **options: Any) -> None:
        super().__init__(**options)
        self._ratio = 2 * 10**decades

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        low, high = sorted(self.axis.get_view_interval())  # pyright: ignore[reportOptionalMemberAccess]
        short = low > 5e-4 and high < 2e4 and high < self._ratio * low
        return f"{x:.6g}" if text and short else text


def scale(ax: Axes, x: str | None = None, y: str | None = None) -> None:
    """Make the axes "linear" or "log"; what is not given stays."""
    for kind, axis, change in ((x, ax.xaxis, ax.set_xscale), (y, ax.yaxis, ax.set_yscale)):
        if kind:
            change(kind)
        if kind == "log":
            log(axis)


def log(axis: Axis, decades: float = 2, named: float = 1.5) -> None:
    """The ticks and labels of a log axis: plain numbers up to about `decades`, and up to `named` decades not
    only at powers of ten."""
    axis.set_major_locator(_Ticks())
    axis.set_minor_locator(_Ticks(subs=None))
    axis.set_major_formatter(_Labels(decades))
    axis.set_minor_formatter(_Labels(decades, minor_thresholds=(named, 0.4)))


def whole(axis: Axis, most: int | str = "auto") -> None:
    """Ticks only at whole numbers, and at least one; a log axis keeps its own ticks."""
    locator = axis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(nbins=most, integer=True, min_n_ticks=1)
