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
# # Training and true risk against the number of features
#
# Fifty noisy samples of a function with two kinks; linear models on sines and cosines, from 2 to 98 of
# them, trained by gradient descent from three starts each. Sizes here are smaller than in the study
# (`thalweg run bias-complexity`).

# %%
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models
from thalweg.catalogue.random_matrices import noise_risk

n, noise, width = 50, 0.05, 98
x, y = data.regression("middle", n, noise=noise, seed=0)
nodes, weights = np.polynomial.legendre.leggauss(200)
truth = data.TARGETS["middle"](nodes)


def waves(x, p, frequency=0.2 * np.pi):
    """p features, and columns of zeros up to the width: one compiled program serves every p."""
    every = models.fourier_features(x, width, frequency=frequency)
    return np.where(np.arange(width) < p, every, 0)


def descend(p, lr=0.1, steps=1000, y=y, frequency=0.2 * np.pi):
    """Three descents with p features, and their true risk at the end.

    Starts are those of PyTorch's Linear, U(−1/√p, 1/√p), and zero beyond p.
    """
    zero = {"weight": np.zeros(width), "bias": 0.0}
    problem = tw.Problem(models.line, "mse", waves(x, p, frequency), y, params=zero)
    there = tw.Problem(models.line, "mse", waves(nodes, p, frequency), truth, params=zero)
    drawn = np.random.default_rng(p).uniform(-1, 1, (3, p + 1)) / np.sqrt(p)
    starts = {"weight": np.pad(drawn[:, 1:], [(0, 0), (0, width - p)]), "bias": drawn[:, 0]}
    path = tw.descend(problem, tw.SGD(lr=lr), steps=steps, starts=starts, every=steps)
    ends = [there.unflatten(final) for final in path["final"].values.T]
    return path, np.array([weights @ there.pointwise(end) for end in ends]) / 2


# %% [markdown]
# ## What does one model learn?
#
# Thirty features beside the target: where does the model fail to follow?

# %%
path, true = descend(30)
grid = np.linspace(-1, 1, 201)
bias, weight = path["final"].values[0, 0], path["final"].values[1:, 0]
table = xr.Dataset(
    {
        "x": ("sample", x),
        "y": ("sample", y),
        "x_grid": ("grid", grid),
        "yhat_grid": (
            ("grid", "curve"),
            np.stack([data.TARGETS["middle"](grid), waves(grid, 30) @ weight + bias], axis=1),
        ),
    },
    {"curve": ["target", "30 features"]},
)
tw.plot.fit(table)

# %% [markdown]
# ## How many features are best?
#
# Mean risks over three starts after 1,000 steps. Where is the model too simple, where too complex? And
# is there anything to see at p = n = 50?

# %%
dimensions = [2, 4, 6, 8, 10, 14, 20, 30, 40, 50, 60, 74, 86, 98]
rows = []
for p in dimensions:
    path, true = descend(p)
    rows.append([path["loss"].values[-1], true])
risks = xr.DataArray(
    np.array(rows),
    {"p": dimensions, "risk": ["training risk", "true risk"]},
    ("p", "risk", "run"),
    name="mean squared error",
)
tw.plot.curve(risks, "p", y="log", middle="mean")

# %% [markdown]
# ## How many features are there, really?
#
# The numerical rank of the matrix of features beside their number.

# %%
rank = [np.linalg.matrix_rank(waves(x, p)) for p in dimensions]
both = xr.DataArray(
    np.array([dimensions, rank], float),
    {"which": ["p", "numerical rank"], "p": dimensions},
    name="dimensions",
)
tw.plot.curve(both, "p", title="Nearly dependent features")

# %% [markdown]
# ## Where theory has the peak
#
# Least squares of minimum norm on independent normal features: what the labels' noise costs.

# %%
rng = np.random.default_rng(0)
counts = [5, 10, 20, 30, 40, 44, 48, 52, 56, 60, 80, 100, 150]
cost = []
for p in counts:
    design, errors = rng.standard_normal((100, n, p)), noise * rng.standard_normal((100, n, 1))
    cost.append(((np.linalg.pinv(design) @ errors) ** 2).sum(axis=(1, 2)))
cost = xr.DataArray(np.array(cost), {"p": counts}, ("p", "draw"), name="excess risk")
ax = tw.plot.curve(
    cost, "p", over="draw", middle="mean", band="error", y="log", line=False, label="measured"
)
for name, at in (("p < n", np.linspace(5, 48, 100)), ("p > n", np.linspace(52, 150, 100))):
    theory = xr.DataArray(noise_risk(at, n, noise), {"p": at}, name="excess risk")
    tw.plot.curve(theory, y="log", points=False, label=f"theory, {name}", ax=ax)
ax

# %% [markdown]
# ## Exercises
#
# 1. **Noise.** Draw the second figure for noise 0.3. Which number of features is best now?
# 2. **Stopping.** With 98 features, follow training and true risk over 10, 100, 1,000 and 10,000 steps.
#    Which number of steps is best, and what is it a substitute for?
# 3. **The threshold.** Compute 2/λ_max for each number of features, and check it: descend just below and
#    just above it.
# 4. **Real rank.** With ω = π the waves are orthogonal on [−1, 1]. What is the rank of 50 features now,
#    and what does the sweep look like?
# 5. **The peak after all.** Fit the features of exercise 4 by least squares of minimum norm
#    (`np.linalg.pinv`) in place of gradient descent. Is there a peak at p = n?
# 6. **Open.** In the last figure, add a signal: labels Φβ + ε with ‖β‖ = 1. Where is the risk least, for
#    which ‖β‖ does it fall below its best on the left of the peak, and why?
