"""`torch.autograd.grad` in PyTorch code that is translated, by running the code again.

PyTorch differentiates what it has computed, JAX functions. Where code asks for the derivative of u by x, that
function is the code itself: it is traced once more, and where x was made it goes on with other values.
Tensors are known by the call of PyTorch's that made them, counted from the start, which is the same in each
run. What the code was told when it asked before enters as an argument, and only where u depends on it is it
derived again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from thalweg.errors import InputError

_Place = tuple[int, int]  # the number of a call, and which of the tensors that it returned
_thread = threading.local()


def at_work() -> _Run | None:
    """The innermost run of this thread's."""
    return getattr(_thread, "run", None)


class _Question(NamedTuple):
    """Code asks for the derivatives of Σ weights · outputs by its inputs."""

    inputs: list[Any]
    outputs: list[Any]
    weights: list[Any]


class _Asked(NamedTuple):
    """A question of the first run's."""

    places: tuple[_Place, ...]  # of its inputs
    question: _Question
    batched: bool  # whether weights have one axis more
    told: list[Any]  # the derivatives, and None where no way leads from an input to the outputs


class Reached(BaseException):
    """A run came to the question that it is for."""

    def __init__(self, question: _Question) -> None:
        self.question = question


class Code:
    """A function of tensors at some arrays, which may ask for derivatives.

    Args:
        env: torchax's environment.
        function: of tensors.
        arguments: its arguments, with arrays in the place of tensors.
        within: a context in which tensors stand for arrays.
    """

    def __init__(
        self,
        env: Any,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        within: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.env, self.function, self.arguments, self.within = env, function, arguments, within
        self.asked: list[_Asked] = []
        self._programs: dict[Any, _Program] = {}

    def __call__(self) -> Any:
        """What the function returns, in arrays."""
        return _Run(self)()

    def answer(self, places: tuple[_Place, ...], question: _Question, batched: bool) -> list[Any]:
        """What the first run is told."""
        asked = _Asked(places, question, batched, [])
        self.asked.append(asked)
        number = len(self.asked) - 1
        found = self._derivatives(number, {})
        at = dict(zip(places, question.inputs, strict=True))
        values, told = self._program(number, at).needs("outputs")
        for slope, needed in zip(found, values, strict=True):
            asked.told.append(slope if needed or any(map(any, told)) else None)
        return asked.told

    def _derivatives(self, number: int, instead: dict[_Place, Any]) -> list[Any]:
        """The answer to a question, with other arrays at some places."""
        asked = self.asked[number]
        inputs, weights = asked.question.inputs, asked.question.weights
        if instead:
            inputs = self._reached("inputs", number, instead)
            weights = self._reached("weights", number, instead)

        def outputs(*values: Any) -> list[Any]:
            there = dict(zip(asked.places, values, strict=True))
            return self._reached("outputs", number, {**instead, **there})

        _, back = jax.vjp(outputs, *inputs)
        return list((jax.vmap(back) if asked.batched else back)(weights))

    def _reached(self, part: str, number: int, instead: dict[_Place, Any]) -> list[Any]:
        """A part of a question, with other arrays at some places."""
        program = self._program(number, instead)
        told = []
        for i, needed in enumerate(program.needs(part)[1]):
            known = self.asked[i].told
            if any(needed):
                new = self._derivatives(i, instead)
                known = [k if k is None else n for k, n in zip(known, new, strict=True)]
            told.append(known)
        return program(part, [instead[place] for place in program.places], told)

    def _program(self, number: int, instead: dict[_Place, Any]) -> _Program:
        key = number, frozenset(instead)
        if key not in self._programs:
            self._programs[key] = _Program(self, number, instead)
        return self._programs[key]


class _Program:
    """A question as a function of arrays at some places, and of what was told before."""

    def __init__(self, code: Code, number: int, instead: dict[_Place, Any]) -> None:
        self.places = tuple(instead)

        def asked(values: list[Any], told: list[list[Any]]) -> _Question:
            try:
                _Run(code, dict(zip(self.places, values, strict=True)), told)()
            except Reached as reached:
                return reached.question
            raise InputError(
                "code that asks for derivatives must ask the same each time that it runs."
            )

        given = list(instead.values()), [asked.told for asked in code.asked[:number]]
        self._structure = jax.tree_util.tree_structure(given)
        self._closed, shapes = jax.make_jaxpr(asked, return_shape=True)(*given)
        self._sizes = dict(zip(_Question._fields, map(len, shapes), strict=True))

    def needs(self, part: str) -> tuple[list[bool], list[list[bool]]]:
        """Which values, and what of what was told, a part depends on."""
        values, told = jax.tree_util.tree_unflatten(self._structure, self._alone(part)[1])
        return values, [[bool(needed) for needed in each] for each in told]

    def __call__(self, part: str, values: list[Any], told: list[list[Any]]) -> list[Any]:
        closed, needed = self._alone(part)
        given = jax.tree_util.tree_leaves((values, told))
        return jaxpr_as_fun(closed)(*itertools.compress(given, needed))

    def _alone(self, part: str) -> tuple[ClosedJaxpr, list[bool]]:
        wanted = [name == part for name, size in self._sizes.items() for _ in range(size)]
        program, needed = dce_jaxpr(self._closed.jaxpr, wanted)
        return ClosedJaxpr(program, self._closed.consts), needed


class _Run:
    """One run of some code.

    Args:
        code: what runs.
        instead: arrays that tensors have from some places on.
        told: the answers to earlier questions; the run ends at the next one (`Reached`). None in the first
            run, which is told all.
    """

    def __init__(
        self,
        code: Code,
        instead: dict[_Place, Any] | None = None,
        told: Sequence[list[Any]] | None = None,
    ) -> None:
        self.code, self.told = code, told
        self.instead = instead or {}
        self._calls, self._questions = itertools.count(), itertools.count()

    def __call__(self) -> Any:
        outer, _thread.run = at_work(), self
        try:
            with self.code.within():
                arguments = self.code.env.j2t_iso(self.code.arguments)
                self.made(arguments)
                return self.code.env.t2j_iso(self.code.function(*arguments))
        finally:
            _thread.run = outer

    def made(self, tensors: Any, as_leaves: bool = False) -> None:
        """Number a call, and so what it made: tensors, or those that are marked as ones to derive by."""
        from torch.utils import _pytree
        from torchax.tensor import Tensor

        number = next(self._calls)
        for k, tensor in enumerate(_pytree.tree_leaves(tensors)):
            if not is_tensor(tensor):
                continue
            known = getattr(tensor, "_made", None)
            if known and known.holds(tensor) and (known.as_leaf or not as_leaves):
                continue
            if (number, k) in self.instead:
                tensor.__class__ = Tensor  # a view has no values of its own
                tensor._elem = self.instead[number, k]
            tensor._made = _Made((number, k), getattr(tensor, "_elem", None), as_leaves)

    def grad(
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
        outputs, inputs = map(_listed, (outputs, inputs))
        weights = _listed(grad_outputs) if grad_outputs is not None else [None] * len(outputs)
        question = _Question(
            [tensor.jax() for tensor in inputs],
            [tensor.jax() for tensor in outputs],
            [_weight(*pair) for pair in zip(weights, outputs, strict=True)],
        )
        number = next(self._questions)
        if self.told is None:
            told = self.code.answer(tuple(map(_place, inputs)), question, is_grads_batched)
        elif number < len(self.told):
            told = self.told[number]
        else:
            raise Reached(question)
        if not (allow_unused or materialize_grads) and any(slope is None for slope in told):
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. Set "
                "allow_unused=True if this is the desired behavior."
            )
        if materialize_grads:
            pairs = zip(told, question.inputs, strict=True)
            told = [jnp.zeros_like(x) if slope is None else slope for slope, x in pairs]
        if not create_graph:
            told = jax.lax.stop_gradient(told)
        return tuple(self.code.env.j2t_iso(told))


class _Made(NamedTuple):
    """Where a tensor was made, and of what array it then was."""

    place: _Place
    array: Any
    as_leaf: bool

    def holds(self, tensor: Any) -> bool:
        """Whether nothing was written into the tensor since."""
        return getattr(tensor, "_elem", None) is self.array


def _place(tensor: Any) -> _Place:
    made = getattr(tensor, "_made", None)
    if made is None or not made.holds(tensor):
        raise InputError(
            "torch.autograd.grad takes derivatives by tensors that x.requires_grad_() was called of, or that "
            "PyTorch's operations return, if nothing is written into them afterwards."
        )
    return made.place


def _weight(weight: Any, output: Any) -> Any:
    if weight is not None:
        return weight.jax()
    if output.numel() != 1:
        raise RuntimeError("grad can be implicitly created only for scalar outputs")
    return jnp.ones_like(output.jax())


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if is_tensor(tensors) else list(tensors)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor that stands for an array."""
    from torchax.tensor import Tensor
    from torchax.view import View

    return isinstance(value, (Tensor, View))
