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
# # When is a step small enough?
#
# Gradient descent takes steps down a slope; the gradient flow dw/dt = −∇L follows it without steps. Here
# both start from the same points of a rippled function, whose valleys are wide in one corner and a
# hundredth as wide in another. Sizes are small, so that every cell answers within seconds; the study
# `thalweg run gradient-flow` has a hundred starts and a map of a million.

# %%
import numpy as np
import xarray as xr

import thalweg as tw

problem = tw.Problem.from_catalogue("ripples")
window = {"x": (-3, 3), "y": (-3, 3)}
surface = tw.landscape(problem, tw.coordinate_plane(problem, window, points=121))
starts = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 2))
small = tw.descend(problem, tw.SGD(lr=1e-4), steps=2000, starts=starts)
large = tw.descend(problem, tw.SGD(lr=2e-3), steps=2000, starts=starts)

# %% [markdown]
# ## Where do small steps go, and where large ones?
#
# As many steps of either size. Which starts come to rest, and which are thrown about?

# %%
ax = tw.plot.contour(surface, levels=50)
tw.plot.path(surface, small, ax=ax, label="lr 1e-4", color="#0072B2")
tw.plot.path(surface, large, ax=ax, label="lr 2e-3", color="#B2182B")

# %% [markdown]
# ## Which of them end lower?

# %%
tw.plot.histogram({"lr 1e-4": small, "lr 2e-3": large}, bins=15)

# %% [markdown]
# ## Is it the step or the time that counts?
#
# k steps of η take the flow's time kη. The flow is a trajectory with a coordinate `time`; given the same
# coordinate, descents are drawn against it too. Where do the curves part?

# %%
flow = tw.gradient_flow(problem, times=np.geomspace(1e-4, 4, 100), starts=starts, solver="stiff")
ax = tw.plot.loss(flow, x="log", y="linear", label="flow")
for path, lr in ((small, 1e-4), (large, 2e-3)):
    timed = path.assign_coords(time=("step", lr * path["step"].values))
    tw.plot.loss(timed, x="log", y="linear", ax=ax, label=f"lr {lr:g}")
ax

# %% [markdown]
# ## How far from the flow is a descent?
#
# Each learning rate takes as many steps as make up the time 0.2. On log–log axes, what is the slope
# where steps are small, and where does it end?

# %%
lrs = np.array([2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5])
end = tw.gradient_flow(problem, time=0.2, starts=starts, solver="stiff")["final"]
distances = [
    np.linalg.norm(
        tw.descend(
            problem, tw.SGD(lr=lr), steps=round(0.2 / lr), starts=starts, record={"params": False}
        )["final"]
        - end,
        axis=0,
    )
    for lr in lrs
]
table = xr.DataArray(
    distances, dims=("lr", "run"), coords={"lr": lrs}, name="distance from the flow"
)
tw.plot.curve(table, "lr", over="run", slope=(0, 1.5e-4), x="log", y="log")

# %% [markdown]
# ## Which minimum does each start reach?
#
# Light grey has not arrived within the budget; the map does not guess. Numbers are the minima that most
# starts reach. What do the borders follow?

# %%
plane = tw.coordinate_plane(problem, {"x": (-3, 0), "y": (0, 3)}, points=60)
tw.plot.basins(tw.basins(problem, tw.SGD(lr=2e-3), plane, steps=1000))

# %% [markdown]
# ## Exercises
#
# 1. **By hand.** On ½λw² write down the flow, and k steps of gradient descent with kη = 1. Check with
#    `tw.gradient_flow` and `tw.descend` that their distance is about ½λ²e^(−λ)η.
# 2. **Too long to rest.** Take one of the minima that `tw.basins` finds and its largest eigenvalue λ. Start
#    close to it, with learning rates of 0.9 · 2/λ and 1.1 · 2/λ. What happens, and what does the map say?
# 3. **A quantity that is kept.** Fit y = a·b·x to one sample by the flow. Show that a² − b² does not
#    change. Does descent keep it? How does its change depend on the learning rate?
# 4. **Stiff.** Follow the flow on ½(x² + cy²) for c = 1, 100, 10⁴, 10⁶ with solver="explicit" and "stiff".
#    How do the numbers of steps (`accepted`) grow, and why?
# 5. **Momentum.** Is heavy-ball momentum with learning rate η and momentum μ a follower of the flow too?
#    At which time? Measure the slope.
# 6. **Open.** Do large steps find better minima here? Choose what "better" means: value, width, the
#    share of starts that arrive at all.
