# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient descent on least squares, seen in the right basis
#
# Random data X (p × n) and Y (n); w ← w − ηXXᵀw + ηXY descends ½‖Xᵀw − Y‖². Sizes here are smaller than in
# the study (`thalweg run eigenbasis`), so that every cell takes a second or so.

# %%
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import random_matrices


def half_square(yhat, y):
    return 0.5 * (yhat - y) ** 2


def linear(w, x):
    return x @ w


def draw(p, n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((p, n)) / np.sqrt(n)
    return X, rng.standard_normal(n), rng.standard_normal(p) / np.sqrt(p)


p, n, eta, T = 60, 1200, 0.002, 600
X, Y, w0 = draw(p, n)
problem = tw.Problem(linear, half_square, X.T, Y, params=w0, reduction="sum")
path = tw.descend(problem, tw.SGD(lr=eta), steps=T, record=["relative_movement"])

# %% [markdown]
# ## How far do the loss and the parameters go?
#
# The plotted loss is ‖Xᵀw − Y‖²/n. Why does it begin near 1, and why can it not fall much?

# %%
figure, axes = tw.plot.grid(1, 2, title=f"p = {p}, n = {n}")
path = path.assign(plotted=2 * path["loss"] / n)
tw.plot.record(path, "plotted", y="linear", ax=axes[0, 0], title="Loss ‖Xᵀw − Y‖²/n")
tw.plot.movement(path, ax=axes[0, 1])
figure

# %% [markdown]
# ## Is XXᵀ the identity?
#
# Off the diagonal its entries are small. And its eigenvalues?

# %%
values, P = np.linalg.eigh(X @ X.T)
tw.plot.matrix(X @ X.T, limits=(-0.1, 0.1), center=0, title="XXᵀ")

# %%
edges = random_matrices.marchenko_pastur_edges(p / n)
at = np.linspace(*edges, 200)
density = xr.DataArray(
    random_matrices.marchenko_pastur(at, p / n), {"eigenvalue": at}, name="Marchenko–Pastur"
)
tw.plot.spectrum(values, density=density, edges=edges, bins=12)

# %% [markdown]
# ## How far has each coordinate gone?
#
# Left in the given basis, right in that of the eigenvectors, in the same colours. What decides how
# fast a row on the right fills?

# %%
moved = path["params"].values - w0
given = xr.DataArray(
    np.abs(moved).T, {"coordinate": np.arange(p), "step": path["step"]}, name="distance"
)
eigen = xr.DataArray(
    np.abs(moved @ P).T, {"eigenvalue": values, "step": path["step"]}, name="distance"
)
figure, axes = tw.plot.grid(1, 2)
limits = (0, max(given.max().item(), eigen.max().item()))
tw.plot.matrix(given, limits=limits, ax=axes[0, 0], title="Given basis", colorbar=False)
tw.plot.matrix(eigen, limits=limits, ax=axes[0, 1], title="Eigenvectors")
figure

# %% [markdown]
# ## Does the closed form hold?
#
# w_t = w* + P(I − ηΛ)^t Pᵀ(w_0 − w*): the difference should be rounding.

# %%
best = np.linalg.solve(X @ X.T, X @ Y)
t = path["step"].values[:, None]
closed = best + ((1 - eta * values) ** t * (P.T @ (w0 - best))) @ P.T
np.abs(path["params"].values - closed).max()

# %% [markdown]
# ## Exercises
#
# 1. **The pace.** Plot the share of its way to w* that each eigendirection has gone at the end against
#    its eigenvalue, with the theory as a line.
# 2. **The threshold.** Sweep η over values just below and just above 2/λ_max. What does the movement
#    along the first eigenvector look like, and along the others?
# 3. **The missing ½.** Which learning rate gives the same path with the loss `"mse"` and
#    `reduction="sum"`? And with the mean?
# 4. **More parameters than samples.** Draw p = 60, n = 20. Which directions never move? Start from
#    zero: where does the descent go, and what is it called?
# 5. **Correlated features.** Multiply the rows of X by numbers from 1 down to 0.03. How does the condition
#    number change, and how far do the slow directions get in the same number of steps?
# 6. **Open.** Give the descent of exercise 5 momentum. Write down its closed form in the eigenbasis,
#    find the momentum that serves the slowest direction best, and see how far it gets.
