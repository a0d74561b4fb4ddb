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
# # Solutions: first order against Levenberg–Marquardt

# %%
import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw

rng = np.random.default_rng(0)
A = rng.uniform(size=(10, 6)) * np.linspace(1, 1e-5, 10)[:, None]
x = rng.standard_normal((200, 6))
start = {"W1": rng.standard_normal((10, 6)), "W2": rng.standard_normal((6, 6))}


def network(w, x):
    return x @ w["W2"].T @ w["W1"].T


def problem_from(start, A=A):
    return tw.Problem(network, "mse", x, x @ A.T, params=start, reduction="sum")


problem = problem_from(start)
record = {"grad_norm": True, "params": False}
rest = {"stop": {"loss": 1e-20}, "record": record}

# %% [markdown]
# ## 1. The straight line
#
# The step h solves r + Jh = 0 here, so r(w + ηh) = (1 − η)r + O(η²), and the loss falls by (1 − η)². The
# neglected term δW1 δW2 x is of order η²: the greater the step, the sooner the two part. Later they
# run in parallel again: near the minimum h is small, and the linearisation is right.

# %%
rates = [0.05, 0.2, 0.5]
newton = tw.descend(problem, tw.GaussNewton(lr=rates), steps=60, record=record)
for i, lr in enumerate(rates):
    ratio = newton["loss"].values[:, i] / newton["loss"].values[0, i]
    k = np.array([1, 5, 10, 20])
    print(
        f"η = {lr:g}: loss over (1 − η)^2k at steps 1, 5, 10, 20:", ratio[k] / (1 - lr) ** (2 * k)
    )

# %% [markdown]
# ## 2. A step too far
#
# At first δW1 δW2 x is as large as the terms that the linearisation keeps, and a full step may raise the
# loss above its first value: from two of the ten other starts it does. From this start, the first below,
# it does not, though the fourth step raises it a hundredfold. Once near, it converges quadratically. On
# this problem it works more often than it deserves to, and takes no more steps than the damped method (9
# on average against 10), which never lets the loss rise; where residuals stay, or predictions are
# exponentials, the detour can last for ever.

# %%
draws = np.random.default_rng(1).standard_normal((10, problem.size))
draws = np.vstack([problem.flatten(start), draws])
path = tw.descend(problem, tw.GaussNewton(), steps=60, starts=draws, **rest)
damped = tw.descend(problem, tw.LevenbergMarquardt(), steps=60, starts=draws, **rest)
growth = path["loss"].max("step") / path["loss"].isel(step=0)
print("largest loss over the first:", growth.values.round(1))
print("steps, Gauss–Newton:       ", path["stopped_at"].values)
print("steps, Levenberg–Marquardt:", damped["stopped_at"].values)

# %% [markdown]
# ## 3. Gauge
#
# J at the new point is J with its columns mixed by an invertible matrix, and so has the same range. A
# full undamped Gauss–Newton step that depended on the range alone would be the same in function space;
# but the second-order term δW1 δW2 depends on which of the many solutions is taken, and the shortest
# one is a different one in other coordinates. So all the paths differ; in the limit of small step sizes
# Gauss–Newton's agree, r(t) = e^(−t) r(0), and gradient descent's do not.

# %%
G = np.eye(6) + 0.5 * np.random.default_rng(2).standard_normal((6, 6))
turned = problem_from({"W1": start["W1"] @ G, "W2": np.linalg.solve(G, start["W2"])})
for name, optimizer in {
    "gradient descent": tw.SGD(lr=5e-6),
    "Gauss–Newton, 0.01": tw.GaussNewton(lr=0.01),
    "Gauss–Newton, 0.2": tw.GaussNewton(lr=0.2),
    "Levenberg–Marquardt": tw.LevenbergMarquardt(),
}.items():
    losses = [tw.descend(p, optimizer, steps=8)["loss"].values for p in (problem, turned)]
    print(f"{name:20} loss at step 8, from both starts: {losses[0][8]:.4g}, {losses[1][8]:.4g}")

# %% [markdown]
# ## 4. A layer too narrow
#
# The residuals r* at the minimum do not vanish. The Hessian is 2JᵀJ + 2Σ r ∇²r, and Gauss–Newton
# leaves the second term out, so it converges linearly, at a rate given by the size of r* ∇²r against JᵀJ.
# The least loss is the part of A that rank 3 cannot reach, weighted by the data.

# %%
narrow = problem_from({"W1": start["W1"][:, :3], "W2": start["W2"][:3]})
left, values, right = np.linalg.svd(x @ A.T, full_matrices=False)
least = np.sum(values[3:] ** 2)
paths = {
    "Gauss–Newton": tw.descend(narrow, tw.GaussNewton(lr=0.5), steps=150),
    "Levenberg–Marquardt": tw.descend(narrow, tw.LevenbergMarquardt(), steps=150),
    "gradient descent": tw.descend(narrow, tw.SGD(lr=1e-4), steps=150),
}
figure, ax = plt.subplots(layout="constrained")
for name, path in paths.items():
    ax.semilogy(np.maximum(path["loss"] - least, 1e-16), label=name)
ax.set(xlabel="step", ylabel="loss above the least one", title=f"Width 3: least loss {least:.3g}")
ax.legend()

# %% [markdown]
# ## 5. Ill-conditioned
#
# Gauss–Newton does not notice. Gradient descent stops at what the small singular values are worth, and
# Levenberg–Marquardt needs some more steps, because its damping must fall below their squares.

# %%
left = np.linalg.qr(rng.standard_normal((10, 6)))[0]
right = np.linalg.qr(rng.standard_normal((6, 6)))[0]
hard = problem_from(start, left * np.geomspace(1, 1e-5, 6) @ right.T)
tw.plot.convergence(
    {
        "gradient descent": tw.descend(hard, tw.SGD(lr=5e-5), steps=190, record=record),
        "Gauss–Newton": tw.descend(hard, tw.GaussNewton(lr=0.2), steps=190, record=record),
        "Levenberg–Marquardt": tw.descend(hard, tw.LevenbergMarquardt(), steps=100, **rest),
    },
    title="A with singular values from 1 to 1e-5",
)

# %% [markdown]
# ## 6. Open: the price
#
# In arithmetic a Gauss–Newton step costs 2mp²/(6np) = d_out·p/3 = 320 gradients.

# %%
cost = {"momentum": 1, "Gauss–Newton": 320, "Levenberg–Marquardt": 320}
paths = {
    "momentum": tw.descend(problem, tw.SGD(lr=5e-5, momentum=0.99), steps=8000, record=record),
    "Gauss–Newton": tw.descend(problem, tw.GaussNewton(lr=0.5), steps=60, **rest),
    "Levenberg–Marquardt": tw.descend(problem, tw.LevenbergMarquardt(), steps=60, **rest),
}
figure, ax = plt.subplots(layout="constrained")
for name, path in paths.items():
    ax.loglog(1 + cost[name] * path["step"], path["loss"], label=name)
ax.set(xlabel="cost in gradients, plus one", ylabel="loss", title="The same, by arithmetic")
ax.legend()

# %% [markdown]
# For a rough answer first order is cheaper by far; for an exact one second order wins, and nobody had to find
# its learning rate. What else would count: the memory for a Jacobian, a Jacobian's structure (here J
# could be reduced to 60 rows once and for all, since x enters through xᵀx alone), and mini-batches, which a
# method that trusts its residuals to rounding has no use for.
