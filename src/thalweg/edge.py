"""Sharpness along a descent: the largest eigenvalue of the Hessian, followed from step to step.

Gradient descent with step η is stable on a quadratic as long as its eigenvalues stay below 2/η. On neural
networks the largest one rises to that and then hovers about it: the edge of stability (Cohen et al.,
2021). For a rule that divides the step by P, entry by entry, it is the largest eigenvalue of P⁻¹H that
counts (Cohen et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import curvature, lanczos, products
from thalweg.errors import InputError
from thalweg.observables import At, Observable, documented
from thalweg.params import Layout, Params, norm, promoted
from thalweg.problem import Problem, in_precision

# Products of a measurement, which starts from the last eigenvector; repeated until the residual is at most
# _TOLERANCE times the eigenvalue (whose error goes as the residual's square), or _MOST products are spent
_PRODUCTS = 10
_TOLERANCE = 1e-3
_MOST = 400


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharpness(Observable):
    """An observable, `record={"sharpness": tw.sharpness}`; and a function of a problem and a point."""

    def __call__(self, problem: Problem, params: Params) -> float:
        """The largest eigenvalue of the Hessian at a point."""
        return float(curvature.hessian(problem, params).top(1)[0][0])


def _top(preconditioned: bool, at: At, start: Any) -> tuple[Any, Any]:
    """The largest eigenvalue of the (preconditioned) Hessian at the iterate, on all data, and its vector."""
    # sums over samples overflow half precision
    problem, params = in_precision(at.problem, jnp.float32), promoted(at.params, jnp.float32)
    layout = Layout.of(params)
    point = layout.flatten(params)

    def product(vector: Any) -> Any:
        return products.whole_product("hessian", problem, layout, point, vector)

    leading = partial(
        lanczos.leading, steps=_PRODUCTS, tolerance=_TOLERANCE, most=_MOST // _PRODUCTS
    )

    if not preconditioned:
        return leading(product, start)
    if at.optimizer is None:
        raise InputError("record: preconditioned_sharpness needs the optimizer of a descent.")
    diagonal = at.optimizer.preconditioner(at, at.params, at.state, at.updates)
    if diagonal is None:
        raise InputError(
            f"record: preconditioned_sharpness is for optimizers that divide their step entry by entry "
            f"(Adam, AdamW, RMSprop, Adagrad); {at.optimizer.name} given. Ask for sharpness."
        )
    scale = layout.flatten(promoted(diagonal, jnp.float32)) ** -0.5
    return leading(lambda v: scale * product(scale * v), start)


def _first(at: At) -> Any:
    layout = Layout.of(promoted(at.params, jnp.float32))
    vector = jax.random.normal(jax.random.key(0), (layout.size,), layout.dtype)
    return vector / norm(vector)


def _next(preconditioned: bool, at: At, vector: Any) -> tuple[Any, Any]:
    # Where the Hessian was not finite at the previous step, its eigenvector is NaN: start anew.
    vector = jnp.where(jnp.isfinite(vector).all(), vector, 0)
    # Some noise, as the new top eigenvector may be orthogonal to the previous one.
    size = vector.shape[0] ** -0.5
    noise = size * jax.random.normal(jax.random.fold_in(jax.random.key(1), at.step), vector.shape)
    return _top(preconditioned, at, vector + 0.1 * noise.astype(vector.dtype))


def _of(preconditioned: bool) -> tuple[Any, Any]:
    return Partial(_first), Partial(partial(_next, preconditioned))


sharpness = documented(
    Sharpness(*_of(False)),
    """λ_max of the Hessian of the risk on all the data: an observable, and a function of a point.

`record={"sharpness": tw.sharpness}` follows it from step to step: each recorded one costs ten Hessian
products, and up to 400 where many eigenvalues lie close to the largest, so that a long descent wants
`every=`. `tw.sharpness(problem, params)` is the same number at one point.""",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Preconditioned(Observable):
    def __call__(self, *_: Any) -> float:
        raise InputError(
            "preconditioned_sharpness needs a descent's optimizer: record it. At a point, "
            "hessian(problem, params).preconditioned(diagonal).top(1) has it for a diagonal of yours."
        )


preconditioned_sharpness = documented(
    _Preconditioned(*_of(True)),
    "λ_max of P⁻¹H as an observable, P being what Adam, AdamW, RMSprop or Adagrad divides its step by.",
)
