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
# # Solutions: training and true risk against the number of features

# %%
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

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


def sweep(dimensions, **options):
    """Training and true risk, (p, risk, run)."""
    rows = []
    for p in dimensions:
        path, true = descend(p, **options)
        rows.append([path["loss"].values[-1], true])
    return xr.DataArray(
        np.array(rows),
        {"p": dimensions, "risk": ["training risk", "true risk"]},
        ("p", "risk", "run"),
        name="mean squared error",
    )


dimensions = [2, 4, 6, 8, 10, 14, 20, 30, 40, 50, 60, 74, 86, 98]

# %% [markdown]
# ## 1. Noise
#
# With more noise every direction that is learnt costs more, and fewer are worth it: the best number of
# features is lower. The training risk goes on falling, through σ² = 0.09 to half of it, and shows nothing
# of this.

# %%
noisy = data.regression("middle", n, noise=0.3, seed=0)[1]
risks = sweep(dimensions, y=noisy)
print("best p:", dimensions[int(risks.sel(risk="true risk").mean("run").argmin("p"))])
tw.plot.curve(risks, "p", y="log", middle="mean")

# %% [markdown]
# ## 2. Stopping
#
# Descent learns along large eigenvalues first, and those carry the target. Later it fits noise along
# small ones. Stopping early is a substitute for a penalty on the weights, or for fewer features.

# %%
counts = [10, 30, 100, 300, 1000, 3000, 10_000]
rows = []
for steps in counts:
    path, true = descend(98, steps=steps)
    rows.append([path["loss"].values[-1], true])
followed = xr.DataArray(
    np.array(rows),
    {"steps": counts, "risk": ["training risk", "true risk"]},
    ("steps", "risk", "run"),
    name="mean squared error",
)
tw.plot.curve(followed, "steps", x="log", y="log", middle="mean")

# %% [markdown]
# ## 3. The threshold
#
# The Hessian of the mean squared error is 2/n·DᵀD, D the features and a column of ones. A per cent above
# 2/λ_max the largest component grows by two per cent a step.

# %%
for p in (2, 20, 98):
    design = np.column_stack([waves(x, p), np.ones(n)])
    threshold = 2 / (2 / n * np.linalg.norm(design, 2) ** 2)
    below, above = (descend(p, lr=f * threshold)[0]["loss"].values[-1] for f in (0.99, 1.01))
    print(p, threshold, below.max(), above.max())

# %% [markdown]
# ## 4. Real rank
#
# With ω = π the waves are orthogonal on the interval, and fifty samples see them as nearly independent:
# the rank of 50 features is 49, one less for the dead sine. They are also five times as short, and the
# gaps between samples matter from p = 20 on: the true risk rises fiftyfold up to p = n, and beyond it no
# more than two or three times. It is a step, not a peak: along small eigenvalues a thousand steps do not
# get far.

# %%
print("rank:", np.linalg.matrix_rank(waves(x, 50, np.pi)))
tw.plot.curve(sweep(dimensions, frequency=np.pi), "p", y="log", middle="mean")

# %% [markdown]
# ## 5. The peak after all
#
# Least squares goes along every direction to the end, and there it is: the true risk at p = n is larger
# by orders of magnitude than on either side.

# %%
more = np.arange(2, 99, 2)
exact = []
for p in more:
    fitted = np.linalg.pinv(waves(x, p, np.pi)) @ y
    exact.append(weights @ (waves(nodes, p, np.pi) @ fitted - truth) ** 2 / 2)
exact = xr.DataArray(np.array(exact), {"p": more}, name="true risk")
tw.plot.curve(exact, y="log", title="Minimum-norm least squares on orthogonal waves")

# %% [markdown]
# ## 6. Open: a signal
#
# β̂ − β = Φ⁺ε − (I − Φ⁺Φ)β. With β in a random direction the second part costs ‖β‖²(1 − n/p) beyond
# p = n: what no sample sees. That grows with p while the noise's part falls. Left of the peak each p
# is a problem of its own here, with all the signal inside its p features, so that few features are best:
# of those drawn p = 5, at 5σ²/44. On the right the risk is ‖β‖²(1 − n/p) + σ²n/(p − n − 1), which tends to
# ‖β‖², all of the signal, as p grows. So it falls below 5σ²/44 only for ‖β‖ < √(5/44) σ ≈ 0.34σ and large
# p: for signals that are weaker than the noise, and better not fitted at all.
# In a fairer game the signal is spread over many features of which the model has the first p.

# %%
rng = np.random.default_rng(1)
counts = [5, 10, 20, 30, 40, 44, 48, 52, 56, 60, 80, 100, 150, 300]
rows = []
for p in counts:
    design, errors = rng.standard_normal((60, n, p)), noise * rng.standard_normal((60, n, 1))
    signal = rng.standard_normal((60, p, 1))
    signal /= np.linalg.norm(signal, axis=1, keepdims=True)
    inverse = np.linalg.pinv(design)
    rows.append(
        [
            ((inverse @ (design @ (b * signal) + errors) - b * signal) ** 2).sum((1, 2))
            for b in (0, 1)
        ]
    )
both = xr.DataArray(
    np.array(rows), {"p": counts, "‖β‖": [0, 1]}, ("p", "‖β‖", "draw"), name="excess risk"
)
tw.plot.curve(both, "p", over="draw", middle="mean", band="error", y="log")
