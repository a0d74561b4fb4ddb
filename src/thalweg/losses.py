"""Per-sample losses by their PyTorch names.

A loss is a function (prediction, target) -> (n,): the pointwise risk of each sample. The named
ones work entry by entry and then apply the problem's reduction over a sample's outputs, so that
the mean (or sum) over samples equals what `torch.nn` gives with the same reduction.

At a kink they follow PyTorch: the derivative of |d| at 0 is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import backend as _backend  # noqa: F401
from thalweg.errors import InputError, one_of, unknown

__all__ = ["bce_with_logits", "by_name", "cross_entropy", "huber", "l1", "mse", "smooth_l1"]

Loss = Callable[[Any, Any], Any]


def absolute(d: Any) -> Any:
    """|d| with derivative 0 at 0, as in PyTorch; `jnp.abs` has 1 there."""
    return d * jnp.sign(d)


def _difference(yhat: Any, y: Any) -> Any:
    """ŷ − y in floating point, so that δ or β in its dtype is not cut to an integer."""
    d = jnp.asarray(yhat - y)
    return d if jnp.issubdtype(d.dtype, jnp.floating) else d.astype(float)


def _squared_error(yhat: Any, y: Any) -> Any:
    return jnp.square(yhat - y)


def _absolute_error(yhat: Any, y: Any) -> Any:
    return absolute(yhat - y)


def _huber(delta: Any, yhat: Any, y: Any) -> Any:
    d = _difference(yhat, y)
    delta = jnp.asarray(delta).astype(d.dtype)
    size = absolute(d)
    return jnp.where(size < delta, 0.5 * d * d, delta * (size - 0.5 * delta))


def _smooth_l1(beta: Any, yhat: Any, y: Any) -> Any:
    d = _difference(yhat, y)
    beta = jnp.asarray(beta).astype(d.dtype)
    size = absolute(d)
    inside = 0.5 * d * d / jnp.where(beta > 0, beta, 1)
    return jnp.where(size < beta, inside, size - 0.5 * beta)


def _bce_with_logits(yhat: Any, y: Any) -> Any:
    # log(1 + e^ŷ) − yŷ, in the form that does not overflow
    return jnp.logaddexp(yhat, 0) - yhat * y


def _cross_entropy(yhat: Any, y: Any) -> Any:
    """Targets are class indices (n, ...) or probabilities in the shape of ŷ; classes are along axis 1."""
    log_p = jax.nn.log_softmax(yhat, axis=1)
    if jnp.issubdtype(y.dtype, jnp.integer):
        return -jnp.take_along_axis(log_p, jnp.expand_dims(y, 1), axis=1).squeeze(1)
    return -jnp.sum(log_p * y, axis=1)


def mse() -> Loss:
    """(ŷ − y)²."""
    return Partial(_squared_error)


def l1() -> Loss:
    """|ŷ − y|."""
    return Partial(_absolute_error)


def huber(delta: float = 1.0) -> Loss:
    """½d² where |d| < δ, else δ(|d| − ½δ), with d = ŷ − y (`torch.nn.HuberLoss`)."""
    return Partial(_huber, _positive("huber", "delta", delta))


def smooth_l1(beta: float = 1.0) -> Loss:
    """½d²/β where |d| < β, else |d| − ½β, with d = ŷ − y (`torch.nn.SmoothL1Loss`)."""
    return Partial(_smooth_l1, _positive("smooth_l1", "beta", beta, zero=True))


def cross_entropy() -> Loss:
    """−log softmax(ŷ) at the target class; ŷ (n, classes, ...), y integer classes or probabilities."""
    return Partial(_cross_entropy)


def bce_with_logits() -> Loss:
    """Binary cross-entropy of logits ŷ and targets y in [0, 1]."""
    return Partial(_bce_with_logits)


NAMED: dict[str, Callable[..., Loss]] = {
    "mse": mse,
    "l1": l1,
    "huber": huber,
    "smooth_l1": smooth_l1,
    "cross_entropy": cross_entropy,
    "bce_with_logits": bce_with_logits,
}


class _Kind(NamedTuple):
    """Properties of a named loss."""

    name: str
    equal_shapes: bool = True  # predictions and targets must have one shape
    likelihood: bool = False  # −log p, the predictions being the natural parameters
    probabilities: bool = False  # targets must lie in [0, 1]: outside, the loss has no minimum


_KINDS = {
    _squared_error: _Kind("mse", likelihood=True),
    _absolute_error: _Kind("l1"),
    _huber: _Kind("huber"),
    _smooth_l1: _Kind("smooth_l1"),
    _cross_entropy: _Kind("cross_entropy", equal_shapes=False, likelihood=True),
    _bce_with_logits: _Kind("bce_with_logits", likelihood=True, probabilities=True),
}


def by_name(spec: str) -> Loss:
    """The loss called `spec`: a name, or a name and its parameter, as in `huber:1.35`."""
    if not isinstance(spec, str):
        raise unknown("loss", spec, NAMED)
    name, _, argument = spec.partition(":")
    one_of("loss", name, NAMED)
    if not argument:
        return NAMED[name]()
    if name not in ("huber", "smooth_l1"):
        raise InputError(f"loss {name!r} takes no parameter, {argument!r} given.")
    try:
        value = float(argument)
    except ValueError:
        raise InputError(
            f"loss {spec!r}: {argument!r} is not a number; write it as in '{name}:1.0'."
        ) from None
    return NAMED[name](value)


def name_of(loss: Any) -> str:
    """What `by_name` calls this loss; a function's own name otherwise."""
    kind = _kind(loss)
    if kind is None:
        function = getattr(loss, "func", loss)
        return getattr(function, "__name__", "loss").lstrip("_")
    return ":".join([kind.name, *(str(float(argument)) for argument in loss.args)])


def is_entrywise(loss: Any) -> bool:
    """Whether `loss` is one of ours: it returns a value per entry, still to be reduced over outputs."""
    return _kind(loss) is not None


def is_squared_error(loss: Any) -> bool:
    return isinstance(loss, Partial) and loss.func is _squared_error


def wants_equal_shapes(loss: Any) -> bool:
    """Whether predictions and targets must have one shape (all named losses but cross-entropy)."""
    kind = _kind(loss)
    return kind is not None and kind.equal_shapes


def is_likelihood(loss: Any) -> bool:
    """Whether `loss` is −log p of a distribution whose natural parameters the predictions are."""
    kind = _kind(loss)
    return kind is not None and kind.likelihood


def wants_probabilities(loss: Any) -> bool:
    """Whether targets must lie between 0 and 1: outside, binary cross-entropy has no minimum."""
    kind = _kind(loss)
    return kind is not None and kind.probabilities


def _kind(loss: Any) -> _Kind | None:
    if not isinstance(loss, Partial):
        return None
    # not looked up by key: a user's function need not be hashable
    return next((kind for function, kind in _KINDS.items() if function is loss.func), None)


def over_outputs(values: Any, reduction: str) -> Any:
    """Entry values (n, ...) reduced over each sample's outputs: (n,)."""
    values = values.reshape(values.shape[0], -1)
    if values.shape[1] == 1:
        return values[:, 0]
    return values.mean(axis=1) if reduction == "mean" else values.sum(axis=1)


def _positive(loss: str, name: str, value: float, zero: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise InputError(f"{loss}: {name} must be a positive number, {value!r} given.")
    return number
