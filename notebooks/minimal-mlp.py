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
# # The stochastic landscape of a two-parameter network
#
# Stochastic gradient descent looks at one sample at a time. What does it see of the landscape that it
# is meant to descend? With two parameters we can look: here is the network f(x) = w1·relu(w2·x), fitted
# to a hundred points about the line y = 2x.

# %%
import jax
import numpy as np

import thalweg as tw

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, 100)
y = 2 * x + 3 * rng.standard_normal(100)
problem = tw.Problem(
    lambda w, x: w["w1"] * jax.nn.relu(w["w2"] * x),
    "mse",
    x,
    y,
    params={"w1": 3.0, "w2": -4.0},
    expected=lambda w: (8 - 4 * w["w1"] * w["w2"] + (w["w1"] * w["w2"]) ** 2) / 6 + 9,
)
plane = tw.coordinate_plane(problem, {"w1": (-5, 5), "w2": (-5, 5)}, points=60)
surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
path = tw.descend(
    problem, tw.SGD(lr=0.01), epochs=1, batch_size=1, record=["grad", "batch", "risk", "expected"]
)
path["final"]

# %% [markdown]
# ## What does one step see?
#
# Left is the pointwise risk of the step's sample. Compare it with the empirical risk in the middle: is
# the arrow a good direction there?

# %%
tw.plot.step_panels(surface, path, step=20)

# %% [markdown]
# ## And all of them?
#
# The left panel, step after step. When does the iterate stand still, and why? (The text below the
# picture says how far the end colours reach in each frame.)

# %%
tw.animate.pointwise(surface, path, frames=34, dpi=80)

# %% [markdown]
# ## Does it get better?
#
# The loss of each step's sample jumps about. The risks, which no step sees, give the answer.

# %%
ax = tw.plot.record(path, "risk", y="linear", label="empirical")
tw.plot.record(path, "expected", y="linear", label="expected", ax=ax)

# %% [markdown]
# ## Exercises
#
# 1. **Without the kink.** Replace the model by w1·w2·x, and its expected risk by (w1·w2 − 2)²/3 + 9.
#    Draw the empirical risk with the path. What has become of the steps with no gradient?
# 2. **Check the formula.** Draw 100,000 fresh samples, make a problem of them, and compare its risk
#    with `problem.expected` at three points of your choice. How large a difference does chance explain?
# 3. **Starts that go nowhere.** Start at (0, 0), at (1, 0) and at (1, 0.01). Which of them moves, and
#    what decides in which direction?
# 4. **A hyperbola.** Plot w1² − w2² along the path, for learning rates 0.01, 0.003 and 0.001 in one
#    sweep with ten epochs. Derive why it hardly changes.
# 5. **Too fast.** Sweep the learning rate from 0.001 to 1. Where does the descent begin to diverge?
#    Does the largest stable step depend on the order of the samples?
# 6. **Open.** With a constant learning rate SGD does not come to rest. Over many epochs with
#    reshuffling, how far above the lowest empirical risk does it hover, and how does that depend on the
#    learning rate and on the batch size?
