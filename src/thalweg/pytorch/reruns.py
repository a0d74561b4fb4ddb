"""`torch.autograd.grad` within translated PyTorch code, by running the code again.

PyTorch differentiates values that it has computed, JAX differentiates functions. Where code asks for the
derivative of u by x, the function is the code itself up to that question: it is traced once more with a shift
added to x where x is made, and u is differentiated by the shift. A tensor is identified by its place: the
number of the PyTorch call that made it, which is the same in each run. The answers to earlier questions enter
as arguments, and are differentiated in turn only where u depends on them and they depend on x.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from thalweg.errors import InputError

_Place = tuple[int, int]  # the number of a call, and which of its results
_Shift = dict[_Place, Any]  # what is added to tensors where they are made
_AT_THE_START = -1  # the call number of the code's own arguments
_BASE = -1  # among a call's results: the base of the view that it wrote into
_thread = threading.local()


def at_work() -> Run | None:
    """The innermost run in this thread; None outside translated code."""
    return getattr(_thread, "run", None)


class _Question(NamedTuple):
    """One call of `torch.autograd.grad`: the derivatives of Σ weights · outputs, in PyTorch's convention."""

    outputs: list[Any]
    weights: list[Any]


class _Asked(NamedTuple):
    """A question that came up in the first run, with its answer."""

    call: int
    places: tuple[_Place, ...]  # of the inputs, without repetitions
    zeros: list[Any]  # in the inputs' shapes
    question: _Question
    batched: bool  # is_grads_batched: the weights have a leading batch axis
    told: list[Any]  # the answer: the derivatives, None where the outputs do not depend on an input


class Reached(BaseException):
    """Ends a run at the question that it was started for."""


