"""A landscape as the ground under a path: heights between grid points, and lines laid on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROOM = 1e-6  # tolerance, in window widths: rounding puts points on the edge just outside
_FAR = 1e9  # in window widths: lines between points farther away are not drawn, as rounding is too large
_MOST_VERTICES = 8_000  # of all lines on the ground


@dataclass(frozen=True, eq=False)
class Ground:
    """Heights on a grid.

    Args:
        x, y: (nx,), (ny,) coordinates, ascending.
        height: (nx, ny), NaN where there is none.
        log: heights are drawn on a log scale, and so interpolated on one.
    """

    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    log: bool = False

    def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether points lie in the window; not where a coordinate is NaN."""
        inside = np.True_
        for values, along in ((x, self.x), (y, self.y)):
            room = _ROOM * (along[-1] - along[0])
            inside = inside & (values >= along[0] - room) & (values <= along[-1] + room)
        return np.asarray(inside)

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The height at points, by bilinear interpolation of the four grid points around each.

        NaN outside the window, and where a grid point of nonzero weight has no height.
        """
        x, y = np.asarray(x, float), np.asarray(y, float)
        height = np.log10(self.height) if self.log else self.height
        (i, a), (j, b) = _cell(self.x, x), _cell(self.y, y)
        total = np.zeros(np.broadcast(x, y).shape)
        for di, dj, weight in (
            (0, 0, (1 - a) * (1 - b)),
            (1, 0, a * (1 - b)),
            (0, 1, (1 - a) * b),
            (1, 1, a * b),
        ):
            # a corner of weight 0 may have no height
            total += np.where(weight > 0, weight * height[i + di, j + dj], 0)
        total = 10**total if self.log else total
        return np.where(self.inside(x, y), total, np.nan)

    def over(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The vertices of straight lines from point to point, laid on the ground.

        Lines are cut where they leave the window, and have a vertex about every grid cell, so that
        they neither float above a valley nor run through a ridge.

        Args:
            x, y: (n, members) points, NaN where there are none.

        Returns:
            Coordinates and heights (m,), with a NaN after each end.
        """
        pieces = [_GAP]
        most = max(1, _MOST_VERTICES // max(x.size, 1))
        for points in np.moveaxis(np.stack([x, y]), -1, 0):  # (2, n) per member
            for k in range(points.shape[1] - 1):
                # parametrised from the nearer end: from a far one, rounding may exceed the window
                ends = points[:, k : k + 2]
                turned = self._away(ends[:, 1]) < self._away(ends[:, 0])
                a, b = ends.T[::-1] if turned else ends.T
                t0, t1 = self._seen(a, b)
                if not t0 <= t1 or self._away(a) > _FAR:
                    continue
                ends = np.outer(a, 1 - np.array([t0, t1])) + np.outer(b, [t0, t1])
                cells = max(
                    abs(np.subtract(*np.interp(e, along, np.arange(len(along)))))
                    for e, along in zip(ends, (self.x, self.y), strict=True)
                )
                t = np.linspace(t0, t1, int(np.clip(np.ceil(cells), 1, most)) + 1)
                line = np.outer(a, 1 - t) + np.outer(b, t)
                line[:, -1] = b if t1 == 1 else line[:, -1]
                line = line[:, ::-1] if turned else line
                goes_on = np.array_equal(pieces[-1][:, -1], line[:, 0])
                pieces += [line[:, 1:]] if goes_on else [_GAP, line]
        across, up = np.concatenate([*pieces, _GAP], axis=1)[:, 2:]
        return across, up, self.at(across, up)

    def _away(self, point: np.ndarray) -> float:
        """The distance of a point from the window's corner, in window widths; NaN for a NaN point."""
        spans = [(along[0], np.ptp(along) or 1) for along in (self.x, self.y)]
        with np.errstate(all="ignore"):
            return max(abs(v - low) / span for v, (low, span) in zip(point, spans, strict=True))

    def _seen(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        """The interval of t in [0, 1] in which a + t (b − a) lies in the window (Liang and Barsky); with its
        ends reversed where there is none."""
        t0, t1 = 0.0, 1.0
        with np.errstate(all="ignore"):
            for start, end, along in zip(a, b, (self.x, self.y), strict=True):
                move = end - start
                if not np.isfinite(move):
                    return 1.0, 0.0
                room = _ROOM * (along[-1] - along[0])
                low, high = along[0] - room - start, along[-1] + room - start
                if move == 0:
                    if low > 0 or high < 0:
                        return 1.0, 0.0
                    continue
                first, last = sorted((low / move, high / move))
                t0, t1 = max(t0, first), min(t1, last)
        return t0, t1


_GAP = np.full((2, 1), np.nan)


def _cell(along: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the cell that holds each value, and the value's fraction of it, 0 to 1."""
    index = np.clip(np.searchsorted(along, values, side="right") - 1, 0, len(along) - 2)
    with np.errstate(all="ignore"):
        share = (values - along[index]) / (along[index + 1] - along[index])
    return index, np.clip(np.nan_to_num(share), 0, 1)
