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
# # Solutions: lazy training

# %%
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.regression("middle", 10, seed=0)


def tanh_network(w, x):
    return models.mlp(w, x, jnp.tanh)


def relu_network(w, x):
    return models.mlp(w, x)


def network(predict=tanh_network, widths=(1, 50, 1), y=y, seed=0):
    params = models.init_mlp(widths, jax.random.key(seed))
    return tw.Problem(predict, "mse", x, y, params=params)


problem = network()
start = problem.params

# %% [markdown]
# ## 1. Speed
#
# A step changes w by −(η/α)·Jᵀr with r = ∇R, and the output by αJ times that: −ηJJᵀr, without an α. At the
# start r is the same for every α, because every model is zero there.

# %%
for alpha in (10, 100, 1000):
    scaled = tw.scale_output(problem, start, alpha)
    path = tw.descend(scaled, tw.SGD(lr=0.01 / alpha**2), steps=1)
    after = scaled.predict(problem.unflatten(path["final"].values), x)
    print(alpha, np.round(after[:3], 6))

# %% [markdown]
# ## 2. The kernel decides
#
# In the basis of the kernel's eigenvectors each part of y decays by its own factor. The part along the
# largest eigenvalues, the smooth part, is learnt first; what lies along the small ones is learnt late.

# %%
values, vectors = np.linalg.eigh(tw.ntk(problem, start))
scaled = tw.scale_output(problem, start, 1000.0)
path = tw.descend(scaled, tw.SGD(lr=0.01 / 1000.0**2), steps=2000, every=20)
decay = (1 - 2 * 0.01 / len(x) * values[:, None]) ** path["step"].values
predicted = np.mean((decay * (vectors.T @ y)[:, None]) ** 2, axis=0)
print("largest relative difference", float(np.abs(path["loss"] / predicted - 1).max()))
print("eigenvalues", values[::-1][:5])
print("parts of y ", (vectors.T @ y)[::-1][:5])
ax = tw.plot.loss(path, x="log", label="α = 1000")
ax.plot(path["step"][1:], predicted[1:], ":", color="black", label="from the kernel alone")
ax.legend()
ax

# %% [markdown]
# ## 3. A wide network is lazy by itself
#
# With PyTorch's initialisation the last layer's part of the kernel, Σσ², grows as the width: hence the
# smaller rate. That part changes only when the first layer moves. Its weights have gradients of the size
# of the last layer's weights, 1/√width, so they move by width^(−3/2) each, with random signs, and the
# mean over the units of what that does is of order 1/width².

# %%
widths = np.array([10, 100, 1000])
drift = []
for width in widths:
    wide = network(widths=(1, int(width), 1))
    path = tw.descend(
        wide, tw.SGD(lr=0.1 / width), steps=1000, every=500, record={"drift": tw.kernel_drift}
    )
    drift.append(float(path["drift"][-1]))
drift = xr.DataArray(drift, {"width": widths}, "width", "kernel drift")
tw.plot.curve(drift, x="log", y="log", slope=True, title="Kernel drift against width")

# %% [markdown]
# ## 4. Kinks
#
# Where a unit crosses zero at a sample, its part of the kernel is switched on or off. The size of this
# jump does not depend on α; only the number of units that jump does. In this shallow network at most one of
# 500 pairs of a unit and a sample changes sides, and its part is small: the slope is still −0.99. In the deep
# network of the study it is not.


# %%
def sides(w):
    return x[:, None] @ w["l1"]["weight"].T + w["l1"]["bias"] > 0


kinked = network(relu_network)
rows = []
for alpha in (10, 30, 100, 300, 1000):
    scaled = tw.scale_output(kinked, kinked.params, alpha)
    path = tw.descend(
        scaled, tw.SGD(lr=0.01 / alpha**2), steps=2000, every=1000,
        record={"drift": tw.kernel_drift},
    )  # fmt: skip
    now = kinked.unflatten(path["final"].values)
    rows.append((alpha, float(path["drift"][-1]), int((sides(now) != sides(kinked.params)).sum())))
    print("α = {}: drift {:.3g}, {} changes of side".format(*rows[-1]))

# %% [markdown]
# ## 5. Rounding
#
# f is of order 0.1 and float32 has 24 bits: a difference of two outputs is wrong by about 10⁻⁸, and
# α times it by α·10⁻⁸. By hand that is half a thousandth of the prediction at α = 10⁴ and nearly a tenth
# at α = 10⁶; the difference taken in float64 is right to the last digit of float32.

# %%
single = tw.Problem(tanh_network, "mse", x, y, params=start, dtype="float32")
w0 = single.params
shift = np.random.default_rng(1).standard_normal(single.size)
for alpha in (1e2, 1e4, 1e6):
    w = single.unflatten(np.asarray(single.flatten(w0)) + 0.1 / alpha * shift)
    by_hand = alpha * (tanh_network(w, single.x) - tanh_network(w0, single.x))
    double = [jax.tree_util.tree_map(lambda v: jnp.asarray(v, float), v) for v in (w, w0, single.x)]
    exact = alpha * (tanh_network(double[0], double[2]) - tanh_network(double[1], double[2]))
    ours = tw.scale_output(single, w0, alpha).predict(w, single.x)
    errors = [float(np.abs(v - exact).max() / np.abs(exact).max()) for v in (by_hand, ours)]
    print(f"α = {alpha:g}: relative error by hand {errors[0]:.1g}, of scale_output {errors[1]:.1g}")

# %% [markdown]
# ## 6. Open
#
# One way to go about it: the loss, and the mean squared distance from the target on a fine grid. On the
# samples the network at α = 1 gets at least as far on every target. Between them it need not be better:
# ten samples do not say what happens there, and features that follow the data follow these ten.

# %%
grid = np.linspace(-1, 1, 401)
for name, target in data.TARGETS.items():
    one = network(y=target(x))
    for alpha in (1.0, 1000.0):
        scaled = tw.scale_output(one, one.params, alpha)
        path = tw.descend(scaled, tw.SGD(lr=0.05 / alpha**2), steps=20_000, every=20_000)
        there = scaled.predict(one.unflatten(path["final"].values), grid)
        error = float(np.mean((there - target(grid)) ** 2))
        print(f"{name}, α = {alpha:g}: loss {float(path['loss'][-1]):.2g}, on the grid {error:.2g}")