class Code:
    """A function of tensors, which may call `torch.autograd.grad`, with its arguments.

    Args:
        env: torchax's environment.
        function: takes tensors.
        arguments: its arguments, with arrays in the place of tensors.
        free: takes the arguments and returns the tensors that require a gradient; by default all do.
        within: makes a context in which tensors wrap arrays.
    """

    def __init__(
        self,
        env: Any,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        free: Callable[..., Iterable[Any]] | None,
        within: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.env, self.function, self.arguments = env, function, arguments
        self.free, self.within = free, within
        self.calls: list[Any] = []  # the PyTorch functions that the first run called
        self.asked: list[_Asked] = []
        self._programs: dict[Any, _Program] = {}
        self._known: dict[Any, tuple[_Shift, list[Any]]] = {}  # cache, while a question is answered

    def __call__(self) -> Any:
        """What the function returns, in arrays."""
        return Run(self)()

    def answer(
        self,
        call: int,
        places: Sequence[_Place],
        inputs: list[Any],
        question: _Question,
        batched: bool,
    ) -> list[Any]:
        """Answer a question of the first run, and keep the answer for later runs."""
        each = dict(zip(places, map(jnp.zeros_like, inputs), strict=True))
        asked = _Asked(call, tuple(each), list(each.values()), question, batched, [])
        self.asked.append(asked)
        number = len(self.asked) - 1
        found = self._derivatives(number, {})
        self._known.clear()
        values, told = self._program(number, each).needs("outputs")
        for slope, needed in zip(found, values, strict=True):
            asked.told.append(slope if needed or any(map(any, told)) else None)
        return asked.told

    def _derivatives(self, number: int, shift: _Shift) -> list[Any]:
        """The answer to a question when `shift` is added at its places."""
        asked = self.asked[number]
        # tensors made after the question do not affect its answer
        shift = {place: by for place, by in shift.items() if place[0] < asked.call}
        if asked.told and not shift:
            return asked.told
        key = number, frozenset((place, id(by)) for place, by in shift.items())
        if key in self._known:
            return self._known[key][1]
        weights = self._reached("weights", number, shift) if shift else asked.question.weights

        def outputs(*added: Any) -> list[Any]:
            total_shift = dict(shift)
            for place, by in zip(asked.places, added, strict=True):
                total_shift[place] = total_shift[place] + by if place in total_shift else by
            return self._reached("outputs", number, total_shift)

        _, back = jax.vjp(outputs, *asked.zeros)
        back = jax.vmap(back) if asked.batched else back
        slopes = conjugated(list(back(conjugated(weights))))
        self._known[key] = shift, slopes  # keeps the arrays alive, and so their ids in the key
        return slopes

    def _reached(self, part: str, number: int, shift: _Shift) -> list[Any]:
        """A question's outputs or weights when `shift` is added at its places."""
        program = self._program(number, shift)
        told = []
        for i, needed in enumerate(program.needs(part)[1]):
            answer = self.asked[i].told
            if any(needed):
                new = self._derivatives(i, shift)
                answer = [k if k is None else n for k, n in zip(answer, new, strict=True)]
            told.append(answer)
        return program(part, [shift[place] for place in program.places], told)

    def _program(self, number: int, shift: _Shift) -> _Program:
        key = number, frozenset(shift)
        if key not in self._programs:
            self._programs[key] = _Program(self, number, shift)
        return self._programs[key]


class _Program:
    """A question as a jaxpr: a function of the shifts at some places, and of earlier answers."""

    def __init__(self, code: Code, number: int, shift: _Shift) -> None:
        self.places = tuple(shift)

        def asked(added: list[Any], told: list[list[Any]]) -> _Question:
            run = Run(code, dict(zip(self.places, added, strict=True)), told)
            with suppress(Reached):
                run()
            if run.question is None:
                raise _other_calls()
            return run.question

        given = list(shift.values()), [asked.told for asked in code.asked[:number]]
        self._structure = jax.tree_util.tree_structure(given)
        closed, shapes = jax.make_jaxpr(asked, return_shape=True)(*given)
        sizes = list(map(len, shapes))
        # per part of the question: its program, and which of the arguments that uses
        self._parts: dict[str, tuple[ClosedJaxpr, list[bool]]] = {}
        for k, part in enumerate(_Question._fields):
            wanted = [i == k for i, size in enumerate(sizes) for _ in range(size)]
            program, needed = dce_jaxpr(closed.jaxpr, wanted)
            self._parts[part] = ClosedJaxpr(program, closed.consts), needed

    def needs(self, part: str) -> tuple[list[bool], list[list[bool]]]:
        """Which shifts, and which earlier answers, a part of the question depends on."""
        _, needed = self._parts[part]
        added, told = jax.tree_util.tree_unflatten(self._structure, needed)
        return added, [[bool(n) for n in each] for each in told]

    def __call__(self, part: str, added: list[Any], told: list[list[Any]]) -> list[Any]:
        closed, needed = self._parts[part]
        given = jax.tree_util.tree_leaves((added, told))
        return jaxpr_as_fun(closed)(*itertools.compress(given, needed))


class Run:
    """One run of some code.

    Args:
        shift: what is added to tensors, by the place where they are made.
        told: the answers to earlier questions; the run ends at the next one (`Reached`). None in the first
            run, which gets all its questions answered.
    """

    def __init__(
        self,
        code: Code,
        shift: _Shift | None = None,
        told: Sequence[list[Any]] | None = None,
    ) -> None:
        self.code, self.told = code, told
        self.shift = shift or {}
        self.question: _Question | None = None
        self._call = _AT_THE_START
        self._questions = itertools.count()
        self._depth = 0

    def __call__(self) -> Any:
        outer, _thread.run = at_work(), self
        env, code = self.code.env, self.code
        try:
            with code.within():
                arguments = env.j2t_iso(code.arguments)
                free = arguments if code.free is None else code.free(*arguments)
                wanted = {id(tensor) for tensor in _tensors(free)}
                for k, tensor in enumerate(_tensors(arguments)):
                    self._place(tensor, k, id(tensor) in wanted)
                return env.t2j_iso(code.function(*arguments))
        finally:
            _thread.run = outer

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A context for a function that JAX differentiates or maps."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def call(self, func: Any, args: Any, kwargs: Any, theirs: Callable[..., Any]) -> Any:
        """Run one PyTorch call and place its results: autograd's functions here, all others by `theirs`.
        `func` is a function of tensors, or the name of a function transform."""
        import torch

        self._call += 1
        if self.told is None:
            self.code.calls.append(func)
        elif self.question is None and [func] != self.code.calls[self._call : self._call + 1]:
            raise _other_calls()
        number = self._call
        closes = isinstance(func, str)  # such functions may close over tensors
        ours = self._of_autograd(func)
        # PyTorch itself answers for its plain tensors
        if ours is not None and _tensors((args, kwargs)):
            return ours(*args, **kwargs)
        marked = not closes and kwargs.pop("requires_grad", False)
        result = theirs(*args, **kwargs)
        needs = torch.is_grad_enabled() and (
            closes or any(map(needs_gradient, _tensors((args, kwargs))))
        )
        name = getattr(func, "__name__", "")
        needs = needs and name != "detach" and not name.endswith("_like") and name[:4] != "new_"
        if args and result is args[0] and is_tensor(result) and source(result) is not result:
            self._place(source(result), _BASE, needs, number)
        for k, tensor in enumerate(_tensors(result)):
            made = getattr(tensor, "_made", None)
            if made is None or not made.holds(self.code, tensor):
                self._place(tensor, k, needs or marked, number)
        return result

    def _of_autograd(self, func: Any) -> Callable[..., Any] | None:
        import torch

        attribute: Any = torch.Tensor.requires_grad
        if func in (torch.Tensor.backward, torch.autograd.backward):
            raise InputError(
                "backward() inside a model has no translation; ask for derivatives with torch.autograd.grad "
                "or torch.func.grad."
            )
        return {
            torch.autograd.grad: self._grad,
            torch.Tensor.requires_grad_: self._mark,
            torch.Tensor.retain_grad: lambda tensor: None,
            torch.Tensor.detach_: lambda tensor: self._mark(tensor, False),
            torch.detach_: lambda tensor: self._mark(tensor, False),
            attribute.__set__: self._mark,
            attribute.__get__: lambda tensor, *_: needs_gradient(tensor),
        }.get(func)

    def _mark(self, tensor: Any, requires_grad: bool = True) -> Any:
        """`requires_grad_`: give the tensor a place to differentiate by, or stop its gradient."""
        if requires_grad != needs_gradient(tensor):
            if requires_grad and not tensor.is_floating_point() and not tensor.is_complex():
                raise RuntimeError(
                    "only Tensors of floating point and complex dtype can require gradients"
                )
            if not requires_grad:
                _become(tensor, jax.lax.stop_gradient(tensor.jax()))
            self._place(tensor, 0, requires_grad)
        return tensor

    def _place(self, tensor: Any, k: int, needs: bool, number: int | None = None) -> None:
        """Record the call that made a tensor, and add this run's shift there."""
        place = (self._call if number is None else number), k
        if place in self.shift:
            _become(tensor, tensor.jax() + self.shift[place])
        array = source(tensor)._elem
        needs = needs and jnp.issubdtype(array.dtype, jnp.inexact)
        tensor._made = _Made(self.code, place, array, needs)

    def _grad(
        self,
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        retain_graph: Any = None,
        create_graph: bool = False,
        only_inputs: bool = True,
        allow_unused: bool | None = None,
        is_grads_batched: bool = False,
        materialize_grads: bool = False,
    ) -> tuple[Any, ...]:
        """`torch.autograd.grad`."""
        if self._depth:
            raise InputError(
                "torch.autograd.grad inside a function that torch.func derives or maps has no translation; "
                "use torch.func.grad there."
            )
        call = self._call
        outputs, inputs = map(_listed, (outputs, inputs))
        weights = _listed(grad_outputs) if grad_outputs is not None else [None] * len(outputs)
        question = _Question(
            [tensor.jax() for tensor in outputs],
            [_weight(*pair) for pair in zip(weights, outputs, strict=True)],
        )
        arrays, places = [tensor.jax() for tensor in inputs], list(map(self._place_of, inputs))
        number = next(self._questions)
        if self.told is None:
            answer = self.code.answer(call, places, arrays, question, is_grads_batched)
        elif number < len(self.told):
            answer = self.told[number]
        else:
            # the user's code may catch `Reached` and go on asking
            self.question = self.question or question
            raise Reached
        by_place = dict(zip(dict.fromkeys(places), answer, strict=True))
        derivatives = [by_place[place] for place in places]
        if not (allow_unused or materialize_grads) and any(slope is None for slope in derivatives):
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. Set "
                "allow_unused=True if this is the desired behavior."
            )
        if materialize_grads:
            pairs = zip(derivatives, arrays, strict=True)
            derivatives = [jnp.zeros_like(x) if slope is None else slope for slope, x in pairs]
        tensors = self.code.env.j2t_iso(
            derivatives if create_graph else jax.lax.stop_gradient(derivatives)
        )
        for k, tensor in enumerate(tensors):
            if tensor is not None:
                self._place(tensor, k, create_graph, call)
        return tuple(tensors)

    def _place_of(self, tensor: Any) -> _Place:
        origin = getattr(tensor, "_made", None)
        if origin is None or not origin.holds(self.code, tensor):
            raise InputError(
                "torch.autograd.grad takes derivatives by tensors on which x.requires_grad_() was called, or "
                "that PyTorch's operations return, if nothing is written into them afterwards."
            )
        return origin.place


