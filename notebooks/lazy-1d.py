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
# # Lazy training in one dimension
#
# h(x, w) = f(x, w)(w − w₀) is zero at w₀ = 1.5 and crooked elsewhere. It is fitted to one sample, with its
# output scaled by α. Everything can be drawn, because there is one parameter.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.tree_util import Partial

import thalweg as tw

w0, x, y = 1.5, np.array([1.5]), np.array([3.0])


def h(params, x):
    w = params["w"]
    f = w * x / 2 + jnp.log(1 + w**2) * x / 5 + 0.1 * jnp.sin(jnp.exp(2 * w))
    return f * (w - w0)


def loss(alpha, yhat, y):
    return (yhat - y) ** 2 / (2 * alpha**2)


def both(alpha):
    """The scaled model's problem, and that of its linearisation. α in a Partial compiles once."""
    problem = tw.Problem(h, Partial(loss, float(alpha)), x, y, params={"w": w0})
    scaled = tw.scale_output(problem, problem.params, alpha)
    return scaled, tw.linearize(scaled, problem.params)


# %% [markdown]
# ## What does the model look like, far from w₀?

# %%
w = np.linspace(0, 2, 400)
drawn = [jax.vmap(problem.predict, (0, None))({"w": w}, x)[:, 0] for problem in both(1)]
curves = xr.DataArray(np.stack(drawn), {"curve": ["h", "its tangent"], "w": w}, ("curve", "w"), "h")
tw.plot.curve(curves, along="w", title="h(1.5, w) and its tangent at w₀ = 1.5")

# %% [markdown]
# ## From which α on are the two losses one curve?
#
# Each panel has its own window, w₀ ± 2/α^(3/4). What would the panels look like with one window for all?


# %%
def on_window(alpha, reach):
    surfaces = []
    for problem in both(alpha):
        plane = tw.coordinate_plane(problem, {"w": (w0 - reach, w0 + reach)}, points=1000)
        surfaces.append(tw.landscape(problem, plane))
    return surfaces


figure, axes = tw.plot.grid(2, 2, title="Loss along w")
for ax, alpha in zip(axes.flat, (1, 10, 100, 10_000), strict=True):
    surfaces = on_window(alpha, 2 / alpha**0.75)
    for surface, name in zip(surfaces, ("scaled model", "its linearisation"), strict=True):
        tw.plot.profile(surface, ax=ax, title=f"α = {alpha}", label=name)
figure

# %% [markdown]
# ## How fast does the gap close?
#
# The largest difference on the window, in units of the largest loss.


# %%
def gap(alpha, reach):
    model, linear = (surface["empirical"].values for surface in on_window(alpha, reach))
    return np.abs(model - linear).max() / linear.max()


alphas = np.array([1e2, 1e3, 1e4, 1e5, 1e6])
gaps = [gap(alpha, 2 / alpha**0.75) for alpha in alphas]
gaps = xr.DataArray(gaps, {"alpha": alphas}, "alpha", "gap")
tw.plot.curve(gaps, x="log", y="log", slope=(1e4, 1e6), title="How the gap closes")

# %% [markdown]
# ## Exercises
#
# 1. **Where is the minimum?** Compute the minimum of the linearised loss, and show that it lies inside
#    the window for every α of one or more.
# 2. **Down the curve.** Descend both losses from w₀ for α = 1, 10 and 100, with a learning rate that
#    makes all of them equally fast at first. Where do the two end?
# 3. **Another window.** Take w₀ ± 2/α and w₀ ± 2/√α in place of 2/α^(3/4). With what slope does the gap
#    fall, and why? Does it fall at all?
# 4. **Leave the sine out.** From which α on are the curves one without the term sin(e^{2w})/10?
# 5. **Open.** Give an h that is *not* lazy for any α. What must be wrong with it at w₀?
