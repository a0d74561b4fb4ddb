"""A trajectory for interactive pictures: thinned to some of its steps, with its members in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from thalweg import names, results
from thalweg.errors import InputError
from thalweg.plots import members, style
from thalweg.plots.canvas import Canvas, plain

_ITERATES = 2_500  # drawn, of all members together
_FEWEST = 20  # iterates of each member, however many members there are
_FRAMES = 60
_POSITIONS = 30_000  # of markers, over all members and frames
IN_HOVER = 12  # parameters that a hover text lists
_DASHES = ("solid", "dash", "dashdot", "dot", "longdash")
_NOW = "the slider's step"
_BESIDE = ("top center", "bottom center", "middle right", "middle left")

Panel = Sequence[np.ndarray]  # (x, y) or (x, y, z), each (steps, members), NaN where not drawn


@dataclass(frozen=True)
class Series:
    """Members that are drawn alike."""

    name: str
    columns: list[int]
    color: str
    dash: str


@dataclass(frozen=True, eq=False)
class Track:
    """Iterates of a trajectory.

    Args:
        step: (n,) the steps.
        params: (n, members, p) the iterates.
        loss: (n, members) the recorded losses.
        lost: (members,) which of them diverged.
        series: the members, by how they are drawn.
        names: the p parameters' names.
        note: what is left out, or "".
    """

    step: np.ndarray
    params: np.ndarray
    loss: np.ndarray
    lost: np.ndarray
    series: list[Series]
    names: Sequence[Any]
    note: str

    @classmethod
    def of(cls, path: xr.Dataset, label: str | None = None, taken: int = 0) -> Track:
        """All recorded steps; of a long path evenly chosen ones, the first and the last among them.

        `taken` counts the series drawn before, whose colours are not taken again.

        Raises:
            InputError: a trajectory without recorded parameters.
        """
        if "params" not in path:
            raise InputError(
                "this trajectory has no recorded params; descend with record={'params': True}."
            )
        dims = results.member_dims(path)
        total, count = path.sizes["step"], int(path["status"].size)
        rows = _evenly(total, max(_FEWEST, _ITERATES // max(count, 1)))
        chosen = path.isel(step=rows)
        n, p = len(rows), path.sizes["param"]
        lost = members.diverged(path).reshape(count)
        unknown = xr.full_like(chosen["params"].isel(param=0), np.nan)
        loss = chosen.get("loss", unknown).transpose("step", *dims)
        return cls(
            step=chosen["step"].values,
            params=chosen["params"].transpose("step", *dims, "param").values.reshape(n, count, p),
            loss=loss.values.reshape(n, count),
            lost=lost,
            series=_series(path, label, lost, taken),
            names=names.found(path) or range(p),
            note=f"{n:,} of {total:,} recorded steps are drawn" if n < total else "",
        )

    def at(self, step: int, panel: Panel) -> list[np.ndarray]:
        """Where each member is at a step, or was at the last one before it; NaN where there is none yet."""
        row = members.row_at(self.step, step)
        return [values[row] if row >= 0 else np.full(len(self.lost), np.nan) for values in panel]

    def hover(self, series: Series, more: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Hover options for a series' iterates, with a gap after each member: step, loss, `more`, parameters.

        `more` are arrays (n, members) by name.
        """
        chosen = self.names[:IN_HOVER]
        values_by_name = {
            "loss": self.loss,
            **(more or {}),
            **{name: self.params[..., i] for i, name in enumerate(chosen)},
        }
        step = np.broadcast_to(self.step[:, None], self.loss.shape)
        columns = [
            members.in_a_row(values[:, series.columns])
            for values in (step, *values_by_name.values())
        ]
        lines = [
            f"<b>{plain(series.name)}</b>",
            "step %{customdata[0]:.0f}",
            *(
                f"{plain(name)} = %{{customdata[{i}]:.5g}}"
                for i, name in enumerate(values_by_name, 1)
            ),
        ]
        if len(self.names) > len(chosen):
            lines.append(f"… ({len(self.names):,} parameters)")
        return {
            "customdata": np.stack(columns, axis=1),
            "hovertemplate": "<br>".join(lines) + "<extra></extra>",
        }

    def mark_iterates(
        self,
        canvas: Canvas,
        series: Series,
        panels: Sequence[Panel],
        more: Mapping[str, np.ndarray],
    ) -> None:
        """Draw a dot for each iterate, with a hover text."""
        size = 5 if len(self.step) * len(series.columns) <= 300 else 3
        for panel in panels:
            canvas.place(
                [members.in_a_row(values[:, series.columns]) for values in panel],
                mode="markers",
                marker={"size": size * (0.7 if len(panel) == 3 else 1), "color": series.color},
                legendgroup=series.name,
                name=plain(series.name),
                showlegend=False,
                **self.hover(series, more),
            )

    def mark_ends(
        self,
        canvas: Canvas,
        panels: Sequence[Panel],
        there: np.ndarray | None = None,
        named: bool = False,
    ) -> None:
        """Draw circles at the members' starts, diamonds at their ends, crosses at their last finite iterates.

        `there` (n, members): which iterates are finite, even if not drawn; by default those drawn.
        With `named` the members' names are written at their ends.
        """
        there = np.isfinite(panels[0][0]) if there is None else there
        first = there.argmax(axis=0)
        last = len(there) - 1 - there[::-1].argmax(axis=0)
        names = {k: plain(series.name) for series in self.series for k in series.columns}
        start = "start" if self.step[0] == 0 else f"step {self.step[0]}"
        for text, row, who, symbol, color in (
            (start, first, there.any(axis=0), "circle", "white"),
            ("end", last, ~self.lost, "diamond", "white"),
            ("last finite iterate", last, self.lost, "x", "black"),
        ):
            column = np.flatnonzero(who)
            column = column[np.isfinite(panels[0][0][row[column], column])]
            if not len(column):
                continue
            size = 9 if len(self.lost) <= 20 else 5
            for i, panel in enumerate(panels):
                small = 0.6 if len(panel) == 3 else 1
                canvas.place(
                    [values[row[column], column] for values in panel],
                    mode="markers+text" if named and text != start else "markers",
                    text=[names[k] for k in column] if named else None,
                    textposition=[_BESIDE[k % len(_BESIDE)] for k in column] if named else None,
                    marker={
                        "symbol": symbol,
                        "size": size * small,
                        "color": color,
                        "line": {"color": "black", "width": 1.5},
                    },
                    name=text,
                    legendgroup=text,
                    showlegend=i == 0 and not canvas.names(text),
                    hoverinfo="skip",
                )

    def mark_now(
        self, canvas: Canvas, panels: Sequence[Panel], step: int, floor: float | None = None
    ) -> None:
        """Draw the marker that the slider moves, at a step; in 3-D, with a floor, also a line from it down
        to that."""
        color = np.empty(len(self.lost), object)
        for series in self.series:
            color[series.columns] = series.color
        size, rim = (14, 2) if len(self.lost) <= 20 else (7, 1)
        for i, panel in enumerate(panels):
            canvas.moving(
                lambda step, panel=panel: self.at(step, panel),
                step,
                mode="markers",
                marker={
                    "size": size * (0.6 if len(panel) == 3 else 1),
                    "color": color.tolist(),
                    "line": {"color": "white", "width": rim},
                },
                name=_NOW,
                legendgroup="now",
                showlegend=i == 0 and not canvas.names(_NOW),
                hoverinfo="skip",
            )
            if len(panel) == 3 and floor is not None:
                canvas.moving(
                    lambda step, panel=panel: _plumb(self.at(step, panel), floor),
                    step,
                    mode="lines",
                    line={"color": "black", "width": 2},
                    legendgroup="now",
                    showlegend=False,
                    hoverinfo="skip",
                )


