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
# # Solutions: lazy training of linear models

# %%
from functools import partial

import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.regression("middle", 15, seed=0)


def features(dimension, x=x, **options):
    return np.asarray(models.fourier_features(x, dimension, **options))


def problem(dimension, **options):
    init = partial(models.init_mlp, (dimension, 1))
    return tw.Problem(models.mlp, "mse", features(dimension, **options), y, init=init)


def design(dimension):
    """The bias's column first, as in the order of the parameters."""
    return np.column_stack([np.ones(len(x)), features(dimension)])


# %% [markdown]
# ## 1. The dead sine
#
# For j = 0 the sine is zero and the cosine is one: a weight that nothing moves, and a second bias. Left
# out, another frequency takes their place, and the best fit improves.

# %%
ax = None
for first in (0, 1):
    path = tw.descend(problem(8, first=first), tw.SGD(lr=0.01), steps=2000)
    ax = tw.plot.loss(path, x="log", ax=ax, label=f"first = {first}")

# %% [markdown]
# ## 2. The largest stable learning rate
#
# The Hessian of the mean squared error is 2/n ΦᵀΦ.

# %%
largest = np.linalg.svd(design(200), compute_uv=False)[0] ** 2
fastest = len(x) / largest
path = tw.descend(problem(200), tw.SGD(lr=[0.98 * fastest, 1.02 * fastest]), steps=1000)
print(f"2/λ_max = {fastest:.4f}; losses at the end: {path['loss'].values[-1]}")
tw.plot.loss(path, x="log")

# %% [markdown]
# ## 3. Where it ends
#
# `lstsq` gives the shortest step to a best fit. Directions with small eigenvalues are still on their way
# after 20,000 steps: the loss is small, the distance a little less so.

# %%
path = tw.descend(problem(50), tw.SGD(lr=0.01), steps=20_000, every=100)
start, final = path["start"].values, path["final"].values
step = np.linalg.lstsq(design(50), y - design(50) @ start, rcond=None)[0]
print("movement:", np.linalg.norm(final - start), "to the nearest fit:", np.linalg.norm(step))
print("still to go:", np.linalg.norm(start + step - final))

# %% [markdown]
# ## 4. One over the root
#
# The kernel grows as the dimension and the residuals at the start do not: the slope is −1/2 where
# there are many more features than samples.

# %%
dimensions = [20, 40, 80, 160, 320, 640]
moved = np.empty((len(dimensions), 10))
for i, dimension in enumerate(dimensions):
    path = tw.descend(problem(dimension), tw.SGD(lr=0.01), steps=0, runs=10)
    start = path["start"].values
    step = np.linalg.lstsq(design(dimension), y[:, None] - design(dimension) @ start, rcond=None)[0]
    moved[i] = np.linalg.norm(step, axis=0) / np.linalg.norm(start, axis=0)
table = xr.DataArray(
    moved, {"dimension": dimensions, "run": range(10)}, name="movement to the nearest fit"
)
tw.plot.curve(table, x="log", y="log", slope=(80, 640))

# %% [markdown]
# ## 5. From zero
#
# There is nothing between the samples that training would have to take down, so the fit of least norm
# is left. The start has norm zero, so the absolute movement is drawn, and the picture says so.

# %%
wide = problem(200)
zero = wide.at(wide.unflatten(np.zeros(wide.size)))
path = tw.descend(zero, tw.SGD(lr=0.01), steps=1000, record=["relative_movement"])
grid = np.linspace(-1, 1, 2401)
yhat = models.mlp(zero.unflatten(path["final"].values), features(200, grid))
tw.plot.fit(
    xr.Dataset(
        {
            "x": ("sample", x),
            "y": ("sample", y),
            "x_grid": ("grid", grid),
            "yhat_grid": ("grid", yhat),
        }
    )
)

# %%
tw.plot.movement(path, x="log")

# %% [markdown]
# ## 6. Slower waves
#
# On [−1, 1] slow sines and cosines are nearly dependent: the kernel has a few large eigenvalues and very
# many tiny ones, and what lies along those takes forever. A method that is indifferent to the
# eigenvalues would not mind.

# %%
for frequency in (2 * np.pi, 0.2 * np.pi):
    phi = np.column_stack([np.ones(15), features(30, frequency=frequency)])
    eigenvalues = np.linalg.eigvalsh(phi @ phi.T)[::-1]
    print(
        f"ω = {frequency:.3g}:", " ".join(f"{value:.1e}" for value in eigenvalues[[0, 3, 6, 9, 12]])
    )
path = tw.descend(problem(30, frequency=0.2 * np.pi), tw.SGD(lr=0.01), steps=3000, every=10)
ax = tw.plot.loss(path, x="log", label="SGD")
best = tw.descend(problem(30, frequency=0.2 * np.pi), tw.LBFGS(), steps=20)
tw.plot.loss(best, x="log", ax=ax, label="LBFGS, 20 inner iterations a step")
