"""Replacements for operations that torchax computes slowly, differently from PyTorch, or not at all.

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
from thalweg.kinks import clamped, first

_MATRIX = 2**20  # most entries of an interpolation matrix


def operations() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's operations, each with the function of arrays that replaces it."""
    import torch
    from torchax.ops.ops_registry import all_aten_ops, all_torch_functions

    aten, functional = torch.ops.aten, torch.nn.functional
    convolution, pad = aten.convolution.default, functional.pad
    pool2d, pool3d = aten.max_pool2d_with_indices, aten.max_pool3d_with_indices
    return {
        convolution: partial(_convolution, all_aten_ops[aten.convolution].func),
        pad: partial(_pad, all_torch_functions[pad].func),
        torch.lstm: partial(_recurrent, _lstm),
        torch.gru: partial(_recurrent, _gru),
        torch.rnn_tanh: partial(_recurrent, partial(_rnn, jnp.tanh)),
        torch.rnn_relu: partial(_recurrent, partial(_rnn, jax.nn.relu)),
        torch.as_tensor: _as_tensor,
        torch.detach: jax.lax.stop_gradient,
        torch.Tensor.detach: jax.lax.stop_gradient,
        aten.detach.default: jax.lax.stop_gradient,  # torchax's keeps the derivative
        torch.Tensor.type_as: lambda x, other: x.astype(other.dtype),
        functional.linear: _linear,
        functional.interpolate: _interpolate,
        functional.embedding_bag: _embedding_bag,
        functional.gaussian_nll_loss: _gaussian_nll_loss,
        functional.binary_cross_entropy: _binary_cross_entropy,
        functional.ctc_loss: _ctc_loss,
        aten._safe_softmax.default: _safe_softmax,
        aten.multilabel_margin_loss_forward.default: _multilabel_margin_loss,
        pool2d.default: partial(_max_pool, all_aten_ops[pool2d].func),
        pool3d.default: partial(_max_pool, all_aten_ops[pool3d].func),
        aten.max_unpool2d.default: partial(_max_unpool, 2),
        aten.max_unpool3d.default: partial(_max_unpool, 3),
        aten.adaptive_max_pool2d.default: partial(_adaptive_max_pool, 2),
        aten.adaptive_max_pool3d.default: partial(_adaptive_max_pool, 3),
        aten._grouped_mm.default: _grouped_product,
        aten.cholesky.default: _cholesky,
        aten.linalg_cholesky_ex.default: _cholesky_and_no_error,
        aten.cholesky_solve.default: _cholesky_solve,
        aten.cholesky_inverse.default: _cholesky_inverse,
        aten._linalg_eigh.default: _eigh,
        aten._linalg_det.default: _determinant,
        aten._linalg_slogdet.default: _log_determinant,
        aten._linalg_solve_ex.default: _solve,
        aten.linalg_lstsq.default: _least_squares,
        aten.linalg_householder_product.default: _householder_product,
        aten.split.Tensor: _split,
        aten.split_with_sizes.default: _split_with_sizes,
        aten.unbind.int: _unbind,
        aten.mT.default: lambda x: jnp.swapaxes(x, -1, -2),
        aten.bucketize.Tensor: lambda x, edges, **how: _places(edges, x, **how),
        aten.searchsorted.Tensor: _places,
        torch.cov: _covariance,
        torch.corrcoef: lambda input: jnp.corrcoef(input),
        torch.Tensor.cov: _covariance,
        torch.Tensor.corrcoef: lambda input: jnp.corrcoef(input),
        torch.linalg.eigvals: lambda input: _eig(input)[0],
        aten.linalg_eig.default: _eig,
        aten.ldexp.Tensor: lambda x, power: x * 2.0 ** power.astype(x.dtype),
        aten.topk.default: partial(_topk, all_aten_ops[aten.topk].func),
        aten.special_log_ndtr.default: jax.scipy.special.log_ndtr,
        # torchax computes these in another precision than their arguments'
        aten.complex.default: lambda x, y: jax.lax.complex(*jnp.broadcast_arrays(x, y)),
        aten.logit.default: _logit,
        aten.mvlgamma.default: jax.scipy.special.multigammaln,
        aten.lgamma.default: jax.scipy.special.gammaln,
        aten.digamma.default: _digamma,
        aten.polygamma.default: jax.scipy.special.polygamma,
    }


