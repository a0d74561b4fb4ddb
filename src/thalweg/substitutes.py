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
import numpy as np

from thalweg.errors import InputError
from thalweg.kinks import first

_MATRIX = 2**20  # entries of one that interpolates


def operations() -> Mapping[Any, Callable[..., Any]]:
    """Functions of arrays by the operation of PyTorch's that each stands for."""
    import torch
    from torchax.ops.ops_registry import all_aten_ops, all_torch_functions

    aten, pad, linear = torch.ops.aten, torch.nn.functional.pad, torch.nn.functional.linear
    convolution = aten.convolution
    found = {
        linear: all_torch_functions[linear].func,
        convolution.default: partial(_convolution, all_aten_ops[convolution].func),
        torch.lstm: partial(_recurrent, _lstm),
        torch.gru: partial(_recurrent, _gru),
        torch.rnn_tanh: partial(_recurrent, partial(_rnn, jnp.tanh)),
        torch.rnn_relu: partial(_recurrent, partial(_rnn, jax.nn.relu)),
        torch.nn.functional.interpolate: _interpolate,
        torch.as_tensor: _as_tensor,
        torch.detach: jax.lax.stop_gradient,
        torch.Tensor.detach: jax.lax.stop_gradient,
        aten.detach.default: jax.lax.stop_gradient,  # torchax's keeps the derivative
        torch.Tensor.type_as: lambda x, other: x.astype(other.dtype),
        torch.nn.functional.embedding_bag: _embedding_bag,
        pad: partial(_pad, all_torch_functions[pad].func),
        aten.adaptive_max_pool2d.default: partial(_adaptive_max_pool, 2),
        aten.adaptive_max_pool3d.default: partial(_adaptive_max_pool, 3),
        torch.nn.functional.gaussian_nll_loss: _gaussian_nll_loss,
        torch.nn.functional.binary_cross_entropy: _binary_cross_entropy,
        torch.linalg.solve: _solve,
        aten.linalg_householder_product.default: _householder_product,
        aten.mT.default: lambda x: jnp.swapaxes(x, -1, -2),
        torch.bucketize: _bucketize,
        torch.searchsorted: lambda edges, x, **how: _bucketize(x, edges, **how),
        # in the precision of their arguments
        aten.complex.default: jax.lax.complex,
        aten.lgamma.default: jax.scipy.special.gammaln,
        aten.digamma.default: _digamma,
        aten.polygamma.default: jax.scipy.special.polygamma,
    }
    names = {
        linear: ("input", "weight", "bias"),
        pad: ("input",),
        torch.nn.functional.interpolate: ("input",),
        torch.nn.functional.embedding_bag: ("input",),
        torch.nn.functional.binary_cross_entropy: ("input", "target"),
        torch.nn.functional.gaussian_nll_loss: ("input", "target"),
        torch.bucketize: ("input", "boundaries"),
        torch.searchsorted: ("sorted_sequence", "input"),
        torch.linalg.solve: ("A", "B"),
    }
    for function, first_ones in names.items():
        found[function] = partial(_by_names, first_ones, found[function])
    return found


