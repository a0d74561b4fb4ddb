"""Pages from templates: reports, the index of several, the player of a film."""

from __future__ import annotations

from importlib import resources
from typing import Any


def rendered(template: str, **values: Any) -> str:
    """A template of the package, filled with these values; a value that the template misses is an error."""
    import jinja2

    text = resources.files("thalweg").joinpath(template).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text).render(**values)
