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
# # Solutions: lazy training of networks

# %%
from functools import partial

import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.regression("middle", 15, seed=0)
record = {"params": False, "relative_movement": True}


def network(*hidden):
    init = partial(models.init_mlp, (1, *hidden, 1))
    return tw.Problem(models.mlp, "mse", x, y, init=init)


# %% [markdown]
# ## 1. Counting
#
# 1·10 + 10 into the first layer, four times 10·10 + 10, and 10 + 1 out of the last: 471.

# %%
deep = network(10, 10, 10, 10, 10)
print(deep.size, 20 + 4 * 110 + 11)
path = tw.descend(deep, tw.SGD(lr=0.1), steps=3000, record=record, every=5)
tw.plot.loss(path, x="log")

# %% [markdown]
# ## 2. A slope
#
# The hidden layer's norm grows as the root of the width and the movement falls as one over it: −1.

# %%
widths = [50, 100, 200, 400]
runs = {}
for width in widths:
    runs[width] = tw.descend(
        network(width), tw.SGD(lr=0.002), steps=2000, runs=5, record=record, every=50
    )
moved = xr.DataArray(
    np.stack([path["relative_movement"].values[-1] for path in runs.values()]),
    {"width": widths, "run": range(5)},
    name="movement after 2,000 steps",
)
tw.plot.curve(moved, x="log", y="log", slope=True)

# %% [markdown]
# ## 3. The norms at the start
#
# A number from U(−a, a) has the mean square a²/3. With one input a = 1: h/3 for the weights and h/3 for the
# biases. With h inputs a² = 1/h: 1/3 for the output weights, and 1/(3h) for the last bias.

# %%
for width, path in runs.items():
    start = path["start"].values  # l1.bias, l1.weight, l2.bias, l2.weight
    parts = np.split(start**2, [width, 2 * width, 2 * width + 1])
    seen = [float(part.sum(axis=0).mean()) for part in parts]
    print(
        width, np.round(seen, 4), "expected", width / 3, width / 3, round(1 / (3 * width), 4), 1 / 3
    )

# %% [markdown]
# ## 4. The straight line

# %%
design = np.column_stack([np.ones_like(x), x])
line = ((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).mean()
path = tw.descend(network(5), tw.SGD(lr=0.002), steps=10_000, runs=5, record=record, every=10)
below = path["loss"].values < line
first = np.where(below.any(axis=0), path["step"].values[below.argmax(axis=0)], -1)
print(f"the line has {line:.4f}; passed at the steps {first} (−1: not yet)")
ax = tw.plot.loss(path, x="log")
ax.axhline(line, color="0.4", ls=":", label="best straight line")
ax.legend()

# %% [markdown]
# ## 5. A spoilt start
#
# Unit i is zero on one side of x = −bᵢ/wᵢ. It bends the function among the samples if wᵢx + bᵢ has
# different signs at the smallest and the largest x.

# %%
path = tw.descend(
    network(100), tw.SGD(lr=lambda t: 1.0 if t < 2 else 0.001), steps=1002, runs=10, record=record
)
for moment in ("start", "final"):
    bias, weight = path[moment].values[:100], path[moment].values[100:200]
    bends = (weight * x.min() + bias) * (weight * x.max() + bias) < 0
    print(moment, bends.sum(axis=0))
tw.plot.loss(path, x="log")

# %% [markdown]
# ## 6. At an equal loss
#
# The movement where the loss first falls below the straight line's. It still falls with the width: the
# laziness of wide networks is not only a matter of how far along they are.

# %%
for width, path in runs.items():
    below = path["loss"].values < line
    there = below.any(axis=0)
    at = path["relative_movement"].values[below.argmax(axis=0), np.arange(5)]
    print(width, f"{there.sum()} of 5 below the line, movement there:", np.round(at[there], 4))
