"""Which functions of a user's are the same: those that are one program.

JAX compiles for each function object. In a notebook a cell that is run again makes a new one of the same
text, and so does every PyTorch module that becomes a problem; what was compiled for the old one would be
compiled again, which takes longer than most of what is computed. And a function that reads a global number
stays the same object when that number changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import Partial

from thalweg.jaxprs import array_constants, equations

_WITH_RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
# How many derivatives are looked at, each for rules that those before had not.
_DEEPEST = 3


def by_program(function: Any, *args: Any) -> Any:
    """A `Partial` that equals every other of the same program for arguments like these, as far as it can be
    told; and any other function as it is. Its derivatives are those with respect to the first argument."""
    if not isinstance(function, Partial):
        return function
    seen = jax.tree_util.tree_map(_shape, (function.args, function.keywords, args))
    programs = tuple(_programs_of(function.func, seen))
    if None in programs:
        return function
    return Partial(ByProgram(function.func, programs, seen), *function.args, **function.keywords)


def written(function: Any) -> Any:
    """The function that the user has written, of one that `by_program` has returned."""
    function = getattr(function, "func", None)
    return function.function if isinstance(function, ByProgram) else function


class ByProgram:
    """A function known by its program: equal to others with that, for as long as it is what it was.

    Whenever it is traced, for another shape or inside another program, it is looked at again: what reads a
    global that has changed meanwhile is from then on equal to itself alone, so that no other function is
    given programs that were compiled of it.
    """

    def __init__(self, function: Callable[..., Any], programs: tuple[Any, ...], seen: Any) -> None:
        self.function, self.programs, self.seen = function, programs, seen
        self.changed = False

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree_util.tree_leaves(args))
        if traced and not self.changed:  # its derivatives' rules are not looked at again
            self.changed = next(_programs_of(self.function, self.seen)) != self.programs[0]
        return self.function(*args, **keywords)

    def __hash__(self) -> int:
        return hash(self.programs)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, ByProgram) or self.changed or other.changed:
            return False
        return self.programs == other.programs


def _programs_of(function: Callable[..., Any], seen: Any) -> Iterator[bytes | None]:
    """What a function computes from arguments like those seen, and how it is differentiated: its program and,
    where operations in that have derivative rules of their own, those of its derivatives, in which these are
    written out. None where that cannot be told."""
    before, keywords, (first, *rest) = seen

    def given(first: Any, before: Any, keywords: Any, *rest: Any) -> Any:
        return function(*before, first, *rest, **keywords)

    try:
        yield from _told(given, first, before, keywords, *rest)
    except Exception:  # a function that can be traced need not have a derivative
        yield None


def _told(function: Callable[..., Any], *args: Any) -> Iterator[bytes | None]:
    known: set[str] = set()
    for _ in range(_DEEPEST):
        # a new function each time: JAX remembers what it traced of an old one
        traced = jax.make_jaxpr(partial(_called, function), return_shape=True)
        program, like = traced(*args)
        # without what nothing comes of: in a new thread torchax makes a key for random numbers
        needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), instantiate=True)
        text = str(needed)
        constants = list(array_constants(program))
        if " at 0x" in text or any(isinstance(array, Tracer) for array in constants):
            break  # functions on the host have no text, and a trace's numbers no bytes
        digest = hashlib.blake2b(f"{text}\n{jax.tree_util.tree_structure(like)}".encode())
        for array in constants:
            digest.update(np.asarray(array).tobytes())
        yield digest.digest()
        rules = {
            f"{equation.primitive} {equation.params['call_jaxpr']}"
            for equation in equations(needed)
            if equation.primitive.name in _WITH_RULES
        }
        if rules <= known:
            return
        known |= rules
        function, args = partial(_slope, function), (args[0], like, *args[1:])
    yield None


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _slope(function: Callable[..., Any], first: Any, weights: Any, *rest: Any) -> Any:
    """The derivative by the first argument of the values' sum, with weights."""

    def total(first: Any) -> Any:
        values = jax.tree_util.tree_leaves(function(first, *rest))
        pairs = zip(values, jax.tree_util.tree_leaves(weights), strict=True)
        return sum(jnp.sum(v * w) for v, w in pairs if jnp.issubdtype(v.dtype, jnp.inexact))

    return jax.grad(total)(first)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
