"""A trajectory, made of what another program computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from thalweg import inputs, results
from thalweg.names import coords


def as_array(tensor: Any) -> np.ndarray:
    """A tensor copied to an array; half precision becomes float32, as netCDF has no such type."""
    if inputs.is_tensor(tensor):  # dense: an embedding's gradient may be sparse
        tensor = inputs.of_tensor(tensor.to_dense())
    array = np.array(tensor)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_trajectory(
    steps: np.ndarray,
    names: Sequence[str],
    data: dict[str, np.ndarray],
    status: str,
    optimizer: dict[str, Any],
    ends: tuple[np.ndarray, np.ndarray],
) -> xr.Dataset:
    """A trajectory in the schema of `descend`, without an optimizer's state; `data` is modified in place. Of
    losses, None means unknown."""
    start, final = ends
    bad = np.zeros(len(steps), bool)
    bad[-1] = not np.isfinite(final).all()
    if "params" in data:
        bad |= ~np.isfinite(data["params"]).all(axis=1)
    if "loss" in data:
        # NaN is a loss that was computed, and may be so at parameters that are finite
        bad |= [loss is not None and not np.isfinite(loss) for loss in data["loss"]]
        data["loss"] = data["loss"].astype(float)  # what is unknown becomes NaN
    diverged_at = int(steps[np.argmax(bad)]) if bad.any() else -1
    variables: dict[str, Any] = {}
    for name, values in data.items():
        if diverged_at >= 0:
            values[steps >= diverged_at] = np.nan
        variables[name] = (("step", "param") if values.ndim == 2 else ("step",), values)
    variables["start"] = ("param", start)
    variables["final"] = ("param", np.full_like(final, np.nan) if bad.any() else final)
    variables["status"] = ((), "diverged" if diverged_at >= 0 else status)
    variables["diverged_at"] = ((), np.int64(diverged_at))
    variables["stopped_at"] = ((), np.int64(-1))
    attrs = results.provenance(
        "trajectory",
        {"optimizer": optimizer, "record": list(data), "recorded": True},
        dtype=str(start.dtype),
        device="",
        last_step=int(steps[-1]),
        interrupted=int(status == "interrupted"),
    )
    return xr.Dataset(variables, coords={"step": steps.astype(int), **coords(names)}, attrs=attrs)
