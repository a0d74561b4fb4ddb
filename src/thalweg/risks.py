"""The risks of a problem, their gradient and residuals, as pure functions for use inside a trace."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import losses
from thalweg.params import Params, promoted

# Jitted at module level, so that all problems with the same functions and shapes share one program. Inside a
# trace they are inlined, and their cached trace is reused: a model, whose Python code may be slow, is traced
# once per set of shapes for all programs that use it.


@partial(jax.jit, inline=True)
def pointwise(problem: Any, params: Params) -> Any:
    """`Problem.pointwise` for use inside a trace."""
    yhat, y = problem.predict(params, problem.x), problem.y
    if not losses.is_entrywise(problem.loss):
        return problem.loss(yhat, y)
    y = jnp.zeros((), yhat.dtype) if y is None else y
    return losses.over_outputs(problem.loss(yhat, y), problem.reduction)


def _traced_risk(problem: Any, params: Params, penalty: bool) -> Any:
    """`Problem.risk` for use inside a trace."""
    risks = pointwise(problem, params)
    # a sum may overflow half precision where the mean does not
    values = promoted(risks, jnp.float32)
    if problem.mask is None:
        total, count = values.sum(), values.shape[0]
    else:
        # a batch in which no sample counts has risk 0 and a zero gradient
        total, count = jnp.where(problem.mask, values, 0).sum(), jnp.maximum(problem.mask.sum(), 1)
    risk = total / count if problem.reduction == "mean" else total
    risk = risk.astype(risks.dtype) if jnp.issubdtype(risks.dtype, jnp.floating) else risk
    return penalised(problem, params, risk, penalty)


risk = jax.jit(_traced_risk, static_argnames="penalty")


def penalised(problem: Any, params: Params, risk: Any, penalty: bool) -> Any:
    """`risk` plus the problem's penalty at `params`, if `penalty` is true and there is one."""
    return risk + problem.penalty(params) if penalty and problem.penalty is not None else risk


@partial(jax.jit, static_argnames="penalty")
def expected(problem: Any, params: Params, penalty: bool) -> Any:
    risk = jnp.asarray(problem.expected_risk(params))
    return penalised(problem, params, risk, penalty)


@jax.jit
def residuals(problem: Any, params: Params) -> Any:
    yhat = problem.predict(params, problem.x)
    residuals = yhat if problem.y is None else yhat - problem.y
    if problem.mask is not None:
        shape = (-1,) + (1,) * (residuals.ndim - 1)
        residuals = jnp.where(problem.mask.reshape(shape), residuals, 0)
    if problem.reduction == "mean":
        rows = residuals.shape[0] if problem.mask is None else jnp.maximum(problem.mask.sum(), 1)
        outputs = residuals.size // residuals.shape[0]
        residuals = residuals / jnp.sqrt(jnp.asarray(rows * outputs, residuals.dtype))
    return residuals.reshape(-1)


@partial(jax.jit, inline=True)
def value_and_gradient(problem: Any, params: Params) -> tuple[Any, Params]:
    """The empirical risk with the penalty, and its gradient; for use inside a trace."""
    return jax.value_and_grad(lambda w: _traced_risk(problem, w, True))(params)


@jax.jit
def gradient(problem: Any, params: Params) -> Any:
    return value_and_gradient(problem, params)[1]


def predicting(problem: Any, yhat: Any) -> Any:
    """The problem with fixed predictions `yhat`, whatever the parameters are: the loss as a function of
    predictions alone."""
    return problem.replace(predict=Partial(_given, yhat))


def _given(yhat: Any, params: Params, x: Any) -> Any:
    return yhat
