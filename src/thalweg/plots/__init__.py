"""Static pictures of results, in matplotlib.

Every function takes `ax=` (or `figure=`, where there are several panels), makes one if there is
none, and returns it. None shows a figure, and none changes a number: what a picture leaves out, the
picture says. Results are read through their schema alone, so that a saved file draws without JAX.
"""

from thalweg.plots.attraction import basins
from thalweg.plots.bands import quantile_levels
from thalweg.plots.convergence import convergence
from thalweg.plots.curvature import density, explained_variance, sharpness
from thalweg.plots.curves import loss, movement, record
from thalweg.plots.elevation import surface
from thalweg.plots.fits import batches, fit, fit_and_residuals, points, residual_scatter, residuals
from thalweg.plots.graphs import graph
from thalweg.plots.histograms import histogram
from thalweg.plots.matrices import matrix, spectrum
from thalweg.plots.panels import grid, risks, step_panels
from thalweg.plots.paths import mark, path
from thalweg.plots.quantities import curve, log_slope
from thalweg.plots.regression import functions, targets
from thalweg.plots.surfaces import contour, heatmap, profile
from thalweg.plots.tensors import movement_by_parameter

__all__ = [
    "basins",
    "batches",
    "contour",
    "convergence",
    "curve",
    "density",
    "explained_variance",
    "fit",
    "fit_and_residuals",
    "functions",
    "graph",
    "grid",
    "heatmap",
    "histogram",
    "log_slope",
    "loss",
    "mark",
    "matrix",
    "movement",
    "movement_by_parameter",
    "path",
    "points",
    "profile",
    "quantile_levels",
    "record",
    "residual_scatter",
    "residuals",
    "risks",
    "sharpness",
    "spectrum",
    "step_panels",
    "surface",
    "targets",
]
