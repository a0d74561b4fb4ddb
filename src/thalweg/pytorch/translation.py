"""Functions of tensors as functions of arrays: torchax runs each of PyTorch's operations in JAX.

Code that has no translation raises a one-line error that names the operation and the submodule.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError, first_line, optional
from thalweg.pytorch import kinks, reruns, substitutes, transforms

# Held while a module's code runs: the replacements below are process-wide, and a module has one copy.
ONE_AT_A_TIME = threading.RLock()
# JAX's errors where traced code needs a concrete value, or a shape that depends on values (x[mask])
_DECIDING = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)
_UNNAMED = "privateuseone"  # PyTorch's name for a third-party device that was given none


def translated(
    function: Callable[..., Any],
    where: Callable[[], str],
    free: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """A function of tensors as one of arrays.

    Args:
        where: the place in the user's code, in words, for error messages.
        free: takes the function's arguments and returns the tensors that require a gradient; by default
            all do.
    """
    torchax = _torchax()

    def of_arrays(*arguments: Any) -> Any:
        with ONE_AT_A_TIME:
            return translate(arguments)

    def translate(arguments: Any) -> Any:
        try:
            out = output(reruns.Code(_environment(), function, arguments, free, _as_arrays)())
            if not jax.tree_util.tree_leaves(out):
                raise InputError(
                    f"the code{where()} returns {getattr(out, 'kind', type(out).__name__)}; tensors were "
                    "expected, or tuples, lists or dictionaries of them."
                )
            return out
        except torchax.tensor.OperatorNotFound as error:
            raise InputError(
                f"the operation {_operation(error)}{where()} has no translation to JAX; write it with "
                f"other operations, or record a training loop in PyTorch (thalweg.record)."
            ) from error
        except _DrawnError as error:
            raise InputError(
                f"the code{where()} draws random numbers (dropout by torch.nn.functional, torch.randn), "
                f"which makes the risk random; leave that out."
            ) from error
        except jax.errors.UnexpectedTracerError as error:
            raise InputError(
                f"the code{where()} uses a tensor that another call has left behind; make it anew in each."
            ) from error
        except _DECIDING as error:
            raise InputError(
                f"the code{where()} branches on the values of its tensors (if, .item(), int(tensor)), "
                f"which a compiled program cannot; write it with torch.where."
            ) from error
        except AssertionError as error:
            if "mixed math" not in str(error):
                raise failed(error, arguments) from error
            raise InputError(
                f"the code{where()} uses a tensor that is neither a parameter nor a buffer; make it one "
                f"with self.register_buffer(name, tensor) (in a torch.autograd.Function: an argument)."
            ) from error
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise failed(error, arguments) from error

    def failed(error: Exception, arguments: Any) -> InputError:
        error = _pytorchs_error(function, arguments) or error
        return InputError(f"the code{where()} failed: {first_line(error)}.")

    return of_arrays


def output(tree: Any) -> Any:
    """The output of PyTorch code as a pytree for both JAX and PyTorch; leaves that hold no numbers become
    `_LeftOut`."""
    import torch

    _make_known(tree)

    def known(path: Any, leaf: Any) -> Any:
        is_number = isinstance(leaf, (jax.Array, torch.Tensor, int, float, complex))
        return leaf if is_number else _LeftOut(type(leaf).__name__, jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(known, tree)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _LeftOut:
    """Stands for a part of an output that is no tensor (a language model's cache); its use is an error."""

    kind: str
    place: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        raise InputError(
            f"the loss takes the output {self.place}, which is {self.kind}, and not made of tensors."
        )


def _make_known(tree: Any) -> None:
    """Register with JAX the pytree classes of PyTorch's in `tree`, such as Hugging Face's `ModelOutput`."""
    from torch.utils import _pytree

    node_kinds = _pytree.SUPPORTED_NODES
    while kinds := {type(leaf) for leaf in jax.tree_util.tree_leaves(tree)} & node_kinds.keys():
        for kind in kinds:
            _make_kind_known(kind, node_kinds[kind])


def _make_kind_known(kind: type, node: Any) -> None:
    def parts(value: Any) -> tuple[Any, _Context]:
        values, context = node.flatten_fn(value)
        return values, _Context(context)

    def named_parts(value: Any) -> tuple[Any, _Context]:
        values, context = parts(value)
        if node.flatten_with_keys_fn is None:
            return list(map(_at, range(len(values)), values)), context
        return [(_name(key), v) for key, v in node.flatten_with_keys_fn(value)[0]], context

    def whole(context: _Context, values: Any) -> Any:
        return node.unflatten_fn(list(values), context.context)

    jax.tree_util.register_pytree_with_keys(kind, named_parts, whole, parts)


@dataclass(frozen=True)
class _Context:
    """PyTorch's context of a pytree node, made hashable (its contexts need not be), as JAX requires."""

    context: Any = field(hash=False)


def _at(place: int, value: Any) -> tuple[Any, Any]:
    return jax.tree_util.SequenceKey(place), value


def _name(key: Any) -> Any:
    return jax.tree_util.DictKey(getattr(key, "key", str(key)))


@contextmanager
def _as_arrays() -> Iterator[None]:
    """A context in which torchax tensors, which wrap JAX arrays, run PyTorch's code."""
    import torch

    env, torchax = _environment(), _torchax()
    tensor, view = torchax.tensor.Tensor, torchax.view.View
    still = property(lambda x: x.detach(), tensor.data.fset)
    with ExitStack() as stack:
        stack.enter_context(_undecided())
        for where, name, instead in (
            # torchax's versions change the tensor in place, or keep the derivative
            (tensor, "type_as", lambda x, other: x.to(other.dtype)),
            (tensor, "data", still),
            (view, "data", still),
            # torchax defines these on its classes, so they would bypass __torch_function__
            (tensor, "detach", torch.Tensor.detach),
            (tensor, "flatten", torch.Tensor.flatten),
            (tensor, "__setitem__", torch.Tensor.__setitem__),
            (view, "__setitem__", torch.Tensor.__setitem__),
            (torch.autocast, "__enter__", _unless_rounding(torch.autocast.__enter__)),
            *transforms.replacements(env, translated),
        ):
            stack.enter_context(_replaced(where, name, instead))
        # torchax cannot make its tensors in inference mode
        for context in (
            torch.inference_mode(False),
            torch.enable_grad(),
            env,
            torch.device(_UNNAMED),
        ):
            stack.enter_context(context)
        yield


@contextmanager
def _undecided() -> Iterator[None]:
    """Turn off PyTorch's own branches on values, which serve only speed and error messages."""
    import torch
    from torch.nn.modules import transformer

    distribution = torch.distributions.Distribution
    fast, checks = torch.backends.mha.get_fastpath_enabled(), distribution._validate_args
    with _replaced(
        transformer, "_detect_is_causal_mask", lambda mask, given=None, size=None: given is True
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            distribution.set_default_validate_args(checks)


def _pytorchs_error(function: Callable[..., Any], arguments: Any) -> Exception | None:
    """PyTorch's error for arguments of these shapes, which users know better than JAX's; None if none."""
    import torch

    if reruns.at_work() is not None:  # within other translated code, under torchax's modes
        return None

    def like(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=getattr(torch, str(leaf.dtype)), device="meta")

    try:
        with _undecided(), torch.enable_grad(), torch.device("meta"):
            function(*jax.tree_util.tree_map(like, arguments))
    except Exception as error:  # whatever the user's code raises
        unlike = ("meta", "does not require grad")  # errors of this dry run, not of the user's code
        return None if any(words in str(error) for words in unlike) else error
    return None


def _operation(error: Exception) -> str:
    words = str(error).split()
    return words[words.index("name") + 1] if "name" in words[:-1] else str(error)


@functools.cache
def _torchax() -> Any:
    """torchax, imported without side effects on the rest of the program's PyTorch.

    Its import turns off PyTorch's fast path for attention and registers an accelerator named "jax", which
    PyTorch then takes for the current one: training on a GPU fails, and so does torch.compile
    (pytorch/xla #9730). Here the device keeps PyTorch's name for unnamed ones. A torchax that the user has
    already imported stays as it is.
    """
    import torch

    with ONE_AT_A_TIME, ExitStack() as meanwhile:
        already_loaded = "torchax" in sys.modules
        fast = torch.backends.mha.get_fastpath_enabled()
        meanwhile.callback(torch.backends.mha.set_fastpath_enabled, fast)
        if not already_loaded:
            as_unnamed = functools.partial(torch._register_device_module, _UNNAMED)
            for where, name, instead in (
                (torch.utils, "rename_privateuse1_backend", lambda name: None),
                (torch, "_register_device_module", lambda name, module: as_unnamed(module)),
            ):
                meanwhile.enter_context(_replaced(where, name, instead))
        torchax = optional("torchax", "PyTorch models need", "torch")
        if not already_loaded:
            _unname_device(torchax)
    return torchax


@functools.cache
def _environment() -> Any:
    """A torchax environment of our own: the user's program may have its own."""
    import torch

    tensor = _torchax().tensor
    # It makes a random key when constructed, and one per thread; eagerly here, or the key would be a tracer
    # of the current trace. Random numbers are refused, so the property needs none.
    with jax.ensure_compile_time_eval():
        environment = tensor.Environment()
    nothing = tensor.RuntimeProperty(mesh=None, prng=None, autocast_dtype=None)
    environment._property = SimpleNamespace(content=nothing)

    def of_tensors(operation: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = environment.t2j_iso((args, kwargs))
            return environment.j2t_iso(operation(*args, **kwargs))

        return called

    environment.get_and_rotate_prng_key = _refuse_to_draw
    _follow(environment)
    for function in substitutes.compositions():
        environment._ops.pop(function, None)
    aten = torch.ops.aten
    # torchax samples these with a fixed key or on a copy, without asking the environment for a key
    for drawing in (aten.exponential_, aten.cauchy_, aten.random_):
        for overload in drawing.overloads():
            environment.override_op_definition(getattr(drawing, overload), _refuse_to_draw)
    for operation, ours in {**kinks.operations(), **substitutes.operations()}.items():
        environment.override_op_definition(operation, of_tensors(ours))
    return environment


def _follow(environment: Any) -> None:
    """Report every call of a PyTorch function to the current run, and stop gradients through what is
    computed with autograd off (`torch.no_grad()`)."""
    import torch
    from torch.utils import _pytree

    torchax = _torchax()
    kinds = (torchax.tensor.Tensor, torchax.view.View)
    setitems = {kind: kind.__setitem__ for kind in kinds}

    def still(tensor: Any) -> Any:
        return environment.j2t_iso(jax.lax.stop_gradient(environment.t2j_iso(tensor)))

    class Mode(torchax.tensor.XLAFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            def called(*args: Any, **kwargs: Any) -> Any:
                if func is torch.Tensor.__setitem__:
                    setitems[type(args[0])](*args)
                    return args[0]
                call = super(Mode, self).__torch_function__
                if not (_writes(func) and args and reruns.is_tensor(args[0])):
                    return call(func, types, args, kwargs)
                call = functools.partial(call, _that_returns(func), types)
                return _written_into(environment, call, args, kwargs)

            def theirs(*args: Any, **kwargs: Any) -> Any:
                if torch.is_grad_enabled():
                    return called(*args, **kwargs)
                into: Any = reruns.source(args[0]) if args and reruns.is_tensor(args[0]) else None
                before = getattr(into, "_elem", None)
                result = called(*args, **kwargs)
                if into is None or result is not args[0]:
                    return _pytree.tree_map_only(kinds, still, result)
                into._elem = _with_derivative_of(before, into._elem)  # written in place
                return result

            run: Any = reruns.at_work()
            return run.call(func, args, kwargs or {}, theirs)

    environment._function_mode = Mode(environment)


def _written_into(environment: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The first argument after an in-place call. It is written here, since torchax writes into a copy of a
    view, and for some functions only returns the result."""
    target, rest = args[0], environment.v2t_iso((args[1:], kwargs))
    values = environment.v2t_iso(target)
    array = call((values, *rest[0]), rest[1]).jax().astype(values.jax().dtype)
    if values is target:
        target._elem = array
    else:
        target.update(array)
    return target


def _writes(func: Any) -> bool:
    """Whether a PyTorch function writes its first argument in place and keeps its shape."""
    name = getattr(func, "__name__", "")
    if name.startswith("__i"):
        return name in {
            f"__i{of}__" for of in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
        }
    others = {
        "squeeze_",
        "unsqueeze_",
        "transpose_",
        "t_",
        "swapaxes_",
        "swapdims_",
        "resize_",
        "set_",
    }
    return name.endswith("_") and not name.endswith("__") and name not in others


def _that_returns(func: Any) -> Any:
    """The out-of-place version of an in-place function: torchax has few of the latter."""
    import torch

    name = func.__name__.removesuffix("_")
    instead = getattr(torch.Tensor, name, None)
    return instead if callable(instead) and not name.endswith("_") else func


def _with_derivative_of(before: Any, after: Any) -> Any:
    """The new value of an array written with autograd off, with the derivative of the old one."""
    still = jax.lax.stop_gradient
    if before.shape != after.shape or not jnp.issubdtype(before.dtype, jnp.inexact):
        return still(after)
    return still(after).astype(before.dtype) + jnp.where(
        jnp.isfinite(before), before - still(before), 0
    )


class _DrawnError(Exception):
    """A random number was asked for."""


def _refuse_to_draw(*args: Any, **kwargs: Any) -> Any:
    raise _DrawnError


def _unless_rounding(enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def entered(autocast: Any) -> Any:
        if autocast._enabled:
            raise InputError(
                "the code computes a part in half precision (torch.autocast); a risk is computed in that of "
                "its parameters: leave it out."
            )
        return enter(autocast)

    return entered


@contextmanager
def _replaced(where: Any, name: str, instead: Any) -> Iterator[None]:
    """Temporarily replace an attribute."""
    original = vars(where).get(name, _INHERITED)
    setattr(where, name, instead)
    try:
        yield
    finally:
        if original is _INHERITED:
            delattr(where, name)
        else:
            setattr(where, name, original)


_INHERITED = object()


def _unname_device(torchax: Any) -> None:
    """Let torchax's tensors report the device `_UNNAMED` instead of "jax", and report it as unavailable."""
    import torch

    torchax.device_module.is_available = lambda: False
    tensors = (torchax.tensor.Tensor, torchax.view.View)
    for kind in tensors:
        kind.device = property(lambda tensor: torch.device(_UNNAMED, 0))
    environment = torchax.tensor.Environment
    same = environment._is_same_device

    def is_same_device(env: Any, tensor: Any, new: Any) -> bool:
        # PyTorch's C++ code sees these tensors on the device "meta"
        return (new == "meta" and isinstance(tensor, tensors)) or same(env, tensor, new)

    environment._is_same_device = is_same_device
