"""The PyTorch door: an `nn.Module` becomes a problem, and parameters become a `state_dict` again.

The module's own Python code runs, once for each program that is compiled, on tensors that stand for JAX
arrays (torchax). Nothing of the user's is touched: the code runs on a copy of the module without
weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from thalweg import identity, inputs
from thalweg.agreement import agreed
from thalweg.errors import InputError, first_line, optional, unknown
from thalweg.inputs import of_tensor
from thalweg.params import Params
from thalweg.problem import Problem, StatefulModel
from thalweg.reruns import Reached
from thalweg.translation import ONE_AT_A_TIME, output, translated

_BATCH_NORM = ("frozen", "recomputed")


def from_torch(
    module: Any,
    loss: Any,
    x: Any,
    y: Any = None,
    *,
    batch_norm: str = "frozen",
    reduction: str | None = None,
    dtype: Any = None,
    expected: Callable[[Params], Any] | None = None,
    penalty: Callable[[Params], Any] | None = None,
) -> Problem:
    """A PyTorch model as a problem, with its weights as the starting point.

    Parameters bear the names of the `state_dict`; those that do not require a gradient stay as they
    are, and so do buffers. The module, its mode and device, its gradients, and torch's random state are
    left as they were. A module's forward pre-hooks run (old weight norms need them); its forward and
    backward hooks do not.

    Args:
        module: an `nn.Module`. It is evaluated as in `eval()` mode, but for batch norm.
        loss: a name ("mse", "cross_entropy", …), a loss module of `torch.nn`, a function of
            `torch.nn.functional`, or any function of tensors (ŷ, y). One that returns a scalar must be the
            mean or the sum of what it gives for the samples one by one, and is checked for that.
        x, y: tensors or arrays with the samples along the first axis. A tuple x is `module(*x)`, a
            dictionary `module(**x)`. Or x is a `DataLoader` whose items are pairs (x, y): its data set
            is read once, in its own order.
        batch_norm: "frozen" keeps the running statistics of the module, whatever the parameters are;
            "recomputed" takes those of all the samples given (in a descent: of the batch) at each point.
        reduction: "mean" or "sum" over the samples; without it, that of the loss.
        dtype, expected, penalty: as for `Problem`.

    Raises:
        InputError: dropout in training mode, an operation that has no translation, data that do not fit.
        MissingExtra: torchax is not installed.
    """
    torch = optional("torch", "PyTorch models need", "torch")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"an nn.Module was expected, {type(module).__name__} given.")
    if batch_norm not in _BATCH_NORM:
        raise unknown("batch_norm policy", batch_norm, _BATCH_NORM)
    _refuse_dropout(module)
    with _random_state_kept(torch), torch.inference_mode(False):
        if isinstance(x, torch.utils.data.DataLoader):
            if y is not None:
                raise InputError("a DataLoader brings its own y; leave y= out.")
            x, y = _read(x)
        x, y = map(_plain, (x, y))
        entries, module = module.state_dict(keep_vars=True), inputs.unwrapped(module)
        forward = _Forward(module, batch_norm, entries, x)
        free, held = forward.split(module)
        named, function, own_reduction = _loss(loss, y)
        problem = Problem(
            Partial(forward, held),
            named or _PerSample(function),
            x,
            y,
            params=free,
            reduction=reduction or own_reduction,
            dtype=dtype,
            expected=expected,
            penalty=penalty,
        )
        # the comparison runs on the CPU, whatever the default device and the module's
        with torch.device("cpu"):
            return agreed(problem, forward, module, loss, reduction)


def to_torch(problem: Problem, params: Params = None) -> dict[str, Any]:
    """A `state_dict` for the module that `from_torch` was given: `module.load_state_dict(...)` takes it.

    Args:
        params: a point, as `Problem.at` takes it; without it the problem's starting point.

    Returns:
        Tensors of the module's own dtypes, on the CPU. Parameters that were held fixed, and buffers,
        are those that the module had.

    Raises:
        InputError: a problem that did not come from PyTorch.
    """
    forward = _forward_of(problem)
    params = (problem if params is None else problem.at(params)).params
    values = {**forward.left_out, **problem.predict.args[0], **params}
    return {name: inputs.to_tensor(values[own]).to(dtype) for name, own, dtype in forward.state}


def _forward_of(problem: Any) -> _Forward:
    forward = identity.written(getattr(problem, "predict", None))
    if not isinstance(forward, _Forward):
        raise InputError("this problem did not come from PyTorch (thalweg.from_torch).")
    return forward


class _Forward(StatefulModel):
    """A module as a pure function of arrays: its fixed tensors (`held`), its parameters, and inputs."""

    def __init__(self, module: Any, batch_norm: str, entries: Mapping[str, Any], x: Any) -> None:
        """Args: the unwrapped module, the `state_dict` of the module as given, and inputs as an example."""
        import torch

        self.order = _order(x)
        if any(map(torch.nn.parameter.is_lazy, module.parameters())):
            raise InputError(
                "the module has lazy parameters without a shape; call it once on a batch first."
            )
        every = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.free = {n for n, p in module.named_parameters() if p.requires_grad}
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
            raise InputError(
                "a module of torch.jit is compiled, and its code cannot run on arrays; give the module that "
                "it was made of."
            )
        if any(tensor.is_meta for tensor in every.values()):
            raise InputError(
                "the module is on the device 'meta', where it has no numbers; load its weights first."
            )
        # the copy shares nothing with the module and holds no numbers
        memo = {
            id(p): torch.nn.Parameter(p.detach().to("meta"), requires_grad=False)
            for p in module.parameters()
        }
        memo |= {id(b): b.detach().to("meta") for b in module.buffers()}
        # deepcopy refuses tensors with a graph, which a forward pass may have left in an attribute
        memo |= {
            id(left): left.detach()
            for layer in module.modules()
            for left in vars(layer).values()
            if isinstance(left, torch.Tensor) and left.grad_fn is not None
        }
        try:
            self.module = copy.deepcopy(module, memo).eval()
        except Exception as error:  # a module's own __deepcopy__ may fail in any way
            raise InputError(
                f"the module cannot be copied ({first_line(error)}); for weight or spectral norm use "
                f"torch.nn.utils.parametrizations."
            ) from error
        for layer in self.module.modules():
            if getattr(layer, "scale_grad_by_freq", False):
                raise InputError(
                    "the gradients of an Embedding with scale_grad_by_freq=True are not those of any risk; "
                    "make it one without."
                )
            # the user's hooks are for the user's module, not for this copy
            for hooks in (layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks):
                hooks.clear()
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                _set_policy(layer, batch_norm)
        copied = (*self.module.named_parameters(), *self.module.named_buffers())
        self.known = {name for name, _ in copied}
        # buffers that recomputed batch norm drops; `to_torch` returns them unchanged
        self.left_out = {n: of_tensor(b) for n, b in module.named_buffers() if n not in self.known}
        first = {id(tensor): name for name, tensor in reversed(every.items())}
        # per entry of the state_dict: its name, the first name of the same (tied) tensor, its dtype
        self.state = [
            (name, first.get(id(tensor), name), tensor.dtype)
            for name, tensor in entries.items()
            if isinstance(tensor, torch.Tensor)
        ]
        self.names = {inputs.bare_name(name): own for name, own, _ in self.state}
        self.names |= {name: own for name, own, _ in self.state}
        self._inside: list[str] = []
        self._watch()
        # tracing PyTorch's code is slow; jit traces it once per set of argument shapes
        self._on_arrays = jax.jit(self._follow, inline=True)

    def split(self, module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters that require a gradient, and all other tensors of the module, as arrays by name."""
        every = dict(module.named_parameters())
        free = {n: of_tensor(p) for n, p in every.items() if p.requires_grad}
        held = {n: of_tensor(p) for n, p in every.items() if not p.requires_grad}
        held |= {n: of_tensor(b) for n, b in module.named_buffers() if n in self.known}
        if not free:
            raise InputError("the module has no parameters that require a gradient.")
        return free, {name: jnp.array(array) for name, array in held.items()}

    def parameters_of(self, held: dict[str, Any], entries: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters among a `state_dict`'s entries; the entries unchanged if it is another module's.

        Raises:
            InputError: the other entries differ from what the problem holds, as after further training.
        """
        if entries.keys() == self.free:
            return entries
        own_entries = self._own(entries)
        if not all(map(self._own_name, entries)) or not self.free <= own_entries.keys():
            return entries  # the caller reports the names that do not fit
        for name in held.keys() & own_entries.keys():
            # predictions do not depend on the number of batches
            if not name.endswith("num_batches_tracked") and not np.array_equal(
                _array(own_entries[name], held[name].dtype), held[name], equal_nan=True
            ):
                raise InputError(
                    f"{name!r} is another than the module had when the problem was made of it: make it anew "
                    f"with from_torch (for batch norm batch_norm='recomputed' helps, too)."
                )
        return {name: own_entries[name] for name in self.free}

    def held_of(self, held: dict[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """`held` with the values that a `state_dict` has for it; entries it lacks stay as they are."""
        own_entries = self._own(entries)
        return {
            name: jnp.asarray(_array(own_entries[name], array.dtype))
            if name in own_entries
            else array
            for name, array in held.items()
        }

    def _own(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a `state_dict` that this module knows, under the module's own names."""
        return {own: value for name, value in entries.items() if (own := self._own_name(name))}

    def _own_name(self, name: str) -> str | None:
        """The name used here for a `state_dict`'s entry, None if unknown; tied tensors share one name."""
        return self.names.get(name) or self.names.get(inputs.bare_name(name))

    def __call__(self, held: dict[str, Any], params: dict[str, Any], x: Any) -> Any:
        return self._on_arrays(held, params, x)

    def _follow(self, held: dict[str, Any], params: dict[str, Any], x: Any) -> Any:
        import torch

        args, kwargs = _arguments(_ordered(x, self.order))

        def run(state: Any, args: Any, kwargs: Any) -> Any:
            depth = len(self._inside)
            try:
                return torch.func.functional_call(self.module, state, args, kwargs)
            except Reached:
                del self._inside[depth:]
                raise

        def free(state: Any, *inputs: Any) -> list[Any]:
            return [state[name] for name in params]

        with ONE_AT_A_TIME:
            self.leave()
            return translated(run, self.where, free)({**held, **params}, args, kwargs)

    def in_torch(self, state: dict[str, Any], x: Any, then: Callable[[Any], Any]) -> Any:
        """PyTorch's own predictions on the CPU, and `then(predictions)`.

        `then` is called while `state` is swapped into the module: a custom backward may read it there.
        """
        import torch

        args, kwargs = _arguments(_ordered(x, self.order))

        class Both(torch.nn.Module):
            def __init__(self, module: Any) -> None:
                super().__init__()
                self.module = module

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    yhat = output(self.module(*args, **kwargs))
                except Exception as error:  # a module's own code may fail in any way
                    raise InputError(
                        f"the code{where()} failed in PyTorch: {first_line(error)}."
                    ) from error
                return yhat, then(yhat)

        where = self.where
        try:
            every = {f"module.{name}": tensor for name, tensor in state.items()}
            return torch.func.functional_call(Both(self.module), every, args, kwargs)
        finally:
            self.leave()

    def leave(self) -> None:
        """Forget which submodule was running."""
        self._inside.clear()

    def where(self) -> str:
        """The submodule that is running, as words for an error message."""
        return f" in the module {self._inside[-1]!r}" if self._inside else " of the module"

    def _watch(self) -> None:
        """Keep track of the submodule that is running, for error messages."""
        for name, layer in self.module.named_modules():
            if name:
                layer.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
                layer.register_forward_hook(lambda *_: self._inside.pop() and None)


def _array(value: Any, dtype: Any) -> np.ndarray:
    return np.asarray(of_tensor(value) if inputs.is_tensor(value) else value).astype(dtype)


def _plain(data: Any) -> Any:
    """Mappings that are no pytrees to JAX (a tokenizer's output) as plain dictionaries."""
    return jax.tree_util.tree_map(
        lambda leaf: dict(leaf) if isinstance(leaf, Mapping) else leaf, data
    )


def _order(x: Any) -> Any:
    """The key order of the dictionaries in the inputs, which JAX would sort."""
    if isinstance(x, Mapping):
        return {key: _order(value) for key, value in x.items()}
    return [_order(value) for value in x] if isinstance(x, (tuple, list)) else None


def _ordered(x: Any, order: Any) -> Any:
    if isinstance(x, dict):
        return {key: _ordered(x[key], each) for key, each in order.items()}
    if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
        return type(x)(_ordered(*pair) for pair in zip(x, order, strict=True))
    return x


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The module's positional and keyword arguments: a tuple is *args, a mapping **kwargs."""
    if isinstance(x, tuple):
        return x, {}
    return ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})


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


