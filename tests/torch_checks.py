"""Functions of tensors and their translations, compared."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from thalweg.pytorch.translation import translated


def same_as_pytorch(function, *given, rounding=1e-12):
    """Values and derivatives are PyTorch's, at arrays; integers have none."""
    theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in given]
    value = function(*theirs)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    (value * weights).sum().backward()

    ours = translated(function, lambda: "")
    free = [i for i, tensor in enumerate(theirs) if tensor.requires_grad]

    @jax.jit  # operations one by one would be as many programs
    @partial(jax.value_and_grad, argnums=free, has_aux=True)
    def weighted(*arrays):
        value = ours(*arrays)
        return (value * weights.numpy()).sum(), value

    (_, found), slopes = weighted(*map(jnp.array, given))
    np.testing.assert_allclose(found, value.detach(), rtol=rounding, atol=rounding)
    for slope, i in zip(slopes, free, strict=True):
        grad = torch.zeros_like(theirs[i]) if theirs[i].grad is None else theirs[i].grad
        np.testing.assert_allclose(slope, grad, rtol=rounding, atol=rounding)
