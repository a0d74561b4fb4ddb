"""Thalweg: see and measure how optimizers move through loss landscapes.

Names are loaded when they are first used, so that `import thalweg` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that holds it
_NAMES = {
    "Problem": "problem",
    "InputError": "errors",
    "SGD": "optimizers",
    "descend": "descent",
    "Plane": "planes",
    "coordinate_plane": "planes",
    "line": "planes",
    "landscape": "landscapes",
    "save": "results",
    "load": "results",
    "project": "results",
}
# public name of a module -> the module
_MODULES = {
    "losses": "losses",
    "optimizers": "optimizers",
}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"thalweg.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"thalweg.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
