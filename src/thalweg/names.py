"""The parameters' names: one per number, stored where they are few enough to read.

The names of a million parameters take more memory than the parameters, and nobody reads them. Results
of large models have the names and shapes of their tensors instead, which say the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import Any, overload

import numpy as np

from thalweg.errors import InputError

FEW = 2**16  # with more parameters, names are made only when asked for

Tensor = tuple[str, tuple[int, ...]]


class Names(Sequence[str]):
    """The names of many parameters, each made when it is asked for."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self._ends = tuple(accumulate(math.prod(shape) for _, shape in self.tensors))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for name, shape in self.tensors:
            yield from _entries(name, shape)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...
    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(len(self))))
        place = range(len(self))[at]
        which = int(np.searchsorted(self._ends, place, side="right"))
        name, shape = self.tensors[which]
        place -= self._ends[which - 1] if which else 0
        return _entry(name, np.unravel_index(place, shape) if shape else None)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        for place, name in enumerate(self):
            if name == value and place >= start and (stop is None or place < stop):
                return place
        raise ValueError(f"{value!r} is not among the names")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self.tensors == other.tensors
        return isinstance(other, tuple) and len(other) == len(self) and tuple(self) == other

    def __repr__(self) -> str:
        return f"<{len(self):,} names: {', '.join(map(repr, self[:3]))}, …>"


def _entry(name: str, index: Iterable[Any] | None) -> str:
    return name if index is None else f"{name}[{','.join(str(int(i)) for i in index)}]"


def _entries(name: str, shape: tuple[int, ...]) -> Iterator[str]:
    return (_entry(name, index if shape else None) for index in product(*map(range, shape)))


def names_of(tensors: Iterable[Tensor]) -> Sequence[str]:
    """One name per parameter: the tensor's own where it is a scalar, else with an index."""
    names = Names(tensors)
    return tuple(names) if len(names) <= FEW else names


# In a result ---------------------------------------------------------------------------------


def coords(names: Sequence[str]) -> dict[str, Any]:
    """The coordinates in which a result stores its parameters' names."""
    if not isinstance(names, Names):
        return {"param": np.array(names)}
    return {
        "tensor": np.array([name for name, _ in names.tensors]),
        "tensor_shape": ("tensor", np.array([json.dumps(shape) for _, shape in names.tensors])),
    }


def found(result: Any) -> Sequence[str] | None:
    """The parameters' names in a result's (or an array's) coordinates; None if they are not there."""
    if "tensor_shape" in result.coords:
        tensors = zip(result["tensor"].values, result["tensor_shape"].values, strict=True)
        return Names((str(name), tuple(json.loads(str(shape)))) for name, shape in tensors)
    if "param" in result.coords:
        return tuple(map(str, result["param"].values))
    return None


def same(result: Any, names: Sequence[str]) -> bool:
    """Whether a result is over the parameters `names`, or has no names of its own."""
    result_names = found(result)
    return result_names is None or result_names == names


def within(names: Sequence[str], tensor: str) -> np.ndarray:
    """Whether each parameter (p,) is an entry of the tensor."""
    if not isinstance(names, Names):
        return np.array([name == tensor or name.startswith(f"{tensor}[") for name in names])
    masks = [np.full(math.prod(shape), name == tensor) for name, shape in names.tensors]
    return np.concatenate(masks)


def in_order(what: str, table: Any, names: Sequence[str]) -> Any:
    """A table of points with a column per parameter, such as a pandas DataFrame, as an array (n, p) in the
    order of `names`. Unnamed columns keep their order; anything but a table is returned as it is."""
    columns = getattr(table, "columns", None)
    if columns is None or not hasattr(table, "to_numpy"):
        return table
    labels = list(columns)
    if labels == list(range(len(names))):
        return table.to_numpy()
    if sorted(map(str, labels)) != sorted(names):
        raise InputError(
            f"{what} has the columns {labels[:8]}; one for each of the parameters {tuple(names[:8])} is "
            f"expected."
        )
    return table[list(names)].to_numpy()


def vector(point: Any, names: Sequence[str] | None) -> Any:
    """A point given by name, {"x": 1.0, "y": 2.0} or nested and with arrays, as a vector (p,) in the order of
    `names`; anything but a dictionary is returned as it is."""
    if not isinstance(point, Mapping) or hasattr(point, "data_vars"):
        return point
    given = dict(_by_name(point))
    if names is None or len(given) != len(names) or set(given) != set(names):
        known = "which have no names here" if names is None else f"{tuple(names[:8])}"
        raise InputError(
            f"a point has one number for each of the parameters, {known}; {dict(point)!r:.80} given."
        )
    return np.array([given[name] for name in names])


def _by_name(point: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in point.items():
        if isinstance(value, Mapping):
            yield from _by_name(value, f"{within}{key}.")
        else:
            array = np.asarray(value)
            yield from zip(_entries(f"{within}{key}", array.shape), array.ravel(), strict=True)
