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
# # Filter normalisation
#
# A picture of a landscape in two of a thousand directions: what does it show, the network or the choice of
# units? After Li et al. (2018), "Visualizing the loss landscape of neural nets".

# %%
from functools import partial

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.spirals(200)


def trained(depth, network=models.mlp, residual=False):
    """A problem, and the weights at which the best of five descents ends."""
    init = partial(models.init_he, (2, *[10] * depth, 1), residual=residual)
    problem = tw.Problem(network, "bce_with_logits", x, y, init=init)
    path = tw.descend(problem, tw.Adam(lr=0.003), steps=800, runs=5, record={"params": False})
    losses = path["loss"].values[-1]
    print(f"{depth} hidden layers, {problem.size} parameters, final losses {losses}")
    return problem, problem.unflatten(path["final"].isel(run=losses.argmin()).values)


problem, weights = trained(3)

# %% [markdown]
# ## One function, two sets of weights
#
# The first layer times 10, the second divided by 10. Why is the risk the same?

# %%
rescaled = dict(weights)
rescaled["l1"] = {name: 10 * value for name, value in weights["l1"].items()}
rescaled["l2"] = {**weights["l2"], "weight": weights["l2"]["weight"] / 10}
print(float(problem.risk(weights)), float(problem.risk(rescaled)))

# %% [markdown]
# ## Can a picture of the landscape be trusted?
#
# The same two sets of weights, along filter-normalised directions and along plain Gaussian ones. Before you
# run the cell: which two of the four will agree?

# %%
figure, axes = tw.plot.grid(2, 2, title="One function, two sets of weights")
for row, normalize in zip(axes, ("filter", "none"), strict=True):
    for ax, (name, point) in zip(
        row, (("as trained", weights), ("rescaled", rescaled)), strict=True
    ):
        plane = tw.random_plane(problem, point, normalize=normalize, points=41)
        surface = tw.landscape(problem, plane)
        tw.plot.contour(surface, levels="log", ax=ax, title=f"{name}, normalize={normalize!r}")
figure

# %% [markdown]
# ## What does depth do, and what do skip connections?
#
# Thirty-three hidden layers of ten units, plain and with a skip connection around every two of them.

# %%
figure, axes = tw.plot.grid(1, 2, title="33 hidden layers")
for ax, network in zip(axes.ravel(), (models.mlp, models.residual_mlp), strict=True):
    deep, end = trained(33, network, network is models.residual_mlp)
    surface = tw.landscape(deep, tw.random_plane(deep, end, points=41))
    tw.plot.contour(surface, levels="log", ax=ax, title=network.__name__)
figure

# %% [markdown]
# ## Exercises
#
# 1. **A single unit.** Multiply the weights and the bias into one unit of the first layer by 10, and divide
#    the weights out of it (a column of the second layer) by 10. Are the filter-normalised landscapes still
#    the same? Why?
# 2. **Biases.** `random_plane` leaves one-dimensional parameters as they are. Let them vary with
#    `vectors=True`. What happens to the invariance?
# 3. **Weight decay.** Train with `tw.AdamW(lr=0.003, weight_decay=0.5)` and without. Which minimum looks
#    sharper along plain Gaussian directions, and which along filter-normalised ones?
# 4. **Curvature.** The largest eigenvalue of the Hessian (`tw.hessian(problem, weights).top(1)`) is not
#    invariant either. Compute it for the two sets of weights.
# 5. **Open.** Find a plane through the deep plain network in which its surroundings look harmless.
