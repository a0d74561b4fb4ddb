"""Which functions of a user's are the same: those that are one program.

JAX compiles for each function object. In a notebook a cell that is run again makes a new one of the same
text, and so does every PyTorch module that becomes a problem; what was compiled for the old one would be
compiled again, which takes longer than most of what is computed. And a function that reads a global number
stays the same object when that number changes.

Functions are of one kind as long as they are one program for all arguments that any of them was traced with,
and were differentiated alike for the first of these.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import Partial

from thalweg.jaxprs import array_constants, equations, names

_WITH_RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
# What is behind them has no text.
_HIDDEN = frozenset({"pure_callback", "io_callback", "debug_callback", "call_exported"})
# How many derivatives are looked at, each for rules that those before had not.
_DEEPEST = 3

_LOOKING = threading.RLock()
_log = logging.getLogger(__name__)


def by_program(function: Any, *args: Any) -> Any:
    """A `Partial` that equals every other of the same program, as far as it can be told; and any other
    function as it is. Its derivatives are those with respect to the first of `args`, the arguments of a
    call."""
    if not isinstance(function, Partial):
        return function
    given = _shapes(((*function.args, *args), function.keywords))
    known = _known(written(function), given, len(function.args))
    return Partial(known, *function.args, **function.keywords)


def written(function: Any) -> Any:
    """The function that the user has written, of one that `by_program` has returned."""
    function = getattr(function, "func", None)
    return function.function if isinstance(function, ByProgram) else function


class _Kind:
    """Functions of one program, and which that is for each of the arguments that one of them was traced
    with."""

    def __init__(self, seen: dict[Any, tuple[Any, bytes | None]]) -> None:
        self.seen = dict(seen)
        self.members: weakref.WeakValueDictionary[int, ByProgram] = weakref.WeakValueDictionary()


# by what they were first looked at with: the programs for these arguments and derivatives, the place of those
# among them, and the arguments' names and shapes
_KINDS: dict[tuple[Any, ...], list[_Kind]] = {}


def forget() -> None:
    """Let functions that come from now on be of no kind that there is."""
    _KINDS.clear()


class ByProgram:
    """A function known by its program, and equal to those of its kind.

    Whenever it is traced it is looked at again, and so are the others of its kind where the arguments are
    new: who turns out to be another program, be it that a global has changed, is of a kind of its own from
    then on, so that nobody is given what was compiled for another.
    """

    def __init__(
        self, function: Callable[..., Any], programs: tuple[Any, ...], given: Any, place: int
    ) -> None:
        # a program does not know its arguments' names, and a function looks them up by these
        key = programs, place, _key(given)
        self.function, self.place, self._hash = function, place, hash(key)
        with _LOOKING:
            kinds = _KINDS.setdefault(key, [])
            if not any(self._joins(kind) for kind in kinds):
                kinds.append(_Kind({key[-1]: (given, programs[0])}))
                self._joins(kinds[-1])

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree_util.tree_leaves((args, keywords))):
            self._look(_shapes((args, keywords)))
        return self.function(*args, **keywords)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByProgram) and self._kind is other._kind

    def __reduce__(self) -> Any:
        # a copy is known anew where it is made
        given, _ = next(iter(self._kind.seen.values()))
        return _known, (self.function, given, self.place)

    def _joins(self, kind: _Kind) -> bool:
        """Become one of a kind, if this is the same program for all that it has seen."""
        if not all(self._program(given) == told for given, told in [*kind.seen.values()][1:]):
            return False
        self._kind = kind
        kind.members[id(self)] = self
        return True

    def _leave(self) -> None:
        """Be of a kind of its own, which nobody joins."""
        _log.debug("%r is another program than others of its kind", self.function)
        self._kind.members.pop(id(self), None)
        self._joins(_Kind(dict([*self._kind.seen.items()][:1])))

    def _look(self, given: Any) -> None:
        """See whether this is the program of its kind for such arguments, and whether the others are."""
        with _LOOKING:
            seen, key, found = self._kind.seen, _key(given), self._program(given)
            if key in seen:
                stays = seen[key][1] == found
            else:
                first, told = next(iter(seen.values()))
                stays = found is not None and self._program(first) == told
            if not stays:
                self._leave()
            elif key not in seen:
                for other in [*self._kind.members.values()]:
                    if other is not self and other._program(given) != found:
                        other._leave()
                seen[key] = given, found

    def _program(self, given: Any) -> bytes | None:
        return next(_programs(self.function, given, self.place))


def _known(function: Callable[..., Any], given: Any, place: int) -> Any:
    """A function by its programs for such arguments, of which it is differentiated by the one at `place`; the
    function itself where they cannot be told."""
    programs = tuple(_programs(function, given, place))
    return function if None in programs else ByProgram(function, programs, given, place)


def _programs(function: Callable[..., Any], given: Any, place: int) -> Iterator[bytes | None]:
    """What a function computes from such arguments, and how it is differentiated by one of them: its program
    and, where operations in that have derivative rules of their own, those of its derivatives, in which these
    are written out. None where that cannot be told."""
    args, keywords = given
    before, first, rest = args[:place], args[place], args[place + 1 :]

    def called(first: Any, before: Any, keywords: Any, *rest: Any) -> Any:
        return function(*before, first, *rest, **keywords)

    try:
        yield from _told(called, first, before, keywords, *rest)
    except Exception:  # a function that can be traced need not have a derivative
        _log.debug("%r is not known by its program", function, exc_info=True)
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
        constants = [*getattr(program, "consts", ()), *array_constants(needed)]
        hidden = " at 0x" in text or not _HIDDEN.isdisjoint(names(needed))
        if hidden or any(isinstance(array, Tracer) for array in constants):
            _log.debug("what this program does is not all in its text: %s", needed)
            break  # a trace's numbers have no bytes
        digest = hashlib.blake2b(f"{text}\n{jax.tree_util.tree_structure(like)}".encode())
        for array in constants:
            digest.update(np.asarray(array).tobytes())
        yield digest.digest()
        rules = {_rule(e) for e in equations(needed) if e.primitive.name in _WITH_RULES}
        if rules <= known:
            return
        known |= rules
        function, args = partial(_slope, function), (args[0], like, *args[1:])
    yield None


def _rule(equation: Any) -> str:
    """What tells a function with a derivative rule from others: its program, and where that is written."""
    parts = (equation.params.get(name) for name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"))
    places = [getattr(getattr(p, "debug_info", None), "func_src_info", None) for p in parts]
    return f"{equation.primitive} {equation.params['call_jaxpr']} {places}"


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _slope(function: Callable[..., Any], first: Any, weights: Any, *rest: Any) -> Any:
    """The values' sum, with weights, and its derivative by the first argument. A rule may have values of its
    own, too."""

    def total(first: Any) -> Any:
        values = jax.tree_util.tree_leaves(function(first, *rest))
        pairs = zip(values, jax.tree_util.tree_leaves(weights), strict=True)
        return sum(jnp.sum(v * w) for v, w in pairs if jnp.issubdtype(v.dtype, jnp.inexact))

    return jax.value_and_grad(total)(first)


def _shapes(tree: Any) -> Any:
    return jax.tree_util.tree_map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


def _key(given: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(given)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
