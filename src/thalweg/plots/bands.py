"""Levels, and the colours of the bands between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.contour import ContourSet
from matplotlib.ticker import MaxNLocator

from thalweg.errors import InputError, one_of, real, whole_number
from thalweg.plots import style

KINDS = ("quantile", "linear", "log")
_MOST_TICKS = 9


def quantile_levels(*values: Any, center: float, n: int = 10) -> np.ndarray:
    """Levels that cut all the given risks, taken together, into quantile bands about a centre.

    Args:
        values: risks: arrays of any shape; what is not finite is left out.
        center: one of the levels; n bands lie below it and n above.
        n: how many bands on each side.

    Returns:
        The levels, ascending: 2n + 1 of them, fewer where quantiles coincide or where no risk lies
        on one side.

    Raises:
        InputError: no finite value, a centre that is not finite, n below 1.
    """
    center = checked_center(center)
    n = whole_number("n, the bands on each side,", n, 1)
    pooled = (
        np.concatenate([finite(style.numbers("values", v)) for v in values])
        if values
        else np.empty(0)
    )
    if not pooled.size:
        raise InputError("quantile_levels needs at least one finite value.")
    sides = [np.array([center], float)]
    for side in (pooled[pooled < center], pooled[pooled > center]):
        if side.size:
            sides.append(np.quantile(side, np.linspace(0, 1, n + 1)))
    # The quantile next to the centre on either side gives way to the centre.
    below = sides[1][:-1] if pooled.min() < center else np.empty(0)
    above = sides[-1][1:] if pooled.max() > center else np.empty(0)
    return np.unique(np.concatenate([below, sides[0], above]))


@dataclass(frozen=True, eq=False)
class Bands:
    """Levels and colours. Bands are spread evenly over the map, whatever their widths.

    Args:
        edges: (n + 1,) the levels, ascending.
        center: the level between blue and red; without one the map is sequential.
        extend: "neither", "min", "max" or "both": on which sides values pass the last level.
        words: what the colour bar says of the levels.
        ticks: the values that the colour bar names; some of the levels without them.
    """

    edges: np.ndarray
    center: float | None = None
    extend: str = "neither"
    words: str = ""
    ticks: tuple[float, ...] | None = None

    @cached_property
    def colors(self) -> np.ndarray:
        """(n, 4): a colour for each band, those beyond the last levels included."""
        under, over = self.extend in ("min", "both"), self.extend in ("max", "both")
        total = len(self.edges) - 1 + under + over
        if self.center is None:
            return matplotlib.colormaps[style.SEQUENTIAL](np.linspace(0, 1, max(total, 2)))[:total]
        below = int((self.edges[1:] <= self.center).sum()) + under
        cmap = matplotlib.colormaps[style.DIVERGING]
        low = cmap(np.linspace(0, 0.5, below, endpoint=False))
        high = cmap(np.linspace(1, 0.5, total - below, endpoint=False))[::-1]
        return np.concatenate([low, high])

    @cached_property
    def cmap(self) -> Colormap:
        """The colour map, with one colour per band."""
        under, over = self.extend in ("min", "both"), self.extend in ("max", "both")
        inner = self.colors[int(under) : len(self.colors) - int(over)]
        return ListedColormap(inner).with_extremes(
            bad=style.MISSING, under=self.colors[0], over=self.colors[-1]
        )

    @cached_property
    def norm(self) -> BoundaryNorm:
        """The norm that maps values to bands."""
        return BoundaryNorm(self.edges, len(self.edges) - 1)

    @property
    def line_colors(self) -> np.ndarray:
        """(n + 1, 4): a colour for each level, for contour lines."""
        place = np.linspace(0, 1, len(self.edges))
        if self.center is None:
            # The lightest end of the map would not be visible on white.
            return matplotlib.colormaps[style.SEQUENTIAL](0.9 * place)
        below = int((self.edges < self.center).sum())
        # Nor would the middle of the diverging map, so it is left out.
        place = np.append(np.linspace(0, 0.3, below), np.linspace(0.7, 1, len(place) - below))
        return matplotlib.colormaps[style.DIVERGING](place)

    def stretched(self, values: np.ndarray) -> Bands:
        """The same colours, with the end levels moved out to the range of `values`."""
        edges = self.edges.copy()
        inside = finite(values)
        if inside.size:
            edges[0] = min(edges[0], inside.min())
            edges[-1] = max(edges[-1], inside.max())
        return Bands(edges, self.center, self.extend, self.words, self.ticks)

    def colorbar(
        self, ax: Axes | list[Axes], label: str, lines: ContourSet | None = None
    ) -> Colorbar:
        """A colour bar in which every band is equally high; it says what the levels are.

        With `lines` it shows these contour lines.
        """
        first = ax[0] if isinstance(ax, list) else ax
        # matplotlib's pad is a fraction of the width of all the axes together.
        pad = 0.05 / len(ax) if isinstance(ax, list) else 0.05
        ticks, texts = self.ticks_and_texts()
        bar = style.figure_of(first).colorbar(
            lines or ScalarMappable(self.norm, self.cmap),
            ax=ax,
            pad=pad,
            extend="neither" if lines else self.extend,
            spacing="uniform",
            ticks=ticks,
            label=label,
        )
        bar.ax.set_yticklabels(texts)
        bar.ax.minorticks_off()
        return bar

    def ticks_and_texts(self) -> tuple[np.ndarray, list[str]]:
        """The levels at which a colour bar has ticks, and the tick labels."""
        ticks = self._ticks()
        return ticks, _texts(ticks)

    def _ticks(self) -> np.ndarray:
        if self.ticks is not None:
            return np.array(self.ticks)
        last = len(self.edges) - 1
        middle = 0 if self.center is None else int(np.searchsorted(self.edges, self.center))
        # Both ends and the centre, and others spread evenly between them.
        share = _MOST_TICKS - 1 if middle in (0, last) else (_MOST_TICKS - 1) // 2
        below = np.linspace(0, middle, min(share, middle) + 1)
        above = np.linspace(middle, last, min(share, last - middle) + 1)
        keep = np.unique(np.round(np.append(below, above)).astype(int))
        return self.edges[keep]


def _texts(values: np.ndarray) -> list[str]:
    """The values with as few digits as make them distinct, at least three."""
    texts: list[str] = []
    for digits in range(3, 18):
        texts = [f"{v:.{digits}g}" for v in values]
        if len(set(texts)) == len(values):
            break
    return [text.replace("-", "−") for text in texts]


def finite(values: Any) -> np.ndarray:
    """The finite values, in one dimension and double precision."""
    values = np.asarray(values, float).ravel()
    return values[np.isfinite(values)]


def passed(values: np.ndarray, low: float, high: float) -> str:
    """On which sides values exceed these limits: "neither", "min", "max" or "both", matplotlib's `extend`."""
    under, over = bool((values < low).any()), bool((values > high).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[under, over]


def checked_center(center: Any) -> float:
    """The centre of a map as a float; an InputError unless it is a finite number."""
    value = real(center)
    if not np.isfinite(value):
        raise InputError(f"center must be a finite number; {center!r:.80} given.")
    return value


def choose(values: Any, levels: Any, n_levels: int, center: float | None) -> Bands | None:
    """The bands for these values; None where none of them can be drawn.

    Raises:
        InputError: impossible levels, number of levels or centre.
    """
    center = None if center is None else checked_center(center)
    name = "n_levels"
    if isinstance(levels, (int, np.integer)) and not isinstance(levels, bool):
        levels, n_levels, name = "linear", int(levels), "levels"
    n_levels = whole_number(name, n_levels, 2)
    inside = finite(values)
    if isinstance(levels, str):
        one_of("levels", levels, KINDS)
        if levels == "log":
            if center is not None and center <= 0:
                raise InputError(f"with levels='log' center must be positive; {center!r} given.")
            inside = inside[inside > 0]
        if not inside.size:
            return None
        if inside.min() == inside.max():
            return _constant(float(inside[0]))
        return _spread(inside, levels, n_levels, center)
    edges = _given(levels)
    if center is not None:
        edges = np.unique(np.append(edges, float(center)))
    if not inside.size:
        return None
    return Bands(edges, center, passed(inside, edges[0], edges[-1]))


def _spread(inside: np.ndarray, kind: str, n: int, center: float | None) -> Bands:
    words = {"quantile": "levels are quantiles", "log": "log scale", "linear": ""}[kind]
    if center is not None:
        about = f"below and above {style.number(center)}"
        if kind == "quantile":
            edges = quantile_levels(inside, center=center, n=max(n // 2, 1))
        else:
            low, high = min(inside.min(), center), max(inside.max(), center)
            space = np.geomspace if kind == "log" else np.linspace
            half = max(n // 2, 1) + 1
            edges = np.unique([*space(low, center, half), center, *space(center, high, half)])
        if len(edges) > 1:
            return Bands(edges, center, words=style.joined(words or "equal bands", about, by=" "))
    elif kind == "quantile":
        edges = np.unique(np.quantile(inside, np.linspace(0, 1, n + 1)))
        if len(edges) < 3:
            # Nearly all risks are equal, and a single band would hide the differences of the others.
            words = "levels are quantiles of the distinct values"
            edges = np.unique(np.quantile(np.unique(inside), np.linspace(0, 1, n + 1)))
    elif kind == "log":
        # Set the ends exactly: geomspace rounds them, and the lowest point must not be excluded.
        edges = np.geomspace(inside.min(), inside.max(), n + 1)
        edges[[0, -1]] = inside.min(), inside.max()
        edges = np.unique(edges)
    else:
        edges = np.unique(np.linspace(inside.min(), inside.max(), n + 1))
    ticks = None
    if kind == "linear":
        # Levels are evenly spaced, so the ticks may be round numbers between them.
        ticks = MaxNLocator(_MOST_TICKS - 1).tick_values(edges[0], edges[-1])
        ticks = tuple(ticks[(ticks >= edges[0]) & (ticks <= edges[-1])])
    return Bands(edges, words=words, ticks=ticks)


def _constant(value: float) -> Bands:
    half = 0.5 * max(abs(value), 1e-300)
    half = half if value else 0.5
    return Bands(
        np.array([value - half, value + half]), words="the same everywhere", ticks=(value,)
    )


def _given(levels: Any) -> np.ndarray:
    try:
        edges = np.array(levels, float)
    except (TypeError, ValueError):
        edges = np.empty(0)
    if (
        edges.ndim != 1
        or len(edges) < 2
        or not (np.isfinite(edges).all() and (np.diff(edges) > 0).all())
    ):
        raise InputError(
            "levels must be 'quantile', 'linear', 'log', a whole number, or two or more increasing "
            f"finite numbers; {levels!r} given."
        )
    return edges
