"""Several optimizers on one problem: how fast each converges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure, SubFigure

from thalweg.errors import InputError, whole_number
from thalweg.plots import curves, legends, members, style
from thalweg.plots.members import Paths

_PANEL = (4.8, 3.6)  # inches
_ROW = 0.2  # inches per row of the legend


def convergence(
    paths: Paths,
    records: str | Sequence[str] = ("loss", "grad_norm"),
    *,
    last: int | None = None,
    guides: Mapping[str, xr.DataArray] | None = None,
    behind: Mapping[str, xr.Dataset | Sequence[xr.Dataset]] | None = None,
    x: str = "linear",
    y: str = "log",
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
) -> Figure | SubFigure:
    """Records of several trajectories against the step, one panel per record, with one legend below.

    A trajectory's lines share a dash, and each line has its own colour and marker; runs are drawn as
    `record` draws them. One that stopped ends where it did.

    Args:
        paths: trajectories, by the name that the legend gives them; or a single one.
        records: what to draw, each in a panel, or one by name. The gradient's norm is among a trajectory's
            where the descent had record=["grad_norm"].
        last: the last step to draw; all without it.
        guides: curves (step,) to compare the first panel's with, by name, in grey.
        behind: trajectories to compare all with, as wide pale lines, under the name they share. They
            do not set the limits, and are shown within them.
        x, y: "linear" or "log".
        figure: where to draw, empty; a new one without it.
        title: a title above all panels.

    Returns:
        The figure.

    Raises:
        InputError: no trajectory, no record, and what `record` raises; guides that are no curves by name.
    """
    drawn = members.named(paths)
    records = members.listed(records)
    # before there is a figure, which an error would leave behind empty
    curves.check_scales(x, y)
    if last is not None:
        last = whole_number("last", last, 0)
        drawn = [(name, path.sel(step=slice(0, last))) for name, path in drawn]
    guides, compared = _guides_of(guides), _compared(behind)
    curves.read(
        [*drawn, *((name, each) for name, some in compared.items() for each in some)], records
    )
    entries = sum(len(members.by_sweep(path)) for _, path in drawn) + len(guides) + len(compared)
    height = _PANEL[1] + _ROW * (1 + entries // (2 * len(records)))
    figure = style.figure_for(figure, (_PANEL[0] * len(records), height))
    panels = list(figure.subplots(1, len(records), squeeze=False)[0])
    for ax, name in zip(panels, records, strict=True):
        curves.draw(drawn, name, range(len(drawn)), ax=ax, x=x, y=y)
    for i, (name, guide) in enumerate(guides.items()):
        _guide(panels[0], name, guide, i, last)
    for ax, record in zip(panels, records, strict=True):
        for name, others in compared.items():
            _behind(ax, record, name, others, last)
    # the entries of `behind` are long: one column less
    legends.share(figure, panels, columns=2 * len(records) - bool(compared))
    if title:
        figure.suptitle(title)
    return figure


def _guides_of(guides: object) -> dict[str, xr.DataArray]:
    if guides is None:
        return {}
    if not isinstance(guides, Mapping):
        raise InputError(
            f"guides are curves by name, as in {{'1/t': xr.DataArray(...)}}; {type(guides).__name__} given."
        )
    for name, guide in guides.items():
        if not isinstance(guide, xr.DataArray) or guide.dims != ("step",):
            given = (
                f"dimensions {guide.dims}"
                if isinstance(guide, xr.DataArray)
                else type(guide).__name__
            )
            raise InputError(
                f"guides: {name!r} must be an xr.DataArray over step alone; {given} given."
            )
    return {str(name): guide for name, guide in guides.items()}


def _compared(behind: object) -> dict[str, list[xr.Dataset]]:
    if behind is None:
        return {}
    if not members.are_several(behind):
        raise InputError(
            f"behind= takes trajectories by the name they share, as in {{'exact': path}}; "
            f"{type(behind).__name__} given."
        )
    found = {}
    for name, some in behind.items():
        with members.about(str(name)):
            found[str(name)] = [members.check_trajectory(each) for each in members.listed(some)]
    return found


def _behind(ax: Any, record: str, name: str, paths: Sequence[xr.Dataset], last: int | None) -> None:
    low, high = ax.get_ylim()
    for i, path in enumerate(paths):
        path = path.sel(step=slice(0, last))
        values = path[record].transpose("step", ...).values
        values = values.reshape(len(values), path["status"].size)
        for j, line in enumerate(values.T):
            ax.plot(
                path["step"].values,
                np.where((line >= low) & (line <= high), line, np.nan),
                color=style.shade(0.6),
                lw=5,
                alpha=0.4,
                zorder=1,
                label=style.plain(name) if i == j == 0 else f"_{name}",
            )
    ax.set_ylim(low, high)


def _guide(ax: Any, name: str, guide: xr.DataArray, index: int, last: int | None) -> None:
    steps, values = guide["step"].values, np.asarray(guide.values, float)
    shown = steps <= (steps.max(initial=0) if last is None else last)
    ax.plot(
        steps[shown],
        values[shown],
        color=style.shade(0.45),
        lw=3.5,
        alpha=0.5,
        zorder=1,
        ls=style.DASHES[index % len(style.DASHES)],
        label=style.plain(name),
    )
