"""The error for bad input, and the sentence that suggests the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was asked for cannot be done as given.

    Its message is one line that names what was given, what was expected and what to do.
    The command prints that line and exits with status 2.
    """


class MemoryEstimateError(InputError, MemoryError):
    """The result would not fit in memory; the message gives its size and what to lower."""


def unknown(kind: str, given: object, known: Iterable[str]) -> InputError:
    """An error for a name that is not among `known`, with the nearest one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(f"unknown {kind} {given!r}{hint} Known: {', '.join(known)}.")