def _by_names(names: Sequence[str], ours: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function whose first arguments may be given by PyTorch's names for them."""
    rest = [kwargs.pop(name) for name in names[len(args) :] if name in kwargs]
    return ours(*args, *rest, **kwargs)


# Recurrent layers: torchax writes every step out, which takes minutes to compile -----------------


def _recurrent(
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
        hx: the states at the start, (layers · directions, batch, features) each.
        params: those of every layer and direction in turn: for inputs, for the state, two biases, and of
            a projected state its matrix.

    Returns:
        What the last layer gives, shaped as the input, and the states at the end, shaped as `hx`.
    """
    import torchax

    packed = isinstance(params, (jax.Array, tuple))  # whose arguments are others
    if packed or (train and dropout):
        raise torchax.tensor.OperatorNotFound
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    x = jnp.swapaxes(input, 0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    ends = []
    for layer in range(num_layers):
        found = []
        for direction in range(directions):
            k = layer * directions + direction
            out, end = _over_time(
                cell,
                x,
                tuple(state[k] for state in states),
                params[k * each : (k + 1) * each],
                has_biases,
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


# Interpolation: of gathers the way back is a scatter, and here a product --------------------------


def _interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """One axis after the other, each by the matrix that PyTorch multiplies it with."""
    import torchax

    axes = x.ndim - 2
    sizes, scales = (
        tuple(given) if isinstance(given, (tuple, list)) else (given,) * axes
        for given in (size, scale_factor)
    )
    if not jnp.issubdtype(x.dtype, jnp.floating) or not _are_small(x.shape[2:], sizes, scales):
        raise torchax.tensor.OperatorNotFound
    # in a thread of its own, PyTorch computes numbers and not tensors that stand for arrays
    with ThreadPoolExecutor(1) as apart:
        for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), 2):
            job = apart.submit(_matrix, axes, x.shape[axis], x.dtype, size, scale, *args, **kwargs)
            x = _combined(job.result(), x, axis)
    return x


def _are_small(shape: Sequence[int], sizes: Sequence[Any], scales: Sequence[Any]) -> bool:
    """Whether the matrices are, and what they are of is numbers."""
    for n, size, scale in zip(shape, sizes, scales, strict=False):
        if not all(isinstance(given, (int, float, type(None))) for given in (size, scale)):
            return False
        if n * max(n, size or n * (scale or 1)) > _MATRIX:
            return False
    return True


def _matrix(
    axes: int, n: int, dtype: Any, size: Any, scale: Any, *args: Any, **kwargs: Any
) -> np.ndarray:
    """(n, m): what PyTorch interpolates the unit vectors to, along the last of `axes` axes."""
    import torch

    def last(value: Any, others: Any) -> Any:
        return None if value is None else (others,) * (axes - 1) + (value,)

    exact = torch.float64 if dtype == jnp.float64 else torch.float32
    units = torch.eye(n, dtype=exact, device="cpu").reshape(n, 1, *last(n, 1))
    out = torch.nn.functional.interpolate(units, last(size, 1), last(scale, 1.0), *args, **kwargs)
    return out.reshape(n, -1).numpy()


def _combined(matrix: np.ndarray, x: Any, axis: int) -> Any:
    """The product of an axis with a sparse matrix (n, m), by a gather, so that what is infinite stays where
    it is; and its derivative, by the product."""
    count = max(1, int((matrix != 0).sum(axis=0).max(initial=0)))
    places = np.argsort(matrix == 0, axis=0, kind="stable")[:count]  # (count, m)
    weights = np.take_along_axis(matrix, places, axis=0)
    shape = [1] * (x.ndim + 1)
    shape[axis : axis + 2] = weights.shape

    @jax.custom_jvp
    def combined(x: Any) -> Any:
        found = jnp.take(x, places.ravel(), axis=axis)
        found = found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
        some = weights.reshape(shape)
        return jnp.where(some == 0, 0, found * jnp.asarray(some, x.dtype)).sum(axis)

    @combined.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (moved,) = primals, tangents
        by = jnp.asarray(matrix, x.dtype)
        moved = jnp.tensordot(moved, by, (axis, 0), precision="highest")
        return combined(x), jnp.moveaxis(moved, -1, axis)

    return combined(x)


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


def _pad(
    theirs: Callable[..., Any], x: Any, pad: Any, mode: str = "constant", value: Any = None
) -> Any:
    """torchax's, on the padded axes alone: `jnp.pad` reads the ends of all, and so the last sample."""
    if mode == "constant":
        return theirs(x, pad, mode, value)
    lead = x.ndim - len(pad) // 2
    padded = jax.vmap(lambda one: theirs(one, pad, mode))(x.reshape(-1, *x.shape[lead:]))
    return padded.reshape(*x.shape[:lead], *padded.shape[1:])


def _solve(a: Any, b: Any, *, left: bool = True) -> Any:
    """A square b is a matrix: torchax takes one as large as a for vectors."""
    if not left:
        return jnp.swapaxes(_solve(jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2)), -1, -2)
    is_vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    found = jnp.linalg.solve(a, b[..., None] if is_vector else b)
    return found[..., 0] if is_vector else found


def _householder_product(a: Any, tau: Any) -> Any:
    """The first columns of a product of reflections, one after the other: XLA's own has no derivative."""
    rows = jnp.arange(a.shape[-2])
    q = jnp.broadcast_to(jnp.eye(*a.shape[-2:], dtype=a.dtype), a.shape)

    def reflected(q: Any, k: Any) -> Any:
        v = jnp.take(a, k, axis=-1)
        v = jnp.where(rows > k, v, (rows == k).astype(a.dtype))
        along = jnp.einsum("...m,...mn->...n", v.conj(), q)
        scale = jnp.take(tau, k, axis=-1)[..., None, None]
        return q - scale * v[..., :, None] * along[..., None, :], None

    return jax.lax.scan(reflected, q, jnp.arange(tau.shape[-1]), reverse=True)[0]


def _bucketize(
    x: Any, edges: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None
) -> Any:
    side = side or ("right" if right else "left")
    find = partial(jnp.searchsorted, side=side)
    if edges.ndim > 1:
        rows = edges.reshape(-1, edges.shape[-1]), x.reshape(-1, x.shape[-1])
        found = jax.vmap(find)(*rows).reshape(x.shape)
    else:
        found = find(edges, x)
    return found.astype(jnp.int32 if out_int32 else jnp.int64)


def _digamma(x: Any) -> Any:
    return jnp.where(x == 0, -jnp.inf, jax.scipy.special.digamma(jnp.where(x == 0, 1, x)))


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
    if bags.ndim != 2 or max_norm is not None or scale_grad_by_freq:
        raise InputError(
            "embedding_bag takes bags of one size as (samples, entries) here, without offsets=, max_norm= or "
            "scale_grad_by_freq=."
        )
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


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    import torch
    from torchax.ops import mappings

    if dtype is None and not isinstance(data, (jax.Array, np.ndarray, np.generic)):
        floats = np.issubdtype(np.asarray(data).dtype, np.floating)
        dtype = torch.get_default_dtype() if floats else None
    return jnp.asarray(data, dtype and mappings.t2j_dtype(dtype))


def _binary_cross_entropy(
    p: Any,
    y: Any,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """PyTorch's bounds: a logarithm is −100 at least, and p (1 − p) in a derivative 1e-12."""
    if p.shape != y.shape:
        raise ValueError(
            f"Using a target size ({y.shape}) that is different to the input size ({p.shape}) is deprecated"
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

    loss = each(p, y)
    loss = loss if weight is None else loss * weight
    return {"mean": jnp.mean, "sum": jnp.sum, "none": jnp.asarray}[reduction](loss)


def _gaussian_nll_loss(
    yhat: Any, y: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """PyTorch's looks for variances below zero, which a program cannot."""
    if isinstance(var, float):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = jnp.full_like(yhat, var)
    if var.shape != yhat.shape:
        if var.shape == yhat.shape[:-1]:
            var = var[..., None]
        elif var.ndim != yhat.ndim or [
            v for n, v in zip(yhat.shape, var.shape, strict=True) if n != v
        ] != [1]:
            raise ValueError("var is of incorrect size")
    reductions = {"mean": jnp.mean, "sum": jnp.sum, "none": jnp.asarray}
    if reduction not in reductions:
        raise ValueError(f"{reduction} is not valid")
    # the bound holds values up, and not their derivative
    var = jnp.where(var < eps, eps + var - jax.lax.stop_gradient(var), var)
    loss = 0.5 * (jnp.log(var) + jnp.square(yhat - y) / var)
    return reductions[reduction](loss + 0.5 * math.log(2 * math.pi) if full else loss)
