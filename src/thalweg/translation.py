"""Functions of tensors as functions of arrays, by torchax: PyTorch's operations one by one in JAX.

What a function asks for and has no translation is one clear line that names it and where it is.
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

from thalweg import kinks, reruns, substitutes, transforms
from thalweg.errors import InputError, first_line, optional

# A module's code runs on the one copy, into which the stand-ins are put: from one thread after another.
ONE_AT_A_TIME = threading.RLock()
# JAX's errors where code asks for a number, or for as many entries as a condition holds for
_DECIDING = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)
_UNNAMED = "privateuseone"  # what PyTorch calls a device of others' until they name it


def translated(
    function: Callable[..., Any],
    where: Callable[[], str],
    free: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """A function of tensors as one of arrays.

    Args:
        where: what was at work when it failed, in words.
        free: of the tensors that the function is called with, those that require a derivative; by default
            all.
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
    """What code returns, as JAX and PyTorch both look into it, with a word in the place of what is no
    number."""
    import torch

    _make_known(tree)

    def known(path: Any, leaf: Any) -> Any:
        is_number = isinstance(leaf, (jax.Array, torch.Tensor, int, float, complex))
        return leaf if is_number else _LeftOut(type(leaf).__name__, jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(known, tree)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _LeftOut:
    """What is no tensor in an output, as a language model's cache: a loss that takes it is told."""

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
    """Let JAX look into what PyTorch looks into, as the outputs of Hugging Face's models (`ModelOutput`)."""
    from torch.utils import _pytree

    known = _pytree.SUPPORTED_NODES
    while kinds := {type(leaf) for leaf in jax.tree_util.tree_leaves(tree)} & known.keys():
        for kind in kinds:
            _make_kind_known(kind, known[kind])


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
    """What PyTorch knows of a node beside its parts, which need not have a hash."""

    context: Any = field(hash=False)


def _at(place: int, value: Any) -> tuple[Any, Any]:
    return jax.tree_util.SequenceKey(place), value


def _name(key: Any) -> Any:
    return jax.tree_util.DictKey(getattr(key, "key", str(key)))


@contextmanager
def _as_arrays() -> Iterator[None]:
    """Where tensors stand for arrays."""
    import torch

    env, torchax = _environment(), _torchax()
    tensor, view = torchax.tensor.Tensor, torchax.view.View
    still = property(lambda x: x.detach(), tensor.data.fset)
    with ExitStack() as stack:
        stack.enter_context(_undecided())
        for where, name, instead in (
            # torchax's changes the tensor itself, and keeps its derivative
            (tensor, "type_as", lambda x, other: x.to(other.dtype)),
            (tensor, "data", still),
            (view, "data", still),
            # what does not come by as a call
            (tensor, "detach", torch.Tensor.detach),
            (tensor, "flatten", torch.Tensor.flatten),
            (tensor, "__setitem__", torch.Tensor.__setitem__),
            (view, "__setitem__", torch.Tensor.__setitem__),
            (torch.autocast, "__enter__", _unless_rounding(torch.autocast.__enter__)),
            *transforms.replacements(env, translated),
        ):
            stack.enter_context(_replaced(where, name, instead))
        # tensors of inference mode are none that torchax can stand for
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
    """Without PyTorch's own looks at values, which are for speed or for errors alone."""
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
    """What PyTorch says of arguments of these shapes: a user knows its words rather than JAX's."""
    import torch

    if reruns.at_work() is not None:  # inside of other code, tensors stand for arrays
        return None

    def like(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=getattr(torch, str(leaf.dtype)), device="meta")

    try:
        with _undecided(), torch.enable_grad(), torch.device("meta"):
            function(*jax.tree_util.tree_map(like, arguments))
    except Exception as error:  # whatever the user's code raises
        unlike = ("meta", "does not require grad")  # what has no numbers, or no derivative
        return None if any(words in str(error) for words in unlike) else error
    return None


def _operation(error: Exception) -> str:
    words = str(error).split()
    return words[words.index("name") + 1] if "name" in words[:-1] else str(error)


@functools.cache
def _torchax() -> Any:
    """torchax, without what importing it does to the rest of a program's PyTorch.

    Importing turns PyTorch's fast path for attention off, and names an accelerator "jax", which PyTorch from
    then on takes for the one that there is, and knows nothing of: training on a GPU fails, and so does
    torch.compile (pytorch/xla #9730). Here that device keeps the name which PyTorch has for one unnamed.
    A torchax that the user has loaded stays as it is.
    """
    import torch

    with ONE_AT_A_TIME, ExitStack() as meanwhile:
        theirs = "torchax" in sys.modules
        fast = torch.backends.mha.get_fastpath_enabled()
        meanwhile.callback(torch.backends.mha.set_fastpath_enabled, fast)
        if not theirs:
            as_unnamed = functools.partial(torch._register_device_module, _UNNAMED)
            for where, name, instead in (
                (torch.utils, "rename_privateuse1_backend", lambda name: None),
                (torch, "_register_device_module", lambda name, module: as_unnamed(module)),
            ):
                meanwhile.enter_context(_replaced(where, name, instead))
        torchax = optional("torchax", "PyTorch models need", "torch")
        if not theirs:
            _unname_device(torchax)
    return torchax


@functools.cache
def _environment() -> Any:
    """Where tensors stand for arrays: one of our own, since a user of torchax has theirs."""
    tensor = _torchax().tensor
    # It draws a key, which would stand in the program under way, and another in each thread; here nothing
    # is to be drawn.
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
    aten = optional("torch", "PyTorch models need", "torch").ops.aten
    # what torchax draws into a copy, or otherwise
    for drawing in (aten.exponential_, aten.cauchy_, aten.random_):
        for overload in drawing.overloads():
            environment.override_op_definition(getattr(drawing, overload), _refuse_to_draw)
    for operation, ours in {**kinks.operations(), **substitutes.operations()}.items():
        environment.override_op_definition(operation, of_tensors(ours))
    return environment


def _follow(environment: Any) -> None:
    """Let runs know the calls of PyTorch's functions, and what is computed where autograd is off, as in
    `torch.no_grad()`, have no derivative."""
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
                found = called(*args, **kwargs)
                if into is None or found is not args[0]:
                    return _pytree.tree_map_only(kinds, still, found)
                into._elem = _with_derivative_of(before, into._elem)  # written in place
                return found

            run: Any = reruns.at_work()
            return run.call(func, args, kwargs or {}, theirs)

    environment._function_mode = Mode(environment)


def _written_into(environment: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The first argument, written into: torchax writes into a copy of a view, and for some functions only
    into what it returns."""
    target, rest = args[0], environment.v2t_iso((args[1:], kwargs))
    values = environment.v2t_iso(target)
    array = call((values, *rest[0]), rest[1]).jax().astype(values.jax().dtype)
    if values is target:
        target._elem = array
    else:
        target.update(array)
    return target


def _writes(func: Any) -> bool:
    """Whether a function of PyTorch's writes into its first argument, and leaves its shape."""
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
    """The function that returns what one writes: torchax has few of those that write."""
    import torch

    name = func.__name__.removesuffix("_")
    instead = getattr(torch.Tensor, name, None)
    return instead if callable(instead) and not name.endswith("_") else func


def _with_derivative_of(before: Any, after: Any) -> Any:
    """An array that was written while autograd did not look."""
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
    """With something else in the place of an attribute."""
    own = vars(where).get(name, _INHERITED)
    setattr(where, name, instead)
    try:
        yield
    finally:
        if own is _INHERITED:
            delattr(where, name)
        else:
            setattr(where, name, own)


_INHERITED = object()


def _unname_device(torchax: Any) -> None:
    """Where torchax says "jax", its tensors say `_UNNAMED`, a device that nobody finds who looks for one."""
    import torch

    torchax.device_module.is_available = lambda: False
    tensors = (torchax.tensor.Tensor, torchax.view.View)
    for kind in tensors:
        kind.device = property(lambda tensor: torch.device(_UNNAMED, 0))
    environment = torchax.tensor.Environment
    same = environment._is_same_device

    def is_same_device(env: Any, tensor: Any, new: Any) -> bool:
        # For PyTorch's C++ code these tensors are on the device "meta"
        return (new == "meta" and isinstance(tensor, tensors)) or same(env, tensor, new)

    environment._is_same_device = is_same_device
