"""Computation graphs: boxes for values, arrows for what is computed from what.

The forward pass runs downwards on the left. Its reverse pass, where there is one, stands on the right
and runs upwards, each adjoint in the row of the value it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from thalweg.errors import InputError
from thalweg.plots import layered, style

# All lengths are in points, for text of size _FONT; the picture is scaled to its axes as a whole.
_FONT = 10.0
_LINE = 13.0  # line height
_PAD = (8.0, 5.0)
_ROW_GAP = 30.0
_STUB = 8.0
_BLOCK_GAP = 44.0
_RIM = 8.0
_TITLE = 1.25  # a title's size, relative to _FONT
_LEGEND_FONT = 8.5
_LEGEND_SPACE = 44.0  # width of a legend entry's handle and padding
_LANE = 5.0  # between two dashed edges side by side

# kind -> (colour or grey level, edge width, dash, legend entry); the kinds differ in greyscale too
_KINDS: dict[str, tuple[str | float, float, Any, str]] = {
    "input": (style.COLORS[0], 1.8, "-", "input"),
    "constant": (0.45, 1.0, (0, (3, 2)), "constant"),
    "operation": (0.2, 1.0, "-", "operation"),
    "output": (style.COLORS[2], 2.6, "-", "output"),
    "adjoint": (style.COLORS[1], 1.0, "-", "adjoint"),
    "gradient": (style.COLORS[1], 2.6, "-", "gradient: adjoint of an input"),
}
_EDGES: dict[str, tuple[str | float, Any, str]] = {
    "value": (0.2, "-", "value"),
    "adjoint": (style.COLORS[1], "-", "chain rule"),
    "residual": (0.5, (0, (4, 2)), "value used again"),
}


def graph(dataset: xr.Dataset, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """A computation graph, with the reverse pass beside it where the dataset holds one.

    An operation's box says what it does, to what, and the value it makes. An adjoint's says how the
    chain rule gets there (times which local derivative) and the derivative it makes. For an array the
    box gives the number of its entries and their range. Graphviz's `dot` lays the graph out where it is
    installed, and igraph otherwise.

    Args:
        dataset: as `thalweg.computation_graph` makes it.
        ax: where to draw, with text as large as fits; without it a new figure of the graph's size.
        title: a title; the function's name without it.

    Raises:
        InputError: another kind of dataset.
        MissingExtra: neither Graphviz nor igraph is installed.
    """
    if not isinstance(dataset, xr.Dataset) or dataset.attrs.get("kind") != "graph":
        raise InputError("a graph was expected, as thalweg.computation_graph returns it.")
    picture = _Picture.of(dataset)
    handles = _legend_entries(dataset)
    each = _LEGEND_SPACE + _LEGEND_FONT / _FONT * max(_text_width(h.get_label()) for h in handles)
    words = _title(dataset) if title is None else title
    widest = max(picture.width, *(_TITLE * _text_width(line) for line in words.split("\n")))
    columns = max(2, min(len(handles), int(widest // each)))
    width = max(widest, columns * each) + 2 * _RIM
    below = (-(-len(handles) // columns) + 1) * _LINE
    height = picture.height + below + 2 * _RIM
    if ax is None:
        ax = style.new_axes(None, (width / 72 + 0.2, height / 72 + 0.5))
    left = (picture.width - width) / 2
    ax.set(xlim=(left, left + width), ylim=(height - _RIM, -_RIM), aspect="equal")
    ax.axis("off")
    ax.set_title(words)
    scale = _points_per_unit(ax)
    ax.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        fontsize=_LEGEND_FONT * scale,
        borderpad=0,
        borderaxespad=0,
        frameon=False,
    )
    picture.draw(ax, scale)
    return ax


@dataclass
class _Box:
    """A node's text, size and position."""

    kind: str
    lines: list[str]
    row: int
    width: float
    height: float
    x: float = 0.0  # of its centre
    y: float = 0.0

    @classmethod
    def of(cls, kind: str, lines: list[str], row: int) -> _Box:
        widths = [_text_width(line, bold=i == 0) for i, line in enumerate(lines)]
        width = max(max(widths) + 2 * _PAD[0], 26)
        return cls(kind, lines, row, width, len(lines) * _LINE + 2 * _PAD[1])