def compositions() -> Sequence[Any]:
    """Functions whose torchax versions differ from PyTorch's in argument names or outputs; without those,
    PyTorch composes them of operations that torchax has."""
    import torch

    linalg = torch.linalg
    return (
        torch.logdet,
        torch.svd,
        torch.tensor_split,
        torch.nn.functional.max_pool2d,
        torch.nn.functional.scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention,
        linalg.det,
        linalg.matrix_power,
        linalg.slogdet,
        linalg.solve,
        linalg.solve_ex,
        linalg.svd,
        linalg.tensorsolve,
    )


# Recurrent layers: torchax unrolls the time steps, which takes minutes to compile ----------------


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


# Interpolation: a gather's transpose is a scatter, which is slow; here it is a matrix product ------


def _interpolate(
    input: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """One axis after the other, each by the matrix of PyTorch's interpolation along it."""
    import torchax

    x, axes = input, input.ndim - 2
    sizes, scales = (
        tuple(given) if isinstance(given, (tuple, list)) else (given,) * axes
        for given in (size, scale_factor)
    )
    if not jnp.issubdtype(x.dtype, jnp.floating) or not _are_small(x.shape[2:], sizes, scales):
        raise torchax.tensor.OperatorNotFound
    # torchax's modes are active in this thread alone: in another, PyTorch computes plain numbers
    with ThreadPoolExecutor(1) as apart:
        for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), 2):
            job = apart.submit(_matrix, axes, x.shape[axis], x.dtype, size, scale, *args, **kwargs)
            x = _combined(job.result(), x, axis)
    return x


def _are_small(shape: Sequence[int], sizes: Sequence[Any], scales: Sequence[Any]) -> bool:
    """Whether the interpolation matrices are small, and the sizes and scales are plain numbers."""
    for n, size, scale in zip(shape, sizes, scales, strict=False):
        if not all(isinstance(given, (int, float, type(None))) for given in (size, scale)):
            return False
        if n * max(n, size or n * (scale or 1)) > _MATRIX:
            return False
    return True


def _matrix(
    axes: int, n: int, dtype: Any, size: Any, scale: Any, *args: Any, **kwargs: Any
) -> np.ndarray:
    """(n, m): PyTorch's interpolation of the n unit vectors along the last of `axes` spatial axes."""
    import torch

    def last(value: Any, others: Any) -> Any:
        return None if value is None else (others,) * (axes - 1) + (value,)

    exact = torch.float64 if dtype == jnp.float64 else torch.float32
    units = torch.eye(n, dtype=exact, device="cpu").reshape(n, 1, *last(n, 1))
    out = torch.nn.functional.interpolate(units, last(size, 1), last(scale, 1.0), *args, **kwargs)
    return out.reshape(n, -1).numpy()


def _combined(matrix: np.ndarray, x: Any, axis: int) -> Any:
    """The product of an axis with a sparse matrix (n, m), by a gather, so that 0 · ∞ makes no NaN; its
    derivative is the matrix product."""
    count = max(1, int((matrix != 0).sum(axis=0).max(initial=0)))
    places = np.argsort(matrix == 0, axis=0, kind="stable")[:count]  # (count, m)
    weights = np.take_along_axis(matrix, places, axis=0)
    shape = [1] * (x.ndim + 1)
    shape[axis : axis + 2] = weights.shape

    @jax.custom_jvp
    def combined(x: Any) -> Any:
        gathered = jnp.take(x, places.ravel(), axis=axis)
        gathered = gathered.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
        some = weights.reshape(shape)
        return jnp.where(some == 0, 0, gathered * jnp.asarray(some, x.dtype)).sum(axis)

    @combined.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (moved,) = primals, tangents
        by = jnp.asarray(matrix, x.dtype)
        moved = jnp.tensordot(moved, by, (axis, 0), precision="highest")
        return combined(x), jnp.moveaxis(moved, -1, axis)

    return combined(x)


