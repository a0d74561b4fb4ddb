"""Parse settings that are texts: name=value,name=value."""

from __future__ import annotations

from typing import Any

from thalweg.errors import InputError


def assignments(what: str, text: str) -> list[tuple[str, str]]:
    """The names and values of a text such as "weight=6,bias=-3".

    Raises:
        InputError: a part without a name or a value; the message begins with `what`.
    """
    pairs: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise InputError(f"{what}: name=value was expected; {part!r} given.")
        if name.strip() in dict(pairs):
            raise InputError(f"{what}: {name.strip()!r} was given twice.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def options_of(text: str) -> dict[str, Any]:
    """An optimizer's options, as in "momentum=0.9,nesterov=true": numbers, truth values, words."""
    options: dict[str, Any] = {}
    for name, value in assignments("options", text):
        if value.lower() in ("true", "false"):
            options[name] = value.lower() == "true"
            continue
        try:
            options[name] = float(value)
        except ValueError:
            options[name] = value
    return options