@dataclass
class _Picture:
    """The layout: positions of boxes, and routes of edges."""

    boxes: list[_Box]
    edges: list[tuple[int, int, str]]
    tops: list[float] = field(default_factory=list)  # of the rows
    bottoms: list[float] = field(default_factory=list)
    routes: list[list[tuple[float, int]]] = field(default_factory=list)  # (x, row) between the ends
    channel: float = 0.0  # where dashed edges run between the two passes
    width: float = 0.0

    @classmethod
    def of(cls, dataset: xr.Dataset) -> _Picture:
        source, target = dataset["source"].values, dataset["target"].values
        roles = dataset["role"].values
        # A value that an operation takes twice is drawn as one edge.
        edges = list(
            dict.fromkeys(zip(source.tolist(), target.tolist(), map(str, roles), strict=True))
        )
        rows = _rows(dataset, edges)
        boxes = [
            _Box.of(str(kind), _lines(dataset, i), rows[i])
            for i, kind in enumerate(dataset["kind"].values)
        ]
        picture = cls(boxes, edges)
        picture.place_rows()
        picture.place_blocks()
        return picture

    @property
    def height(self) -> float:
        return self.bottoms[-1] if self.bottoms else 0.0

    def place_rows(self) -> None:
        y = 0.0
        for row in range(max((box.row for box in self.boxes), default=-1) + 1):
            here = [box for box in self.boxes if box.row == row]
            height = max((box.height for box in here), default=0.0)
            self.tops.append(y)
            self.bottoms.append(y + height)
            for box in here:
                box.y = y + height / 2
            y += height + _ROW_GAP

    def place_blocks(self) -> None:
        """Place the two passes side by side, with room for the dashed edges between them."""
        self.routes = [[] for _ in self.edges]
        back = [box.kind in ("adjoint", "gradient") for box in self.boxes]
        crossing = sum(role == "residual" for *_, role in self.edges)
        left = 0.0
        for reverse in (False, True):
            members = [i for i, is_back in enumerate(back) if is_back == reverse]
            if not members:
                continue
            if reverse:
                self.channel = left + _BLOCK_GAP / 2
                left += _BLOCK_GAP + _LANE * crossing
            left += self.place(members, "adjoint" if reverse else "value", left)
        self.width = left

    def place(self, members: list[int], role: str, left: float) -> float:
        """Place the boxes and edges of one pass, starting at x = `left`; returns its width."""
        here = {i: n for n, i in enumerate(members)}
        rows = [self.boxes[i].row for i in members]
        widths = [self.boxes[i].width for i in members]
        links: list[tuple[int, int]] = []
        bends: dict[int, list[int]] = {}
        for e, (source, target, its_role) in enumerate(self.edges):
            if its_role != role:
                continue
            # links go down, whichever way the arrow points; a long edge has a bend in every row it crosses
            upper, lower = sorted((source, target), key=lambda i: self.boxes[i].row)
            chain = [here[upper]]
            for row in range(self.boxes[upper].row + 1, self.boxes[lower].row):
                chain.append(len(rows))
                rows.append(row)
                widths.append(0.0)
            chain.append(here[lower])
            bends[e] = chain[1:-1]
            links += pairwise(chain)
        x = layered.across(rows, widths, links)
        x = x - min(c - w / 2 for c, w in zip(x, widths, strict=True)) + left
        for i, n in here.items():
            self.boxes[i].x = float(x[n])
        for e, chain in bends.items():
            self.routes[e] = [(float(x[n]), rows[n]) for n in chain]
        return float(max(c + w / 2 for c, w in zip(x, widths, strict=True))) - left

    # Drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes, scale: float) -> None:
        dashed = 0
        for e, (source, target, role) in enumerate(self.edges):
            if role == "residual":
                path, dashed = self.residual(source, target, dashed), dashed + 1
            else:
                path = self.curve(e, source, target, role)
            color, dash, _ = _EDGES[role]
            arrow = FancyArrowPatch(
                path=path,
                arrowstyle="-|>",
                mutation_scale=9 * scale,
                color=_line(color),
                lw=1.1 * scale,
                ls=dash,
                shrinkA=0,
                shrinkB=0,
                joinstyle="round",
                zorder=1,
                label=f"_{role}",
                gid=f"edge-{source}-{target}",
            )
            ax.add_patch(arrow)
        for i, box in enumerate(self.boxes):
            _draw_box(ax, box, scale, i)

    def curve(self, e: int, source: int, target: int, role: str) -> Path:
        """The path of an edge: it bends in the gaps between rows, and is vertical where it crosses a row."""
        upper, lower = sorted((source, target), key=lambda i: self.boxes[i].row)
        start, end = self.boxes[upper], self.boxes[lower]
        x0, x1 = self.port(upper, e, role), self.port(lower, e, role)
        points = [(x0, start.y + start.height / 2)]
        codes = [Path.MOVETO]

        def straight(x: float, y: float) -> None:
            points.append((x, y))
            codes.append(Path.LINETO)

        def bend(x: float, y: float) -> None:
            x_before, y_before = points[-1]
            middle = (y_before + y) / 2
            points.extend([(x_before, middle), (x, middle), (x, y)])
            codes.extend([Path.CURVE4] * 3)

        # A short vertical stub at each row, for the arrowheads.
        straight(x0, self.bottoms[start.row] + _STUB)
        for x, row in self.routes[e]:
            bend(x, self.tops[row] - _STUB)
            straight(x, self.bottoms[row] + _STUB)
        bend(x1, self.tops[end.row] - _STUB)
        straight(x1, end.y - end.height / 2)
        if target == upper:
            points, codes = points[::-1], [Path.MOVETO, *codes[:0:-1]]
        return Path(points, codes)

    def port(self, i: int, e: int, role: str) -> float:
        """The x at which an edge meets a box: the edges on one side are spread over it, without crossings."""
        below = self.other(i, e).row > self.boxes[i].row
        rivals = [
            other
            for other, (source, target, its_role) in enumerate(self.edges)
            if its_role == role
            and i in (source, target)
            and (self.other(i, other).row > self.boxes[i].row) == below
        ]

        def next_x(edge: int) -> float:
            route = self.routes[edge]
            if not route:
                return self.other(i, edge).x
            return route[0 if below else -1][0]

        rivals.sort(key=next_x)
        box, spread = self.boxes[i], 0.7
        place = (rivals.index(e) + 0.5) / len(rivals) - 0.5
        return box.x + (place * spread * box.width if len(rivals) > 1 else 0.0)

    def other(self, i: int, e: int) -> _Box:
        source, target, _ = self.edges[e]
        return self.boxes[target if source == i else source]

    def residual(self, source: int, target: int, lane: int) -> Path:
        """The path from a value to the adjoint that needs it, beside boxes and through gaps between rows."""
        start, end = self.boxes[source], self.boxes[target]
        channel = self.channel + _LANE * lane
        shift = _ROW_GAP / 2 + _LANE * (lane % 3 - 1)
        points = []
        if self.is_last(start, +1):
            points += [(start.x + start.width / 2, start.y), (channel, start.y)]
        else:
            x, y = start.x + 0.42 * start.width, self.bottoms[start.row] + shift
            points += [(x, start.y + start.height / 2), (x, y), (channel, y)]
        if self.is_last(end, -1):
            points += [(channel, end.y), (end.x - end.width / 2, end.y)]
        else:
            x, y = end.x - 0.42 * end.width, self.bottoms[end.row] + shift
            points += [(channel, y), (x, y), (x, end.y + end.height / 2)]
        return Path(points)

    def is_last(self, box: _Box, side: int) -> bool:
        """Whether no other box of its pass is on this side of it in its row."""
        back = box.kind in ("adjoint", "gradient")
        return not any(
            other.row == box.row
            and (other.kind in ("adjoint", "gradient")) == back
            and (other.x - box.x) * side > 0
            for other in self.boxes
        )


