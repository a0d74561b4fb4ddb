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
# # A line, an outlier, and on to polynomials: solutions

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw
from thalweg.catalogue import data
from thalweg.studies.polynomials import least_absolute

x, y = data.parabola_with_outlier()


def line(w, x):
    return w["intercept"] + w["slope"] * x


start = {"intercept": 0.0, "slope": 0.0}

# %% [markdown]
# ## 1. The derivative of z at θ = −2
#
# Forward: v1 = e⁻², v2 = 1 + v1, v3 = log v2, v4 = 1 − v3. Back: 2 v4, then its negative, then divided
# by v2, unchanged, times v1.


# %%
def z(θ):
    return (1 - jnp.log(1 + jnp.exp(θ))) ** 2


v1 = np.exp(-2)
v2 = 1 + v1
v4 = 1 - np.log(v2)
by_hand = {"∂z/∂v4": 2 * v4, "∂z/∂v3": -2 * v4, "∂z/∂v2": -2 * v4 / v2}
by_hand |= {"∂z/∂v1": -2 * v4 / v2, "∂z/∂θ": -2 * v4 / v2 * v1}
graph = tw.computation_graph(z, -2.0, reverse=True)
for name, value in by_hand.items():
    (found,) = graph["value"].values[graph["name"].values == name]
    print(f"{name}: {value:.12f} by hand, {found:.12f} in the graph")
    assert abs(value - found) < 1e-12

# %% [markdown]
# ## 2. An input that is used twice
#
# x·eˣ has the derivative eˣ + x·eˣ: one part over the product's first factor, one over its second.
# They meet in a box "+". At x = 1 both are e.


# %%
def product(x):
    return x * jnp.exp(x)


tw.plot.graph(tw.computation_graph(product, 1.0, reverse=True))

# %% [markdown]
# ## 3. Huber's loss
#
# It is quadratic for residuals below δ and grows like the MAE beyond, so its line lies between the
# two: near the least-squares line for a large δ, near that of the least MAE for a small one. A small δ
# also makes the loss small (it is about δ times the MAE), so the learning rate has to grow with 1/δ.

# %%
exact = least_absolute(x, y, 1)
squares = np.polyfit(x, y, 1)[::-1]
print("least MAE      ", exact)
for delta in (0.01, 1.35, 100.0):
    problem = tw.Problem(line, f"huber:{delta}", x, y, params=start)
    path = tw.descend(problem, tw.LBFGS(lr=0.5), steps=60)
    print(f"Huber, δ = {delta:<5}", path["final"].values)
print("least squares  ", squares)

# %% [markdown]
# ## 4. Fixed learning rates
#
# A list is a sweep, and all its runs are one program. The gradient is a mean of signs: far from the
# bottom its size is about 1, and next to it, where the signs nearly balance, a few hundredths. A rate
# of 6 or 3 leaps over the inner facets again and again and stays above them; a rate of 1 gets onto
# them, and jumps there by no more than a few hundredths. With 0.01 the path is too long for 300 steps.
# The falling rate 6/(t + 1) goes the long way first and comes to rest after.

# %%
problem = tw.Problem(line, "l1", x, y, params=start)
path = tw.descend(problem, tw.SGD(lr=[6.0, 3.0, 1.0, 0.01]), steps=300, record=["grad"])
least = np.abs(exact[0] + exact[1] * x - y).mean()
gap = (path["loss"] - least).assign_attrs(long_name="MAE − least MAE")
for k, lr in enumerate(path["lr"].values):
    size = np.linalg.norm(path["grad"].values[-50:, :, k], axis=1).mean()
    print(f"lr {lr:g}: gap {gap.values[-50:, k].mean():.2g}, mean size of the gradient {size:.2g}")
tw.plot.record(path.assign(gap=gap), "gap", title="Fixed learning rates")

# %% [markdown]
# ## 5. How far can one sample move a line?
#
# The least-squares slope is linear in each y: it follows the outlier without end. The slope of the
# least MAE changes only while the outlier's residual changes its sign.

# %%
heights = np.linspace(-10, 30, 41)
slopes = np.empty((2, len(heights)))
for k, height in enumerate(heights):
    moved = np.concatenate([[height], y[1:]])
    slopes[:, k] = np.polyfit(x, moved, 1)[0], least_absolute(x, moved, 1)[1]
figure, ax = plt.subplots()
ax.plot(heights, slopes[0], label="least squares")
ax.plot(heights, slopes[1], "--", label="least MAE")
ax.set(xlabel="the outlier's y", ylabel="slope", title="One sample against a line")
ax.legend()

# %% [markdown]
# ## 6. Another basis
#
# One answer of many. Powers of x are nearly dependent and large at the outlier. An orthonormal basis
# of the same polynomials, from a QR factorisation, makes every coefficient matter alike; scaled by √n
# its entries are of size one. With a falling learning rate descent then settles well below where the
# powers end, at 0.4999.

# %%
powers = np.vander(x, 13, increasing=True)
basis = np.linalg.qr(powers)[0] * np.sqrt(len(x))
problem = tw.Problem(lambda w, q: q @ w, "l1", basis, y, params=np.zeros(13))
path = tw.descend(
    problem,
    tw.Adam(lr=lambda t: 0.1 / (1 + t / 200)),
    epochs=500,
    batch_size=10,
    shuffle=True,
    record=["risk"],
)
least = np.abs(powers @ least_absolute(x, y, 12) - y).mean()
print(f"MAE {path['risk'].values[-1]:.6f}, least {least:.6f}")
gap = (path["risk"] - least).assign_attrs(long_name="MAE − least MAE")
tw.plot.record(path.assign(gap=gap), "gap", x="log", title="Degree 12 in an orthonormal basis")
