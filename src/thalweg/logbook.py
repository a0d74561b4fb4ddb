"""What a descent records, on the host: allocated once, filled block by block, labelled at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, names, observables, results
from thalweg.ensemble import Members
from thalweg.errors import InputError
from thalweg.params import Layout, path_name
from thalweg.problem import Problem


@dataclass
class Column:
    """One variable of the record: its dimensions without step and members, and which leaves of the device's
    rows fill it, each from which offset on."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    leaves: list[tuple[int, int]]  # (leaf, offset)
    of_update: bool  # whether the optimizer recorded it during the update that led to the iterate
    values: np.ndarray = field(init=False)  # (rows, size, members)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Record:
    """The rows of a descent from step `first` on, `total` steps long, of all its members.

    Rows are the first step, the multiples of `every`, and the last step.

    Args:
        shapes: by name, the shapes of what the device records in a row; with a leading axis over the
            members, if there is one.
        updates: those of them that the optimizer records.
        taken: names of the trajectory's other variables and coordinates.
    """

    def __init__(
        self,
        shapes: dict[str, Any],
        layout: Layout,
        who: Members,
        first: int,
        total: int,
        every: int,
        updates: Collection[str] = (),
        taken: Collection[str] = (),
    ) -> None:
        self.who, self.layout, self.every = who, layout, every
        self.columns = list(_columns(shapes, layout, int(who.batched), updates))
        self._check_names(taken)
        rows = total // every + 2
        row_bytes = sum(c.size * c.dtype.itemsize for c in self.columns) * who.count
        self.row_bytes = max(row_bytes, 1)
        blocks.check_memory(
            rows * (row_bytes + 8),
            f"the record of {rows} steps of {who.count} runs of {layout.size} parameters",
            "record fewer steps with every=, or leave the iterates out with record={'params': False}",
        )
        inside = np.arange((first // every + 1) * every, first + total, every)
        ends = np.array([first] if total == 0 else [first, first + total])
        self.steps = np.concatenate([ends[:1], inside, ends[1:]])
        for column in self.columns:
            column.values = np.empty((len(self.steps), column.size, who.count), column.dtype)

    def _check_names(self, others: Collection[str]) -> None:
        taken = {*results.RESERVED_DIMS, *results.OF_A_DESCENT, *self.who.dims, *others}
        for column in self.columns:
            of_schedule = column.name.startswith("schedule_")
            if column.name in taken or of_schedule or "/" in column.name:
                raise InputError(
                    f"record: the name {column.name!r} is taken or not allowed; "
                    f"call it {column.name.replace('/', '_') + '_'!r}, say."
                )
            taken.add(column.name)

    def fill(
        self,
        first: int,
        last: int,
        rows: Any,
        members: slice = slice(None),
        again: int = 0,
        ends: bool = False,
    ) -> None:
        """Copy the rows of a block from step `first` up to `last`, for some of the members; the first `again`
        of these were copied with another share.

        The device has recorded `first` and the multiples of `every` after it, and `last` where the descent
        ends. Where a block begins between two multiples, its first row was not asked for and is skipped.
        """
        count = blocks.rows_before(first, last, self.every) + ends
        start = int(np.searchsorted(self.steps, first))
        skipped = int(start == len(self.steps) or self.steps[start] != first)
        asked = count - skipped
        if not asked:
            return
        leaves = jax.tree_util.tree_leaves(jax.device_get(rows))
        for column in self.columns:
            target = column.values[start : start + asked, :, members]
            for leaf, offset in column.leaves:
                values = leaves[leaf][skipped:count].reshape(asked, target.shape[2], -1)
                place = target[:, offset : offset + values.shape[2], again:]
                place[...] = values[:, again:].swapaxes(1, 2)

    def end_at(self, step: int) -> None:
        """Truncate the record of a descent that ended early at `step`, with a row for the last iterate."""
        rows = int(np.searchsorted(self.steps, step))
        self.steps = np.append(self.steps[:rows], step)
        for column in self.columns:
            column.values = column.values[: rows + 1]

    def variables(
        self, diverged_at: np.ndarray, stopped_at: np.ndarray | None = None
    ) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
        """Name, dimensions and values of each variable; NaN or −1 where a member had diverged, and, in what
        the optimizer records, where it had stopped and made no update."""
        for column in self.columns:
            _mask_from(column.values, self.steps, diverged_at)
            if column.of_update and stopped_at is not None:
                _mask_from(column.values, self.steps, stopped_at, after=1)
            values = column.values.reshape(len(self.steps), *column.shape, *self.who.shape)
            yield column.name, ("step", *column.dims, *self.who.dims), values

    def labelled(
        self, variables: dict[str, Any], settings: dict[str, Any], interrupted: bool, **coords: Any
    ) -> xr.Dataset:
        """A trajectory of these variables, with the record's coordinates and with its provenance; `coords`
        are further coordinates."""
        attrs = results.provenance(
            "trajectory",
            settings,
            seed=results.to_json(settings["seed"]),
            dtype=str(self.layout.dtype),
            device=backend.device_name(),
            last_step=int(self.steps[-1]),
            interrupted=int(interrupted),
        )
        coords = {**coords, **names.coords(self.layout.names), **self.who.coords}
        return xr.Dataset(variables, coords={"step": self.steps, **coords}, attrs=attrs)


def _mask_from(values: np.ndarray, step: np.ndarray, since: np.ndarray, after: int = 0) -> None:
    """Mask, in place, each member's values from step since + after on. `since` is (members,); members where
    it is −1 are left alone.

    `values` is (rows, size, members). Masked values become NaN, or −1 in integers.
    """
    filler = np.nan if values.dtype.kind in "fc" else (-1 if values.dtype.kind == "i" else 0)
    for member in np.flatnonzero(since >= 0):
        values[step >= since[member] + after, :, member] = filler


def _columns(
    shapes: dict[str, Any], layout: Layout, lead: int, updates: Collection[str]
) -> Iterator[Column]:
    """One column for a pytree that has the parameters' structure, else one per leaf."""
    leaf = 0
    for name, tree in shapes.items():
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        inner = tuple(tuple(s.shape[lead:]) for _, s in paths)
        dtypes = [s.dtype for _, s in paths]
        like_params = structure == layout.treedef and inner == layout.shapes
        # A scalar has the structure of a single bare parameter: only names tell them apart.
        if name in ("params", "grad") or (
            like_params and not jax.tree_util.treedef_is_leaf(structure)
        ):
            offsets = np.cumsum([0, *layout.sizes])
            parts = [(leaf + i, int(offsets[i])) for i in range(len(inner))]
            yield Column(
                name, ("param",), (layout.size,), storable(*dtypes), parts, name in updates
            )
        else:
            for i, (path, _) in enumerate(paths):
                inner_name = "_".join(path_name((entry,)) for entry in path).replace("/", "_")
                full = f"{name}_{inner_name}" if path else name
                dims = tuple(f"{full}_{axis}" for axis in range(len(inner[i])))
                part = [(leaf + i, 0)]
                yield Column(full, dims, inner[i], storable(dtypes[i]), part, name in updates)
        leaf += len(paths)


def storable(*dtypes: Any) -> np.dtype:
    """The dtype to store these in: their promoted one, or float32 for half precision, which netCDF lacks."""
    dtype = np.dtype(jax.numpy.result_type(*dtypes))
    return np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype


def source_of(path: xr.Dataset) -> tuple[Problem, np.ndarray | None, dict[str, bool]]:
    """What a saved trajectory on a catalogue problem was made from: the problem with its starting point, the
    starts (runs, p) if there were several, and what was recorded.

    Raises:
        InputError: where the result does not hold all that is needed.
    """
    settings = results.settings_of(path)
    if "problem" not in settings:  # training that was recorded
        raise InputError("this trajectory is of training that happened elsewhere.")
    source = settings["problem"]["source"]
    if not source or "catalogue" not in source:
        raise InputError(
            "this trajectory's problem was made of Python functions, which a result cannot hold; those "
            "on Problem.from_catalogue(...), studies and the command's runs can be done again."
        )
    unnamed = set(settings["record"]) - {*observables.NAMED, *results.BUILT_IN}
    if unnamed:
        raise InputError(
            f"this trajectory recorded functions of your own ({', '.join(sorted(unnamed))}), which a "
            f"result cannot hold."
        )
    recorded = {
        name: name in settings["record"] for name in (*results.BUILT_IN, *settings["record"])
    }
    problem = Problem.from_catalogue(source["catalogue"], dtype=source["dtype"])
    start = path["start"].isel({d: 0 for d in results.member_dims(path) if d != "run"})
    if "run" in path.dims:
        return problem, start.transpose("run", "param").values, recorded
    return problem.at(problem.unflatten(start.values)), None, recorded