def _rows(dataset: xr.Dataset, edges: list[tuple[int, int, str]]) -> list[int]:
    """The row of each node: below its operands; an adjoint is in the row of its forward node."""
    kinds, of = dataset["kind"].values, dataset["of"].values
    forward = [i for i, k in enumerate(kinds) if k not in ("adjoint", "gradient")]
    row = dict.fromkeys(range(len(kinds)), 0)
    values = [(s, t) for s, t, role in edges if role == "value"]
    for source, target in sorted(values, key=lambda edge: edge[1]):  # in the order of computation
        row[target] = max(row[target], row[source] + 1)
    for i in forward:  # inputs and constants go directly above their first use
        if kinds[i] in ("input", "constant"):
            used = [row[t] for s, t in values if s == i]
            row[i] = min(used) - 1 if used else 0
    # Contributions to an adjoint, before they are added, get a row of their own between two forward rows.
    adjoint = {(s, t) for s, t, role in edges if role == "adjoint"}
    apart = {s for s, t in adjoint if of[s] == of[t]}
    row = {i: 2 * row[int(of[i]) if of[i] >= 0 else i] + (i in apart) for i in row}
    used_rows = {r: n for n, r in enumerate(sorted(set(row.values())))}
    return [used_rows[row[i]] for i in range(len(kinds))]


