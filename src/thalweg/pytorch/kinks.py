"""Operations whose derivative differs between PyTorch and JAX: at kinks, at ties, and at the root of zero.

Exact zeros and ties are common (a head of zeros, blank inputs, padding), and there PyTorch has conventions of
its own: |x| is flat at 0, a clamped number on its bound still moves, the first of several maxima counts, and
the norm of a zero vector does not move. Each operation below has PyTorch's value, and derivative, everywhere
(derivatives.yaml and FunctionsManual.cpp of ATen); the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.losses import absolute


def operations() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's operations, each with the function of arrays that replaces it."""
    import torch

    def aten(name: str) -> Any:
        packet, overload = name.split(".")
        return getattr(getattr(torch.ops.aten, packet), overload)

    own = {torch.cdist: _distances, torch.angle: _angle}
    return {**{aten(name): ours for name, ours in _OPERATIONS.items()}, **own}


def _abs(x: Any) -> Any:
    return jnp.abs(x) if jnp.iscomplexobj(x) else absolute(x)


def _angle(z: Any) -> Any:
    nonzero = z != 0
    return jnp.where(nonzero, jnp.angle(jnp.where(nonzero, z, 1)), 0)


def clamped(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else jnp.where(x < min, min, x)
    return x if max is None else jnp.where(x > max, max, x)


def _clamp_max(x: Any, max: Any) -> Any:
    return clamped(x, None, max)


def _hardtanh(x: Any, min_val: Any = -1, max_val: Any = 1) -> Any:
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x)).astype(x.dtype)


def _leaky_relu(x: Any, negative_slope: Any = 0.01) -> Any:
    return jnp.where(x > 0, x, negative_slope * x)


def _rrelu(x: Any, noise: Any, lower: Any = 1 / 8, upper: Any = 1 / 3, *training: Any) -> Any:
    """In evaluation mode, which `from_torch` puts modules in."""
    return _leaky_relu(x, (lower + upper) / 2)


def _hardswish(x: Any) -> Any:
    return jnp.where(x <= -3, 0, jnp.where(x < 3, x * (x + 3) / 6, x))


def _hardsigmoid(x: Any) -> Any:
    return jnp.where(x <= -3, 0, jnp.where(x < 3, (x + 3) / 6, 1)).astype(x.dtype)


def _fmax(x: Any, y: Any) -> Any:
    return jnp.where((x >= y) | jnp.isnan(y), x, y)


def _fmin(x: Any, y: Any) -> Any:
    return jnp.where((x <= y) | jnp.isnan(y), x, y)


def _copysign(x: Any, other: Any) -> Any:
    return absolute(x) * jnp.where(jnp.signbit(other), -1, 1)


def first(place: Callable[..., Any], x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The entry at the index that `place` (argmax or argmin) finds along an axis, and the index."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int64)
    index = place(x, axis=dim, keepdims=True)
    is_chosen = index == jax.lax.broadcasted_iota(index.dtype, x.shape, dim % x.ndim)
    values = jnp.where(is_chosen, x, 0).sum(dim, keepdims=keepdim, dtype=x.dtype)
    return values, (index if keepdim else index.squeeze(dim)).astype(jnp.int64)


def _last_so_far(over: Callable[..., Any], x: Any, dim: int) -> tuple[Any, Any]:
    """The running maximum (or minimum) along an axis and its index; of equal entries the last."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int64)

    def better(some: Any, later: Any) -> Any:
        stays = over(some[0], later[0]) | (jnp.isnan(some[0]) & ~jnp.isnan(later[0]))
        return tuple(jnp.where(stays, a, b) for a, b in zip(some, later, strict=True))

    places = jax.lax.broadcasted_iota(jnp.int64, x.shape, dim % x.ndim)
    pairs = (jax.lax.stop_gradient(x), places)
    index = jax.lax.associative_scan(better, pairs, axis=dim % x.ndim)[1]
    return jnp.take_along_axis(x, index, axis=dim), index


def _stably_sorted(
    x: Any, *, stable: Any = None, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """Sorted entries and their indices; equal ones keep their order, in descending order too."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int64)
    index = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, index, axis=dim), index.astype(jnp.int64)


