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
# # Lazy training: scale the output, and the parameters stand still
#
# A network f(w, x) is trained as α·(f(w, x) − f(w₀, x)), with the learning rate divided by α². The
# sizes here are small, so that each cell takes seconds; `thalweg run lazy-scaling` has the larger ones.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.regression("middle", 10, seed=0)
start = models.init_mlp((1, 50, 1), jax.random.key(0))


def tanh_network(w, x):
    return models.mlp(w, x, jnp.tanh)


problem = tw.Problem(tanh_network, "mse", x, y, params=start)


def descend(problem, alpha, lr=0.05, steps=10_000, every=50):
    """The scaled network's descent, and that of its linearisation."""
    scaled = tw.scale_output(problem, problem.params, alpha)
    sgd = tw.SGD(lr=lr / alpha**2)
    record = {"relative_movement": True, "kernel_drift": tw.kernel_drift}
    path = tw.descend(scaled, sgd, steps=steps, every=every, record=record)
    return path, tw.descend(tw.linearize(scaled, problem.params), sgd, steps=steps, every=every)


pairs = {alpha: descend(problem, alpha) for alpha in (1, 10, 100, 1000)}

# %% [markdown]
# ## Do all α learn at the same speed?
#
# The losses against the step. Which curve is not like the others, and why that one?

# %%
ax = None
for alpha, (path, _) in pairs.items():
    ax = tw.plot.loss(path, ax=ax, x="log", label=f"α = {alpha}")
ax

# %% [markdown]
# ## How far do the parameters go?
#
# And by what factor does it change when α is ten times as large?

# %%
ax = None
for alpha, (path, _) in pairs.items():
    ax = tw.plot.movement(path, ax=ax, x="log", y="log", label=f"α = {alpha}")
ax

# %% [markdown]
# ## What did the model learn, and what its linearisation?
#
# Before training all models are zero. After it, at which α can you tell the network from its tangent?

# %%
grid = np.linspace(-1, 1, 201)
figure, axes = tw.plot.grid(1, 2, title="After training")
for ax, alpha in zip(axes.flat, (1, 1000), strict=True):
    scaled = tw.scale_output(problem, start, alpha)
    drawn = [
        model.predict(problem.unflatten(path["final"].values), grid)
        for model, path in zip((scaled, tw.linearize(scaled, start)), pairs[alpha], strict=True)
    ]
    fits = xr.Dataset(
        {
            "x": ("sample", x),
            "y": ("sample", y),
            "x_grid": ("grid", grid),
            "yhat_grid": (("model", "grid"), np.stack(drawn)),
        },
        coords={"model": ["network", "its linearisation"]},
    )
    tw.plot.fit(fits, ax=ax, title=f"α = {alpha}")
figure

# %% [markdown]
# ## By what law does it become lazy?
#
# Movement, kernel drift and the distance to the linearised model, at the end, against α. Read the
# slopes. Which of them shows that the *kernel* stands still, and which that the *model* is linear?

# %%
measured = xr.Dataset(
    {
        "movement": ("alpha", [float(p["relative_movement"][-1]) for p, _ in pairs.values()]),
        "kernel drift": ("alpha", [float(p["kernel_drift"][-1]) for p, _ in pairs.values()]),
        "distance": (
            "alpha",
            [
                np.linalg.norm(p["final"] - q["final"]) / np.linalg.norm(p["start"])
                for p, q in pairs.values()
            ],
        ),
    },
    coords={"alpha": list(pairs)},
)
ax = None
for name in measured:
    ax = tw.plot.curve(
        measured[name], x="log", y="log", slope=(100, 1000), ax=ax, label=name, title="Against α"
    )
ax.set_ylabel("relative to the start")
ax

# %% [markdown]
# ## Exercises
#
# 1. **Speed.** Show that the first step changes the output α(f − f₀) by the same amount for every α.
#    Check it with `steps=1`.
# 2. **The kernel decides.** For large α the residual after t steps is (I − 2η/n·Θ)ᵗ(−y), where Θ is
#    `tw.ntk(problem, start)`. Compare the losses with it. Which part of y is learnt first?
# 3. **A wide network is lazy by itself.** Leave α = 1 and take widths 10, 100, 1000, with the learning
#    rate divided by the width (why?). How does the kernel's drift fall with the width?
# 4. **Kinks.** Put `jax.nn.relu` in the place of tanh. Is the slope of the kernel's drift still −1?
#    Count how many units change sides at a sample.
# 5. **Rounding.** Compute α(f(w) − f(w₀)) in float32 by hand at a point near w₀, and compare it with
#    what `tw.scale_output` gives on a float32 problem. From which α on does it matter?
# 6. **Open.** Is the network at α = 1 better than the lazy one? On the samples, and between them, for
#    all three targets of `data.TARGETS`, after a long descent.
