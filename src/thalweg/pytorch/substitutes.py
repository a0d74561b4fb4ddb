"""Replacements for operations that torchax computes slowly, differently from PyTorch, or not at all.

Each has PyTorch's value and derivative; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.errors import InputError
from thalweg.pytorch import algebra, interpolation, losses, normalisation, pooling, recurrent
from thalweg.pytorch.kinks import clamped, first


def operations() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's operations, each with the function of arrays that replaces it."""
    import torch
    from torchax.ops.ops_registry import all_aten_ops, all_torch_functions

    aten, functional = torch.ops.aten, torch.nn.functional
    convolution, pad = aten.convolution.default, functional.pad
    norm = aten.native_batch_norm
    pool2d, pool3d = aten.max_pool2d_with_indices, aten.max_pool3d_with_indices
    return {
        convolution: partial(_convolution, all_aten_ops[aten.convolution].func),
        pad: partial(_pad, all_torch_functions[pad].func),
        norm.default: partial(normalisation.batch_norm, all_aten_ops[norm].func),
        torch.lstm: partial(recurrent.layers, recurrent.lstm),
        torch.gru: partial(recurrent.layers, recurrent.gru),
        torch.rnn_tanh: partial(recurrent.layers, partial(recurrent.rnn, jnp.tanh)),
        torch.rnn_relu: partial(recurrent.layers, partial(recurrent.rnn, jax.nn.relu)),
        torch.as_tensor: _as_tensor,
        torch.tensor: _tensor,
        torch.Tensor.new_tensor: _new_tensor,
        torch.full: _full,
        torch.detach: jax.lax.stop_gradient,
        torch.Tensor.detach: jax.lax.stop_gradient,
        aten.detach.default: jax.lax.stop_gradient,  # torchax's keeps the derivative
        torch.Tensor.type_as: lambda x, other: x.astype(other.dtype),
        functional.linear: _linear,
        functional.interpolate: interpolation.interpolate,
        functional.embedding_bag: _embedding_bag,
        functional.gaussian_nll_loss: losses.gaussian_nll_loss,
        functional.binary_cross_entropy: losses.binary_cross_entropy,
        functional.ctc_loss: losses.ctc_loss,
        aten._safe_softmax.default: _safe_softmax,
        aten.multilabel_margin_loss_forward.default: losses.multilabel_margin_loss,
        pool2d.default: partial(pooling.max_pool, all_aten_ops[pool2d].func),
        pool3d.default: partial(pooling.max_pool, all_aten_ops[pool3d].func),
        aten.max_unpool2d.default: partial(pooling.max_unpool, 2),
        aten.max_unpool3d.default: partial(pooling.max_unpool, 3),
        aten.adaptive_max_pool2d.default: partial(pooling.adaptive_max_pool, 2),
        aten.adaptive_max_pool3d.default: partial(pooling.adaptive_max_pool, 3),
        aten._grouped_mm.default: algebra.grouped_product,
        aten.cholesky.default: algebra.cholesky,
        aten.linalg_cholesky_ex.default: algebra.cholesky_and_no_error,
        aten.cholesky_solve.default: algebra.cholesky_solve,
        aten.cholesky_inverse.default: algebra.cholesky_inverse,
        aten._linalg_eigh.default: algebra.eigh,
        aten._linalg_det.default: algebra.determinant,
        aten._linalg_slogdet.default: algebra.log_determinant,
        aten._linalg_solve_ex.default: algebra.solve,
        aten.linalg_lstsq.default: algebra.least_squares,
        aten.linalg_householder_product.default: algebra.householder_product,
        aten.split.Tensor: _split,
        aten.split_with_sizes.default: _split_with_sizes,
        aten.unbind.int: _unbind,
        aten.mT.default: lambda x: jnp.swapaxes(x, -1, -2),
        aten.bucketize.Tensor: lambda x, edges, **how: _places(edges, x, **how),
        aten.searchsorted.Tensor: _places,
        torch.cov: algebra.covariance,
        torch.corrcoef: lambda input: jnp.corrcoef(input),
        torch.Tensor.cov: algebra.covariance,
        torch.Tensor.corrcoef: lambda input: jnp.corrcoef(input),
        torch.linalg.eigvals: lambda input: algebra.eig(input)[0],
        aten.linalg_eig.default: algebra.eig,
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

    typed = jax.Array, np.ndarray, np.generic
    if dtype is None and not any(isinstance(e, typed) for e in jax.tree_util.tree_leaves(data)):
        floats = np.issubdtype(np.asarray(data).dtype, np.floating)
        dtype = torch.get_default_dtype() if floats else None
    return jnp.asarray(data, dtype and mappings.t2j_dtype(dtype))


def _tensor(data: Any, dtype: Any = None, **_: Any) -> Any:
    """In NumPy arrays' own precision (torchax makes float32 of all), and a constant, as in PyTorch."""
    return jax.lax.stop_gradient(_as_tensor(data, dtype))


def _full(size: Sequence[int], fill_value: Any, dtype: Any = None, **_: Any) -> Any:
    return jnp.broadcast_to(_as_tensor(fill_value, dtype), tuple(size))


def _new_tensor(x: Any, data: Any, dtype: Any = None, **_: Any) -> Any:
    return _tensor(data, dtype) if dtype else jax.lax.stop_gradient(jnp.asarray(data, x.dtype))