def _i0(x: Any) -> Any:
    return jnp.exp(absolute(x)) * jax.scipy.special.i0e(x)


def _median(x: Any) -> Any:
    """The median, the lower of two; all entries equal to it share its derivative."""
    flat = x.ravel()
    middle = jax.lax.stop_gradient(jnp.sort(flat)[(flat.size - 1) // 2])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return middle
    middle = jnp.where(jnp.isnan(flat).any(), jnp.nan, middle)
    shared = jnp.where(flat == middle, flat, 0).sum() / (flat == middle).sum()
    return middle + (shared - jax.lax.stop_gradient(shared))


def _axes(dim: Any) -> Any:
    """PyTorch's dim= as NumPy's axis=: an empty list means all axes."""
    return (tuple(dim) or None) if isinstance(dim, (list, tuple)) else dim


def _root(total: Any, order: Any = 2) -> Any:
    """total^(1/order) with derivative 0 at 0."""
    positive = total > 0
    safe = jnp.where(positive, total, 1)
    root = jnp.sqrt(safe) if order == 2 else safe ** (1 / order)
    return jnp.where(positive, root, jnp.where(total == 0, 0, total))


def _vector_norm(
    x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    if dtype is not None:
        from torchax.ops import mappings

        x = x.astype(mappings.t2j_dtype(dtype))
    dim = _axes(dim)
    size = _abs(x)
    of_size = {0: jnp.count_nonzero, float("inf"): jnp.max, float("-inf"): jnp.min}.get(ord)
    if of_size:
        return of_size(size, axis=dim, keepdims=keepdim).astype(size.dtype)
    if ord == 2:
        return _root(jnp.sum(jnp.square(size), axis=dim, keepdims=keepdim))
    nonzero = size > 0
    powers = jnp.where(nonzero, jnp.where(nonzero, size, 1) ** ord, 0 if ord > 0 else jnp.inf)
    return _root(jnp.sum(powers, axis=dim, keepdims=keepdim), ord)


def _distance(x: Any, y: Any, p: Any = 2) -> Any:
    return _vector_norm(x - y, p)


def _distances(x1: Any, x2: Any, p: Any = 2.0, compute_mode: Any = None) -> Any:
    """(…, P, R) between the rows of (…, P, M) and (…, R, M)."""
    return _vector_norm(x1[..., :, None, :] - x2[..., None, :, :], p, dim=-1)


def _own_distances(x: Any, p: Any = 2.0) -> Any:
    return _distances(x, x, p)[jnp.triu_indices(len(x), k=1)]


def _std(x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    correction = 1 if correction is None else correction
    return _root(jnp.var(x, axis=_axes(dim), ddof=correction, keepdims=keepdim))


def _std_mean(x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    deviation = _std(x, dim, correction=correction, keepdim=keepdim)
    return deviation, jnp.mean(x, axis=_axes(dim), keepdims=keepdim)


# Keys are ATen's names with the overload.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs.default": _abs,
    "angle.default": _angle,
    "clamp.default": clamped,
    "clamp.Tensor": clamped,
    "clamp_min.default": clamped,
    "clamp_min.Tensor": clamped,
    "clamp_max.default": _clamp_max,
    "clamp_max.Tensor": _clamp_max,
    "hardtanh.default": _hardtanh,
    "hardswish.default": _hardswish,
    "hardsigmoid.default": _hardsigmoid,
    "leaky_relu.default": _leaky_relu,
    "rrelu_with_noise.default": _rrelu,
    "fmax.default": _fmax,
    "fmin.default": _fmin,
    "copysign.Tensor": _copysign,
    "max.dim": partial(first, jnp.argmax),
    "min.dim": partial(first, jnp.argmin),
    "cummax.default": partial(_last_so_far, jnp.greater),
    "cummin.default": partial(_last_so_far, jnp.less),
    "median.default": _median,
    "linalg_vector_norm.default": _vector_norm,
    "dist.default": _distance,
    "cdist.default": _distances,
    "_cdist_forward.default": _distances,
    "_pdist_forward.default": _own_distances,
    "std.correction": _std,
    "std_mean.correction": _std_mean,
    "sinc.default": jnp.sinc,
    "i0.default": _i0,
    "sort.stable": _stably_sorted,
}
