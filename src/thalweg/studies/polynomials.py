"""Fits by lines and polynomials, and the ones with the least mean absolute error (MAE)."""

from __future__ import annotations

import numpy as np
import xarray as xr

_GRID = 1000  # points of a fitted curve


def fit(x: np.ndarray, y: np.ndarray, coefficients: np.ndarray) -> xr.Dataset:
    """A polynomial's fit from its coefficients (c0, …), and its losses over all the data."""
    coefficients = np.asarray(coefficients, float)
    grid = np.linspace(x.min(), x.max(), _GRID)
    yhat = np.polynomial.polynomial.polyval(x, coefficients)
    return xr.Dataset(
        {
            "x": ("sample", x),
            "y": ("sample", y),
            "yhat": ("sample", yhat),
            "x_grid": ("grid", grid),
            "yhat_grid": ("grid", np.polynomial.polynomial.polyval(grid, coefficients)),
            "coefficients": ("power", coefficients),
            "mse": ((), np.mean((yhat - y) ** 2)),
            "mae": ((), np.mean(np.abs(yhat - y))),
        }
    )


def final_coefficients(path: xr.Dataset) -> np.ndarray:
    """(c0, c1, …) at the end of a path: by name, c10 stands before c2."""
    names = [str(name) for name in path["param"].values]
    line = names == ["intercept", "slope"]
    order = names if line else [f"c{power}" for power in range(len(names))]
    return path["final"].sel(param=order).values


def least_absolute(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """(c0, …) of the polynomial with the least MAE, by a linear program.

    Minimise Σ t_k / n with −t_k ≤ p(x_k) − y_k ≤ t_k (Charnes, Cooper & Ferguson, 1955), over the
    coefficients in an orthonormal basis: powers of x are nearly dependent. NaN where that fails, as
    with data that overflow.
    """
    from scipy.optimize import linprog

    powers = np.vander(x, degree + 1, increasing=True)
    basis = np.linalg.qr(powers)[0]
    n, p = basis.shape
    each = np.eye(n)
    solved = linprog(
        np.concatenate([np.zeros(p), np.full(n, 1 / n)]),
        A_ub=np.block([[basis, -each], [-basis, -each]]),
        b_ub=np.concatenate([y, -y]),
        bounds=[(None, None)] * p + [(0, None)] * n,
    )
    if not solved.success:
        return np.full(degree + 1, np.nan)
    return np.linalg.lstsq(powers, basis @ solved.x[:p], rcond=None)[0]
