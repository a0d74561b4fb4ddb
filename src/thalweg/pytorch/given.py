"""What a user gives beside a module: loaders and losses; and what of a module is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import inputs
from thalweg.errors import InputError
from thalweg.inputs import of_tensor
from thalweg.pytorch.translation import translated


def refuse_dropout(module: Any) -> None:
    """An InputError if a layer in training mode applies dropout, which would make the risk random."""
    import torch

    for name, layer in module.named_modules():
        if not layer.training:
            continue
        rate: Any = 0
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            rate = layer.p
        elif isinstance(layer, (torch.nn.RNNBase, torch.nn.MultiheadAttention)):
            rate = layer.dropout
        if rate:
            raise InputError(
                f"the module {name or type(layer).__name__!r} applies dropout in training mode, which makes "
                f"the risk random: call module.eval() first, or set its rate to 0."
            )


def plain(data: Any) -> Any:
    """Mappings that are no pytrees to JAX (a tokenizer's output) as plain dictionaries."""
    return jax.tree_util.tree_map(
        lambda leaf: dict(leaf) if isinstance(leaf, Mapping) else leaf, data
    )


def read(loader: Any) -> tuple[Any, Any]:
    """A loader's whole data set, in its own order, as one batch."""
    import torch

    kinds, data = torch.utils.data, loader.dataset
    if isinstance(data, kinds.IterableDataset):
        items = list(data)
    else:
        whole_samplers = (
            kinds.SequentialSampler,
            kinds.RandomSampler,
            kinds.BatchSampler,
            type(None),
        )
        batches = loader.batch_sampler
        for chooser in (loader.sampler, batches, getattr(batches, "sampler", None)):
            if type(chooser) not in whole_samplers:
                raise InputError(
                    f"the DataLoader's {type(chooser).__name__} chooses among its samples, and all of them "
                    f"would be used; give a loader of torch.utils.data.Subset(...), or x= and y=."
                )
        items = [data[i] for i in range(len(data))]
    if not items:
        raise InputError("the DataLoader's data set holds no samples.")
    if loader.batch_size is None and loader.batch_sampler is None and _are_batches(items):
        batch = [torch.cat(parts) for parts in zip(*items, strict=True)]
    else:
        whole = loader.batch_size is None
        batch = (kinds.default_collate if whole else loader.collate_fn)(items)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(
            "a DataLoader of pairs (x, y) was expected; give x= and y= themselves instead."
        )
    return batch[0], batch[1]


def _are_batches(items: list[Any]) -> bool:
    """Whether every item is a batch of its own: a pair of tensors with equally many samples."""
    return all(
        isinstance(item, (tuple, list))
        and len(item) == 2
        and all(hasattr(part, "detach") and part.ndim for part in item)
        and len(item[0]) == len(item[1])
        for item in items
    )


def loss_and_reduction(loss: Any, y: Any) -> tuple[Any, str]:
    """A loss as `Problem` takes it: its name where Thalweg has it, or a function of arrays; its reduction."""
    import torch

    if isinstance(loss, str):
        return loss, "mean"
    if isinstance(loss, type):
        raise InputError(f"the loss is a class; give an instance of it: {loss.__name__}().")
    if not callable(loss):
        raise InputError(
            f"a loss module, a function or a name was expected, {type(loss).__name__} given."
        )
    is_module = isinstance(loss, torch.nn.Module)
    name = _name_of_module(loss) if is_module else _name_of_function(loss)
    ignored = getattr(loss, "ignore_index", None) if is_module else -100
    if name == "cross_entropy" and _holds(y, ignored):
        name = None  # ours ignores no class
    reduction = "sum" if is_module and getattr(loss, "reduction", "mean") == "sum" else "mean"
    return name or _PerSample(loss), reduction


class _PerSample:
    """A loss of tensors as a function (ŷ, y) -> (n,) of arrays: the loss of each sample on its own."""

    def __init__(self, loss: Callable[[Any, Any], Any]) -> None:
        import torch

        state = {}
        if isinstance(loss, torch.nn.Module):
            state = {name: jnp.array(of_tensor(tensor)) for name, tensor in inputs.constants(loss)}

        def call(state: Any, yhat: Any, y: Any) -> Any:
            if isinstance(loss, torch.nn.Module):
                return torch.func.functional_call(loss, state, (yhat, y))
            return loss(yhat, y)

        self.loss = functools.partial(translated(call, lambda: " in the loss"), state)

    def __call__(self, yhat: Any, y: Any) -> Any:
        def one(yhat: Any, y: Any) -> Any:
            yhat, y = jax.tree_util.tree_map(lambda leaf: leaf[None], (yhat, y))
            return jnp.mean(self.loss(yhat, y))

        return jax.vmap(one)(yhat, y)


def _holds(y: Any, ignored: int | None) -> bool:
    """Whether some targets are the class that the loss ignores."""
    return ignored is not None and hasattr(y, "dtype") and bool((y == ignored).any())


def _name_of_module(loss: Any) -> str | None:
    import torch

    kind = type(loss)
    if kind in (torch.nn.MSELoss, torch.nn.L1Loss):
        return "mse" if kind is torch.nn.MSELoss else "l1"
    if kind is torch.nn.SmoothL1Loss:
        return f"smooth_l1:{loss.beta}"
    if kind is torch.nn.HuberLoss:
        return f"huber:{loss.delta}"
    if kind is torch.nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing:
        return "cross_entropy"
    if kind is torch.nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None:
        return "bce_with_logits"
    return None


def _name_of_function(loss: Any) -> str | None:
    import torch

    functions = {
        "mse": torch.nn.functional.mse_loss,
        "l1": torch.nn.functional.l1_loss,
        "smooth_l1": torch.nn.functional.smooth_l1_loss,
        "huber": torch.nn.functional.huber_loss,
        "cross_entropy": torch.nn.functional.cross_entropy,
        "bce_with_logits": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    # no dictionary lookup: a user's loss need not be hashable
    return next((name for name, function in functions.items() if function is loss), None)
