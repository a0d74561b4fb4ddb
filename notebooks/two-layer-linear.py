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
# # First order against Levenberg–Marquardt
#
# A linear network of two layers, ŷ = W1 W2 x, learns a matrix A. The prediction is linear in x, and
# bilinear in the parameters; the least loss is zero. The sizes are small here (200 samples), so that
# every cell answers within seconds.

# %%
import numpy as np

import thalweg as tw

rng = np.random.default_rng(0)
A = rng.uniform(size=(10, 6)) * np.linspace(1, 1e-5, 10)[:, None]
x = rng.standard_normal((200, 6))
start = {"W1": rng.standard_normal((10, 6)), "W2": rng.standard_normal((6, 6))}


def network(w, x):
    return x @ w["W2"].T @ w["W1"].T


problem = tw.Problem(network, "mse", x, x @ A.T, params=start, reduction="sum")
record = {"grad_norm": True, "params": False}
descent = tw.descend(problem, tw.SGD(lr=[5e-6, 5e-5, 5e-4]), steps=2000, record=record)
adam = tw.descend(problem, tw.Adam(lr=[1e-4, 1e-3, 1e-2]), steps=2000, record=record)
descent["status"].values

# %% [markdown]
# ## How far do first-order methods get?
#
# Three step sizes each, gradient descent solid and Adam dashed. Which of them is limited by its step size,
# and which by the problem?

# %%
tw.plot.convergence({"gradient descent": descent, "Adam": adam})

# %% [markdown]
# ## What does the Jacobian buy?
#
# Gauss–Newton goes a fixed part of the way to the minimum of the linearised problem;
# Levenberg–Marquardt decides at each step how far it trusts the linearisation. A descent with `stop=`
# ends where it has arrived. Why are Gauss–Newton's lines straight, and what decides their slope?

# %%
newton = tw.descend(problem, tw.GaussNewton(lr=[0.05, 0.2]), steps=190, record=record)
lm = tw.descend(problem, tw.LevenbergMarquardt(), steps=100, stop={"loss": 1e-20}, record=record)
print(f"Levenberg–Marquardt: loss {lm['loss'].values[-1]:.1e} after {int(lm['stopped_at'])} steps")
tw.plot.convergence(
    {"gradient descent": descent, "Adam": adam, "Gauss–Newton": newton, "Levenberg–Marquardt": lm},
    last=190,
)

# %% [markdown]
# ## What did the damping do?
#
# Each step records its damping `mu` and its gain ratio, the reduction of the loss over the reduction that
# the linearisation promised. When is the linearisation trusted?

# %%
figure, axes = tw.plot.grid(1, 2, title="Levenberg–Marquardt from step to step")
tw.plot.record(lm, "mu", ax=axes[0, 0], title="Damping μ")
tw.plot.record(lm, "gain_ratio", ax=axes[0, 1], y="linear", title="Gain ratio")
figure

# %% [markdown]
# ## In how many directions does the prediction change?
#
# The singular values of the Jacobian at the start. There are 96 parameters. What are the directions in
# which nothing happens?

# %%
jacobian = np.asarray(tw.jacobian(problem, start))
values = np.linalg.svd(jacobian, compute_uv=False)
print("rank", np.linalg.matrix_rank(jacobian), "of", problem.size)
print("singular values 1, 60, 61, 96:", values[[0, 59, 60, 95]])

# %% [markdown]
# ## Exercises
#
# 1. **The straight line.** Compare Gauss–Newton's loss at step size η with (1 − η)^(2k). Until when do they
#    agree for η = 0.05, 0.2, 0.5? Derive the factor.
# 2. **A step too far.** What does Gauss–Newton do at step size 1 from this start? And from ten other
#    starts?
# 3. **Gauge.** Take any invertible G and replace the start by W1 G, G⁻¹ W2. The prediction is the same. Which
#    optimizers take the same path through function space, and which do not?
# 4. **A layer too narrow.** With three units in the middle the loss cannot vanish. How fast do the
#    methods converge now, and why?
# 5. **Ill-conditioned.** Give A the singular values 1, 0.1, …, 1e-5. What happens to each method?
# 6. **Open: the price.** A gradient costs about 6np operations, a Gauss–Newton step 2mp² for m
#    residuals. Draw the losses against that cost, with momentum 0.99 at 5e-5 among them. Who wins, up
#    to which accuracy? What would make you choose otherwise?
