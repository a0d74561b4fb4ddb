"""A saved result as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from thalweg import results
from thalweg.errors import InputError, unknown, whole_number


def lines(
    result: xr.Dataset | xr.DataTree, node: str | None = None, rows: int = 200
) -> Iterator[str]:
    """What made a result, then each trajectory and landscape in it.

    Args:
        node: of a DataTree, the one part to show.
        rows: steps to print at most; more are thinned out evenly, the last always among them.
    """
    rows = whole_number("rows", rows, 1)
    yield f"{result.attrs.get('study', result.attrs.get('kind', 'result'))}"
    for name, value in results.settings_of(result).items():
        yield f"  {name} = {value}"
    if isinstance(result, xr.Dataset):
        if node is not None:
            raise InputError(f"only a study's result has parts; node {node!r} given.")
        yield from _part("", result, rows)
        return
    parts = {
        n.path.lstrip("/"): n.to_dataset() for n in result.subtree if "kind" in n.attrs and n.parent
    }
    if node is not None:
        node = node.strip("/")
        if node not in parts:
            raise unknown("node", node, parts)
        parts = {node: parts[node]}
    for path, part in parts.items():
        yield from _part(path, part, rows)


def _part(name: str, part: xr.Dataset, rows: int) -> Iterator[str]:
    kind = part.attrs.get("kind", "table")
    yield ""
    yield f"{name or kind}: {kind}, " + ", ".join(f"{d} {n}" for d, n in part.sizes.items())
    if kind == "landscape":
        for risk in results.RISKS:
            if risk in part and risk != "pointwise":
                values = part[risk].values[np.isfinite(part[risk].values)]
                span = f"from {values.min():.6g} to {values.max():.6g}" if values.size else "none"
                yield f"  {risk}: {span}"
    # a selection of variables, as in path[["loss"]], is still called a trajectory
    if kind == "trajectory" and {"status", "final"} <= set(part.variables):
        yield from _trajectory(part, rows)


def _trajectory(path: xr.Dataset, rows: int) -> Iterator[str]:
    dims = results.member_dims(path)
    members = path.stack(member=dims) if dims else path.expand_dims("member")
    for index in range(min(members.sizes["member"], 20)):
        one = members.isel(member=index)
        label = ", ".join(f"{d} = {_value(one[d].values.item())}" for d in dims)
        status = str(one["status"].values)
        event = {"diverged": "diverged_at", "converged": "stopped_at"}.get(status)
        at = f" at step {int(one[event].values)}" if event in one else ""
        yield f"  {label + ': ' if label else ''}{status}{at}"
        final = one["final"].values
        if len(final) <= 20:
            names = path["param"].values
            yield "  ends at " + ", ".join(
                f"{n} = {v:.6g}" for n, v in zip(names, final, strict=True)
            )
        if "loss" in one and "step" in one["loss"].dims:  # one step may have been chosen
            yield f"  {'step':>8}  loss"
            for row in _thinned(one.sizes["step"], rows):
                yield f"  {int(one['step'].values[row]):>8}  {float(one['loss'].values[row]):.6g}"
    if members.sizes["member"] > 20:
        yield f"  … and {members.sizes['member'] - 20} more"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _thinned(count: int, rows: int) -> np.ndarray:
    if count <= rows:
        return np.arange(count)
    # from the last one, which a single row is
    return np.unique(np.linspace(count - 1, 0, rows).round().astype(int))
