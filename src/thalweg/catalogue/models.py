"""Models as pure functions (params, x) -> ŷ, and how their parameters start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError, unknown

Params = Any


def line(params: dict[str, Any], x: Any) -> Any:
    """weight·x + bias, for x (n,) with a scalar weight or x (n, d) with weights (d,)."""
    return (
        x @ params["weight"] + params["bias"]
        if x.ndim == 2
        else (params["weight"] * x + params["bias"])
    )


def polynomial(params: dict[str, Any], x: Any) -> Any:
    """c0 + c1 x + c2 x² + …, by Horner's rule; params {"c0", "c1", …}, x (n,)."""
    value = jnp.zeros_like(x)
    for power in reversed(range(len(params))):
        value = value * x + params[f"c{power}"]
    return value


def relu_product(params: dict[str, Any], x: Any) -> Any:
    """w1·relu(w2·x): the smallest network with a hidden unit, two parameters and no bias."""
    return params["w1"] * jax.nn.relu(params["w2"] * x)


def linear_product(params: dict[str, Any], x: Any) -> Any:
    """w1·w2·x: the same without the nonlinearity."""
    return params["w1"] * params["w2"] * x


def mlp(params: dict[str, Any], x: Any, activation: Callable[[Any], Any] = jax.nn.relu) -> Any:
    """A multilayer perceptron with one output, ŷ (n,); x (n,) or (n, d).

    params {"l1": {"weight" (out, in), "bias" (out,)}, "l2": …}, PyTorch's shapes.
    """
    hidden = x[:, None] if x.ndim == 1 else x
    for number in range(1, len(params) + 1):
        layer = params[f"l{number}"]
        hidden = hidden @ layer["weight"].T + layer["bias"]
        if number < len(params):
            hidden = activation(hidden)
    return hidden[:, 0]


def init_mlp(widths: Sequence[int], key: Any, dtype: Any = float) -> dict[str, Any]:
    """PyTorch's default for `Linear`: weights and biases from U(−1/√fan_in, 1/√fan_in).

    `widths` are those of all layers, input and output among them.
    """
    params = {}
    keys = jax.random.split(key, 2 * (len(widths) - 1))
    for number, (n_in, n_out) in enumerate(pairwise(widths)):
        bound = n_in**-0.5
        params[f"l{number + 1}"] = {
            "weight": jax.random.uniform(keys[2 * number], (n_out, n_in), dtype, -bound, bound),
            "bias": jax.random.uniform(keys[2 * number + 1], (n_out,), dtype, -bound, bound),
        }
    return params


def _relu_mlp(params: dict[str, Any], x: Any) -> Any:
    return mlp(params, x, jax.nn.relu)


def _tanh_mlp(params: dict[str, Any], x: Any) -> Any:
    return mlp(params, x, jnp.tanh)


@dataclass(frozen=True)
class Model:
    """A model as `Problem` takes it: predict, and a start or a way to draw one."""

    predict: Callable[[Params, Any], Any]
    params: Params = None
    init: Callable[[Any], Params] | None = None


def by_name(spec: str, n_features: int = 1, dtype: Any = float) -> Model:
    """The model that `spec` names: `line`, `polynomial:3`, `mlp:16,16` or `tanh-mlp:16,16`.

    Raises:
        InputError: an unknown model, or an argument that makes no sense.
    """
    name, _, argument = spec.partition(":")
    if name == "line":
        if argument:
            raise InputError(f"model 'line' takes no argument; {argument!r} given.")
        weight = 0.0 if n_features == 1 else jnp.zeros(n_features, dtype)
        return Model(line, {"weight": weight, "bias": 0.0})
    if name == "polynomial":
        (degree,) = _numbers(spec, argument or "2", most=1)
        if n_features != 1:
            raise InputError(f"model {spec!r} takes one feature; {n_features} given.")
        return Model(polynomial, {f"c{power}": 0.0 for power in range(degree + 1)})
    if name in ("mlp", "tanh-mlp"):
        widths = (n_features, *_numbers(spec, argument or "16,16"), 1)
        predict = _relu_mlp if name == "mlp" else _tanh_mlp
        return Model(predict, init=partial(init_mlp, widths, dtype=dtype))
    raise unknown("model", name, ("line", "polynomial", "mlp", "tanh-mlp"))


def _numbers(spec: str, argument: str, most: int = 64) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in argument.split(","))
    except ValueError:
        numbers = ()
    if not 0 < len(numbers) <= most or min(numbers) < 1:
        raise InputError(
            f"model {spec!r}: whole numbers of at least 1 were expected after the colon, as in "
            f"'polynomial:3' or 'mlp:16,16'; {argument!r} given."
        )
    return numbers