# Linear algebra ----------------------------------------------------------------------------------


def _solve(a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    """The solution, with empty factors and the error code 0."""
    return _solution(a, b, left), *_factors(), jnp.zeros(a.shape[:-2], jnp.int32)


def _factors() -> tuple[Any, Any]:
    """Empty placeholders for the factors that PyTorch returns for its own backward pass."""
    return jnp.empty(0), jnp.empty(0)


def _solution(a: Any, b: Any, left: bool) -> Any:
    if not left:
        return jnp.swapaxes(
            _solution(jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2), True), -1, -2
        )
    solution = jnp.linalg.solve(a, b[..., None] if _are_vectors(a, b) else b)
    return solution[..., 0] if _are_vectors(a, b) else solution


def _are_vectors(a: Any, b: Any) -> bool:
    """Whether the right-hand sides b of a system are vectors, not matrices."""
    return b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])


def _least_squares(
    a: Any, b: Any, rcond: float | None = None, *, driver: str | None = None
) -> tuple[Any, ...]:
    """The minimum-norm solution, and its squared residuals and the rank where PyTorch returns them."""
    m, n = a.shape[-2:]
    rcond = float(jnp.finfo(a.dtype).eps) * max(m, n) if rcond is None else rcond
    columns = b[..., None] if _are_vectors(a, b) else b
    x = jnp.linalg.pinv(a, rtol=rcond) @ columns
    squares = jnp.empty(0, a.dtype)
    if m > n and driver not in (None, "gelsy"):
        squares = jnp.square(jnp.abs(a @ x - columns)).sum(-2)
    x = x[..., 0] if _are_vectors(a, b) else x
    rank = jnp.linalg.matrix_rank(a, rtol=rcond) if driver != "gels" else jnp.empty(0, int)
    return x, squares, rank, jnp.empty(0, a.dtype)


def _mirrored(a: Any, upper: bool) -> Any:
    """The Hermitian matrix that one triangle determines; both triangles get the gradient, as in PyTorch."""
    whole = (a + jnp.swapaxes(a, -1, -2).conj()) / 2
    half = jnp.triu(a, 1) if upper else jnp.tril(a, -1)
    diagonal = jnp.eye(a.shape[-1], dtype=a.dtype) * jnp.real(a)
    read = half + jnp.swapaxes(half, -1, -2).conj() + diagonal
    return whole + jax.lax.stop_gradient(read - whole)


def _cholesky(a: Any, upper: bool = False) -> Any:
    return jnp.linalg.cholesky(_mirrored(a, upper), upper=upper, symmetrize_input=False)


def _cholesky_and_no_error(
    a: Any, *, upper: bool = False, check_errors: bool = False
) -> tuple[Any, Any]:
    return _cholesky(a, upper), jnp.zeros(a.shape[:-2], jnp.int32)


def _cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    return jax.scipy.linalg.cho_solve((factor, not upper), b)


def _cholesky_inverse(factor: Any, upper: bool = False) -> Any:
    one = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return _cholesky_solve(jnp.broadcast_to(one, factor.shape), factor, upper)


def _eigh(a: Any, uplo: str = "L", compute_v: bool = True) -> tuple[Any, Any]:
    return jnp.linalg.eigh(_mirrored(a, uplo.upper() == "U"), symmetrize_input=False)


def _eig(a: Any) -> tuple[Any, Any]:
    """Eigenvalues and eigenvectors; as in PyTorch, gradients hold for functions that are invariant to the
    eigenvectors' phases."""
    values, vectors = jax.lax.linalg.eig(
        a, compute_left_eigenvectors=False, enable_eigvec_derivs=True
    )
    return values, vectors


def _determinant(a: Any) -> tuple[Any, ...]:
    return jnp.linalg.det(a), *_factors()


