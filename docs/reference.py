"""The page of all public names: `python -m docs.reference`, from the repository's root.

What it says of each is its signature and the first paragraph of its docstring.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from pathlib import Path
from typing import Any

import thalweg as tw

PAGE = Path(__file__).parent / "reference.md"

_HEAD = """\
# Every name

Signatures, and what each is in a sentence; `help(thalweg.descend)` has the arguments, what is returned
and what is raised. This page is written by `python -m docs.reference`.
"""

# title -> (the page that tells of them, names in `thalweg`)
_GROUPS = {
    "What is minimised": ("../README.md#your-model", ("Problem", "least_squares", "InputError")),
    "Optimizers": (
        "descents.md",
        (
            "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Rprop",
            "ASGD", "LBFGS", "optax", "GaussNewton", "LevenbergMarquardt", "optimizers.Optimizer",
            "optimizers.hyper", "optimizers.switch",
        ),
    ),
    "Descents": ("descents.md", ("descend", "gradient_flow", "basins", "measure")),
    "What is measured along a descent": (
        "descents.md",
        (
            "Observable", "gradient_norm", "empirical_risk", "expected_risk", "risk_on", "movement",
            "relative_movement", "movement_by_parameter", "successive_change", "kernel_drift", "sharpness",
            "preconditioned_sharpness", "stability_threshold", "gradient_noise", "sample_gradient_norms",
        ),
    ),
    "Planes and landscapes": (
        "curvature.md",
        (
            "Plane", "coordinate_plane", "line", "interpolation", "random_plane", "pca_plane",
            "hessian_plane", "landscape", "project",
        ),
    ),
    "Curvature": (
        "curvature.md",
        ("hessian", "gauss_newton", "fisher", "gradient_covariance", "gradient_norms", "Curvature"),
    ),
    "Tangents and lazy training": (
        "studies/lazy-scaling.md", ("jacobian", "ntk", "linearize", "scale_output"),
    ),
    "PyTorch": ("pytorch.md", ("from_torch", "to_torch", "record", "trajectory")),
    "Results": ("results.md", ("save", "load", "rerun")),
    "Programs": ("studies/regression-tour.md", ("computation_graph", "clear_caches")),
}  # fmt: skip
# public modules: name -> the page that tells of them
_MODULES = {
    "plot": "plots.md",
    "plotly": "interactive.md",
    "animate": "interactive.md",
    "losses": "../README.md#your-model",
    "studies": "../README.md#the-studies",
    "report": "../README.md#the-studies",
}


def text() -> str:
    """The page."""
    parts = [_HEAD]
    for title, (page, names) in _GROUPS.items():
        entries = [_entry(f"tw.{name}", attrgetter(name)(tw)) for name in names]
        parts += [f"## {title}\n", f"{_more(page)}\n", *entries, ""]
    for name, page in _MODULES.items():
        module = getattr(tw, name)
        found = {f"tw.{name}.{own}": getattr(module, own) for own in module.__all__}
        entries = [_entry(own, value) for own, value in found.items() if callable(value)]
        parts += [f"## `tw.{name}`\n", f"{_first(module)} {_more(page)}\n", *entries, ""]
    return "\n".join(parts)


def _more(page: str) -> str:
    return f"More in [{Path(page.split('#')[0]).name}]({page})."


def _entry(name: str, value: Any) -> str:
    # an observable is recorded, and not called
    arguments = "" if isinstance(value, tw.Observable) else f"`{_signature(value)}`"
    lines = [f"- **`{name}`**{arguments}  ", f"  {_first(value)}"]
    if inspect.isclass(value) and not issubclass(value, (Exception, tw.optimizers.Optimizer)):
        lines += [f"    - {line}" for line in _methods(value)]
    return "\n".join(lines)


def _methods(cls: type) -> list[str]:
    """The public methods and properties of a class that have something to say."""
    lines = []
    for name, value in vars(cls).items():
        said = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        said = getattr(said, "func", said)
        if name.startswith(("_", "tree_")) or not inspect.isfunction(said) or not said.__doc__:
            continue
        is_property = not (inspect.isfunction(value) or isinstance(value, classmethod))
        shown = "" if is_property else _signature(said, bound=True)
        lines.append(f"`.{name}{shown}`: {_first(said)}")
    return lines


def _signature(value: Any, bound: bool = False) -> str:
    """The arguments with their defaults."""
    signature = inspect.signature(value)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    shown = signature.replace(parameters=bare[bound:], return_annotation=inspect.Signature.empty)
    return str(shown).replace("=<factory>", "=…")


def _first(value: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
