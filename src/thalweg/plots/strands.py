"""Members of a trajectory that are drawn alike: their styles, their legend entries, and how they end.

The same on a map and on a surface, whatever lines are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from thalweg.plots import legends, members, style

ENDS = ("start", "end", "lost")


@dataclass(frozen=True, eq=False)
class Strand:
    """Members of a trajectory that are drawn alike; those that diverge come last, to be on top.

    Args:
        x, y: (recorded steps, members) coordinates, NaN where they are not finite.
        lost: (members) which of them diverge.
        look, name, gid: how they are drawn, what the legend calls them, and by what their artists are known.
        many: whether some strand of the trajectory has several members: lines are thin then.
        alone: whether the trajectory has one member.
    """

    x: np.ndarray
    y: np.ndarray
    lost: np.ndarray
    look: style.Style
    name: str
    gid: str
    many: bool
    alone: bool


def each(
    ax: Axes,
    path: xr.Dataset,
    x: np.ndarray,
    y: np.ndarray,
    label: str | None,
    look: style.Style | None = None,
) -> list[Strand]:
    """A trajectory's members (step, …members) as strands, in styles new to the axes or in `look`."""
    lost = members.diverged(path)
    groups = members.each(path)
    many = any(len(g.members) > 1 for g in groups)
    taken = style.styles_taken(ax)
    found = []
    for i, group in enumerate(groups):
        order = sorted(group.members, key=lambda m: bool(lost[m]))
        gone = np.array([bool(lost[m]) for m in order])
        across, up = (np.stack([c[(slice(None), *m)] for m in order], axis=1) for c in (x, y))
        name = style.joined(label and style.plain(label), group.label, by=": ") or "path"
        gid, own = f"{style.SERIES}-{taken + i}", look or style.style(taken + i)
        alone = len(groups) == 1 and not many
        found.append(Strand(across, up, gone, own, name, gid, many, alone))
    return found


def legend_entries(ax: Axes, strand: Strand, marked: bool) -> None:
    """One legend entry for a strand, one more for those of its members that diverged."""
    look, name = strand.look, strand.name
    gone = int(strand.lost.sum())
    kept = len(strand.lost) - gone
    entries: list[tuple[str, Any, str | None]]
    if len(strand.lost) == 1:
        text = f"{name} (diverged)" if gone else name
        entries = [(text, look.dash, look.marker if marked else None)]
    else:
        # The name holds the total count; without kept members only the entry of the diverged ones has it.
        entries = [(name, dash_of(look, True, False), None)] if kept else []
        if gone:
            text = style.joined(name, f"{gone:,} diverged", by=": ")
            entries.append((text, dash_of(look, True, True), "X"))
    looks = {"color": look.color, "ms": 4.5, "lw": 1.6, "gid": strand.gid}
    for text, dash, marker in entries:
        ax.plot([], [], ls=dash, marker=marker, label=text, **looks)


def dash_of(look: style.Style, many: bool, lost: bool) -> Any:
    """The dash of a line; many lines side by side are solid, as their dashes would merge."""
    return style.DIVERGED_DASH if many and lost else "-" if many else look.dash


def ends(x: np.ndarray, y: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, ...]:
    """Members' starts, their last iterates, and the last finite iterates of the `lost`, (2, members) each."""
    first, last = _ends(x, y)
    gone = lost & _is_gone(x, y)
    return first, last[:, ~gone], last[:, gone]


def _ends(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last finite iterate of each member, each (2, …members); NaN where there is none."""
    finite = np.isfinite(x) & np.isfinite(y)
    first = finite.argmax(axis=0)
    last = len(finite) - 1 - finite[::-1].argmax(axis=0)
    # A member without finite iterates gets index 0 in both, where its coordinates are NaN.
    return tuple(
        np.stack([np.take_along_axis(c, index[None], axis=0)[0] for c in (x, y)])
        for index in (first, np.where(finite.any(axis=0), last, 0))
    )  # pyright: ignore[reportReturnType]


def _is_gone(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which members' last coordinates are not finite."""
    return ~(np.isfinite(x[-1]) & np.isfinite(y[-1]))


def end_looks(kind: str, color: str, small: bool) -> dict[str, Any]:
    """How the members' "start", "end", or last finite iterate ("lost") is marked."""
    ink, ground = style.shade(0), style.rim(color)
    marker, size, face, rim = {
        "start": ("o", 3 if small else 8, ground, ink if small else color),
        "end": ("*", 5 if small else 13, color, ground),
        "lost": ("X", 4 if small else 9, color, ground),
    }[kind]
    thick = 0.3 if small and rim == ground else 0.8
    looks = {"marker": marker, "ms": size, "mfc": face, "mec": rim, "mew": thick}
    return looks | {"label": f"_{marker}"}


def legend_of_ends(
    ax: Axes, path: xr.Dataset, x: np.ndarray, y: np.ndarray, end: str = "end"
) -> None:
    """Legend entries for circle, star and cross, each at most once, if one is visible in the window."""
    named = legends.ends_named(ax)
    step = int(path["step"].values[0]) if path.sizes["step"] else 0
    ink = style.shade(0)
    first, last = _ends(x, y)
    lost = members.diverged(path) & _is_gone(x, y)
    entries = [
        ("start" if step == 0 else f"step {step}", "o", "white", is_inside(ax, *first)),
        (end, "*", ink, is_inside(ax, *last) & ~lost),
        ("last finite iterate", "X", ink, is_inside(ax, *last) & lost),
    ]
    for text, marker, face, visible in entries:
        if visible.any() and text not in named:
            looks = {"marker": marker, "mfc": face, "mec": ink, "ms": 7}
            ax.plot([], [], ls="", label=text, gid=style.LAST, **looks)


def is_inside(ax: Axes, x: Any, y: Any) -> np.ndarray:
    """Whether points lie in the window, up to rounding."""
    inside = np.True_
    for values, (low, high) in ((x, sorted(ax.get_xlim())), (y, sorted(ax.get_ylim()))):
        room = 1e-6 * (high - low)
        inside = inside & (values >= low - room) & (values <= high + room)
    return np.asarray(inside)
