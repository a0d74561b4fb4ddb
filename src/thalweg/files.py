"""Results in files: saved as netCDF and loaded again.

Like `results.py` it needs only NumPy and xarray.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InputError, first_line
from thalweg.results import SCHEMA_VERSION

# Endings of files in other formats, by which other programs would read what `save` writes.
_OF_OTHERS = re.compile(
    r"\.(csv|tsv|txt|json|xlsx?|parquet|feather|np[yz]|mat|zarr|pkl|pickle|pth?|safetensors|png|pdf|svg|html)",
    re.IGNORECASE,
)


def save(result: xr.Dataset | xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a result as netCDF; an existing file at `path` is replaced only once all is written.

    A table of your own, made of results, may be saved too: it is given the schema's version.

    Raises:
        InputError: where the folder does not exist, a name or attribute cannot be stored, or the file's
            name ends as another format's does.
    """
    ending = path_of(path).suffix
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


def load(path: str | os.PathLike[str]) -> xr.Dataset | xr.DataTree:
    """Read what `save` wrote, wholly into memory: a Dataset, or a DataTree if it has groups.

    Raises:
        InputError: where there is no such file, or it is not one of ours.
    """
    path = path_of(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree = tree.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last two: a damaged file
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


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file to write to, which takes the place of `path` once all is written.

    Raises:
        InputError: where the folder does not exist, or `path` is one.
    """
    path = path_of(path)
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


def path_of(given: Any) -> Path:
    """A file's path; an InputError for what is none."""
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"a file's path was expected; {given!r:.80} given.")
    return Path(given)


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
