"""What every figure must be: labelled, with a legend for what it draws, and readable.

`faults(figure)` lists what is wrong with a matplotlib figure, in words; an empty list is a pass.
"""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

_ROOM = 1.0  # pixels by which boxes may touch: antialiasing, and letters without descenders
# What a colour bar explains, in place of a legend: the classes by name, as some are private.
_BY_COLOR = ("QuadMesh", "QuadContourSet", "AxesImage", "Poly3DCollection", "TriContourSet")


def faults(figure):
    FigureCanvasAgg(figure).draw()  # a figure that pyplot has closed has no canvas that can draw
    panels = [ax for ax in figure.get_axes() if ax.get_visible()]
    found = [] if panels else ["no panel"]
    for number, ax in enumerate(panels):
        where = f"panel {number} ({ax.get_title() or 'untitled'})"
        found += [f"{where}: {fault}" for fault in _of_axes(ax, figure)]
    return found + list(_of_texts(figure))


def _is_colorbar(ax):
    return hasattr(ax, "_colorbar")


def _of_axes(ax, figure):
    if _is_colorbar(ax):
        if not (ax.get_ylabel() or ax.get_xlabel()):
            yield "a colour bar without a label"
        return
    if not ax.get_title():
        yield "no title"
    if ax.axison:
        for axis in ax._axis_map.values():
            shown = any(tick.label1.get_visible() for tick in axis._update_ticks())
            if axis.get_visible() and shown and not axis.get_label_text():
                yield f"the {axis.axis_name} axis has no label"
    yield from _of_legend(ax, figure)


def _of_legend(ax, figure):
    legends = [ax.get_legend(), *figure.legends]
    named = {text.get_text() for legend in legends if legend for text in legend.get_texts()}
    series = {}  # the series' own mark -> whether one of its artists is in a legend
    for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.images):
        if not _draws(artist):
            continue
        label = str(artist.get_label())
        if type(artist).__name__ in _BY_COLOR and (artist.colorbar or label.startswith("_")):
            continue
        if label.startswith("_child") or not label:
            yield f"a {type(artist).__name__} without a name"
        elif not label.startswith("_") and label not in named:
            yield f"{label!r} is not in a legend"
        mark = artist.get_gid()
        if mark and str(mark).startswith("thalweg-series"):
            series[mark] = series.get(mark, False) or label in named
    for artist in ax.lines:  # entries of the legend are artists without points
        mark = artist.get_gid()
        if mark in series and str(artist.get_label()) in named:
            series[mark] = True
    for mark, there in series.items():
        if not there:
            yield f"the series {mark} is in no legend"


def _draws(artist):
    if not artist.get_visible():
        return False
    if isinstance(artist, Line2D):
        return len(artist.get_xdata()) > 0
    if isinstance(artist, Collection):
        return bool(artist.get_paths()) or len(artist.get_offsets()) > 1
    return isinstance(artist, Patch) or artist.get_visible()


def _of_texts(figure):
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    boxes = []
    for text, owner in _texts(figure):
        box = text.get_window_extent(renderer)
        if box.width * box.height == 0:
            continue
        words = text.get_text().replace("\n", " ")[:40]
        if "\\$\\" in text.get_text():
            yield f"{words!r} is mathematics that is shown as it is written"
        if (
            box.x0 < page.x0 - _ROOM
            or box.x1 > page.x1 + _ROOM
            or box.y0 < page.y0 - _ROOM
            or box.y1 > page.y1 + _ROOM
        ):
            yield f"the text {words!r} leaves the figure"
        boxes.append((words, box, owner))
    for legend in _legends(figure):
        boxes.append((f"the legend of {legend.get_texts()[0].get_text()[:20]!r}",
                      legend.get_frame().get_window_extent(renderer), legend))  # fmt: skip
    for (one, a, mine), (other, b, yours) in combinations(boxes, 2):
        if mine is not None and mine is yours:
            continue  # a legend's own texts lie in it; a colour bar's ticks stand in a row
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > _ROOM and up > _ROOM:
            yield f"{one!r} overlaps {other!r}"


def _legends(figure):
    parts = [figure, *figure.subfigs]
    every = [legend for part in parts for legend in part.legends]
    every += [ax.get_legend() for ax in figure.get_axes() if ax.get_legend()]
    return [legend for legend in every if legend.get_visible() and legend.get_texts()]


def _texts(figure):
    """Every text that is drawn, and the legend it is in, if it is in one."""
    parts: list[FigureBase] = [figure, *figure.subfigs]
    for part in parts:
        for text in part.texts:  # a figure's title is one of them
            if text.get_visible() and text.get_text():
                yield text, None
    for legend in _legends(figure):
        for text in legend.get_texts():
            yield text, legend
    for ax in figure.get_axes():
        if not ax.get_visible():
            continue
        for text in (ax.title, ax._left_title, ax._right_title, *ax.texts):
            if text.get_visible() and text.get_text():
                yield text, None
        for table in ax.tables:
            for cell in table.get_celld().values():
                if cell.get_text().get_text():
                    yield cell.get_text(), table
        if not ax.axison:
            continue
        for axis in ax._axis_map.values():
            if not axis.get_visible():
                continue
            inside: list[Text] = [axis.label, axis.offsetText]
            for tick in axis._update_ticks():
                inside += [tick.label1, tick.label2]
            for text in inside:
                if text.get_visible() and text.get_text():
                    yield text, None
