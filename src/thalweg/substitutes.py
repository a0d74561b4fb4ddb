"""PyTorch's operations that torchax computes slowly, otherwise than PyTorch, or not at all.

Each has PyTorch's value and derivative; the tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.kinks import first


def operations() -> Mapping[Any, Callable[..., Any]]:
    """Functions of arrays by the operation of PyTorch's that each stands for."""
    import torch
    from torchax.ops.ops_registry import all_aten_ops

    aten = torch.ops.aten
    convolution = aten.convolution
    return {
        convolution.default: partial(_convolution, all_aten_ops[convolution].func),
        torch.lstm: partial(_recurrent, _lstm),
        torch.gru: partial(_recurrent, _gru),
        torch.rnn_tanh: partial(_recurrent, partial(_rnn, jnp.tanh)),
        torch.rnn_relu: partial(_recurrent, partial(_rnn, jax.nn.relu)),
        torch.nn.functional.interpolate: _interpolate,
        torch.nn.functional.embedding_bag: _embedding_bag,
        aten.adaptive_max_pool2d.default: partial(_adaptive_max_pool, 2),
        aten.adaptive_max_pool3d.default: partial(_adaptive_max_pool, 3),
        torch.nn.functional.gaussian_nll_loss: _gaussian_nll_loss,
    }


# Recurrent layers: torchax writes every step out, which takes minutes to compile -----------------


