"""PyTorch's losses that torchax computes otherwise, or not at all."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """With PyTorch's bounds: logarithms are at least −100, and p (1 − p) in the derivative at least 1e-12."""
    if input.shape != target.shape:
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is "
            "deprecated"
        )

    @jax.custom_jvp
    def each(p: Any, y: Any) -> Any:
        log, log_of_rest = (jnp.maximum(jnp.log(a), -100) for a in (p, 1 - p))
        return (y - 1) * log_of_rest - y * log

    @each.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (p, y), (of_p, of_y) = primals, tangents
        slope = (p - y) / jnp.maximum((1 - p) * p, 1e-12)
        log, log_of_rest = (jnp.maximum(jnp.log(a), -100) for a in (p, 1 - p))
        return each(p, y), slope * of_p + (log_of_rest - log) * of_y

    loss = each(input, target)
    loss = loss if weight is None else loss * weight
    return {"mean": jnp.mean, "sum": jnp.sum, "none": jnp.asarray}[reduction](loss)


def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """−log of the probability of each sample's labels, summed over their alignments with time (Graves et
    al. 2006). As in PyTorch, the derivative assumes that log_probs are normalised.

    Args:
        log_probs: (time, samples, labels), or (time, labels) of one sample.
        targets: (samples, longest), or the labels of all samples one after another.
    """
    of_one = log_probs.ndim == 2
    log_probs = log_probs[:, None] if of_one else log_probs
    steps, labels = (jnp.ravel(jnp.asarray(n)) for n in (input_lengths, target_lengths))
    if targets.ndim == 1:
        targets = jnp.append(targets, blank)  # there may be no targets to gather from
        places = (jnp.cumsum(labels) - labels)[:, None] + jnp.arange(len(targets) - 1)
        targets = targets[jnp.minimum(places, len(targets) - 1)]
    samples, longest = targets.shape

    # the alignment's states: blank, label, blank, …, label, blank
    states = jnp.full((samples, 2 * longest + 1), blank).at[:, 1::2].set(targets)
    state_log_probs = jnp.take_along_axis(log_probs, states[None], 2)
    may_skip = (states != blank) & (states != _later(states, 2, blank))

    def step(before: Any, now: Any) -> Any:
        time, log_prob = now
        ways = [before, _later(before, 1, -jnp.inf)]
        ways.append(jnp.where(may_skip, _later(before, 2, -jnp.inf), -jnp.inf))
        after = _log_sum(jnp.stack(ways)) + log_prob
        return jnp.where((time < steps)[:, None], after, before), None

    start = jnp.where(jnp.arange(states.shape[1]) < 2, state_log_probs[0], -jnp.inf)
    end, _ = jax.lax.scan(step, start, (jnp.arange(1, len(state_log_probs)), state_log_probs[1:]))
    last = jnp.stack([2 * labels, 2 * labels - 1])
    ways = jnp.take_along_axis(end.T, jnp.maximum(last, 0), 0)
    total = _log_sum(jnp.where(last < 0, -jnp.inf, ways))
    without = jnp.where(labels == 0, 0, -jnp.inf)  # of an input of length 0
    loss = -jnp.where(steps == 0, without, total)
    in_time = jnp.arange(len(state_log_probs))[:, None] < steps
    mass = jnp.where(in_time[..., None], jnp.exp(log_probs), 0).sum((0, 2))
    loss = loss + mass - jax.lax.stop_gradient(mass)
    if zero_infinity:
        loss = jnp.where(jnp.isinf(loss), 0, loss)
    if reduction == "mean":
        return (loss / jnp.maximum(labels, 1)).mean()
    loss = loss[0] if of_one else loss
    return loss.sum() if reduction == "sum" else loss


def _later(x: Any, by: int, filled: Any) -> Any:
    """Shift along the last axis by `by`, filling with `filled`."""
    return jnp.pad(x, ((0, 0), (by, 0)), constant_values=filled)[:, : x.shape[1]]


def _log_sum(logs: Any) -> Any:
    """log Σ exp along the first axis, with derivative 0 where all are −∞."""
    largest = jax.lax.stop_gradient(logs.max(0))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.exp(logs - largest).sum(0)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + largest, -jnp.inf)


def multilabel_margin_loss(x: Any, y: Any, reduction: int) -> tuple[Any, Any]:
    """The loss of scores (n, classes) and labels (n, classes), which end at the first −1; PyTorch's own
    decomposition takes the entries after that for class 0."""
    valid = jnp.cumsum(y == -1, -1) == 0
    named = valid[..., None] & (y[..., None] == jnp.arange(x.shape[-1]))
    is_label = named.any(-2)
    of_labels = jnp.take_along_axis(x, jnp.where(valid, y, 0), -1)
    gaps = 1 - of_labels[..., None] + x[..., None, :]
    counted = valid[..., None] & ~is_label[..., None, :] & (gaps > 0)
    losses = jnp.where(counted, gaps, 0).sum((-2, -1)) / x.shape[-1]
    return (losses, losses.mean(), losses.sum())[reduction], is_label.astype(x.dtype)


def gaussian_nll_loss(
    input: Any,
    target: Any,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Any:
    """PyTorch's, without its check for negative variances: a traced program cannot branch on values."""
    if isinstance(var, float):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = jnp.full_like(input, var)
    if var.shape != input.shape:
        if var.shape == input.shape[:-1]:
            var = var[..., None]
        elif var.ndim != input.ndim or [
            v for n, v in zip(input.shape, var.shape, strict=True) if n != v
        ] != [1]:
            raise ValueError("var is of incorrect size")
    reductions = {"mean": jnp.mean, "sum": jnp.sum, "none": jnp.asarray}
    if reduction not in reductions:
        raise ValueError(f"{reduction} is not valid")
    # the lower bound applies to the value alone: as in PyTorch, the gradient passes through
    var = jnp.where(var < eps, eps + var - jax.lax.stop_gradient(var), var)
    loss = 0.5 * (jnp.log(var) + jnp.square(input - target) / var)
    return reductions[reduction](loss + 0.5 * math.log(2 * math.pi) if full else loss)
