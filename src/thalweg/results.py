"""The schema of a result, its provenance, projection on a plane, save and load.

A result is an `xarray.Dataset` (a study's, an `xarray.DataTree`). docs/results.md lists every
variable. This module needs only NumPy and xarray, so that a saved file can be read and drawn without the
libraries that made it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from thalweg import names
from thalweg.errors import InputError, first_line, unknown

SCHEMA_VERSION = 1
# Endings of files in other formats, by which other programs would read what `save` writes.
_OF_OTHERS = re.compile(
    r"\.(csv|tsv|txt|json|xlsx?|parquet|feather|np[yz]|mat|zarr|pkl|pickle|pth?|safetensors|png|pdf|svg|html)",
    re.IGNORECASE,
)

# Dimensions that any result may have; axes of planes and records must not use these names.
RESERVED_DIMS = (
    "step",
    "param",
    "tensor",
    "tensor_shape",
    "run",
    "sample",
    "direction",
    "other",
    "component",
    "state",
    "update",
    "in_batch",
    "seed",
)

# What the loop records itself, but for `batch`, which the host records.
BUILT_IN = ("params", "loss", "grad", "batch")

# What every trajectory of a descent holds besides the record.
OF_A_DESCENT = (
    "start",
    "final",
    "optimizer_state",
    "status",
    "diverged_at",
    "stopped_at",
    "updates",
)

RISKS = ("empirical", "expected", "pointwise")

# What a landscape and a projection hold besides the risks.
PLANE_VARIABLES = (
    "origin",
    "directions",
    "length",
    "cosine",
    "residual",
    "risk",
    "risk_in_plane",
)


def provenance(kind: str, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The attributes that say what produced a result: strings and numbers only."""
    return {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "settings": to_json(settings),
        "versions": to_json(versions()),
        **more,
    }


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python, Thalweg and the packages that affect the numbers, where installed."""
    by_package = {"python": platform.python_version()}
    for package in ("thalweg", "jax", "jaxlib", "numpy", "optax", "xarray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_package[package] = metadata.version(package)
    return by_package


def to_json(value: Any) -> str:
    """JSON of settings; arrays become lists and functions their names."""
    return json.dumps(value, default=_plain, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if callable(value):
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
    if hasattr(value, "tolist"):
        return np.asarray(value).tolist()
    return str(value)


def settings_of(result: xr.Dataset | xr.DataTree) -> dict[str, Any]:
    """The settings that produced a result; none of a table of the user's own."""
    return json.loads(result.attrs.get("settings", "{}"))


def batch_norm_of(result: xr.Dataset, name: str | None = None) -> str | None:
    """Which statistics batch norm took in a result, or in one variable that was measured later: "frozen" or
    "recomputed"; None for a model without batch norm."""
    settings = settings_of(result)
    problem = settings.get("measured", {}).get(name) or settings.get("problem", settings)
    return problem.get("batch_norm")


def is_of_batches(path: xr.Dataset) -> bool:
    """Whether a descent's steps saw batches of its samples, rather than all of them."""
    settings = settings_of(path)
    if settings.get("batches") is not None:
        return True
    size, samples = settings.get("batch_size"), settings.get("problem", {}).get("n_samples")
    # without replacement a batch of all the samples is all of them, in whatever order
    return size is not None and (settings["replacement"] or size < samples)


def part(tree: xr.DataTree, path: str) -> xr.Dataset:
    """One of a study's results, as in part(tree, "path/mse/plain")."""
    parts = {node.path.lstrip("/"): node for node in tree.subtree}
    if path not in parts:
        raise unknown("part of this result", path, parts)
    return parts[path].to_dataset()


# Saving and loading --------------------------------------------------------------------------


