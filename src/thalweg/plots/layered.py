"""Horizontal positions of the boxes of a layered drawing, computed by Graphviz or igraph."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from thalweg.errors import optional

_GAP = 16.0  # between two boxes of a row
_SECONDS = 10.0  # timeout: more than `dot` takes for any graph that one can read
_POINTS = 72.0  # per inch, Graphviz's unit


def across(
    rows: Sequence[int], widths: Sequence[float], edges: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The centres (n,) of n boxes, placed so that few edges cross and no two boxes of a row touch.

    Args:
        rows: of each box, from the top.
        widths: of each box, in points; 0 for a bend of an edge that passes the row.
        edges: pairs of boxes in neighbouring rows, the upper first.

    Raises:
        MissingExtra: neither Graphviz's `dot` nor igraph is installed.
    """
    if len(rows) == 0:
        return np.zeros(0)
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return _by_dot(rows, widths, edges)
    return _by_igraph(rows, widths, edges)


def _by_dot(
    rows: Sequence[int], widths: Sequence[float], edges: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Graphviz's layout (Gansner et al., 1993); a ValueError if its output cannot be read."""
    program = shutil.which("dot")
    if program is None:
        raise FileNotFoundError("dot")
    # Boxes are named by number, so that no name needs escaping.
    text = [f'digraph {{ nodesep={_GAP / _POINTS:.4f}; node [shape=box fixedsize=true label=""];']
    text += [f"n{i} [width={max(width, 1) / _POINTS:.4f}];" for i, width in enumerate(widths)]
    for row in sorted(set(rows)):
        text.append(
            "{rank=same; " + " ".join(f"n{i};" for i, r in enumerate(rows) if r == row) + "}"
        )
    text += [f"n{a} -> n{b};" for a, b in edges]
    done = subprocess.run(
        [program, "-Tplain"],
        input="\n".join([*text, "}"]),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    # "node n3 1.25 0.5 …": name, x and y of the centre in inches
    words = [line.split() for line in done.stdout.splitlines()]
    place = {w[1]: float(w[2]) * _POINTS for w in words if len(w) > 3 and w[0] == "node"}
    if set(place) != {f"n{i}" for i in range(len(rows))}:
        raise ValueError("dot left boxes out")
    return np.array([place[f"n{i}"] for i in range(len(rows))])


def _by_igraph(
    rows: Sequence[int], widths: Sequence[float], edges: Sequence[tuple[int, int]]
) -> np.ndarray:
    """igraph's order in each row (Sugiyama et al., 1981), with positions that fit the boxes' widths."""
    igraph = optional("igraph", "drawing a graph without Graphviz's dot needs", extra="graph")
    drawn = igraph.Graph(len(rows), list(edges), directed=True).layout_sugiyama(layers=list(rows))
    layout = drawn[0] if isinstance(drawn, tuple) else drawn
    start = np.array(layout.coords)[: len(rows), 0]
    return _drawn_together(np.asarray(rows), np.asarray(widths, float), edges, start)


def _drawn_together(
    rows: np.ndarray, widths: np.ndarray, edges: Sequence[tuple[int, int]], start: np.ndarray
) -> np.ndarray:
    """Boxes in the order of `start`, each as near to the mean of its neighbours as its row allows.

    Rows are swept down and up. Within a row, the nearest positions that keep order and distance are an
    isotonic regression. Edges between two bends have a larger weight, so that long edges are straight
    (Gansner et al., 1993, section 4).
    """
    near: list[list[int]] = [[] for _ in rows]
    weight: list[list[int]] = [[] for _ in rows]
    for a, b in edges:
        for one, other in ((a, b), (b, a)):
            near[one].append(other)
            weight[one].append((1, 2, 8)[int(widths[a] == 0) + int(widths[b] == 0)])
    ordered = [
        np.array(sorted(np.flatnonzero(rows == r), key=lambda i: start[i])) for r in np.unique(rows)
    ]
    x = np.zeros(len(rows))
    for row in ordered:
        x[row] = _offsets(widths[row])
        x[row] -= x[row].mean()
    for _ in range(20):
        for row in (*ordered, *ordered[::-1]):
            offset = _offsets(widths[row])
            wanted = [np.average(x[near[i]], weights=weight[i]) if near[i] else x[i] for i in row]
            pull = [max(sum(weight[i]), 1) for i in row]
            x[row] = _increasing(np.array(wanted) - offset, pull) + offset
    return x


def _offsets(widths: np.ndarray) -> np.ndarray:
    """The centres of boxes packed as closely as allowed."""
    return np.concatenate([[0.0], np.cumsum((widths[1:] + widths[:-1]) / 2 + _GAP)])


def _increasing(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The weighted least-squares fit by a nondecreasing sequence: neighbours out of order are pooled."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        pools.append((float(value), weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, v, n), (b, w, m) = pools[-2:]
            pools[-2:] = [((v * a + w * b) / (v + w), v + w, n + m)]
    return np.concatenate([np.full(n, mean) for mean, _, n in pools])
