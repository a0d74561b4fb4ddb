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
# # Solutions: lazy training in one dimension

# %%
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.tree_util import Partial

import thalweg as tw

w0, x, y = 1.5, np.array([1.5]), np.array([3.0])


def f(w, x, sine=0.1):
    return w * x / 2 + jnp.log(1 + w**2) * x / 5 + sine * jnp.sin(jnp.exp(2 * w))


def h(sine, params, x):
    return f(params["w"], x, sine) * (params["w"] - w0)


def loss(alpha, yhat, y):
    return (yhat - y) ** 2 / (2 * alpha**2)


def both(alpha, model=Partial(h, 0.1)):
    problem = tw.Problem(model, Partial(loss, float(alpha)), x, y, params={"w": w0})
    scaled = tw.scale_output(problem, problem.params, alpha)
    return scaled, tw.linearize(scaled, problem.params)


def gap(alpha, reach, model=Partial(h, 0.1)):
    losses = []
    for problem in both(alpha, model):
        plane = tw.coordinate_plane(problem, {"w": (w0 - reach, w0 + reach)}, points=1000)
        losses.append(tw.landscape(problem, plane)["empirical"].values)
    return np.abs(losses[0] - losses[1]).max() / losses[1].max()


# %% [markdown]
# ## 1. Where is the minimum?
#
# (αf·(w − w₀) − y)² is zero at w = w₀ + y/(αf). That is inside w₀ ± 2/α^(3/4) where α^(1/4) > y/(2f), and
# y/(2f) is a little below one.

# %%
float(y[0] / (2 * f(w0, x[0])))

# %% [markdown]
# ## 2. Down the curve
#
# The second derivative of the linearised loss is α²f²/α² = f², whatever α: one learning rate serves all.
# At α = 1 the crooked ground sends the model's descent the other way, to a minimum far off; at α = 10 and
# 100 both end at nearly the same point, which lies at y/(αf).

# %%
for alpha in (1, 10, 100):
    ends = [tw.descend(problem, tw.SGD(lr=0.1), steps=500) for problem in both(alpha)]
    at = [float(path["final"][0]) - w0 for path in ends]
    print(f"α = {alpha}: w − w₀ = {at[0]:.5f} (model), {at[1]:.5f} (linearisation)")

# %% [markdown]
# ## 3. Another window
#
# On |δ| ≤ cα^(−s) with s < 1 the gap is about 2f′δ/f, so it falls as α^(−s): −1/2 for 2/√α. With s = 1 the
# output αfδ stays of order one beside y, and the gap is α·δ² of order 1/α: the slope is −1. It falls for
# every s above zero. On a window of fixed width it does not: there the two are different functions.

# %%
alphas = np.array([1e5, 1e6, 1e7, 1e8])
for power in (0.5, 0.75, 1.0, 0.0):
    slope = tw.plot.log_slope(alphas, [gap(a, 2 / a**power) for a in alphas])
    print(f"window 2/α^{power:g}: slope {slope:.3f}")

# %% [markdown]
# ## 4. Leave the sine out
#
# What is left bends slowly: at α = 100 the curves are apart by 7 % of the largest loss instead of 23 %,
# and from several hundred on they are one to the eye.

# %%
for alpha in (1, 10, 100, 1000):
    reach = 2 / alpha**0.75
    gaps = [gap(alpha, reach, Partial(h, sine)) for sine in (0.1, 0.0)]
    print(f"α = {alpha}: gap {gaps[0]:.3f} with the sine, {gaps[1]:.3f} without")

# %% [markdown]
# ## 5. Open
#
# The tangent at w₀ must not vanish and the second derivative must exist. For h = (w − w₀)² the tangent
# is zero: its linearisation learns nothing at any α, while αh reaches y at w₀ ± √(y/α). And |w − w₀|
# has no tangent at all.


# %%
def flat(params, x):
    return x * (params["w"] - w0) ** 2


alphas = np.array([1e2, 1e4, 1e6])
gaps = [gap(alpha, 2 / alpha**0.5, flat) for alpha in alphas]
xr.DataArray(gaps, {"alpha": alphas}, "alpha", "gap")