def save(result: xr.Dataset | xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a result as netCDF; an existing file at `path` is replaced only once all is written.

    A table of your own, made of results, may be saved too: it is given the schema's version.

    Raises:
        InputError: where the folder does not exist, a name or attribute cannot be stored, or the file's
            name ends as another format's does.
    """
    ending = _path(path).suffix
    if _OF_OTHERS.fullmatch(ending):
        raise InputError(
            f"results are saved as netCDF, as in 'p.nc'; {ending!r} given. A table is "
            "path['loss'].to_dataframe().to_csv('p.csv')."
        )
    with replacing(path) as scratch:
        if not isinstance(result, (xr.Dataset, xr.DataTree)):
            raise InputError(
                f"a Dataset or a DataTree can be saved; {type(result).__name__} given."
            )
        _check_names(result)
        if "schema_version" not in result.attrs:
            result = result.copy()  # a tree has no assign_attrs
            result.attrs = {**result.attrs, "schema_version": SCHEMA_VERSION}
        try:
            # in memory: writing to disk, HDF5 would abort the process where the disk is full
            content = result.to_netcdf(None, engine="h5netcdf")
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"this result cannot be stored as netCDF: {first_line(error)}."
            ) from error
        scratch.write_bytes(content)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file to write to, which takes the place of `path` once all is written.

    Raises:
        InputError: where the folder does not exist, or `path` is one.
    """
    path = _path(path)
    path = path.resolve() if path.is_symlink() else path
    if not path.parent.is_dir():
        raise InputError(f"cannot save to {path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise InputError(f"cannot save to {path}: it is a folder; give a file in it.")
    # tempfile's files are private; a result should have the permissions of any new file
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        scratch.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"cannot save to {path}: {error.strerror}.") from error
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _path(given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"a file's path was expected; {given!r:.80} given.")
    return Path(given)


def load(path: str | os.PathLike[str]) -> xr.Dataset | xr.DataTree:
    """Read what `save` wrote, wholly into memory: a Dataset, or a DataTree if it has groups.

    Raises:
        InputError: where there is no such file, or it is not one of ours.
    """
    path = _path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree = tree.load()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result: {first_line(error)}.") from None
    if not isinstance(tree.attrs.get("schema_version"), (int, np.integer)):
        raise InputError(f"{path} is not a Thalweg result: it has no schema_version.")
    if tree.attrs["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer Thalweg (schema {tree.attrs['schema_version']}; this one "
            f"reads up to {SCHEMA_VERSION}); upgrade Thalweg."
        )
    tree = tree.map_over_datasets(_as_saved)
    return tree if tree.children else tree.to_dataset()


def _as_saved(dataset: xr.Dataset) -> xr.Dataset:
    """Undo what netCDF does to types: strings come back as objects, and attributes as NumPy scalars."""
    changed = {
        name: (v.dims, v.values.astype(str), v.attrs)
        for name, v in dataset.variables.items()
        if v.dtype == object or v.dtype.kind == "T"
    }
    dataset = dataset.assign({k: v for k, v in changed.items() if k not in dataset.coords})
    dataset = dataset.assign_coords({k: v for k, v in changed.items() if k in dataset.coords})
    for variable in dataset.variables.values():
        variable.encoding = {}
        variable.attrs = {k: _python(v) for k, v in variable.attrs.items()}
    dataset.attrs = {k: _python(v) for k, v in dataset.attrs.items()}
    dataset.encoding = {}
    return dataset


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _check_names(result: xr.Dataset | xr.DataTree) -> None:
    datasets = (
        [node.to_dataset() for node in result.subtree]
        if isinstance(result, xr.DataTree)
        else [result]
    )
    for dataset in datasets:
        for name in [*map(str, dataset.variables), *map(str, dataset.dims)]:
            if "/" in name:
                raise InputError(f"the name {name!r} holds a '/', which netCDF keeps for groups.")
        holders = [
            ("", dataset.attrs),
            *((f" of {n}", v.attrs) for n, v in dataset.variables.items()),
        ]
        for where, attrs in holders:
            for key, value in attrs.items():
                storable = isinstance(value, (str, int, float, np.number, np.ndarray, list))
                if isinstance(value, bool) or not storable:
                    raise InputError(
                        f"attribute {key!r}{where} is a {type(value).__name__}; attributes are "
                        f"strings and numbers."
                    )


# Reading trajectories and landscapes ---------------------------------------------------------


def member_dims(path: xr.Dataset) -> tuple[str, ...]:
    """The dimensions of a trajectory's members: run, and one per sweep."""
    return tuple(str(d) for d in path["status"].dims)


def plane_axes(surface: xr.Dataset) -> tuple[str, ...]:
    """The names of a landscape's (or plane's) axes: the first drawn across, the second up."""
    if not isinstance(surface, xr.Dataset) or "direction" not in surface.variables:
        kind = surface.attrs.get("kind") if isinstance(surface, xr.Dataset) else None
        hint = " Give landscape(problem, plane)." if hasattr(surface, "directions") else ""
        raise InputError(f"a landscape was expected, {kind or type(surface).__name__} given.{hint}")
    return tuple(str(name) for name in surface["direction"].values)


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
            raise InputError(
                f"a trajectory, or points as an array (…, {plane.sizes['param']}), was expected; "
                f"{type(path).__name__} given."
            ) from None
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


# Building ------------------------------------------------------------------------------------


def mask_from(values: np.ndarray, step: np.ndarray, since: np.ndarray, after: int = 0) -> None:
    """Mask, in place, each member's values from step since + after on. `since` is (members,); members where
    it is −1 are left alone.

    `values` is (rows, size, members). Masked values become NaN, or −1 in integers.
    """
    filler = np.nan if values.dtype.kind in "fc" else (-1 if values.dtype.kind == "i" else 0)
    for member in np.flatnonzero(since >= 0):
        values[step >= since[member] + after, :, member] = filler
