"""Products of curvature matrices with vectors, in one or two passes each, without forming the matrix.

The empirical risk is a sum over samples and so are its matrices: they are computed in passes over the data
and added up in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend, forward, programs
from thalweg.errors import InputError
from thalweg.independence import splits
from thalweg.params import Layout, norm
from thalweg.passes import (
    ACTIVATIONS,
    gradients_at_a_time,
    of_each_sample,
    over_samples,
    room,
    sample_bytes,
)
from thalweg.problem import Problem
from thalweg.risks import pointwise, predicting
from thalweg.tuning import tuned

# The matrices by name: second derivatives of the risk, and second moments of the samples' gradients
_OF_THE_RISK = ("hessian", "gauss_newton")
KINDS = (*_OF_THE_RISK, "second_moment", "covariance")

# Measured on two cores: twice as fast as one by one; more products at once no longer fit the cache.
_TOGETHER = 8 * 2**20  # bytes of activations of products computed together on a CPU


def at_once(problem: Problem) -> int:
    """How many products are best computed together."""
    vector_bytes = problem.size * problem.layout.dtype.itemsize
    return max(
        1, room(_TOGETHER) // (sample_bytes(problem) * max(problem.n_samples, 1) + vector_bytes)
    )


def count_of(problem: Problem, kind: str) -> Any:
    """What the sum over samples is divided by: their number, but 1 for the matrices of a risk that is a
    sum. Moments of the gradients are means in any case."""
    if problem.reduction == "sum" and kind in _OF_THE_RISK:
        return 1
    if problem.mask is not None:
        return jnp.maximum(problem.mask.sum(), 1)
    return max(problem.n_samples, 1)


# For use inside a trace ----------------------------------------------------------------------


def losses_of(problem: Problem, layout: Layout) -> Callable[[Any], Any]:
    """The pointwise risks (n,) as a function of the parameters (p,); zero where masked out."""

    def losses(vector: Any) -> Any:
        values = pointwise(problem, layout.unflatten(vector))
        return values if problem.mask is None else jnp.where(problem.mask, values, 0)

    return losses


@partial(jax.jit, static_argnames=("kind", "layout"), inline=True)
def summed_product(
    kind: str, problem: Problem, layout: Layout, point: Any, vector: Any, center: Any = None
) -> Any:
    """The sum over samples of a curvature matrix at `point` (p,), times `vector` (p,).

    With `center` (p,), the mean gradient, it is the matrix of (g_k − center)(g_k − center)ᵀ. Subtracting the
    mean's outer product from the sum instead would cancel most digits where the gradients are nearly equal.
    """
    losses = losses_of(problem, layout)
    if kind == "hessian":
        return forward.gradient_jvp(lambda w: losses(w).sum(), point, vector)
    if kind == "gauss_newton":
        return _gauss_newton(problem, layout, point, vector)

    def centered(w: Any) -> Any:
        values = losses(w)
        if center is None:
            return values
        values = values - backend.matmul(center, w).astype(values.dtype)
        return values if problem.mask is None else jnp.where(problem.mask, values, 0)

    # Σ g_k (g_kᵀ v): a JVP of the pointwise risks along v, then a VJP; no single gradient is stored
    values, slopes = forward.jvp(centered, point, vector)
    return jax.vjp(centered, point)[1](slopes.astype(values.dtype))[0]


def _gauss_newton(problem: Problem, layout: Layout, point: Any, vector: Any) -> Any:
    """Jᵀ H_ℓ J v: the Hessian with the model replaced by its tangent."""

    def predicted(w: Any) -> Any:
        return problem.predict(layout.unflatten(w), problem.x)

    def loss(yhat: Any) -> Any:
        return losses_of(predicting(problem, yhat), layout)(point).sum()

    yhat, change = forward.jvp(predicted, point, vector)
    bent = forward.gradient_jvp(loss, yhat, change)
    return jax.vjp(predicted, point)[1](bent)[0]


def penalty_product(problem: Problem, layout: Layout, point: Any, vector: Any) -> Any:
    """The penalty's Hessian at `point` (p,), times `vector` (p,)."""
    penalty = problem.penalty
    return forward.gradient_jvp(lambda w: penalty(layout.unflatten(w)), point, vector)


def whole_product(
    kind: str, problem: Problem, layout: Layout, point: Any, vector: Any, center: Any = None
) -> Any:
    """A curvature matrix at `point` (p,) times `vector` (p,), on all samples at once."""
    total = summed_product(kind, problem, layout, point, vector, center)
    return _finished(problem, total, point, vector, kind=kind, layout=layout)


# Compiled ------------------------------------------------------------------------------------


