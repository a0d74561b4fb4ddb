"""Which of a user's functions are the same: those that trace to the same program.

JAX compiles per function object. Running a notebook cell again makes a new object of the same source, and so
does converting a PyTorch module to a problem. What was compiled for the old object would be compiled again,
which takes longer than most computations. And a function that reads a global variable stays the same object
when that variable changes.

Functions are of one kind as long as they trace to the same program for all argument shapes that any of them
was traced with, and their derivatives to the same programs for the first of these.
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
# Operations whose effect does not show in a jaxpr's text.
_HIDDEN = frozenset({"pure_callback", "io_callback", "debug_callback", "call_exported"})
# How many orders of derivatives to trace: a higher one may use derivative rules that the lower ones do not.
_DEEPEST = 3

_LOOKING = threading.RLock()
_log = logging.getLogger(__name__)


def by_program(function: Any, *args: Any) -> Any:
    """A `Partial` that equals every other one of the same program, where that can be determined. A function
    that is not a `Partial` is returned as it is.

    `args` are the arguments of a call, after those bound in the `Partial`; derivatives are compared with
    respect to the first of them."""
    if not isinstance(function, Partial):
        return function
    shapes = _shapes(((*function.args, *args), function.keywords))
    identified = _known(written(function), shapes, len(function.args))
    return Partial(identified, *function.args, **function.keywords)


def written(function: Any) -> Any:
    """The user's own function, unwrapped from what `by_program` returned."""
    function = getattr(function, "func", None)
    return function.function if isinstance(function, ByProgram) else function


class _Kind:
    """Functions of one program, with the digest of that program for each set of argument shapes that one of
    them was traced with."""

    def __init__(self, seen: dict[Any, tuple[Any, bytes | None]]) -> None:
        self.seen = dict(seen)
        self.members: weakref.WeakValueDictionary[int, ByProgram] = weakref.WeakValueDictionary()


# Keyed by what a function is first traced with: the digests of its program and of its derivatives' programs,
# the position of the argument to differentiate by, and the arguments' names and shapes
_KINDS: dict[tuple[Any, ...], list[_Kind]] = {}


def forget() -> None:
    """Forget all kinds, so that functions wrapped from now on do not join them."""
    _KINDS.clear()


class ByProgram:
    """A function that is identified by its program, and equal to those of its kind.

    Whenever JAX traces it, its program is determined again, and for new argument shapes also those of the
    others of its kind. One that turns out to be another program (a global may have changed) gets a kind of
    its own from then on, so that no function runs what was compiled for another program.
    """

    def __init__(
        self, function: Callable[..., Any], programs: tuple[Any, ...], shapes: Any, place: int
    ) -> None:
        # a function looks its arguments up by name, and names do not show in its program
        key = programs, place, _key(shapes)
        self.function, self.place, self._hash = function, place, hash(key)
        with _LOOKING:
            kinds = _KINDS.setdefault(key, [])
            if not any(self._joins(kind) for kind in kinds):
                kinds.append(_Kind({key[-1]: (shapes, programs[0])}))
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
        # an unpickled copy is traced again where it is made
        shapes, _ = next(iter(self._kind.seen.values()))
        return _known, (self.function, shapes, self.place)

    def _joins(self, kind: _Kind) -> bool:
        """Join a kind if this is the same program for all shapes it was traced with; return whether it is."""
        if not all(self._program(shapes) == digest for shapes, digest in [*kind.seen.values()][1:]):
            return False
        self._kind = kind
        kind.members[id(self)] = self
        return True

    def _leave(self) -> None:
        """Move to a kind of its own, which no other function joins."""
        _log.debug("%r is another program than others of its kind", self.function)
        self._kind.members.pop(id(self), None)
        self._joins(_Kind(dict([*self._kind.seen.items()][:1])))

    def _look(self, shapes: Any) -> None:
        """Check that this function and the others of its kind have the same program for these arguments, and
        let those leave that differ."""
        with _LOOKING:
            traces, key, digest = self._kind.seen, _key(shapes), self._program(shapes)
            if key in traces:
                stays = traces[key][1] == digest
            else:
                first_shapes, first_digest = next(iter(traces.values()))
                stays = digest is not None and self._program(first_shapes) == first_digest
            if not stays:
                self._leave()
            elif key not in traces:
                for other in [*self._kind.members.values()]:
                    if other is not self and other._program(shapes) != digest:
                        other._leave()
                traces[key] = shapes, digest

    def _program(self, shapes: Any) -> bytes | None:
        return next(_programs(self.function, shapes, self.place))


