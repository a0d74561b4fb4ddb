"""Basins of attraction: which minimum each start reaches."""

from __future__ import annotations

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.patches import Patch

from thalweg import projection, results
from thalweg.errors import InputError, is_whole, one_of
from thalweg.plots import paths, style

# Okabe and Ito's colours without black, then the same mixed with white: twelve distinct colours; where they
# are hard to tell apart, numbers on the map help.
_HUES = [to_rgb(c) for c in style.COLORS[:-1]]
_PALETTE = [*_HUES, *(tuple(0.45 * v + 0.55 for v in hue) for hue in _HUES)]
# alternating, so that boundaries stay visible
_OTHERS = [to_rgb(grey) for grey in ("0.42", "0.30", "0.54")]
_NOT_YET = to_rgb("0.87")
_DIVERGED = to_rgb("0.0")


def basins(
    result: xr.Dataset,
    *,
    by: str = "minimum",
    most: int = 12,
    loss_range: tuple[float, float] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The minimum that each start of a plane reaches: the first axis across, the second up.

    Args:
        result: what `thalweg.basins` returned, on two axes.
        by: "minimum": a colour for each of those that are reached most often, which bear their numbers
            on the map, and alternating dark greys for all others; or "loss": a colour for the loss at
            the minimum reached. Light grey is not there yet, black diverged.
        most: how many minima have colours of their own, at most 12.
        loss_range: with "loss", the ends of the colour bar, for maps that are to be compared; those
            of the minima reached without it.
        ax: where to draw; a new figure without it.
        title: a title.

    Raises:
        InputError: another kind of result, not two axes, an unknown `by`, more colours than there are.
    """
    if not isinstance(result, xr.Dataset) or "basin" not in result:
        raise InputError(
            f"basins were expected, as basins returns them; {type(result).__name__} given."
        )
    one_of("by", by, ("minimum", "loss"))
    if not is_whole(most) or not 1 <= most <= len(_PALETTE):
        raise InputError(f"most must be from 1 to {len(_PALETTE)} minima; {most!r} given.")
    if loss_range is not None:
        low, high = style.pair(loss_range)
        if not np.isfinite([low, high]).all() or low > high:
            raise InputError(
                f"loss_range must be two increasing numbers; {loss_range!r:.80} given."
            )
    axes = results.plane_axes(result)
    if len(axes) != 2:
        raise InputError(f"basins are drawn on two axes; these are on {', '.join(axes)}.")
    across, up = axes
    number = result["basin"].transpose(up, across).values
    ax = style.new_axes(ax, (7.4, 4.8))
    if by == "loss":
        colors, handles = _by_loss(ax, result, number, loss_range)
    else:
        colors, handles = _by_minimum(result, number, int(most))
    x, y = result[across].values, result[up].values
    # An image with one pixel per start, as the grid is even; a mesh of a million cells takes a minute.
    half = [(c[-1] - c[0]) / max(len(c) - 1, 1) / 2 or 0.5 for c in (x, y)]
    extent = (x[0] - half[0], x[-1] + half[0], y[0] - half[1], y[-1] + half[1])
    ax.imshow(colors, origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    paths.frame(ax, result, (extent[0], extent[1]), (extent[2], extent[3]))
    if by == "minimum":
        _numbers(ax, result, int(most))
        ax.legend(  # beside the map, not to hide it
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            fontsize="x-small",
            title="minimum, and who reaches it",
            title_fontsize="small",
            borderaxespad=0.0,
        )
    elif handles:
        ax.legend(handles=handles, loc="lower right", fontsize="x-small", framealpha=0.9)
    _say_outside(ax, result, number)
    style.titled(ax, title, "Which minimum is reached")
    return ax


def _percent(count: int, total: int) -> str:
    share = 100 * count / total
    return f"{share:.1f} %" if share >= 0.1 or not count else "< 0.1 %"


def _by_minimum(
    result: xr.Dataset, number: np.ndarray, most: int
) -> tuple[np.ndarray, list[Patch]]:
    """An image (up, across, 3), and legend entries with the minima's shares of the starts."""
    reached = result["reached"].values
    shown = min(most, int((reached > 0).sum()))
    table = np.array([*_PALETTE[:shown], *_OTHERS, _DIVERGED, _NOT_YET])  # −2, −1 index its end
    place = np.where(number < shown, number, shown + (number - shown) % len(_OTHERS))
    handles = []
    for i in range(shown):
        point = ", ".join(f"{v:.2f}" for v in result["minima"].values[i])
        where = f" ({point})" if result.sizes["param"] == 2 else ""
        loss = f"L = {result['minimum_loss'].values[i]:.3g}"
        text = f"{i}:{where} {loss}, {_percent(reached[i], number.size)}".replace("-", "−")
        handles.append(Patch(facecolor=_PALETTE[i], label=text))
    others = int((reached[shown:] > 0).sum())
    if others:
        share = _percent(int(reached[shown:].sum()), number.size)
        words = f"{style.count_of(others, 'other minimum').replace('minimums', 'minima')}, {share}"
        handles.append(Patch(facecolor=_OTHERS[0], label=words))
    return table[place], handles + _without(number)


def _without(number: np.ndarray) -> list[Patch]:
    """Legend entries for starts that reached no minimum."""
    return [
        Patch(facecolor=color, ec="0.5", lw=0.5, label=f"{words}, {_percent(count, number.size)}")
        for words, color, count in (
            ("not there yet", _NOT_YET, int((number == -1).sum())),
            ("diverged", _DIVERGED, int((number == -2).sum())),
        )
        if count
    ]


def _by_loss(
    ax: Axes,
    result: xr.Dataset,
    number: np.ndarray,
    loss_range: tuple[float, float] | None,
) -> tuple[np.ndarray, list[Patch]]:
    losses = result["minimum_loss"].values
    reached_losses = losses[result["reached"].values > 0]
    if loss_range is not None:
        low, high = style.pair(loss_range)
    elif reached_losses.size:
        low, high = reached_losses.min(), reached_losses.max()
    else:
        low, high = 0.0, 1.0
    if loss_range is None and high - low <= _rounding(result):  # equal losses share a colour
        high = low
    norm = Normalize(low, high if high > low else low + 1, clip=True)
    cmap = matplotlib.colormaps[style.SEQUENTIAL]
    table = np.append(cmap(norm(losses))[:, :3], [_DIVERGED, _NOT_YET], axis=0)
    style.figure_of(ax).colorbar(
        ScalarMappable(norm, cmap), ax=ax, label="loss at the minimum reached"
    )
    return table[number], _without(number)


def _rounding(result: xr.Dataset) -> float:
    """The difference below which two minima's losses count as equal: rounding of the losses on the map, whose
    size is estimated from its width and the largest curvature of a minimum."""
    spans = [np.ptp(result[axis].values) for axis in results.plane_axes(result)]
    lengths = np.linalg.norm(result["directions"].transpose("direction", "param").values, axis=1)
    curvature = result["largest_eigenvalue"].values.max(initial=0)
    return 1e-12 * float(curvature * max(spans * lengths) ** 2)


def _numbers(ax: Axes, result: xr.Dataset, most: int) -> None:
    """Write the numbers of the minima that have a colour of their own, if they lie in the window."""
    reached = result["reached"].values > 0
    where = projection.project(result, result["minima"].values)
    x, y = (where[axis].values for axis in results.plane_axes(result))
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for i in np.flatnonzero(reached)[:most]:
        if left <= x[i] <= right and low <= y[i] <= high:
            ax.text(
                float(x[i]),
                float(y[i]),
                str(i),
                ha="center",
                va="center",
                fontsize="x-small",
                clip_on=True,
                bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6},
            )


def _say_outside(ax: Axes, result: xr.Dataset, number: np.ndarray) -> None:
    """Note how many starts reach minima outside the window."""
    if not len(result["minima"]):
        return
    where = projection.project(result, result["minima"].values)
    inside = np.ones(len(result["minima"]), bool)
    for axis, (low, high) in zip(
        results.plane_axes(result), (ax.get_xlim(), ax.get_ylim()), strict=True
    ):
        inside &= (where[axis].values >= low) & (where[axis].values <= high)
    away = int(result["reached"].values[~inside].sum())
    if away:
        style.note(
            ax, f"{_percent(away, number.size)} of all starts reach minima outside the window"
        )