@contextmanager
def _random_state_kept(torch: Any) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        yield


# What the user gives -------------------------------------------------------------------------


def _refuse_dropout(module: Any) -> None:
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


def _set_policy(layer: Any, batch_norm: str) -> None:
    if batch_norm == "recomputed":
        # without running statistics a layer uses its inputs' own, and updates nothing
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.track_running_stats = False
    elif layer.running_mean is None:
        raise InputError(
            "a batch norm layer without running statistics cannot be frozen; use "
            "batch_norm='recomputed'."
        )


def _read(loader: Any) -> tuple[Any, Any]:
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


def _loss(loss: Any, y: Any) -> tuple[str | None, Any, str]:
    """(name, function of tensors, reduction); the name is None for a loss that Thalweg does not have."""
    import torch

    if isinstance(loss, str):
        return loss, None, "mean"
    if isinstance(loss, torch.nn.Module):
        reduction = "sum" if getattr(loss, "reduction", "mean") == "sum" else "mean"
        padded = _holds(y, getattr(loss, "ignore_index", None))
        return None if padded else _named(loss), loss, reduction
    if isinstance(loss, type):
        raise InputError(f"the loss is a class; give an instance of it: {loss.__name__}().")
    if not callable(loss):
        raise InputError(
            f"a loss module, a function or a name was expected, {type(loss).__name__} given."
        )
    functions = {
        "mse": torch.nn.functional.mse_loss,
        "l1": torch.nn.functional.l1_loss,
        "smooth_l1": torch.nn.functional.smooth_l1_loss,
        "huber": torch.nn.functional.huber_loss,
        "cross_entropy": torch.nn.functional.cross_entropy,
        "bce_with_logits": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    # no dictionary lookup: a user's loss need not be hashable
    name = next((name for name, function in functions.items() if function is loss), None)
    padded = name == "cross_entropy" and _holds(y, -100)
    return None if padded else name, loss, "mean"


def _holds(y: Any, ignored: int | None) -> bool:
    """Whether some targets are the class that the loss ignores."""
    return ignored is not None and hasattr(y, "dtype") and bool((y == ignored).any())


def _named(loss: Any) -> str | None:
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
