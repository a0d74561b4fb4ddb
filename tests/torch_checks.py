"""Functions of tensors and their translations, compared."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from thalweg.translation import translated


def same_as_pytorch(function, *given, rounding=1e-12):
    """Values and derivatives are PyTorch's, at arrays; integers have none."""
    theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in given]
    value = function(*theirs)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    (value * weights).sum().backward()

    ours = translated(function, lambda: "")

    @jax.jit
    def weighted(*arrays):
        return (ours(*arrays) * weights.numpy()).sum()

    arrays = [jnp.array(a) for a in given]
    np.testing.assert_allclose(ours(*arrays), value.detach(), rtol=rounding, atol=rounding)
    free = [i for i, tensor in enumerate(theirs) if tensor.requires_grad]
    for found, i in zip(jax.grad(weighted, argnums=free)(*arrays), free, strict=True):
        grad = torch.zeros_like(theirs[i]) if theirs[i].grad is None else theirs[i].grad
        np.testing.assert_allclose(found, grad, rtol=rounding, atol=rounding)
