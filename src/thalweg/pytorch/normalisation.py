"""Batch normalisation, differentiated with few passes over its inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def batch_norm(
    theirs: Callable[..., Any],
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, Any, Any]:
    """Inputs (n, features, …) with mean 0 and variance 1 per feature, scaled and shifted; their mean, and one
    divided by their standard deviation. Where running statistics are taken instead, torchax's."""
    if not training:
        return theirs(x, weight, bias, mean, var, training, momentum, eps)
    of_features = (-1, *[1] * (x.ndim - 2))
    weight = jnp.ones((), x.dtype) if weight is None else weight.reshape(of_features)
    bias = jnp.zeros((), x.dtype) if bias is None else bias.reshape(of_features)
    _, mean, inverse = _centred(x, eps)
    return _normalised(x, weight, bias, eps), mean.reshape(-1), inverse.reshape(-1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalised(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    centred, _, inverse = _centred(x, eps)
    return centred * (weight * inverse) + bias


@_normalised.defjvp
def _(eps: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The tangent as terms of at most one array, times one number per feature. Transposed, the inputs' slope
    takes two sums and then one pass; by JAX's rules for single operations it takes many."""
    (x, weight, bias), (of_x, of_weight, of_bias) = primals, tangents
    centred, _, inverse = _centred(x, eps)
    scale = weight * inverse
    of_inverse = -(inverse**3) * _mean(centred * of_x)
    of_scale = of_weight * inverse + weight * of_inverse
    shift = of_bias - scale * _mean(of_x)
    return centred * scale + bias, of_x * scale + centred * of_scale + shift


def _centred(x: Any, eps: float) -> tuple[Any, Any, Any]:
    """Inputs less their mean, the mean, and one divided by the standard deviation."""
    mean = _mean(x)
    centred = x - mean
    return centred, mean, jax.lax.rsqrt(_mean(centred * centred) + eps)


def _mean(x: Any) -> Any:
    return x.mean((0, *range(2, x.ndim)), keepdims=True)
