"""Directional derivatives, also of functions that define only a reverse-mode rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend as _backend  # noqa: F401
from thalweg.errors import InputError, first_line
from thalweg.jaxprs import names


def jvp(f: Callable[[Any], Any], point: Any, vector: Any) -> tuple[Any, Any]:
    """f at a point, and its derivative J v along a vector."""
    if _only_reverse(f, point):
        value, push = _by_reverse(f, point)
        return value, push(vector)
    return jax.jvp(f, (point,), (vector,))


def gradient_jvp(f: Callable[[Any], Any], point: Any, vector: Any) -> Any:
    """H v: how the gradient of f moves along a vector."""
    gradient = jax.grad(f)
    # the gradient need not be reverse-only: a user's backward rule may itself be differentiable forwards
    if _only_reverse(f, point) and _only_reverse(gradient, point):
        return _by_reverse(gradient, point)[1](vector)
    return jax.jvp(gradient, (point,), (vector,))[1]


def linearize(f: Callable[[Any], Any], point: Any) -> tuple[Any, Callable[[Any], Any]]:
    """f at a point, and v ↦ J v."""
    return (_by_reverse if _only_reverse(f, point) else jax.linearize)(f, point)


def value_and_jacobian(f: Callable[[Any], Any], point: Any) -> tuple[Any, Any]:
    """f (m,) at a point (p,), and J (m, p), in forward or reverse mode, whichever takes fewer passes."""
    (m,), (p,) = jax.eval_shape(f, point).shape, point.shape
    if p < m and not _only_reverse(f, point):
        value, push = jax.linearize(f, point)
        return value, jax.vmap(push, out_axes=1)(jnp.eye(p, dtype=point.dtype))
    value, pull = jax.vjp(f, point)
    return value, jax.vmap(pull)(jnp.eye(m, dtype=value.dtype))[0]


def _only_reverse(f: Callable[[Any], Any], point: Any) -> bool:
    """Whether a part of f has a user's reverse-mode rule (`jax.custom_vjp`), through which JAX does not
    differentiate in forward mode."""
    return any("custom_vjp" in name for name in names(jax.make_jaxpr(f)(point).jaxpr))


def _by_reverse(f: Callable[[Any], Any], point: Any) -> tuple[Any, Callable[[Any], Any]]:
    """f at a point, and v ↦ J v as the linear transpose of u ↦ Jᵀ u."""
    value, pull = jax.vjp(f, point)
    transposed = jax.linear_transpose(pull, value)

    def push(vector: Any) -> Any:
        try:
            return transposed((vector,))[0]
        except NotImplementedError as error:
            raise InputError(
                f"a function with a jax.custom_vjp has no derivative along a direction: its backward rule is "
                f"not linear in what it is given, as JAX reads it ({first_line(error)}). Write it with "
                f"jax.custom_jvp."
            ) from error

    return value, push
