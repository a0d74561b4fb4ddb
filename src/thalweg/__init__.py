"""Thalweg: see and measure how optimizers move through loss landscapes.

Names are loaded when they are first used, so that `import thalweg` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

# public name -> the module that holds it
_NAMES = {
    "InputError": "errors",
    "Problem": "problem",
    # optimizers
    **dict.fromkeys(
        (
            "ASGD", "LBFGS", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam",
            "RAdam", "RMSprop", "Rprop", "optax",
            "GaussNewton", "LevenbergMarquardt",
        ),
        "optimizers",
    ),
    "least_squares": "linear",
    # descents, and what is measured along them
    "descend": "descent",
    "gradient_flow": "flows",
    "basins": "attraction",
    "measure": "measuring",
    **dict.fromkeys(
        (
            "Observable", "empirical_risk", "expected_risk", "gradient_norm", "movement",
            "movement_by_parameter", "relative_movement", "risk_on", "successive_change",
        ),
        "observables",
    ),
    # first order: tangents, and the problems that lazy training is about
    **dict.fromkeys(("jacobian", "kernel_drift", "ntk"), "tangents"),
    **dict.fromkeys(("linearize", "scale_output"), "lazy"),
    # second order: curvature, and how far it lets an optimizer go
    **dict.fromkeys(
        (
            "Curvature", "fisher", "gauss_newton", "gradient_covariance", "gradient_norms",
            "hessian",
        ),
        "curvature",
    ),
    **dict.fromkeys(("preconditioned_sharpness", "sharpness"), "edge"),
    **dict.fromkeys(("gradient_noise", "sample_gradient_norms"), "noise"),
    "stability_threshold": "stability",
    # where to look, and what is there
    **dict.fromkeys(("Plane", "coordinate_plane", "line"), "planes"),
    **dict.fromkeys(
        ("hessian_plane", "interpolation", "pca_plane", "random_plane"), "directions"
    ),
    "landscape": "landscapes",
    # PyTorch: its models, its loops, its checkpoints
    **dict.fromkeys(("from_torch", "to_torch"), "pytorch"),
    **dict.fromkeys(("record", "trajectory"), "recording"),
    # what a function computes
    "computation_graph": "graphs",
    "clear_caches": "programs",
    # results
    **dict.fromkeys(("load", "save"), "files"),
    "project": "projection",
    "rerun": "studies",
}  # fmt: skip
# public name of a module -> the module
_MODULES = {
    "animate": "plots.animations",
    "losses": "losses",
    "optimizers": "optimizers",
    "plot": "plots",
    "plotly": "plots.interactive",
    "report": "report",
    "studies": "studies",
}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(_imported(_NAMES[name]), name)
    elif name in _MODULES:
        value = _imported(_MODULES[name])
    else:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    globals()[name] = value
    return value


def _imported(module: str) -> Any:
    """A module of ours. JAX draws from NumPy's global random numbers when it is imported: the user's go on as
    if it had not."""
    random = sys.modules.get("numpy.random")
    state = random.get_state() if random else None
    try:
        return importlib.import_module(f"thalweg.{module}")
    finally:
        if random:
            random.set_state(state)


def __dir__() -> list[str]:
    return sorted(__all__)
