"""Thalweg: see and measure how optimizers move through loss landscapes.

Names are loaded when they are first used, so that `import thalweg` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The names below once more, for type checkers and editors, which cannot follow `__getattr__`
    from thalweg import losses as losses
    from thalweg import optimizers as optimizers
    from thalweg import plots
    from thalweg import report as report
    from thalweg import studies as studies
    from thalweg.attraction import basins as basins
    from thalweg.curvature import Curvature as Curvature
    from thalweg.curvature import fisher as fisher
    from thalweg.curvature import gauss_newton as gauss_newton
    from thalweg.curvature import gradient_covariance as gradient_covariance
    from thalweg.curvature import gradient_norms as gradient_norms
    from thalweg.curvature import hessian as hessian
    from thalweg.descent import descend as descend
    from thalweg.directions import hessian_plane as hessian_plane
    from thalweg.directions import interpolation as interpolation
    from thalweg.directions import pca_plane as pca_plane
    from thalweg.directions import random_plane as random_plane
    from thalweg.edge import preconditioned_sharpness as preconditioned_sharpness
    from thalweg.edge import sharpness as sharpness
    from thalweg.errors import InputError as InputError
    from thalweg.files import load as load
    from thalweg.files import save as save
    from thalweg.flows import gradient_flow as gradient_flow
    from thalweg.graphs import computation_graph as computation_graph
    from thalweg.landscapes import landscape as landscape
    from thalweg.lazy import linearize as linearize
    from thalweg.lazy import scale_output as scale_output
    from thalweg.linear import least_squares as least_squares
    from thalweg.measuring import measure as measure
    from thalweg.noise import gradient_noise as gradient_noise
    from thalweg.noise import sample_gradient_norms as sample_gradient_norms
    from thalweg.observables import Observable as Observable
    from thalweg.observables import empirical_risk as empirical_risk
    from thalweg.observables import expected_risk as expected_risk
    from thalweg.observables import gradient_norm as gradient_norm
    from thalweg.observables import movement as movement
    from thalweg.observables import movement_by_parameter as movement_by_parameter
    from thalweg.observables import relative_movement as relative_movement
    from thalweg.observables import risk_on as risk_on
    from thalweg.observables import successive_change as successive_change
    from thalweg.optimizers import ASGD as ASGD
    from thalweg.optimizers import LBFGS as LBFGS
    from thalweg.optimizers import SGD as SGD
    from thalweg.optimizers import Adadelta as Adadelta
    from thalweg.optimizers import Adagrad as Adagrad
    from thalweg.optimizers import Adam as Adam
    from thalweg.optimizers import Adamax as Adamax
    from thalweg.optimizers import AdamW as AdamW
    from thalweg.optimizers import GaussNewton as GaussNewton
    from thalweg.optimizers import LevenbergMarquardt as LevenbergMarquardt
    from thalweg.optimizers import NAdam as NAdam
    from thalweg.optimizers import RAdam as RAdam
    from thalweg.optimizers import RMSprop as RMSprop
    from thalweg.optimizers import Rprop as Rprop
    from thalweg.optimizers import optax as optax
    from thalweg.planes import Plane as Plane
    from thalweg.planes import coordinate_plane as coordinate_plane
    from thalweg.planes import line as line
    from thalweg.plots import animations, interactive
    from thalweg.problem import Problem as Problem
    from thalweg.programs import clear_caches as clear_caches
    from thalweg.projection import project as project
    from thalweg.pytorch import from_torch as from_torch
    from thalweg.pytorch import to_torch as to_torch
    from thalweg.recording import record as record
    from thalweg.recording import trajectory as trajectory
    from thalweg.stability import stability_threshold as stability_threshold
    from thalweg.studies import rerun as rerun
    from thalweg.tangents import jacobian as jacobian
    from thalweg.tangents import kernel_drift as kernel_drift
    from thalweg.tangents import ntk as ntk

    # an import under another name would be private
    animate = animations
    plot = plots
    plotly = interactive

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


if not TYPE_CHECKING:  # with it, a misspelt name would be of any type

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