def frames(tracks: Sequence[Track]) -> list[int]:
    """The slider's steps, the first and the last among them."""
    steps = np.unique(np.concatenate([track.step for track in tracks]))
    count = sum(len(track.lost) for track in tracks)
    most = int(np.clip(_POSITIONS // max(count, 1), 10, _FRAMES))
    if len(steps) > most:
        nearest = (steps[1:] + steps[:-1]) / 2
        steps = np.unique(steps[np.searchsorted(nearest, np.linspace(steps[0], steps[-1], most))])
    return steps.tolist()


def _plumb(point: list[np.ndarray], floor: float) -> list[np.ndarray]:
    """Lines straight down from points to the floor."""
    x, y, z = point
    low = np.where(np.isfinite(z), floor, np.nan)
    return [members.in_a_row(np.stack(two)) for two in ((x, x), (y, y), (z, low))]


def _evenly(total: int, most: int) -> np.ndarray:
    return np.unique(np.round(np.linspace(0, total - 1, min(total, most))).astype(int))


def _series(path: xr.Dataset, label: str | None, lost: np.ndarray, taken: int) -> list[Series]:
    shape = path["status"].shape
    series = []
    for i, group in enumerate(members.each(path), taken):
        columns = [int(np.ravel_multi_index(m, shape)) if shape else 0 for m in group.members]
        # undo the escape of dollar signs, which only matplotlib needs
        name = style.joined(label, group.label.replace(r"\$", "$"), by=": ") or "path"
        gone = int(lost[columns].sum())
        if gone:
            name += " (diverged)" if len(columns) == 1 else f" ({gone:,} diverged)"
        series.append(
            Series(name, columns, style.COLORS[i % len(style.COLORS)], _DASHES[i % len(_DASHES)])
        )
    return series
