"""A PyTorch module as a pure function of arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import inputs
from thalweg.errors import InputError, first_line
from thalweg.inputs import of_tensor
from thalweg.pytorch.environment import ONE_AT_A_TIME
from thalweg.pytorch.outputs import output
from thalweg.pytorch.reruns import Reached
from thalweg.pytorch.translation import translated
from thalweg.stateful import StatefulModel


class Model(StatefulModel):
    """A module as a pure function of arrays: its fixed tensors (`held`), its parameters, and inputs."""

    def __init__(self, module: Any, batch_norm: str, entries: Mapping[str, Any], x: Any) -> None:
        """Args: the unwrapped module, the `state_dict` of the module as given, and inputs as an example."""
        import torch

        _check(module)
        every = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.order = _order(x)
        self.free = {n for n, p in module.named_parameters() if p.requires_grad}
        self.module = _without_numbers(module)
        self.batch_norm: str | None = None  # the policy, where the module has such layers
        for layer in self.module.modules():
            # the user's hooks are for the user's module, not for this copy
            for hooks in (layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks):
                hooks.clear()
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                _set_policy(layer, batch_norm)
                self.batch_norm = batch_norm
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

    def described(self) -> dict[str, Any]:
        return {} if self.batch_norm is None else {"batch_norm": self.batch_norm}

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
        every = {f"module.{name}": tensor for name, tensor in state.items()}
        with ONE_AT_A_TIME:  # the module is traced already where another thread has one of its kind
            try:
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


def _check(module: Any) -> None:
    """An InputError for a module that is no function of arrays."""
    import torch

    if any(map(torch.nn.parameter.is_lazy, module.parameters())):
        raise InputError(
            "the module has lazy parameters without a shape; call it once on a batch first."
        )
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise InputError(
            "a module of torch.jit is compiled, and its code cannot run on arrays; give the module that "
            "it was made of."
        )
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise InputError(
            "the module is on the device 'meta', where it has no numbers; load its weights first."
        )
    if any(getattr(layer, "scale_grad_by_freq", False) for layer in module.modules()):
        raise InputError(
            "the gradients of an Embedding with scale_grad_by_freq=True are not those of any risk; "
            "make it one without."
        )
    embeddings = [layer for layer in module.modules() if isinstance(layer, torch.nn.Embedding)]
    if any(layer.max_norm is not None for layer in embeddings):
        raise InputError(
            "an Embedding with max_norm= changes its weights whenever it is called, which a function of the "
            "parameters cannot; make it one without."
        )


def _without_numbers(module: Any) -> Any:
    """A copy of a module in `eval()` mode that shares nothing with it and whose tensors hold no numbers."""
    import torch

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
        return copy.deepcopy(module, memo).eval()
    except Exception as error:  # a module's own __deepcopy__ may fail in any way
        raise InputError(
            f"the module cannot be copied ({first_line(error)}); for weight or spectral norm use "
            f"torch.nn.utils.parametrizations."
        ) from error


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
