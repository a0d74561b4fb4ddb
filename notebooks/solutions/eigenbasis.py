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
# # Solutions: gradient descent on least squares, seen in the right basis

# %%
import numpy as np
import xarray as xr

import thalweg as tw


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
path = tw.descend(problem, tw.SGD(lr=eta), steps=T)
values, P = np.linalg.eigh(X @ X.T)
best = np.linalg.solve(X @ X.T, X @ Y)

# %% [markdown]
# ## 1. The pace
#
# In the eigenbasis the whole way is Pᵀ(w* − w_0), and the part covered is Pᵀ(w_T − w_0). Their ratio is
# 1 − (1 − ηλ)^T, whatever the data.

# %%
share = (P.T @ (path["final"].values - w0)) / (P.T @ (best - w0))
measured = xr.DataArray(share, {"eigenvalue": values}, name="share of the way")
at = np.linspace(0, values.max(), 100)
theory = xr.DataArray(1 - (1 - eta * at) ** T, {"eigenvalue": at}, name="share of the way")
ax = tw.plot.curve(theory, points=False, label="1 − (1 − ηλ)^T")
tw.plot.curve(measured, line=False, label="measured", ax=ax)

# %% [markdown]
# ## 2. The threshold
#
# Just above 2/λ_max the first eigenvector's component grows by |1 − ηλ_max| > 1 a step, changing sign each
# time. All the others shrink, until rounding is all that is left of them.

# %%
lrs = 2 / values.max() * np.array([0.99, 1.01])
swept = tw.descend(problem, tw.SGD(lr=lrs), steps=400)
z = np.einsum("spl,pi->sil", swept["params"].values - best[:, None], P)
sizes = xr.DataArray(
    np.abs(z[:, [-1, 0]]),
    {"step": swept["step"], "direction": ["first eigenvector", "last"], "lr": lrs},
    ("step", "direction", "lr"),
    name="distance from the minimiser",
)
tw.plot.curve(sizes, "step", y="log", points=False)

# %% [markdown]
# ## 3. The missing ½
#
# The gradient of ‖Xᵀw − Y‖² is twice as long, so take half the step: η/2. The mean divides by n: ηn/2.

# %%
total = tw.Problem(linear, "mse", X.T, Y, params=w0, reduction="sum")
mean = tw.Problem(linear, "mse", X.T, Y, params=w0)
by_sum = tw.descend(total, tw.SGD(lr=eta / 2), steps=T)
by_mean = tw.descend(mean, tw.SGD(lr=eta * n / 2), steps=T)
[np.abs(other["params"] - path["params"]).max().item() for other in (by_sum, by_mean)]

# %% [markdown]
# ## 4. More parameters than samples
#
# The gradient is X times a vector, so that nothing orthogonal to the columns of X ever moves: 40
# directions. From zero the descent stays in the image of X. There is one minimiser in it, the
# minimum-norm solution, which NumPy's pseudo-inverse gives.

# %%
X4, Y4, start = draw(60, 20)
wide = tw.Problem(linear, half_square, X4.T, Y4, params=start, reduction="sum")
far = tw.descend(wide, tw.SGD(lr=0.1), steps=5000)
image = np.linalg.svd(X4)[0]
moved = np.abs(image.T @ (far["final"].values - start))
from_zero = tw.descend(wide.at(np.zeros(60)), tw.SGD(lr=0.1), steps=5000)
moved[20:].max(), np.abs(from_zero["final"].values - np.linalg.pinv(X4.T) @ Y4).max()

# %% [markdown]
# ## 5. Correlated features
#
# Rows scaled from 1 down to 0.03 make a condition number of about a thousand and more. The pace of a
# direction is still 1 − (1 − ηλ)^T, and at λ = 0.001 that is next to nothing.

# %%
scaled = np.geomspace(1, 0.03, p)[:, None] * X
long = tw.Problem(linear, half_square, scaled.T, Y, params=w0, reduction="sum")
slow = tw.descend(long, tw.SGD(lr=eta), steps=T)
spread, Q = np.linalg.eigh(scaled @ scaled.T)
end = np.linalg.lstsq(scaled.T, Y)[0]
gone = (Q.T @ (slow["final"].values - w0)) / (Q.T @ (end - w0))
print("condition number", spread.max() / spread.min())
shares = xr.DataArray(gone, {"eigenvalue": spread}, name="share of the way")
tw.plot.curve(shares, x="log", y="log", line=False, slope=(1e-4, 1e-2))

# %% [markdown]
# The slope is 1: as long as ηλT is small, the share is ηλT.
#
# ## 6. Open: momentum
#
# Along an eigenvector, z(t+1) = (1 + μ − ηλ) z(t) − μ z(t−1), and z(1) = (1 − ηλ) z(0). With r and s the
# roots of ϱ² − (1 + μ − ηλ) ϱ + μ = 0 the closed form is
# z(t) = z(0) · (r^(t+1) (1 − s) − s^(t+1) (1 − r)) / (r − s).
#
# At a given η the slowest direction is served best where its two roots meet, μ = (1 − √(ηλ_min))². With
# both to be chosen, η = 4/(√λ_max + √λ_min)² and
# μ = ((√κ − 1)/(√κ + 1))², κ the condition number, all directions shrink like √μ^t (Polyak, 1964): the
# slowest one as fast as the others. Plain descent at its own best step 2/(λ_max + λ_min) needs √κ times as
# many steps.

# %%
low, high = np.sqrt(spread[[0, -1]])
kappa = (high / low) ** 2
ball = tw.SGD(lr=4 / (low + high) ** 2, momentum=((np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1)) ** 2)
plain = tw.SGD(lr=2 / (low**2 + high**2))
ax = None
for name, optimizer in (("plain, at its best step", plain), ("heavy ball", ball)):
    run = tw.descend(long, optimizer, steps=T)
    rest = np.linalg.norm(run["params"].values - end, axis=1)
    rest = xr.DataArray(rest, {"step": run["step"]}, name="distance from the minimiser")
    ax = tw.plot.curve(rest, y="log", points=False, label=name, ax=ax, title="")
ax
