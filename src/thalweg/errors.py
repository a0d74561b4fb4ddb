"""The error for bad input, and the sentence that suggests the nearest name."""

from __future__ import annotations

import difflib
import importlib
import math
import numbers
import re
import warnings
from collections.abc import Collection, Iterable
from typing import Any

_LISTED = 20  # most known names that an error lists; a network may have thousands of parameters


class InputError(ValueError):
    """What was asked for cannot be done as given.

    Its message is one line that names what was given, what was expected and what to do.
    The command prints that line and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # The message may contain a repr of the user's value, which may have several lines.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class MemoryEstimateError(InputError, MemoryError):
    """The result would not fit in memory; the message gives its size and what to lower."""


class MissingExtra(InputError):  # noqa: N818  (what is missing is an extra, not an error)
    """What was asked for needs an optional library that is not installed."""


class NotConverged(UserWarning):
    """An iteration ended at its limit: its result is approximate, and the message says how far."""

    @classmethod
    def warn(cls, message: str) -> None:
        warnings.warn(message, cls, stacklevel=4)


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line without its full stop and its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def optional(module: str, what: str, extra: str) -> Any:
    """Import a module of an optional library, as in

        optional("plotly.graph_objects", "interactive figures need", extra="plotly")

    Raises:
        MissingExtra: it is not installed; the message says which extra brings it.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise  # the library is installed, but one of its own dependencies is not
        name = library.replace("_", "-")
        raise MissingExtra(f"{what} {name}: pip install 'thalweg[{extra}]'") from None


def unknown(kind: str, given: object, known: Iterable[str]) -> InputError:
    """An error for a name that is not among `known`, with the nearest one suggested."""
    known = sorted(known)
    lower = [name.lower() for name in known]
    asked = str(given).lower()
    # an abbreviation looks unlike the whole name, and may look like another one
    near = [name for name in lower if asked and name.startswith(asked)]
    near = near or difflib.get_close_matches(asked, lower, n=1, cutoff=0.5)
    hint = f"; did you mean {known[lower.index(near[0])]!r}?" if near else "."
    more = f", … ({len(known)} in all)" if len(known) > _LISTED else ""
    return InputError(
        f"unknown {kind} {given!r:.80}{hint} Known: {', '.join(known[:_LISTED])}{more}."
    )


def one_of(kind: str, given: object, known: Collection[str]) -> None:
    """An InputError unless a setting is one of the `known` names."""
    if not isinstance(given, str) or given not in known:
        raise unknown(kind, given, known)


def is_number(value: object) -> bool:
    """Whether a setting is one real number, Python's or NumPy's, and not a boolean, which Python takes for
    one."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def real(value: Any) -> float:
    """`value` as a float, an array of one number too; NaN where it is no real number."""
    try:
        return math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def is_whole(value: Any) -> bool:
    """Whether a setting is one whole number; 2.0 is one."""
    return is_number(value) and (isinstance(value, int) or float(value).is_integer())


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`."""
    if is_whole(value) and value >= least:
        return int(value)
    raise InputError(f"{name} must be a whole number of at least {least}; {value!r:.80} given.")