def _log_determinant(a: Any) -> tuple[Any, ...]:
    return *jnp.linalg.slogdet(a), *_factors()


def _covariance(
    input: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None
) -> Any:
    return jnp.cov(input, ddof=correction, fweights=fweights, aweights=aweights)


def _householder_product(a: Any, tau: Any) -> Any:
    """The first columns of a product of reflections, applied one by one: XLA's has no derivative."""
    rows = jnp.arange(a.shape[-2])
    q = jnp.broadcast_to(jnp.eye(*a.shape[-2:], dtype=a.dtype), a.shape)

    def reflected(q: Any, k: Any) -> Any:
        v = jnp.take(a, k, axis=-1)
        v = jnp.where(rows > k, v, (rows == k).astype(a.dtype))
        along = jnp.einsum("...m,...mn->...n", v.conj(), q)
        scale = jnp.take(tau, k, axis=-1)[..., None, None]
        return q - scale * v[..., :, None] * along[..., None, :], None

    return jax.lax.scan(reflected, q, jnp.arange(tau.shape[-1]), reverse=True)[0]


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
    """torchax's, but transposed ones group by group: it orders the channels of several differently."""
    rest = (stride, padding, dilation, transposed, output_padding)
    if not transposed or groups == 1:
        return theirs(x, weight, bias, *rest, groups)
    channels = x.ndim - weight.ndim + 1  # there may be no axis of samples
    biases = [None] * groups if bias is None else jnp.split(bias, groups)
    parts = zip(jnp.split(x, groups, channels), jnp.split(weight, groups), biases, strict=True)
    return jnp.concatenate([theirs(*part, *rest, 1) for part in parts], channels)


def _pad(
    theirs: Callable[..., Any], input: Any, pad: Any, mode: str = "constant", value: Any = None
) -> Any:
    """torchax's, mapped over the axes that are not padded: `jnp.pad` reads the ends of every axis, so that
    a prediction would depend on the last sample."""
    if mode == "constant":
        return theirs(input, pad, mode, value)
    lead = input.ndim - len(pad) // 2
    padded = jax.vmap(lambda one: theirs(one, pad, mode))(input.reshape(-1, *input.shape[lead:]))
    return padded.reshape(*input.shape[:lead], *padded.shape[1:])


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    out = jnp.einsum("...i,oi->...o", input, weight)
    return out if bias is None else out + bias