def _recurrent(
    cell: Callable[..., Any],
    x: Any,
    start: Any,
    weights: Sequence[Any],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """All layers of `nn.LSTM`, `nn.GRU` or `nn.RNN` as scans over time.

    Args:
        x: (time, batch, features), or with `batch_first` (batch, time, features).
        start: the states at the start, (layers · directions, batch, features) each.
        weights: those of every layer and direction in turn: for inputs, for the state, two biases, and of
            a projected state its matrix.

    Returns:
        What the last layer gives, shaped as x, and the states at the end, shaped as those at the start.
    """
    import torchax

    if isinstance(weights, (jax.Array, tuple)):  # a packed sequence, whose arguments are others
        raise torchax.tensor.OperatorNotFound
    states = start if isinstance(start, (tuple, list)) else (start,)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    directions = 2 if both_ways else 1
    each = len(weights) // (layers * directions)
    ends = []
    for layer in range(layers):
        found = []
        for direction in range(directions):
            k = layer * directions + direction
            out, end = _over_time(
                cell,
                x,
                tuple(state[k] for state in states),
                weights[k * each : (k + 1) * each],
                biased,
                backwards=direction == 1,
            )
            found.append(out)
            ends.append(end)
        x = jnp.concatenate(found, axis=-1)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    return x, *(jnp.stack(state) for state in zip(*ends, strict=True))


def _over_time(
    cell: Callable[..., Any],
    x: Any,
    start: tuple[Any, ...],
    weights: Sequence[Any],
    biased: bool,
    backwards: bool,
) -> tuple[Any, tuple[Any, ...]]:
    of_input, of_state, *rest = weights
    biases, projection = (rest[:2], rest[2:]) if biased else ((0, 0), rest)

    def step(state: Any, now: Any) -> Any:
        new = cell(now, state[0] @ of_state.T + biases[1], *state)
        for matrix in projection:
            new = (new[0] @ matrix.T, *new[1:])
        return new, new[0]

    # the products with the inputs do not wait for one another
    end, out = jax.lax.scan(step, start, x @ of_input.T + biases[0], reverse=backwards)
    return out, end


def _lstm(now: Any, before: Any, h: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = jnp.split(now + before, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(now: Any, before: Any, h: Any) -> tuple[Any]:
    (r, z, n), (of_r, of_z, of_n) = (jnp.split(part, 3, axis=-1) for part in (now, before))
    n = jnp.tanh(n + jax.nn.sigmoid(r + of_r) * of_n)
    return (n + jax.nn.sigmoid(z + of_z) * (h - n),)


def _rnn(activation: Callable[[Any], Any], now: Any, before: Any, h: Any) -> tuple[Any]:
    return (activation(now + before),)


# Interpolation: gathers, whose way back is a scatter ---------------------------------------------


def _interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """One axis after the other, each by the matrix that PyTorch multiplies it with."""
    axes = x.ndim - 2
    sizes, scales = (
        tuple(given) if isinstance(given, (tuple, list)) else (given,) * axes
        for given in (size, scale_factor)
    )
    # in a thread of its own, PyTorch computes numbers and not tensors that stand for arrays
    with ThreadPoolExecutor(1) as apart:
        for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), 2):
            job = apart.submit(_matrix, axes, x.shape[axis], x.dtype, size, scale, *args, **kwargs)
            along = jnp.tensordot(x, jnp.asarray(job.result(), x.dtype), (axis, 0))
            x = jnp.moveaxis(along, -1, axis)
    return x


def _matrix(axes: int, n: int, dtype: Any, size: Any, scale: Any, *args: Any, **kwargs: Any) -> Any:
    """(n, m): what PyTorch interpolates the unit vectors to, along the last of `axes` axes."""
    import torch

    def last(value: Any, others: Any) -> Any:
        return None if value is None else (others,) * (axes - 1) + (value,)

    exact = torch.float64 if dtype == jnp.float64 else torch.float32
    units = torch.eye(n, dtype=exact, device="cpu").reshape(n, 1, *last(n, 1))
    out = torch.nn.functional.interpolate(units, last(size, 1), last(scale, 1.0), *args, **kwargs)
    return out.reshape(n, -1).numpy()


# Others ------------------------------------------------------------------------------------------


def _convolution(
    theirs: Callable[..., Any],
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """torchax's, and a transposed one group by group: it takes the channels of several in another order."""
    rest = (stride, padding, dilation, transposed, output_padding)
    if not transposed or groups == 1:
        return theirs(x, weight, bias, *rest, groups)
    channels = x.ndim - weight.ndim + 1  # there may be no axis of samples
    biases = [None] * groups if bias is None else jnp.split(bias, groups)
    parts = zip(jnp.split(x, groups, channels), jnp.split(weight, groups), biases, strict=True)
    return jnp.concatenate([theirs(*part, *rest, 1) for part in parts], channels)


def _adaptive_max_pool(axes: int, x: Any, size: Sequence[int]) -> tuple[Any, Any]:
    """The maxima of windows that cover the last axes, and their places; of equal ones the first."""
    spatial = x.shape[-axes:]
    places = jnp.broadcast_to(jnp.arange(math.prod(spatial)).reshape(spatial), x.shape)
    for axis in range(-1, -axes - 1, -1):  # so that the first row counts before the first column
        n, m = x.shape[axis], size[axis]
        found = []
        for i in range(m):
            window = slice(i * n // m, -(-(i + 1) * n // m))
            here, there = (
                jax.lax.slice_in_dim(each, window.start, window.stop, axis=each.ndim + axis)
                for each in (x, places)
            )
            value, index = first(jnp.argmax, here, axis, keepdim=True)
            found.append((value, jnp.take_along_axis(there, index, axis)))
        x, places = (jnp.concatenate(parts, axis) for parts in zip(*found, strict=True))
    return x, places


def _embedding_bag(
    bags: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: Any = None,
) -> Any:
    """Bags of one size, one for each sample: `bags` is (samples, entries)."""
    import torchax

    if bags.ndim != 2 or max_norm is not None or scale_grad_by_freq:
        raise torchax.tensor.OperatorNotFound
    entries = weight[bags]
    counted = jnp.ones_like(bags, bool)
    if padding_idx is not None:
        counted = bags != padding_idx % len(weight)
    counted = counted[..., None]
    if mode == "max":
        largest, _ = first(jnp.argmax, jnp.where(counted, entries, -jnp.inf), 1)
        return jnp.where(counted.any(1), largest, 0)
    if per_sample_weights is not None:
        entries = entries * per_sample_weights[..., None]
    total = jnp.where(counted, entries, 0).sum(1)
    return total / jnp.maximum(counted.sum(1), 1) if mode == "mean" else total


def _gaussian_nll_loss(
    yhat: Any, y: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """PyTorch's looks for variances below zero first, which a program cannot."""
    if jnp.ndim(var) and jnp.shape(var) != yhat.shape and jnp.shape(var) == yhat.shape[:-1]:
        var = var[..., None]
    var = jnp.broadcast_to(jnp.asarray(var, yhat.dtype), jnp.shape(var) or (1,))
    # the bound holds values up, and not their derivative
    var = var + jax.lax.stop_gradient(jnp.maximum(var, eps) - var)
    loss = 0.5 * (jnp.log(var) + jnp.square(yhat - y) / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return {"mean": jnp.mean, "sum": jnp.sum}.get(reduction, lambda each: each)(loss)
