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
# # The edge of stability
#
# On a quadratic, gradient descent with learning rate η is stable while the curvature is below 2/η. On a
# network the curvature changes along the way. Where does it go?

# %%
import jax
import jax.numpy as jnp
import numpy as np

import thalweg as tw
from thalweg.catalogue import models

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (30, 2))
y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2


def network(params, x):
    return models.mlp(params, x, jnp.tanh)


problem = tw.Problem(network, "mse", x, y, params=models.init_mlp((2, 8, 8, 1), jax.random.key(0)))

# %% [markdown]
# ## How sharp does gradient descent let the landscape become?
#
# The sharpness is the largest eigenvalue of the Hessian. Before you run the cell: which of the three
# learning rates ends in the sharpest place?

# %%
path = tw.descend(
    problem,
    tw.SGD(lr=[0.1, 0.15, 0.25]),
    steps=6000,
    every=20,
    record={"sharpness": tw.sharpness, "params": False},
)
tw.plot.sharpness(path)

# %% [markdown]
# ## Is the descent unstable?
#
# Compare the steps at which the loss rises with those at which the sharpness is above 2/η.

# %%
tw.plot.loss(path)

# %% [markdown]
# ## Does Adam have an edge?
#
# Adam divides its step by P, entry by entry. What counts is the largest eigenvalue of P⁻¹H, and its limit is
# 38/η for β₁ = 0.9.

# %%
adam = tw.descend(
    problem,
    tw.Adam(lr=[0.003, 0.01]),
    steps=6000,
    every=20,
    record={"own": tw.preconditioned_sharpness, "params": False},
)
tw.plot.sharpness(adam, "own", preconditioned=True, y="log", title="Sharpness that Adam sees")

# %% [markdown]
# ## What does the whole spectrum look like?

# %%
end = problem.unflatten(path["final"].sel(lr=0.25).values)
ax = tw.plot.density(
    tw.hessian(problem, problem.params).density(width=0.1, points=1001), label="start"
)
tw.plot.density(tw.hessian(problem, end).density(width=0.1, points=1001), label="end", ax=ax)

# %% [markdown]
# ## Exercises
#
# 1. **Momentum.** With heavy-ball momentum μ the limit is 2(1 + μ)/η. Check it for μ = 0.9.
# 2. **Down again.** Train with η = 0.1 to the edge, then go on with η = 0.25. What happens to the sharpness,
#    and to the loss?
# 3. **By hand.** Derive 2/η for a quadratic, and show where gradient descent on ½λw² oscillates without
#    growing.
# 4. **Mini-batches.** Take batches of 5, shuffled. Where does the sharpness settle now?
# 5. **Open.** Find a start or a target for which the sharpness never reaches 2/η. What is different there?