def _grouped_product(
    x: Any, matrices: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    """Each group of rows of x times the group's matrix (mixtures of experts); `offs` holds the groups'
    ends."""
    import torchax

    if (x.ndim, matrices.ndim) != (2, 3) or bias is not None or out_dtype is not None:
        raise torchax.tensor.OperatorNotFound(
            "Operator with name aten::_grouped_mm has no lowering"
        )
    return jax.lax.ragged_dot(x, matrices, jnp.diff(offs, prepend=0))


def _places(
    edges: Any,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    edges = edges if sorter is None else jnp.take_along_axis(edges, sorter, -1)
    find = partial(jnp.searchsorted, side=side or ("right" if right else "left"))
    if edges.ndim > 1:
        rows = edges.reshape(-1, edges.shape[-1]), x.reshape(-1, x.shape[-1])
        indices = jax.vmap(find)(*rows).reshape(x.shape)
    else:
        indices = find(edges, x)
    return indices.astype(jnp.int32 if out_int32 else jnp.int64)


def _digamma(x: Any) -> Any:
    return jnp.where(x == 0, -jnp.inf, jax.scipy.special.digamma(jnp.where(x == 0, 1, x)))


def _logit(x: Any, eps: float | None = None) -> Any:
    x = x if eps is None else clamped(x, eps, 1 - eps)
    return jnp.log(x / (1 - x))


def _topk(theirs: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    values, places = theirs(x, *args, **kwargs)
    return values, places.astype(jnp.int64)


def _safe_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    """Softmax that is 0 where all entries are −∞, as where a mask leaves nothing to attend to."""
    nowhere = (x == -jnp.inf).all(dim, keepdims=True)
    return jnp.where(nowhere, 0, jax.nn.softmax(jnp.where(nowhere, 0, x), dim))


def _max_pool(
    theirs: Callable[..., Any],
    x: Any,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Any, Any]:
    """torchax's; with dilation, where JAX has no derivative of the maximum, a gather at its indices."""
    if set(np.ravel(dilation)) == {1}:
        return theirs(x, size, stride, padding, dilation, ceil_mode)
    _, places = theirs(jax.lax.stop_gradient(x), size, stride, padding, dilation, ceil_mode)
    rows = (-1, math.prod(x.shape[-len(size) :])), (-1, math.prod(places.shape[-len(size) :]))
    maxima = jnp.take_along_axis(x.reshape(rows[0]), places.reshape(rows[1]), 1)
    return maxima.reshape(places.shape), places


def _max_unpool(axes: int, x: Any, places: Any, size: Sequence[int], *how: Any) -> Any:
    """Scatter entries to the indices that max pooling took them from; zeros elsewhere."""
    rows = (-1, math.prod(x.shape[-axes:]))

    def put(row: Any, at: Any) -> Any:
        still, zeros = jax.lax.stop_gradient(row), jnp.zeros(math.prod(size), x.dtype)
        # as in PyTorch, an entry that another one overwrites still gets a gradient
        return zeros.at[at].set(still) + zeros.at[at].add(row - still)

    return jax.vmap(put)(x.reshape(rows), places.reshape(rows)).reshape(*x.shape[:-axes], *size)


def _adaptive_max_pool(axes: int, x: Any, size: Sequence[int]) -> tuple[Any, Any]:
    """The maxima of windows that cover the last axes, and their indices; the first of several maxima."""
    spatial = x.shape[-axes:]
    places = jnp.broadcast_to(jnp.arange(math.prod(spatial)).reshape(spatial), x.shape)
    # last axis first, so that ties go to the first index in row-major order
    for axis in range(-1, -axes - 1, -1):
        n, m = x.shape[axis], size[axis]
        pooled = []
        for i in range(m):
            window = slice(i * n // m, -(-(i + 1) * n // m))
            window_x, window_places = (
                jax.lax.slice_in_dim(each, window.start, window.stop, axis=each.ndim + axis)
                for each in (x, places)
            )
            value, index = first(jnp.argmax, window_x, axis, keepdim=True)
            pooled.append((value, jnp.take_along_axis(window_places, index, axis)))
        x, places = (jnp.concatenate(parts, axis) for parts in zip(*pooled, strict=True))
    return x, places


def _split(x: Any, size: int, dim: int = 0) -> Sequence[Any]:
    whole = x.shape[dim]
    return _split_with_sizes(x, [min(size, whole - k) for k in range(0, whole, size)] or [0], dim)


def _split_with_sizes(x: Any, sizes: Sequence[int], dim: int = 0) -> Sequence[Any]:
    # its transpose concatenates; that of slices would pad each with zeros and add them
    return jax.lax.split(x, sizes, dim)


def _unbind(x: Any, dim: int = 0) -> Sequence[Any]:
    return [jnp.squeeze(part, dim) for part in _split_with_sizes(x, [1] * x.shape[dim], dim)]


def _embedding_bag(
    input: Any,
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
    """Bags of one size, one for each sample: `input` is (samples, entries)."""
    if input.ndim != 2 or max_norm is not None or scale_grad_by_freq:
        raise InputError(
            "embedding_bag takes bags of one size as (samples, entries) here, without offsets=, max_norm= or "
            "scale_grad_by_freq=."
        )
    entries = weight[input]
    counted = jnp.ones_like(input, bool)
    if padding_idx is not None:
        counted = input != padding_idx % len(weight)
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


def _ctc_loss(
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


def _multilabel_margin_loss(x: Any, y: Any, reduction: int) -> tuple[Any, Any]:
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


def _gaussian_nll_loss(
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
