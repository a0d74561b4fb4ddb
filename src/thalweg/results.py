"""The schema of a result, and its provenance.

A result is an `xarray.Dataset` (a study's, an `xarray.DataTree`). docs/results.md lists every
variable. This module needs only NumPy and xarray, so that a saved file can be read and drawn without the
libraries that made it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InputError, unknown

SCHEMA_VERSION = 1

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
    try:
        settings = json.loads(result.attrs.get("settings", "{}"))
    except (TypeError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise InputError(
            f"a result's settings are JSON, by name; {result.attrs['settings']!r:.80} found in this one."
        )
    return settings


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
