"""Gradient noise along a descent: how much the gradients of single samples differ, as observables.

A batch of b samples drawn with replacement has a mean gradient whose squared distance from the whole
gradient is `gradient_noise` / b on average. At a single point `gradient_covariance` has the whole matrix,
with its leading directions, and `gradient_norms` the norms.

Each recorded step costs a gradient of every sample, so that a long descent wants `every=`. The model's
prediction for a sample must not depend on the others. A model that divides by the number of samples is
refused; one that compares their values (x / x.max()) is detected only by `gradient_norms`, not in the loop.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from thalweg import passes, products
from thalweg.observables import At
from thalweg.params import promoted
from thalweg.problem import Problem, in_precision

_ROOM = 4 * 2**20  # bytes of gradients at a time, for each member of an ensemble


def gradient_noise(at: At) -> Any:
    """The trace of the covariance of a single sample's gradient, 1/n Σ ‖g_k − ḡ‖², over all the data."""
    problem, point = _alone(at)
    layout = problem.layout
    count = products.count_of(problem, "covariance")
    losses = products.losses_of(problem, layout)
    mean = jax.grad(lambda w: losses(w).sum())(point) / count
    squares = _norms(problem, point, mean) ** 2
    if problem.mask is not None:
        squares = jnp.where(problem.mask, squares, 0)
    return squares.sum() / count


def sample_gradient_norms(at: At) -> Any:
    """‖g_k‖ (n,): the norm of the gradient of every sample's own risk, without the penalty."""
    return _norms(*_alone(at), 0.0)


def _alone(at: At) -> tuple[Problem, Any]:
    """The problem on all data, checked for independent samples, and the iterate (p,); in float32 at least,
    as sums over samples overflow half precision."""
    products.check_samples_independent(at.problem)
    problem, params = in_precision(at.problem, jnp.float32), promoted(at.params, jnp.float32)
    return problem, problem.flatten(params)


def _norms(problem: Problem, point: Any, center: Any) -> Any:
    norm = products.norm_of(problem, problem.layout, point, center)
    size = passes.gradients_at_a_time(problem, _ROOM)
    samples = (problem.x, problem.y)
    return (
        jax.vmap(norm)(samples)
        if size >= problem.n_samples
        else jax.lax.map(norm, samples, batch_size=size)
    )
