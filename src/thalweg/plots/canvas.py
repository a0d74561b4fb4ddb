"""A builder for plotly figures: traces, notes below them, and a slider over steps."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.image
import numpy as np

from thalweg.errors import optional

HEIGHT = 620
_CONTROLS = 80  # pixels, the height of slider and buttons
_BETWEEN_FRAMES = 80  # milliseconds
# Pixels: a legend's rows, how long and how high; an entry without its name, and a letter
_WIDTH, _ROW, _ENTRY, _LETTER = 1_000, 30, 50, 7.5
CAMERA = {"eye": {"x": -1.05, "y": -1.35, "z": 1.15}, "center": {"x": 0, "y": 0, "z": -0.2}}
_SCATTER = {2: "Scatter", 3: "Scatter3d"}
# for known points; 3-D scatter has them too
_KNOWN = ("cross", "square", "diamond-open", "square-open")
_FONT = "system-ui, -apple-system, Segoe UI, sans-serif"
_INK, _PALE = "#1b2430", "#4a5666"


def plain(text: object) -> str:
    """Text that plotly shows as it is, and does not read as HTML."""
    return html.escape(str(text), quote=False)


def axis(title: str) -> dict[str, Any]:
    """An axis with a title and a thin grid."""
    return {
        "title": {"text": plain(title)},
        "gridcolor": "#d5dbe3",
        "zeroline": False,
        "showline": True,
        "linecolor": _INK,
        "ticks": "outside",
    }


class Canvas:
    """Collects the traces and notes of a figure.

    Raises:
        MissingExtra: plotly is not installed.
    """

    def __init__(self) -> None:
        self._go = optional("plotly.graph_objects", "interactive figures need", extra="plotly")
        self._traces: list[Any] = []
        self._moving: list[tuple[int, Callable[[int], Sequence[Any]]]] = []
        self._pictures: list[dict[str, Any]] = []
        self._known = 0
        self.notes: list[str] = []

    def add(self, kind: str, **options: Any) -> None:
        """Add a trace, `kind` being plotly's class name."""
        self._traces.append(getattr(self._go, kind)(**options))

    def place(self, coordinates: Sequence[Any], **options: Any) -> None:
        """Add a scatter trace, in 2-D or 3-D by the number of coordinates."""
        self.add(_SCATTER[len(coordinates)], **_named(coordinates), **options)

    def beneath(self, colors: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Lay a picture beneath the 2-D traces: colours (len(y), len(x), 4) at these coordinates."""
        file = io.BytesIO()
        colors = np.round(255 * colors).astype(np.uint8)
        matplotlib.image.imsave(file, colors, format="png", origin="lower")
        self._pictures.append(
            {
                "source": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}",
                "xref": "x",
                "yref": "y",
                "x": float(x[0]),
                "y": float(y[-1]),
                "sizex": float(x[-1] - x[0]),
                "sizey": float(y[-1] - y[0]),
                "sizing": "stretch",
                "layer": "below",
            }
        )

    def moving(self, at: Callable[[int], Sequence[Any]], step: int, **options: Any) -> None:
        """Add a scatter trace that the slider moves; `at(step)` gives its coordinates."""
        self._moving.append((len(self._traces), at))
        self.place(at(step), **options)

    def names(self, text: str) -> bool:
        """Whether the legend has an entry of this name."""
        return any(trace.name == text and trace.showlegend for trace in self._traces)

    def mark(self, name: str, places: Sequence[Sequence[Any]], told: Mapping[str, Any]) -> None:
        """Mark a known point, in each panel at one of `places`; its hover text lists `told`."""
        symbol = _KNOWN[self._known % len(_KNOWN)]
        self._known += 1
        lines = [
            f"<b>{plain(name)}</b>",
            *(f"{plain(k)} = {float(v):.5g}" for k, v in told.items()),
        ]
        for i, place in enumerate(places):
            self.place(
                [[float(value)] for value in place],
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 12 if len(place) == 2 else 8,
                    "color": "black",
                    "line": {"color": "white", "width": 1},
                },
                name=plain(name),
                legendgroup=f"point {name}",
                showlegend=i == 0,
                hovertemplate="<br>".join(lines) + "<extra></extra>",
            )

    def note(self, text: str) -> None:
        """Say something below the figure."""
        if text and text not in self.notes:
            self.notes.append(text)

    def figure(self, title: str, layout: dict[str, Any], steps: Sequence[int] = ()) -> Any:
        """The figure; `steps` are the slider's."""
        below = 55 + (_CONTROLS if steps else 0) + 17 * len(self.notes)
        room = self._legend_room()
        height = HEIGHT + room - (0 if steps else _CONTROLS)
        figure = self._go.Figure(
            data=self._traces,
            layout={
                "template": "none",
                "height": height,
                "margin": {"l": 60, "r": 20, "t": 78 + room, "b": below},
                "font": {"family": _FONT, "size": 13, "color": _INK},
                "title": {
                    "text": plain(title),
                    "x": 0.01,
                    "xanchor": "left",
                    "y": 1 - 16 / height,
                    "yanchor": "top",
                    "font": {"size": 17},
                },
                "legend": {
                    "orientation": "h",
                    "x": 0,
                    "y": 1.02,
                    "yanchor": "bottom",
                    "itemsizing": "constant",
                },
                "annotations": self._notes(below),
                "images": self._pictures,
                **layout,
            },
        )
        if steps:
            self._add_slider(figure, steps)
        return figure

    def _legend_room(self) -> int:
        """Pixels for the rows of the legend after the first, on a page of the usual width."""
        named = [trace.name for trace in self._traces if trace.name and trace.showlegend]
        rows = sum(_ENTRY + _LETTER * len(name) for name in named) / _WIDTH
        return _ROW * max(0, math.ceil(rows) - 1)

    def _notes(self, below: int) -> list[dict[str, Any]]:
        if not self.notes:
            return []
        return [
            {
                "text": "<br>".join(map(plain, self.notes)),
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": 0,
                "yshift": -below + 6,
                "xanchor": "left",
                "yanchor": "bottom",
                "align": "left",
                "showarrow": False,
                "font": {"size": 12, "color": _PALE},
            }
        ]

    def _add_slider(self, figure: Any, steps: Sequence[int]) -> None:
        figure.frames = [
            self._go.Frame(
                name=str(step),
                data=[{"type": self._traces[i].type, **_named(at(step))} for i, at in self._moving],
                traces=[i for i, _ in self._moving],
            )
            for step in steps
        ]
        now: dict[str, Any] = {"mode": "immediate", "transition": {"duration": 0}}
        jump = now | {"frame": {"duration": 0, "redraw": True}}
        play = now | {"frame": {"duration": _BETWEEN_FRAMES, "redraw": True}, "fromcurrent": True}
        figure.layout.sliders = [
            {
                "active": 0,
                "steps": [
                    {"method": "animate", "label": f"{step}", "args": [[str(step)], jump]}
                    for step in steps
                ],
                "currentvalue": {"prefix": "step ", "xanchor": "left", "font": {"size": 13}},
                "x": 0.14,
                "len": 0.86,
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 44},
                "ticklen": 4,
                "font": {"size": 11, "color": _PALE},
            }
        ]
        figure.layout.updatemenus = [
            {
                "type": "buttons",
                "direction": "right",
                "showactive": False,
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 62},
                "buttons": [
                    {"label": "▶ Play", "method": "animate", "args": [None, play]},
                    {"label": "❚❚", "method": "animate", "args": [[None], jump]},
                ],
            }
        ]


def _named(coordinates: Sequence[Any]) -> dict[str, Any]:
    return dict(zip("xyz", coordinates, strict=False))
