"""Points of parameter space, projected on a plane.

Like `results.py` it needs only NumPy and xarray.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from thalweg import names
from thalweg.errors import InputError
from thalweg.results import plane_axes


def project(plane: Any, path: xr.Dataset | xr.DataArray | np.ndarray) -> xr.Dataset:
    """Coordinates on a plane of points in parameter space, and their distance from it.

    The coordinates are those of the nearest point origin + Σ c_i d_i: least squares, so that the
    directions need not be orthogonal nor of unit length.

    Args:
        plane: a plane, a landscape, or any dataset with `origin` (param) and `directions`
            (direction, param).
        path: a trajectory, or points with a dimension `param`, or an array (..., p), or one point by
            name, as in {"x": 1.0, "y": 2.0}.

    Returns:
        A dataset with one variable for each axis, bearing its name, and `residual`, the Euclidean
        distance from the plane; on the dimensions of `path` without `param`.
    """
    plane = plane.dataset() if callable(getattr(plane, "dataset", None)) else plane
    if not isinstance(plane, xr.Dataset) or not {"origin", "directions"} <= set(plane.variables):
        raise InputError(f"a plane or a landscape was expected, {type(plane).__name__} given.")
    points = points_of(plane, path)
    clash = set(plane_axes(plane)) & set(map(str, points.dims))
    if clash:
        raise InputError(
            f"{clash.pop()!r} is both an axis of the plane and a dimension of the path; rename one, as "
            f"in path.rename(lr='learning_rate')."
        )
    origin = plane["origin"].values.astype(float)
    directions = plane["directions"].transpose("direction", "param").values.astype(float)
    dims = [d for d in points.dims if d != "param"]
    offset = points.transpose(*dims, "param").values.astype(float) - origin
    lengths = np.linalg.norm(directions, axis=1)
    # A thin QR decomposition, not the Gram matrix, whose condition number would be squared.
    q, r = np.linalg.qr(directions.T / np.where(lengths, lengths, 1))
    if np.linalg.matrix_rank(r) < len(directions):
        raise InputError(
            "the plane has a direction of length 0, or one that is a combination of the others, so that "
            "points have no coordinates on it."
        )
    # A diverging run passes through huge numbers. They are data, not a cause for warnings; and the residual
    # is computed by hypot, because squaring them would overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        along = offset @ q
        coordinates = np.linalg.solve(r, np.moveaxis(along, -1, 0).reshape(len(r), -1))
        coordinates = (coordinates.T / lengths).T.reshape(len(r), *along.shape[:-1])
        inside = np.moveaxis(np.tensordot(q, np.moveaxis(along, -1, 0), axes=(1, 0)), 0, -1)
        residual = np.hypot.reduce(offset - inside, axis=-1)
    data = {name: (dims, coordinates[i]) for i, name in enumerate(plane_axes(plane))}
    coords = {k: v for k, v in points.coords.items() if "param" not in v.dims}
    return xr.Dataset({**data, "residual": (dims, residual)}, coords=coords)


def points_of(plane: xr.Dataset, path: Any) -> xr.DataArray:
    """The points of a trajectory, or of an array, that may be drawn on a plane."""
    original, plane_names = path, names.found(plane)
    path = names.vector(path, plane_names)
    if isinstance(path, xr.Dataset):
        if "params" not in path:
            raise InputError(
                "this trajectory has no recorded params, so it cannot be drawn on a plane; descend "
                "with record={'params': True}."
            )
        path = path["params"]
    if not isinstance(path, xr.DataArray):
        path = path if plane_names is None else names.in_order("path", path, plane_names)
        try:
            array = np.asarray(path, float)
        except (TypeError, ValueError):
            array = np.empty(())
        if not array.ndim:
            raise InputError(
                f"a trajectory, or points as an array (…, {plane.sizes['param']}), was expected; "
                f"{type(path).__name__} given."
            )
        path = xr.DataArray(array, dims=[*(f"axis_{i}" for i in range(array.ndim - 1)), "param"])
    if "param" not in path.dims or path.sizes["param"] != plane.sizes["param"]:
        raise InputError(
            f"the points must have the plane's {plane.sizes['param']} parameters; they have "
            f"{dict(path.sizes)}."
        )
    if (
        plane_names
        and isinstance(original, (xr.Dataset, xr.DataArray))
        and not names.same(original, plane_names)
    ):
        raise InputError("the points and the plane have different parameters.")
    return path


def off_plane(plane: xr.Dataset, points: Any, where: xr.Dataset) -> float:
    """The largest distance of points from the plane, 0 where rounding explains it; `where` is what `project`
    says of them."""
    residual = where["residual"].values
    values = np.asarray(points)
    size = np.abs(values[np.isfinite(values)]).max(initial=np.abs(plane["origin"].values).max())
    precision = np.finfo(values.dtype if values.dtype.kind == "f" else float).eps
    largest = float(residual[np.isfinite(residual)].max(initial=0))
    return largest if largest > 32 * precision * size * np.sqrt(plane.sizes["param"]) else 0.0


def share_of_movement(plane: xr.Dataset, points: xr.DataArray, where: xr.Dataset) -> float:
    """How much of a path's movement the plane shows: the largest distance from a member's first point in the
    plane, relative to that in all parameters. `where` is what `project` says of `points` (step, …, param)."""
    rest = [dim for dim in points.dims if dim not in ("step", "param")]
    every = points.transpose("step", *rest, "param").values
    coordinates = [where[a].transpose("step", *rest).values for a in plane_axes(plane)]
    directions = plane["directions"].transpose("direction", "param").values.astype(float)
    with np.errstate(all="ignore"):  # a run on its way to infinity
        # one step at a time: all of them in double precision may fill the memory
        first = every[0].astype(float)
        moved = np.stack([np.linalg.norm(now.astype(float) - first, axis=-1) for now in every])
        shift = np.stack([c - c[0] for c in coordinates], axis=-1)
        shown = np.sqrt(np.sum(shift @ (directions @ directions.T) * shift, axis=-1))
    finite = np.isfinite(moved) & np.isfinite(shown)
    largest = moved[finite].max(initial=0)
    return float(shown[finite].max() / largest) if largest else 1.0
