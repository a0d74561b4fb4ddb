"""`Plane`: where to look. An origin, one or more directions, and the coordinates along each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import xarray as xr

from thalweg import blocks, names, projection, results
from thalweg.errors import InputError, unknown, whole_number
from thalweg.params import Layout, Params
from thalweg.problem import Problem, check_is_problem, vector_of

if TYPE_CHECKING:
    from jaxtyping import Float

Points = int | Mapping[str, int]

_IN_FLIGHT = 64 * 2**20  # bytes of points whose risks are being computed


@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + c_1 d_1 + … + c_k d_k, for coordinates c_i on a grid.

    Args:
        axes: the names of the axes; the first is drawn across, the second up.
        coordinates: for each axis, the positions along its direction.
        origin: (p,), the point with all coordinates 0.
        directions: (k, p), as used: neither rescaled nor made orthogonal.
        names: the p parameters' names.
        about: how the plane was chosen: attributes, and variables as `xarray.Dataset` takes them.
        labels: what pictures call the axes, where that is not their name.
    """

    axes: tuple[str, ...]
    coordinates: tuple[Float[np.ndarray, " n"], ...]
    origin: Float[np.ndarray, " p"]
    directions: Float[np.ndarray, "k p"]
    names: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for axis in self.axes:
            if not isinstance(axis, str) or not axis:
                raise InputError(f"an axis needs a name; {axis!r:.80} given.")
            if axis in (*results.RESERVED_DIMS, *results.RISKS, *results.PLANE_VARIABLES):
                raise InputError(
                    f"the axis {axis!r} would clash with a dimension or variable of every result; "
                    f"call the parameter {axis + '_'!r}, say."
                )
            if "/" in axis:
                raise InputError(
                    f"the axis {axis!r} holds a '/', which cannot be saved; "
                    f"call it {axis.replace('/', '_')!r}, say."
                )
        if len(set(self.axes)) != len(self.axes):
            raise InputError(f"a plane's axes need different names; {self.axes} given.")
        k, p = len(self.axes), len(self.names)
        shapes = np.shape(self.origin), np.shape(self.directions)
        if len(self.coordinates) != k or shapes != ((p,), (k, p)):
            raise InputError(
                f"a plane of {k} axes and {p} parameters needs as many coordinates, an origin ({p},) and "
                f"directions ({k}, {p}); {len(self.coordinates)}, {shapes[0]} and {shapes[1]} given."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each axis."""
        return tuple(map(len, self.coordinates))

    def dataset(
        self, variables: Mapping[str, Any] | None = None, attrs: Mapping[str, Any] | None = None
    ) -> xr.Dataset:
        """The plane as part of a result: enough to draw on it and to project on it.

        `variables` and `attrs` are the result's own, as `xarray.Dataset` takes them.
        """
        about_variables = {k: v for k, v in self.about.items() if isinstance(v, tuple)}
        attributes = {f"plane_{k}": v for k, v in self.about.items() if k not in about_variables}
        plane_variables = {
            "origin": ("param", self.origin),
            "directions": (("direction", "param"), self.directions),
            "length": ("direction", self._lengths),
            "cosine": (("direction", "other"), self._cosines),
        }
        return xr.Dataset(
            plane_variables | about_variables | dict(variables or {}),
            coords=self._coords,
            attrs=attributes | dict(attrs or {}),
        )

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.linalg.norm(self.directions, axis=1)

    @cached_property
    def _cosines(self) -> np.ndarray:
        """Cosines of the angles between the directions, which need not be orthogonal; NaN for length 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            units = self.directions / self._lengths[:, None]
        return units @ units.T

    @cached_property
    def _coords(self) -> xr.Coordinates:
        # Cached, because building the indexes takes as long as a small landscape.
        coords = {
            "direction": np.array(self.axes),
            "other": np.array(self.axes),
            **names.coords(self.names),
            **dict(zip(self.axes, self.coordinates, strict=True)),
        }
        found = xr.Dataset(coords=coords).coords
        for axis, label in self.labels.items():
            found[axis].attrs["long_name"] = label
        return found

    def project(
        self,
        path: xr.Dataset | xr.DataArray | np.ndarray,
        problem: Problem | None = None,
        *,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """Coordinates of a path (or of points) on this plane, and `residual`, its distance from it.

        With the problem also `risk`, the empirical risk at each point itself, and `risk_in_plane`, that
        at its projection, which is what a picture of the plane shows there. Ctrl-C leaves NaN for the
        points that were not reached.

        Args:
            progress: a progress bar: True, False, or None for one on a terminal after a second.

        Raises:
            InputError: points of other parameters, or directions that are linearly dependent.
        """
        if problem is not None:
            check_is_problem(problem)
            check_is_plane_of(problem, self)
        projected = projection.project(self.dataset(), path)
        if problem is None:
            return projected
        dims = projected["residual"].dims
        points = projection.points_of(self.dataset(), path).transpose(*dims, "param")
        rows = points.values.reshape(-1, problem.size)
        places = np.stack([projected[axis].values.ravel() for axis in self.axes], axis=-1)
        risks = np.full((len(rows), 2), np.nan)

        def launch(start: int, count: int) -> list[Any]:
            several = range(start, start + count)
            both = ((rows[i], self.origin + places[i] @ self.directions) for i in several)
            return [
                _risk_at(problem, point, layout=problem.layout) for pair in both for point in pair
            ]

        def collect(start: int, count: int, found: list[Any]) -> None:
            risks[start : start + count] = np.reshape(found, (count, 2))

        most = max(1, min(256, _IN_FLIGHT // (16 * problem.size)))
        blocks.run(
            len(rows), launch, collect, most=most, label="risks", unit="point", progress=progress
        )
        for name, values in zip(("risk", "risk_in_plane"), risks.T, strict=True):
            projected[name] = (dims, values.reshape(projected["residual"].shape))
        return projected


@partial(jax.jit, static_argnames="layout")
def _risk_at(problem: Problem, point: Any, *, layout: Layout) -> Any:
    return problem.risk(layout.unflatten(point))


def check_is_plane_of(problem: Problem, value: Any, taken: Iterable[str] = ()) -> None:
    """An InputError unless the value is a plane of the problem's parameters, none of whose axes has a name
    that is `taken` by a variable of the result."""
    if not isinstance(value, Plane):
        raise InputError(f"a plane was expected, {type(value).__name__} given.")
    if value.names != problem.names:
        raise InputError("the plane belongs to another problem: its parameters have other names.")
    for axis in value.axes:
        if axis in taken:
            raise InputError(f"the axis {axis!r} would clash with a variable of the result.")


def coordinate_plane(
    problem: Problem,
    ranges: Mapping[str, Sequence[float]],
    points: Points = 101,
    *,
    at: Params = None,
) -> Plane:
    """The plane in which the named parameters vary and the others stay where they are.

    Its coordinates are the parameters' own values.

    Args:
        ranges: for each parameter that varies, a pair (from, to); one, two or more parameters.
        points: how many along every axis, or one number for each: {"weight": 60, "bias": 40}.
        at: the values of the other parameters; the problem's starting point without it.

    Raises:
        InputError: an unknown parameter, a range that is not two different finite numbers.
    """
    check_is_problem(problem)
    if not isinstance(ranges, Mapping) or not ranges:
        raise InputError(
            "coordinate_plane needs at least one parameter and its range, as in "
            f"{{{problem.names[0]!r}: (-1, 1)}}; {ranges!r} given."
        )
    point = point_of(problem, at, needed=len(ranges) < problem.size)
    counts = counts_of(points, tuple(ranges))
    coordinates, directions = [], np.zeros((len(ranges), problem.size))
    for row, (name, span) in enumerate(ranges.items()):
        index = problem.layout.index(name)
        coordinates.append(grid_of(name, span, counts[name]))
        directions[row, index] = 1
        point[index] = 0
    axes = (name.replace("/", "_") for name in ranges)  # netCDF's groups are named with slashes
    return Plane(tuple(axes), tuple(coordinates), point, directions, problem.names)


def line(
    problem: Problem,
    a: Params,
    b: Params,
    points: Points = 51,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    name: str = "t",
) -> Plane:
    """The line through two points: a at coordinate 0, b at coordinate 1.

    Args:
        a, b: the points, as `Problem.at` takes them.
        points: how many, equally spaced.
        span: the coordinates of the first and the last.
        name: of the axis.

    Raises:
        InputError: twice the same point, or points that are not the problem's.
    """
    start, end = point_of(problem, a), point_of(problem, b)
    if np.array_equal(start, end):
        raise InputError("line needs two different points; the same was given twice.")
    counts = counts_of(points, (name,))
    grid = grid_of(name, span, counts[name])
    labels = {name: "from a (0) to b (1)"} if name == "t" else {}
    return Plane((name,), (grid,), start, (end - start)[None], problem.names, labels=labels)


def point_of(problem: Problem, params: Params, needed: bool = True) -> np.ndarray:
    """A point as a vector (p,) in double precision."""
    check_is_problem(problem)
    if params is None:
        params = problem.params
        if params is None:
            if needed:
                raise InputError(
                    "this problem has no starting point (it has init=); say where the plane lies with at=."
                )
            return np.zeros(problem.size)
    vector = np.array(vector_of(problem, params), float)
    if not np.isfinite(vector).all():
        raise InputError("a point of the plane is not finite.")
    return vector


def counts_of(points: Points, axes: Sequence[str]) -> dict[str, int]:
    if isinstance(points, Mapping):
        for name in points:
            if name not in axes:
                raise unknown("axis in points=", name, axes)
        missing = [name for name in axes if name not in points]
        if missing:
            raise InputError(f"points= gives no number for {missing[0]!r}.")
        counts = dict(points)
    else:
        counts = dict.fromkeys(axes, points)
    counts = {name: whole_number(f"points of {name!r}", counts[name], 1) for name in axes}
    blocks.check_memory(
        8 * sum(counts.values()), f"the coordinates of {counts} points", "lower points="
    )
    return counts


def grid_of(name: str, span: Any, count: int) -> np.ndarray:
    try:
        low, high = (float(end) for end in span)
    except (TypeError, ValueError):
        raise InputError(
            f"the range of {name!r} must be a pair (from, to); {span!r} given."
        ) from None
    if not (np.isfinite(low) and np.isfinite(high)) or (low == high and count > 1):
        raise InputError(
            f"the range of {name!r} must be two different finite numbers; {span!r} given."
        )
    return np.linspace(low, high, count)
