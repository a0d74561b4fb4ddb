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
# # Solutions: the edge of stability

# %%
import jax
import jax.numpy as jnp
import numpy as np

import thalweg as tw
from thalweg.catalogue import models

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (30, 2))
y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
options = {"every": 20, "record": {"sharpness": tw.sharpness, "params": False}}


def network(params, x):
    return models.mlp(params, x, jnp.tanh)


problem = tw.Problem(network, "mse", x, y, params=models.init_mlp((2, 8, 8, 1), jax.random.key(0)))

# %% [markdown]
# ## 1. Momentum
#
# With η = 0.3 and μ = 0.9 the limit is 2 · 1.9 / 0.3 = 12.7, and the sharpness rises to it. Without
# momentum it would be 6.7.

# %%
path = tw.descend(problem, tw.SGD(lr=0.3, momentum=0.9), steps=4000, **options)
late = float(path["sharpness"].isel(step=slice(-50, None)).median()) / float(
    tw.stability_threshold(path)
)
print(f"median sharpness over its limit: {late:.3f}")
tw.plot.sharpness(path)

# %% [markdown]
# ## 2. Down again
#
# The region is too sharp for the larger step: within five steps the iterate is thrown out, the loss jumps to
# several hundred times what it was, and the sharpness falls from 20 to below 8. From there it comes back up
# to its new limit, 8. The loss is a hundredth of its peak again within a hundred steps, but it takes a
# thousand or more until it stays lower than before.

# %%
first = tw.descend(problem, tw.SGD(lr=0.1), steps=3000, **options)
second = tw.descend(problem, tw.SGD(lr=0.25), steps=2000, starts=first, **options)
print(float(first["sharpness"][-1]), float(second["sharpness"][-1].squeeze()))
tw.plot.sharpness(second)

# %%
every_step = tw.descend(problem, tw.SGD(lr=0.25), steps=2000, starts=first)
print("loss over the first:", (every_step["loss"] / first["loss"][-1]).values.ravel()[:8].round(1))
tw.plot.loss(every_step, x="log")

# %% [markdown]
# ## 3. By hand
#
# A step on ½λw² is w ← (1 − ηλ)w. |1 − ηλ| < 1 where 0 < λ < 2/η. At λ = 2/η the factor is −1: w changes its
# sign for ever.

# %%
parabola = tw.Problem.from_function(lambda p: 0.5 * 4.0 * p["w"] ** 2, params={"w": 1.0})
print(tw.descend(parabola, tw.SGD(lr=0.5), steps=6)["params"].values.ravel())

# %% [markdown]
# ## 4. Mini-batches
#
# Each batch has a Hessian of its own, and some of them are sharper than their mean. The noise keeps the
# iterate away from the sharpest places, and the sharpness of the whole risk settles below 2/η.

# %%
noisy = tw.descend(
    problem, tw.SGD(lr=0.15), steps=6000, batch_size=5, shuffle=True, seed=0, **options
)
late = noisy["sharpness"].isel(step=slice(-75, None)).median()
print(f"median sharpness over 2/η: {float(late) / (2 / 0.15):.2f}")
tw.plot.sharpness(noisy)

# %% [markdown]
# ## 5. Open
#
# With a learning rate small enough that the fit is done before the sharpness has come up to 2/η, it never
# does. A target that the start already fits is the extreme case: nothing moves.

# %%
own = tw.Problem(
    network, "mse", x, np.asarray(problem.predict(problem.params, problem.x)), params=problem.params
)
print(tw.descend(own, tw.SGD(lr=0.1), steps=200, **options)["sharpness"].values[[0, -1]])
