"""A study of given figures, for tests of what is done with figures."""

import dataclasses
import sys
import types

import xarray as xr

from thalweg import studies
from thalweg.studies import Drawing, Findings


@dataclasses.dataclass(frozen=True)
class Settings:
    """None."""


def of_figures(patch, **things):
    """The result of a study that draws `things`; `patch` is a pytest.MonkeyPatch."""
    module = types.ModuleType("thalweg.studies.of_figures")
    module.TITLE = "Figures"
    module.Settings = Settings
    module.run = lambda settings: {"data": xr.Dataset({"x": ("sample", [1.0])})}
    module.figures = lambda tree, settings: (
        (name.replace("_", "-"), Drawing.of(thing, f"The {name} & its caption."))
        for name, thing in things.items()
    )
    module.findings = lambda tree, settings: Findings(
        {"x": "1"}, ("See x.",), tables={"Parts & sizes": [("part", "size"), ("a < b", "2")]}
    )
    patch.setitem(sys.modules, module.__name__, module)
    patch.setitem(studies.STUDIES, "of-figures", "its figures")
    return studies.run("of-figures")
