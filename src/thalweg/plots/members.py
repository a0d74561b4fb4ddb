"""A trajectory's members, grouped and named for legends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg import results
from thalweg.errors import InputError
from thalweg.plots.style import coordinates_text, count_of, joined, value_text

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # in `typing` from Python 3.13 on

MOST = 10  # series that a legend can name one by one


@dataclass(frozen=True)
class Series:
    """Members that are drawn alike. Each is an index on the member dimensions."""

    label: str
    members: tuple[tuple[int, ...], ...]


# What is drawn as paths: a trajectory, or several by name.
Paths = xr.Dataset | Mapping[str, xr.Dataset]
# Trajectories with their names in the legend.
Named = Sequence[tuple[str | None, xr.Dataset]]


def named(paths: object, label: str | None = None) -> Named:
    """The trajectories to draw, each with its name in the legend: one under `label`, several under their own.

    Raises:
        InputError: something else than a trajectory or a mapping of them, or a label for several.
    """
    if not are_several(paths):
        return [(label, check_trajectory(paths))]
    if label is not None:
        raise InputError("label= is the name of a single trajectory; several have their own.")
    if not paths:
        raise InputError("at least one trajectory is needed; none given.")
    several = []
    for name, path in paths.items():
        with about(str(name)):
            several.append((str(name), check_trajectory(path)))
    return several


@contextlib.contextmanager
def about(name: str | None) -> Iterator[None]:
    """Begin an InputError with the name of the trajectory that it is about, if it has one."""
    try:
        yield
    except InputError as error:
        raise InputError(joined(name, str(error), by=": ")) from None


def are_several(given: object) -> TypeIs[Mapping[str, Any]]:
    """Whether several things are given by name. (xarray's Dataset is a mapping too, but one thing.)"""
    return isinstance(given, Mapping) and not isinstance(given, xr.Dataset)


def listed(given: object) -> list[Any]:
    """One thing, or a list or tuple of several, as a list."""
    return list(given) if isinstance(given, list | tuple) else [given]


def check_trajectory(path: object) -> xr.Dataset:
    """The trajectory, or an InputError where it is something else."""
    if isinstance(path, xr.Dataset) and "status" in path and "step" not in path.dims:
        raise InputError("this is one step of a trajectory; select several, as in isel(step=[-1]).")
    if not isinstance(path, xr.Dataset) or "status" not in path:
        kind = path.attrs.get("kind", "dataset") if isinstance(path, xr.Dataset) else None
        kind = "a part of one, without its status," if kind == "trajectory" else kind
        several = " Name several, as in {'SGD': first, 'Adam': second}."
        hint = several if isinstance(path, (list, tuple)) else ""
        raise InputError(
            "a trajectory was expected, as descend returns it; "
            f"{kind or type(path).__name__} given.{hint}"
        )
    return path


def row_at(steps: np.ndarray, step: int) -> int:
    """The recorded row of a step, or of the last one before it; −1 where there is none yet."""
    return int(np.searchsorted(steps, step, side="right")) - 1


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
        if dim != "run":
            swept.append(coordinates_text(path, [dim], [i]))
        elif runs and path.sizes["run"] > 1:
            run = f"run {value_text(path['run'].values[i])}"
    return joined(*swept, run)


def in_a_row(columns: np.ndarray) -> np.ndarray:
    """Columns (steps, members) concatenated into one row, with a NaN after each: a gap in a line."""
    columns = np.asarray(columns, float)
    return np.pad(columns, ((0, 1), (0, 0)), constant_values=np.nan).ravel(order="F")
