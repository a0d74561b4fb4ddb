"""Interpolation as a product with a matrix: the transpose of a gather is a scatter, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MATRIX = 2**20  # most entries of an interpolation matrix


def interpolate(
    input: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """One axis after the other, each by the matrix of PyTorch's interpolation along it."""
    import torchax

    x, axes = input, input.ndim - 2
    sizes, scales = (
        tuple(given) if isinstance(given, (tuple, list)) else (given,) * axes
        for given in (size, scale_factor)
    )
    if not jnp.issubdtype(x.dtype, jnp.floating) or not _are_small(x.shape[2:], sizes, scales):
        raise torchax.tensor.OperatorNotFound
    # torchax's modes are active in this thread alone: in another, PyTorch computes plain numbers
    with ThreadPoolExecutor(1) as apart:
        for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), 2):
            job = apart.submit(_matrix, axes, x.shape[axis], x.dtype, size, scale, *args, **kwargs)
            x = _combined(job.result(), x, axis)
    return x


def _are_small(shape: Sequence[int], sizes: Sequence[Any], scales: Sequence[Any]) -> bool:
    """Whether the interpolation matrices are small, and the sizes and scales are plain numbers."""
    for n, size, scale in zip(shape, sizes, scales, strict=False):
        if not all(isinstance(given, (int, float, type(None))) for given in (size, scale)):
            return False
        if n * max(n, size or n * (scale or 1)) > _MATRIX:
            return False
    return True


def _matrix(
    axes: int, n: int, dtype: Any, size: Any, scale: Any, *args: Any, **kwargs: Any
) -> np.ndarray:
    """(n, m): PyTorch's interpolation of the n unit vectors along the last of `axes` spatial axes."""
    import torch

    def last(value: Any, others: Any) -> Any:
        return None if value is None else (others,) * (axes - 1) + (value,)

    exact = torch.float64 if dtype == jnp.float64 else torch.float32
    units = torch.eye(n, dtype=exact, device="cpu").reshape(n, 1, *last(n, 1))
    out = torch.nn.functional.interpolate(units, last(size, 1), last(scale, 1.0), *args, **kwargs)
    return out.reshape(n, -1).numpy()


def _combined(matrix: np.ndarray, x: Any, axis: int) -> Any:
    """The product of an axis with a sparse matrix (n, m), by a gather, so that 0 · ∞ makes no NaN; its
    derivative is the matrix product."""
    count = max(1, int((matrix != 0).sum(axis=0).max(initial=0)))
    places = np.argsort(matrix == 0, axis=0, kind="stable")[:count]  # (count, m)
    weights = np.take_along_axis(matrix, places, axis=0)
    shape = [1] * (x.ndim + 1)
    shape[axis : axis + 2] = weights.shape

    @jax.custom_jvp
    def combined(x: Any) -> Any:
        gathered = jnp.take(x, places.ravel(), axis=axis)
        gathered = gathered.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
        some = weights.reshape(shape)
        return jnp.where(some == 0, 0, gathered * jnp.asarray(some, x.dtype)).sum(axis)

    @combined.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (moved,) = primals, tangents
        by = jnp.asarray(matrix, x.dtype)
        moved = jnp.tensordot(moved, by, (axis, 0), precision="highest")
        return combined(x), jnp.moveaxis(moved, -1, axis)

    return combined(x)
