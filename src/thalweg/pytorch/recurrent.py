"""Recurrent layers as scans over time: torchax unrolls the time steps, which takes minutes to compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def layers(
    cell: Callable[..., Any],
    input: Any,
    hx: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """All layers of `nn.LSTM`, `nn.GRU` or `nn.RNN` as scans over time, by PyTorch's names.

    Args:
        input: (time, batch, features), or with `batch_first` (batch, time, features).
        hx: the initial state or states, (layers · directions, batch, features) each.
        params: for every layer and direction in turn: the input's matrix, the state's matrix, two biases,
            and the projection's matrix, the last two as far as the layer has them.

    Returns:
        The last layer's outputs, shaped as the input, and the final states, shaped as `hx`.
    """
    import torchax

    packed = isinstance(params, (jax.Array, tuple))  # that overload has other arguments
    if packed or (train and dropout):
        raise torchax.tensor.OperatorNotFound
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    x = jnp.swapaxes(input, 0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    per_direction = len(params) // (num_layers * directions)
    final_states = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            out, end = _over_time(
                cell,
                x,
                tuple(state[k] for state in states),
                params[k * per_direction : (k + 1) * per_direction],
                has_biases,
                backwards=direction == 1,
            )
            outputs.append(out)
            final_states.append(end)
        x = jnp.concatenate(outputs, axis=-1)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    return x, *(jnp.stack(state) for state in zip(*final_states, strict=True))


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

    # the products with the inputs are taken for all steps at once, outside the scan
    end, out = jax.lax.scan(step, start, x @ of_input.T + biases[0], reverse=backwards)
    return out, end


def lstm(now: Any, before: Any, h: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = jnp.split(now + before, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(now: Any, before: Any, h: Any) -> tuple[Any]:
    (r, z, n), (of_r, of_z, of_n) = (jnp.split(part, 3, axis=-1) for part in (now, before))
    n = jnp.tanh(n + jax.nn.sigmoid(r + of_r) * of_n)
    return (n + jax.nn.sigmoid(z + of_z) * (h - n),)


def rnn(activation: Callable[[Any], Any], now: Any, before: Any, h: Any) -> tuple[Any]:
    return (activation(now + before),)