# Words ---------------------------------------------------------------------------------------


def _lines(dataset: xr.Dataset, i: int) -> list[str]:
    """The lines of text in a box, the first one in bold."""
    kind, operation, name, expression = (
        str(dataset[key].values[i]) for key in ("kind", "operation", "name", "expression")
    )
    value = _value(dataset, i)
    if kind == "constant":
        return [name] if not str(dataset["shape"].values[i]) else [name, *value]
    if kind == "input":
        return [name, *_with_sign(value)]
    if kind in ("adjoint", "gradient"):
        local = float(dataset["local"].values[i])
        plain = operation in ("× 1", "× (−1)") or not np.isfinite(local)
        factor = f"({_number(local)})" if local < 0 else _number(local)
        result = [f"{name} = {value[0]}", *value[1:]]
        return [operation if plain else f"{operation} = × {factor}", *result]
    return [operation, f"{name} = {expression}", *_with_sign(value)]


def _with_sign(value: list[str]) -> list[str]:
    return [f"= {value[0]}", *value[1:]]


def _value(dataset: xr.Dataset, i: int) -> list[str]:
    """A value as text: a number, or an array's shape and range."""
    shape = str(dataset["shape"].values[i])
    if not shape:
        return [_number(dataset["value"].values[i])]
    low, high = (_number(dataset[key].values[i]) for key in ("low", "high"))
    return [f"{shape} numbers", f"all {low}" if low == high else f"from {low} to {high}"]


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _title(dataset: xr.Dataset) -> str:
    outputs = dataset["name"].values[dataset["kind"].values == "output"]
    name = style.joined(*map(str, outputs))
    reverse = (dataset["kind"].values == "gradient").any()
    return f"Computation of {name}" + (", and its reverse pass" if reverse else "")


# Boxes ---------------------------------------------------------------------------------------


def _text_width(text: str, bold: bool = False) -> float:
    weight = "bold" if bold else "normal"
    path = TextPath((0, 0), text or " ", size=_FONT, prop=FontProperties(weight=weight))
    return float(path.get_extents().width) if len(path.vertices) else 0.0


def _points_per_unit(ax: Axes) -> float:
    """How many points a unit of the picture is, after layout."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    left, right = ax.get_xlim()
    return float(ax.get_window_extent().width / (right - left) * 72 / figure.dpi)


def _line(color: str | float) -> str:
    return color if isinstance(color, str) else style.shade(color)


def _face(color: str | float) -> str:
    return style.faded(color, 0.83) if isinstance(color, str) else style.shade(1)


def _draw_box(ax: Axes, box: _Box, scale: float, i: int) -> None:
    color, width, dash, _ = _KINDS[box.kind]
    left, top = box.x - box.width / 2, box.y - box.height / 2
    patch = FancyBboxPatch(
        (left, top),
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=4",
        fc=_face(color),
        ec=_line(color),
        lw=width * scale,
        ls=dash,
        zorder=2,
        label=f"_{box.kind}",
        gid=f"node-{i}",
    )
    ax.add_patch(patch)
    for n, line in enumerate(box.lines):
        ax.text(
            box.x,
            top + _PAD[1] + (n + 0.5) * _LINE,
            style.plain(line),
            ha="center",
            va="center_baseline",
            fontsize=_FONT * scale,
            weight="bold" if n == 0 else "normal",
            zorder=3,
        )


def _legend_entries(dataset: xr.Dataset) -> list[Any]:
    """Legend entries for the kinds of boxes and edges that occur."""
    kinds, roles = set(dataset["kind"].values.tolist()), set(dataset["role"].values.tolist())
    boxes = [
        Patch(fc=_face(color), ec=_line(color), lw=width, ls=dash, label=label)
        for kind, (color, width, dash, label) in _KINDS.items()
        if kind in kinds
    ]
    lines = [
        Line2D([], [], color=_line(color), ls=dash, lw=1.3, label=label)
        for role, (color, dash, label) in _EDGES.items()
        if role in roles
    ]
    return [*boxes, *lines]
