"""Gradient noise along a descent: how much the gradients of single samples differ, as observables.

A batch of b samples drawn with replacement has a mean gradient whose squared distance from the whole
gradient is `gradient_noise` / b on average. At a single point `gradient_covariance` has the whole matrix,
with its leading directions, and `gradient_norms` the norms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from thalweg import products
from thalweg.observables import At
from thalweg.params import Layout
from thalweg.problem import pointwise


def gradient_noise(at: At) -> Any:
    """The trace of the covariance of a single sample's gradient, 1/n Σ ‖g_k − ḡ‖², over all the data.

    Each recorded step costs a gradient of every sample, so that a long descent wants `every=`.
    """
    products.check_samples_alone(at.problem)
    mean = jax.grad(lambda params: pointwise(at.problem, params).mean())(at.params)
    return jnp.mean(_norms(at, Layout.of(at.params).flatten(mean)) ** 2)


def sample_gradient_norms(at: At) -> Any:
    """‖g_k‖ (n,): the norm of the gradient of every sample's own risk, without the penalty."""
    products.check_samples_alone(at.problem)
    return _norms(at, 0.0)


def _norms(at: At, center: Any) -> Any:
    layout = Layout.of(at.params)
    return products.gradient_norms(at.problem, layout.flatten(at.params), center, layout=layout)
