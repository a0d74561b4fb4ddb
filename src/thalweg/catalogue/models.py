"""Models as pure functions (params, x) -> ŷ, and how their parameters start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend as _backend  # noqa: F401
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
    """A multilayer perceptron: ŷ (n,) of one output, (n, k) of several; x (n,) or (n, d).

    params {"l1": {"weight" (out, in), "bias" (out,)}, "l2": …}, PyTorch's shapes.
    """
    hidden = x[:, None] if x.ndim == 1 else x
    for number in range(1, len(params) + 1):
        layer = params[f"l{number}"]
        hidden = hidden @ layer["weight"].T + layer["bias"]
        if number < len(params):
            hidden = activation(hidden)
    return _outputs(hidden)


def tanh_mlp(params: dict[str, Any], x: Any) -> Any:
    """`mlp` with tanh for its activation."""
    return mlp(params, x, jnp.tanh)


def _outputs(last: Any) -> Any:
    """(n, k) as it is, but (n,) where there is one output."""
    return last[:, 0] if last.shape[1] == 1 else last


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


def residual_mlp(
    params: dict[str, Any], x: Any, activation: Callable[[Any], Any] = jax.nn.relu
) -> Any:
    """`mlp` with a skip connection around each pair of hidden layers but the first: with φ the activation,
    h ← φ(h + W′φ(Wh + b) + b′). The parameters are those of `mlp`, with an odd number of hidden layers of
    one width.

    Source: He et al. (2016), "Deep residual learning for image recognition", with matrices for convolutions.
    """
    hidden = x[:, None] if x.ndim == 1 else x
    layers = [params[f"l{number}"] for number in range(1, len(params) + 1)]
    if len(layers) % 2 or len({len(layer["bias"]) for layer in layers[:-1]}) > 1:
        raise InputError(
            "a residual network needs an odd number of hidden layers, all of one width; their widths are "
            f"{[len(layer['bias']) for layer in layers[:-1]]}."
        )

    def affine(layer: dict[str, Any], hidden: Any) -> Any:
        return hidden @ layer["weight"].T + layer["bias"]

    hidden = activation(affine(layers[0], hidden))
    for one, two in zip(layers[1:-1:2], layers[2:-1:2], strict=True):
        hidden = activation(hidden + affine(two, activation(affine(one, hidden))))
    return _outputs(affine(layers[-1], hidden))


def init_he(
    widths: Sequence[int], key: Any, dtype: Any = float, *, residual: bool = False
) -> dict[str, Any]:
    """Weights from N(0, 2/fan_in), biases zero: through ReLU layers a signal keeps its size.

    With `residual` the second weight of each pair of `residual_mlp` is divided by √(number of pairs), so
    that the sum of all pairs keeps its size too. `widths` are those of all layers, input and output
    among them.

    Source: He et al. (2015), "Delving deep into rectifiers".
    """
    params = {}
    pairs = (len(widths) - 3) // 2
    # all numbers in one draw: with many layers, one draw per layer takes seconds to compile
    drawn = jax.random.normal(key, (sum(a * b for a, b in pairwise(widths)),), dtype)
    for number, (n_in, n_out) in enumerate(pairwise(widths), 1):
        scale = math.sqrt(2 / n_in)
        if residual and number % 2 and 1 < number < len(widths) - 1:
            scale /= math.sqrt(pairs)
        weights, drawn = jnp.split(drawn, (n_in * n_out,))
        params[f"l{number}"] = {
            "weight": scale * weights.reshape(n_out, n_in),
            "bias": jnp.zeros(n_out, dtype),
        }
    return params


def fourier_features(
    x: Any, dimension: int, *, frequency: float = 2 * math.pi, first: int = 0
) -> jax.Array:
    """sin(jωx), cos(jωx) for j = first, first + 1, …: the features (n, dimension) of x (n,).

    ω is `frequency`, in radians per unit of x. Sine and cosine of the same j stand side by side, so
    that fewer features are the first columns of more. j = 0 gives a sine that is zero and a cosine
    that is one, a second bias beside a linear head's own; `first=1` leaves both out. The head is
    `mlp` without a hidden layer: `init_mlp((dimension, 1), key)`.

    Raises:
        InputError: a dimension that is not an even number of at least 2, a negative `first`.
    """
    if dimension < 2 or dimension % 2 or first < 0:
        raise InputError(
            "sines and cosines come in pairs: a dimension of 2, 4, … and first of at least 0 were "
            f"expected; {dimension} and {first} given."
        )
    angles = frequency * jnp.outer(x, jnp.arange(first, first + dimension // 2))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(x), dimension)


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
        predict = mlp if name == "mlp" else tanh_mlp
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