def _known(function: Callable[..., Any], shapes: Any, place: int) -> Any:
    """The function as a `ByProgram`, traced for these arguments and differentiated by the one at `place`; the
    function itself where its programs cannot be determined."""
    programs = tuple(_programs(function, shapes, place))
    return function if None in programs else ByProgram(function, programs, shapes, place)


def _programs(function: Callable[..., Any], shapes: Any, place: int) -> Iterator[bytes | None]:
    """Digests of a function's program for these arguments and, where operations in it have custom derivative
    rules, of its derivatives' programs by the argument at `place`, in which the rules are written out. Ends
    with None where they cannot be determined."""
    args, keywords = shapes
    before, first, rest = args[:place], args[place], args[place + 1 :]

    def called(first: Any, before: Any, keywords: Any, *rest: Any) -> Any:
        return function(*before, first, *rest, **keywords)

    try:
        yield from _told(called, first, before, keywords, *rest)
    except Exception:  # a function that can be traced need not have a derivative
        _log.debug("%r is not known by its program", function, exc_info=True)
        yield None


def _told(function: Callable[..., Any], *args: Any) -> Iterator[bytes | None]:
    known_rules: set[str] = set()
    for _ in range(_DEEPEST):
        # a new function object each time, or JAX returns the trace that it has cached
        traced = jax.make_jaxpr(partial(_called, function), return_shape=True)
        program, output_shapes = traced(*args)
        # without dead code: in a new thread, torchax makes a key for random numbers that is not used
        needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), instantiate=True)
        text = str(needed)
        constants = [*getattr(program, "consts", ()), *array_constants(needed)]
        hidden = " at 0x" in text or not _HIDDEN.isdisjoint(names(needed))
        if hidden or any(isinstance(array, Tracer) for array in constants):
            _log.debug("what this program does is not all in its text: %s", needed)
            break  # tracers have no bytes to digest
        digest = hashlib.blake2b(f"{text}\n{jax.tree_util.tree_structure(output_shapes)}".encode())
        for array in constants:
            digest.update(np.asarray(array).tobytes())
        yield digest.digest()
        rules = {_rule(e) for e in equations(needed) if e.primitive.name in _WITH_RULES}
        if rules <= known_rules:
            return
        known_rules |= rules
        function, args = partial(_slope, function), (args[0], output_shapes, *args[1:])
    yield None


def _rule(equation: Any) -> str:
    """Identifies a function with a custom derivative rule, by its program and its place in the source."""
    parts = (equation.params.get(name) for name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"))
    places = [getattr(getattr(p, "debug_info", None), "func_src_info", None) for p in parts]
    return f"{equation.primitive} {equation.params['call_jaxpr']} {places}"


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _slope(function: Callable[..., Any], first: Any, weights: Any, *rest: Any) -> Any:
    """The weighted sum of the values, and its derivative by the first argument. The values are part of the
    program because a custom rule may compute them differently, too."""

    def total(first: Any) -> Any:
        values = jax.tree_util.tree_leaves(function(first, *rest))
        pairs = zip(values, jax.tree_util.tree_leaves(weights), strict=True)
        return sum(jnp.sum(v * w) for v, w in pairs if jnp.issubdtype(v.dtype, jnp.inexact))

    return jax.value_and_grad(total)(first)


def _shapes(tree: Any) -> Any:
    return jax.tree_util.tree_map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


def _key(shapes: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(shapes)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
