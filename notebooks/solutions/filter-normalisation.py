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
# # Solutions: filter normalisation

# %%
from functools import partial

import numpy as np

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.spirals(200)


def trained(depth, optimizer, steps=800):
    init = partial(models.init_he, (2, *[10] * depth, 1))
    problem = tw.Problem(models.mlp, "bce_with_logits", x, y, init=init)
    path = tw.descend(problem, optimizer, steps=steps, runs=1, record={"params": False})
    return problem, problem.unflatten(path["final"].isel(run=0).values)


def rescale(weights, scale=10.0):
    """The first layer times `scale`, the second divided by it."""
    first = {name: scale * value for name, value in weights["l1"].items()}
    second = {**weights["l2"], "weight": weights["l2"]["weight"] / scale}
    return {**weights, "l1": first, "l2": second}


def difference(problem, one, two, **options):
    """The largest relative difference between two landscapes."""
    a, b = (
        tw.landscape(problem, tw.random_plane(problem, point, points=21, **options))[
            "empirical"
        ].values
        for point in (one, two)
    )
    return np.abs(b / a - 1).max()


problem, weights = trained(3, tw.Adam(lr=0.003))
print(f"whole layers: {difference(problem, weights, rescale(weights)):.1e}")

# %% [markdown]
# ## 1. A single unit
#
# They are not the same any more. The filters of the second layer are its rows, and one entry of each
# has become a tenth: the row's norm changes by a factor of its own, and with it what the direction does
# to the other nine entries. Filter normalisation takes out only the scales of whole layers.

# %%
one = {name: value.copy() for name, value in weights["l1"].items()}
one["weight"] = np.array(one["weight"])
one["bias"] = np.array(one["bias"])
one["weight"][0] *= 10
one["bias"][0] *= 10
out = np.array(weights["l2"]["weight"])
out[:, 0] /= 10
unit = {**weights, "l1": one, "l2": {**weights["l2"], "weight": out}}
print(float(problem.risk(weights)), float(problem.risk(unit)))
print(f"a single unit: {difference(problem, weights, unit):.2g}")

# %% [markdown]
# ## 2. Biases
#
# A bias vector counts as one filter, and is scaled with its layer: the first layer's is multiplied by
# 10, as its weights are, and the others stay. So the landscapes agree as before.

# %%
print(f"with biases: {difference(problem, weights, rescale(weights), vectors=True):.1e}")

# %% [markdown]
# ## 3. Weight decay
#
# Decay makes the weights small, and a plain Gaussian direction is then a larger step relative to them. The
# filter-normalised direction shrinks with the weights. Here is how far a line goes, on average, until
# the network is no better than chance (log 2): the shorter, the sharper. Along plain directions the two
# are about as sharp, though the weights with decay are a quarter smaller; along filter-normalised ones
# the minimum without decay is the sharper one, by a little.


# %%
def reach(problem, point, normalize, span):
    found = []
    for seed in range(20):
        plane = tw.random_plane(
            problem, point, seed=seed, normalize=normalize, directions=1, points=401, span=(-span, span)
        )  # fmt: skip
        surface = tw.landscape(problem, plane)
        above = surface["empirical"].values > np.log(2)
        found.append(np.abs(surface["direction_1"].values[above]).min() if above.any() else span)
    return np.mean(found)


for optimizer in (tw.Adam(lr=0.003), tw.AdamW(lr=0.003, weight_decay=0.5)):
    problem, end = trained(3, optimizer, steps=3000)
    print(
        f"{type(optimizer).__name__}: loss {float(problem.risk(end)):.1e}, "
        f"‖w‖ = {np.linalg.norm(problem.flatten(end)):.2f}, "
        f"plain {reach(problem, end, 'none', 1.0):.3f}, "
        f"filter-normalised {reach(problem, end, 'filter', 1.0):.3f}"
    )

# %% [markdown]
# ## 4. Curvature
#
# Along the first layer's weights the curvature is divided by 100, along the second layer's multiplied by 100:
# the largest eigenvalue goes up with the second.

# %%
problem, weights = trained(3, tw.Adam(lr=0.003))
for name, point in (("as trained", weights), ("rescaled", rescale(weights))):
    print(f"{name}: {float(tw.hessian(problem, point).top(1)[0][0]):.4g}")

# %% [markdown]
# ## 5. Open
#
# The plane of the least curved directions, `hessian_plane(problem, weights, (-1, -2))`, or one that goes a
# hundredth as far. Any network is harmless in a picture that is small enough: look at the axes first.
