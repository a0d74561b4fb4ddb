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
# # Lazy training: networks, and how far their parameters move
#
# Shallow ReLU networks of several widths learn fifteen points of a bent line, all with the same
# learning rate. What is measured is how far the parameters get from where they started. (The numbers of
# steps are small here, so that each cell takes a few seconds.)

# %%
from functools import partial

import thalweg as tw
from thalweg.catalogue import models
from thalweg.studies import regression

table = regression.data(regression.DataSettings(target="middle", n_samples=15))
x, y = table["x"].values, table["y"].values
tw.plot.targets(table)

# %% [markdown]
# The weights themselves are not recorded. What we want to know about them is computed inside the loop.

# %%
record = {
    "params": False,
    "relative_movement": True,
    "successive_change": True,
    "moved": tw.movement_by_parameter,
}


def network(*hidden):
    init = partial(models.init_mlp, (1, *hidden, 1))
    return tw.Problem(models.mlp, "mse", x, y, init=init)


widths = (5, 50, 500)
paths = {
    width: tw.descend(network(width), tw.SGD(lr=0.002), steps=5000, runs=5, record=record, every=10)
    for width in widths
}

# %% [markdown]
# ## What is a network before and after?
#
# Thin lines, one per start. What do wide networks have in common that narrow ones do not?

# %%
path = paths[500]
moments = {"at the start": path["start"], "after 5,000 steps": path["final"]}
seen = regression.functions(network(500), moments, table["x_grid"].values)
tw.plot.functions(table, seen, title="Width 500")

# %% [markdown]
# ## Who fits, and who moves?

# %%
ax = None
for width, path in paths.items():
    ax = tw.plot.loss(path, x="log", ax=ax, label=f"width {width}")

# %%
ax = None
for width, path in paths.items():
    ax = tw.plot.movement(path, x="log", y="log", ax=ax, label=f"width {width}")

# %% [markdown]
# ## When do they move?
#
# The change in each step, ‖w_t − w_{t−1}‖ / ‖w_t‖. It is computed at every step, also where only every
# tenth is recorded.

# %%
ax = None
for width, path in paths.items():
    ax = tw.plot.record(path, "successive_change", x="log", ax=ax, label=f"width {width}")

# %% [markdown]
# ## Which layer moves?
#
# Is a wide network lazy in each of its layers?

# %%
tw.plot.movement_by_parameter(paths[500], x="log", y="log")

# %% [markdown]
# ## Exercises
#
# 1. **Counting.** How many parameters does a network with five hidden layers of 10 have? Check your
#    answer with `network(10, 10, 10, 10, 10).size`, and train it with learning rate 0.1.
# 2. **A slope.** Train widths 50, 100, 200 and 400 and draw the last movement against the width on
#    logarithmic axes. Which slope does the table of norms make you expect?
# 3. **The norms at the start.** Derive E‖w_0‖² of each layer for PyTorch's initialisation, and compare
#    with the trajectories' `start`.
# 4. **The straight line.** Compute the loss of the best straight line. When do networks of width 5 pass
#    below it?
# 5. **A spoilt start.** Two steps at learning rate 1, then 0.001. How many units still bend among the
#    samples?
# 6. **Open.** At one learning rate the wider network is also the faster one. Compare widths at an equal
#    loss instead of at an equal step: is the wide one still the lazy one?
