"""When a member has arrived: thresholds, or a function of where it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from thalweg.errors import InputError, is_number, unknown
from thalweg.inputs import written_in_jax
from thalweg.observables import NAMED, At, Observable

_FROM_ZERO = ("movement", "relative_movement")
# Observables with a state cannot be evaluated at an arbitrary step.
_STATELESS = {
    name: seen
    for name, seen in NAMED.items()
    if not isinstance(seen, Observable) and name not in _FROM_ZERO
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stop:
    """A stopping rule: met where any of its measures is at or below its limit.

    `limits` are the thresholds by name; alternatively, `function` is the user's own, of `at`. `first` is the
    step at which a descent begins: what an optimizer records of an update is not known there. All numbers are
    traced.
    """

    limits: dict[str, Any]
    function: Any
    first: Any

    def met(self, at: At, info: dict[str, Any]) -> Any:
        """Whether the member at `at` has arrived. `info` is what the optimizer recorded of its update."""
        if self.function is not None:
            with written_in_jax("stop"):
                return self.function(at)
        met = jnp.zeros((), bool)
        for name, limit in self.limits.items():
            if name == "loss":
                below = at.loss <= limit
            elif name in _STATELESS:
                below = _STATELESS[name](at) <= limit
            else:
                below = (info[name] <= limit) & (at.step > self.first)
            met |= below
        return met

    def check(self, at: At, info: dict[str, Any]) -> None:
        """An InputError where the rule does not fit what the descent provides. It is traced, not computed."""
        numbers = [name for name, value in info.items() if getattr(value, "shape", None) == ()]
        for name in self.limits:
            if name not in ("loss", *_STATELESS, *numbers):
                raise unknown("stop", name, ["loss", *_STATELESS, *numbers])
        with written_in_jax("stop"):
            verdict = jax.eval_shape(self.met, at, info)
        if getattr(verdict, "shape", None) != () or verdict.dtype != bool:
            raise InputError(
                "stop= as a function of `at` must return one boolean, such as at.loss < 1e-6."
            )


def rule(stop: Any, first: int) -> Stop | None:
    """The stopping rule that `stop=` describes, for a descent that begins at step `first`.

    Raises:
        InputError: neither a mapping from names to numbers nor a function.
    """
    if stop is None:
        return None
    start = np.int32(first)
    if callable(stop):
        return Stop({}, stop if isinstance(stop, Partial) else Partial(stop), start)
    if not isinstance(stop, Mapping) or not stop:
        raise InputError(
            'stop= must be a mapping from names to thresholds, such as {"loss": 1e-20}, or a function '
            f"of `at`; {stop!r} given."
        )
    limits = {}
    for name, limit in stop.items():
        if name in _FROM_ZERO:
            raise InputError(
                f"stop: {name!r} is 0 at the start, and a threshold is met from above; give a function, "
                f"such as lambda at: thalweg.{name}(at) >= 1."
            )
        if name in NAMED and name not in _STATELESS:
            raise InputError(
                f"stop: {name!r} has a state of its own and cannot be asked for at any step; give a "
                f"function of `at`, or one of {', '.join(_STATELESS)}."
            )
        if not is_number(limit) or math.isnan(limit):
            raise InputError(f"stop: the threshold of {name!r} must be a number; {limit!r} given.")
        limits[str(name)] = np.float64(limit)
    return Stop(limits, None, start)


def as_settings(stop: Any) -> Any:
    """`stop=` as JSON can hold it; a function is stored by its name."""
    return {k: float(v) for k, v in stop.items()} if isinstance(stop, Mapping) else stop


def is_again(stop: Any, settings: Mapping[str, Any]) -> bool:
    """Whether `stop` has the thresholds in a descent's settings. Functions cannot be compared."""
    return isinstance(stop, Mapping) and settings.get("stop") == as_settings(stop)
