"""Rows of a record on the device, for use inside a trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def empty(shapes: Any, count: int) -> Any:
    """Room for `count` rows, each a pytree of arrays of these shapes and dtypes."""
    return jax.tree_util.tree_map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)


def put(record: Any, row: Any, values: Any) -> Any:
    """A record with `values`, a pytree like its own, in one of its rows."""

    def updated(rows: Any, value: Any) -> Any:
        return jax.lax.dynamic_update_index_in_dim(rows, value, row, 0)

    return jax.tree_util.tree_map(updated, record, values)
