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
# # One line, four losses, and what momentum does
#
# A line is fitted to fifty points on a slight parabola. The loss decides what the landscape looks like, and
# momentum decides how it is crossed.

# %%
import numpy as np
import xarray as xr

import thalweg as tw

rng = np.random.RandomState(20240215)
x = rng.randn(50).astype("float32")
y = (0.75 * x**2 + x + 2 + 0.3 * rng.randn(50)).astype("float32")


def line(w, x):
    return w["weight"] * x + w["bias"]


def problem_with(loss):
    return tw.Problem(line, loss, x, y, params={"weight": 6.0, "bias": -3.0})


mse = problem_with("mse")
window = {"bias": (-5, 8), "weight": (-5, 8)}
surface = tw.landscape(mse, tw.coordinate_plane(mse, window, points=60))
plain = tw.descend(mse, tw.SGD(lr=0.1), steps=100)
plain["loss"].values[[0, 1, 99]]

# %% [markdown]
# ## How does plain descent cross the bowl?
#
# Straight down the slope, ever more slowly: near the bottom the gradient is small.

# %%
tw.plot.contour(surface, plain)

# %% [markdown]
# ## And with momentum?
#
# A list of values is a sweep, and its descents run as one program. The model's curves at every step are
# recorded on the way, so that the fit can be seen beside the path. How does the line move while the
# iterate swings?

# %%
grid = np.linspace(x.min(), x.max(), 100)
path = tw.descend(
    mse,
    tw.SGD(lr=0.1, momentum=[0.0, 0.9]),
    steps=60,
    record={"yhat_grid": lambda at: at.problem.predict(at.params, grid)},
)
table = xr.Dataset(
    {
        "x": ("sample", x),
        "y": ("sample", y),
        "x_grid": ("grid", grid),
        "yhat_grid": path["yhat_grid"].rename(yhat_grid_0="grid"),
    }
)
tw.animate.fit(table, surface, path, frames=31, dpi=80)

# %% [markdown]
# ## What does the loss change?
#
# The same descents on four losses. Where are the contour lines close together, and where does the path
# bend?

# %%
figure, axes = tw.plot.grid(2, 2, title="SGD, momentum 0 and 0.9")
for ax, loss in zip(axes.flat, ("mse", "l1", "huber", "smooth_l1"), strict=True):
    problem = problem_with(loss)
    there = tw.landscape(problem, tw.coordinate_plane(problem, window, points=60))
    both = tw.descend(problem, tw.SGD(lr=0.1, momentum=[0.0, 0.9]), steps=100)
    tw.plot.contour(there, both, ax=ax, title=loss)
figure

# %% [markdown]
# ## Exercises
#
# 1. **Twins.** Why do the last two panels agree? Choose another δ for Huber (`"huber:0.5"`) and a β
#    for smooth L1 with which they have the same contours. Do they then have the same paths?
# 2. **The limit.** For which learning rates does plain descent on the MSE converge? Compute the limit
#    from the data, and check it with a sweep.
# 3. **How fast does it swing?** Plot the distance from the minimum with momentum 0.5, 0.7, 0.9 and
#    0.99, and compare its decay with √μ a step. Which momentum is best here?
# 4. **A bottom of its own.** Descend with weight decay 2 and draw the path on the landscape that it
#    does descend. Compute where it ends, and compare.
# 5. **An outlier.** Add the point (3, −20) to the data. Which losses care?
# 6. **Open.** Give each loss its best learning rate for fifty steps of plain descent. By what measure
#    would you compare the losses then, and who wins?
