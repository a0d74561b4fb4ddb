"""A trajectory's members, grouped and named for legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from thalweg import results
from thalweg.errors import InputError
from thalweg.plots.style import count_of, joined, plain, value_text

MOST = 10  # series that a legend can name one by one


@dataclass(frozen=True)
class Series:
    """Members that are drawn alike. Each is an index on the member dimensions."""

    label: str
    members: tuple[tuple[int, ...], ...]


def check_trajectory(path: object) -> xr.Dataset:
    """The trajectory, or an InputError where it is something else."""
    if isinstance(path, xr.Dataset) and "status" in path and "step" not in path.dims:
        raise InputError("this is one step of a trajectory; select several, as in isel(step=[-1]).")
    if not isinstance(path, xr.Dataset) or "status" not in path:
        kind = path.attrs.get("kind", "dataset") if isinstance(path, xr.Dataset) else None
        kind = "a part of one, without its status," if kind == "trajectory" else kind
        raise InputError(
            f"a trajectory was expected, as descend returns it; {kind or type(path).__name__} given."
        )
    return path


def diverged(path: xr.Dataset) -> np.ndarray:
    """Which members diverged, on the member dimensions."""
    return np.asarray(path["status"].values == "diverged")


def each(path: xr.Dataset) -> list[Series]:
    """One series per member if a legend can name them all, else one per combination of swept values if it
    can name those, else a single series."""
    shape = path["status"].shape
    total = int(np.prod(shape))
    if total <= MOST:
        return [Series(_name(path, index, runs=True), (index,)) for index in np.ndindex(*shape)]
    swept = by_sweep(path)
    if len(swept) <= MOST:
        return [
            Series(
                f"{s.label} ({count_of(len(s.members), 'run')})"
                if s.label
                else count_of(len(s.members), "run"),
                s.members,
            )
            if len(s.members) > 1
            else s
            for s in swept
        ]
    return [Series(count_of(total, "descent"), tuple(np.ndindex(*shape)))]


def by_sweep(path: xr.Dataset) -> list[Series]:
    """One series per combination of swept values, which holds all its runs."""
    groups = without_runs(results.member_dims(path), path["status"].shape)
    return [Series(_name(path, group[0], runs=False), group) for group in groups]


def without_runs(dims: Sequence[str], shape: Sequence[int]) -> list[tuple[tuple[int, ...], ...]]:
    """All indices on these dimensions, grouped so that those in a group differ only in the run."""
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in np.ndindex(*shape):
        key = tuple(i for i, dim in zip(index, dims, strict=True) if dim != "run")
        groups.setdefault(key, []).append(index)
    return list(map(tuple, groups.values()))


def _name(path: xr.Dataset, index: tuple[int, ...], runs: bool) -> str:
    """ "lr = 0.01, run 3": the swept values, and the run where there are several."""
    swept, run = [], ""
    for dim, i in zip(results.member_dims(path), index, strict=True):
        value = value_text(path[dim].values[i])
        if dim != "run":
            swept.append(f"{plain(dim)} = {value}")
        elif runs and path.sizes["run"] > 1:
            run = f"run {value}"
    return joined(*swept, run)


def in_a_row(columns: np.ndarray) -> np.ndarray:
    """Columns (steps, members) concatenated into one row, with a NaN after each: a gap in a line."""
    columns = np.asarray(columns, float)
    return np.pad(columns, ((0, 1), (0, 0)), constant_values=np.nan).ravel(order="F")