class _Made(NamedTuple):
    """Where a tensor was made, and the array that it then wrapped."""

    code: Code
    place: _Place
    array: Any
    needs: bool  # whether it requires a gradient

    def holds(self, code: Code, tensor: Any) -> bool:
        """Whether the tensor was made in this code and was not written in place since."""
        return self.code is code and self.array is source(tensor)._elem


def needs_gradient(tensor: Any) -> bool:
    """`requires_grad` of a tensor that wraps an array."""
    made = [getattr(each, "_made", None) for each in (tensor, source(tensor))]
    return any(each is not None and each.needs for each in made)


def is_tensor(value: Any) -> bool:
    """Whether a value is a torchax tensor or view, which wrap arrays."""
    from torchax.tensor import Tensor
    from torchax.view import View

    return isinstance(value, (Tensor, View))


def conjugated(arrays: list[Any]) -> list[Any]:
    """JAX's derivatives in PyTorch's convention, which is the conjugate for complex numbers; and back."""
    return [jnp.conj(a) if jnp.iscomplexobj(a) else a for a in arrays]


def _other_calls() -> InputError:
    return InputError(
        "code that asks for derivatives must call the same PyTorch functions each time that it runs."
    )


def _tensors(tree: Any) -> list[Any]:
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(tree) if is_tensor(leaf)]


def source(tensor: Any) -> Any:
    """The base tensor of a view; any other tensor itself."""
    while hasattr(tensor, "parent"):
        tensor = tensor.parent
    return tensor


def written(tensor: Any, array: Any) -> None:
    """Replace the array that a tensor wraps, keeping its place."""
    _become(tensor, array)
    if made := getattr(tensor, "_made", None):
        tensor._made = made._replace(array=array)


def _become(tensor: Any, array: Any) -> None:
    """Let a tensor wrap another array; a view, which has none of its own, turns into a plain tensor."""
    from torchax.tensor import Tensor

    tensor.__class__ = Tensor
    tensor._elem = array


def _weight(weight: Any, output: Any) -> Any:
    if weight is not None:
        return weight.jax().astype(output.jax().dtype)
    if output.numel() != 1:
        raise RuntimeError("grad can be implicitly created only for scalar outputs")
    return jnp.ones_like(output.jax())


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if is_tensor(tensors) else list(tensors)
