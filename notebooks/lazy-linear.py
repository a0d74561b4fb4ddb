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
# # Lazy training: linear models, narrow and wide
#
# A linear model on sines and cosines learns fifteen points of a bent line. How fast it fits, and how
# far its parameters have to go, depends on how many features it has. (The numbers of steps are small
# here, so that each cell takes a second or two.)

# %%
from functools import partial

import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.regression("middle", 15, seed=0)


def problem(dimension):
    features = models.fourier_features(x, dimension)
    init = partial(models.init_mlp, (dimension, 1))  # as PyTorch's Linear starts
    return tw.Problem(models.mlp, "mse", features, y, init=init)


paths = {
    dimension: tw.descend(
        problem(dimension),
        tw.SGD(lr=0.01),
        steps=1000,
        runs=5,
        record={"relative_movement": True, "moved": tw.movement_by_parameter},
    )
    for dimension in (8, 50, 200)
}

# %% [markdown]
# ## How fast does each fit?
#
# The median of five starts, and a band between quantiles. Which of the models cannot fit, and which is
# the first that does?

# %%
ax = None
for dimension, path in paths.items():
    ax = tw.plot.loss(path, x="log", ax=ax, label=f"dimension {dimension}")

# %% [markdown]
# ## How far does each go?
#
# ‖w_t − w_0‖ / ‖w_0‖ over all parameters. The order is the other way round.

# %%
ax = None
for dimension, path in paths.items():
    ax = tw.plot.movement(path, x="log", ax=ax, label=f"dimension {dimension}")

# %% [markdown]
# ## Weights or bias?
#
# Each in units of its own norm at the start. One number that starts near zero moves far in these units.

# %%
tw.plot.movement_by_parameter(paths[50], x="log", y="log")

# %% [markdown]
# ## What has been learnt?
#
# The wide model before and after, with the samples. Look between the samples.

# %%
grid = np.linspace(-1, 1, 2401)
wide = problem(200)
features = models.fourier_features(grid, 200)
ends = {name: wide.unflatten(paths[200][name].values[:, 0]) for name in ("start", "final")}
curves = [models.mlp(params, features) for params in ends.values()]
tw.plot.fit(
    xr.Dataset(
        {"x": ("sample", x), "y": ("sample", y), "x_grid": ("grid", grid)}
        | {"yhat_grid": (("model", "grid"), np.stack(curves))},
        coords={"model": ["at the start", "after 1,000 steps"]},
    ),
    title="Dimension 200",
)

# %% [markdown]
# ## Exercises
#
# 1. **The dead sine.** What do the columns of `fourier_features(x, 8)` for j = 0 do? Leave them out
#    with `first=1`, at the same dimension, and compare the losses.
# 2. **The largest stable learning rate.** Compute 2/λ_max of the loss's Hessian for dimension 200 from
#    its features, and train just below and just above it.
# 3. **Where it ends.** Compute the fit nearest to a start with `numpy.linalg.lstsq`, and compare it with
#    the last iterate after 20,000 steps at dimension 50.
# 4. **One over the root.** For dimensions 20, 40, … 640 compute the movement to the nearest fit, for ten
#    starts each, and draw it against the dimension on logarithmic axes. What slope do you expect?
# 5. **From zero.** Start the wide model at zero. What is its function between the samples now? And the
#    movement: why is there no relative one?
# 6. **Open.** Slower waves, `frequency=0.2·π`, fit the target far better between the samples. But their
#    descent is slow. Why, and what would you do about it?