def _product_step(
    part: Problem, point: Any, vector: Any, center: Any, *, kind: str, layout: Layout
) -> tuple[Any, None]:
    return summed_product(kind, part, layout, point, vector, center), None


def _gradient_step(part: Problem, point: Any, *, layout: Layout) -> tuple[Any, None]:
    losses = losses_of(part, layout)
    return jax.grad(lambda w: losses(w).sum())(point), None


def _norms_step(part: Problem, point: Any, *, layout: Layout) -> tuple[Any, Any]:
    norms = jax.vmap(norm_of(part, layout, point, 0.0))((part.x, part.y))
    return jnp.zeros(()), norms


@partial(jax.jit, static_argnames=("kind", "layout"))
def _finished(
    problem: Problem, total: Any, point: Any, vector: Any, *, kind: str, layout: Layout
) -> Any:
    product = total / count_of(problem, kind)
    if kind in _OF_THE_RISK and problem.penalty is not None:
        product = product + penalty_product(problem, layout, point, vector)
    return product.astype(vector.dtype)


def product(
    kind: str, problem: Problem, size: int, point: Any, vector: Any, center: Any = None
) -> Any:
    """A curvature matrix at `point` (p,) times `vector` (p,), with `size` samples at a time."""
    layout = problem.layout
    if size >= problem.n_samples:
        return _whole(problem, point, vector, center, kind=kind, layout=layout)
    operands = point, vector, center
    total, _ = over_samples(
        problem, size, _product_step, point.shape, *operands, kind=kind, layout=layout
    )
    return _finished(problem, total, point, vector, kind=kind, layout=layout)


@partial(jax.jit, static_argnames=("kind", "layout"))
@tuned
def _whole(
    problem: Problem, point: Any, vector: Any, center: Any, *, kind: str, layout: Layout
) -> Any:
    return whole_product(kind, problem, layout, point, vector, center)


@partial(jax.jit, static_argnames=("kind", "layout"))
@tuned
def _together(
    problem: Problem, point: Any, vectors: Any, center: Any, *, kind: str, layout: Layout
) -> Any:
    return jax.vmap(lambda v: whole_product(kind, problem, layout, point, v, center))(vectors)


def images(
    kind: str, problem: Problem, size: int, point: Any, vectors: Any, center: Any = None
) -> Any:
    """A curvature matrix at `point` (p,) times each of `vectors` (k, p): (k, p). Several are computed
    together where a pass takes all samples."""
    total = len(vectors)
    count = min(total, at_once(problem)) if size >= problem.n_samples else 1
    vectors = np.asarray(vectors)  # slicing is cheaper in NumPy
    if count == 1:
        return jnp.stack([product(kind, problem, size, point, v, center) for v in vectors])
    blocks = []
    for begin in range(0, total, count):
        first = min(begin, total - count)  # the last block overlaps: one shape, one program
        some = vectors[first : first + count]
        some = _together(problem, point, some, center, kind=kind, layout=problem.layout)
        blocks.append(np.asarray(some)[begin - first :])
    return np.concatenate(blocks)


def mean_gradient(problem: Problem, size: int, point: Any) -> Any:
    """The mean of the pointwise risks' gradients (p,), without the penalty."""
    total, _ = over_samples(
        problem, size, _gradient_step, point.shape, point, layout=problem.layout
    )
    return (total / count_of(problem, "covariance")).astype(point.dtype)


def norm_of(problem: Problem, layout: Layout, point: Any, center: Any) -> Callable[[Any], Any]:
    """‖g − center‖ as a function of one sample (x, y), g being the gradient of its risk at `point`."""

    def of_one(sample: Any) -> Any:
        x, y = jax.tree_util.tree_map(lambda leaf: leaf[None], sample)
        losses = losses_of(problem.replace(x=x, y=y, mask=None), layout)
        return norm(jax.grad(lambda w: losses(w)[0])(point) - center)

    return of_one


def gradient_norms(problem: Problem, point: Any) -> np.ndarray:
    """The norm of each pointwise risk's gradient (n,)."""
    size = gradients_at_a_time(problem, ACTIVATIONS // programs.workers(problem))
    _, norms = over_samples(problem, size, _norms_step, (), point, layout=problem.layout)
    return of_each_sample(norms, problem.n_samples)


def check_samples_independent(problem: Problem) -> None:
    """An InputError if a prediction depends on other samples, so that samples have no own gradients."""
    n = problem.n_samples
    if not n:
        raise InputError("this problem has no data, so it has no gradients of single samples.")
    # at least two samples: JAX traces a batch of one differently
    if n > 1 and not splits(problem, min(2, n - 1)):
        raise InputError(
            "the model's predictions depend on several samples at once, so that no gradient belongs to "
            "a single one."
        )
