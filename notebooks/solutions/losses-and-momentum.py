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
# # Solutions: one line, four losses, and what momentum does

# %%
import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw

rng = np.random.RandomState(20240215)
x = rng.randn(50).astype("float32")
y = (0.75 * x**2 + x + 2 + 0.3 * rng.randn(50)).astype("float32")


def line(w, x):
    return w["weight"] * x + w["bias"]


def problem_with(loss, x=x, y=y):
    return tw.Problem(line, loss, x, y, params={"weight": 6.0, "bias": -3.0})


mse = problem_with("mse")
X = np.column_stack([np.ones(50), x]).astype(float)  # in the order of mse.names: bias, weight
minimum = np.linalg.lstsq(X, y.astype(float), rcond=None)[0]
window = {"bias": (-5, 8), "weight": (-5, 8)}

# %% [markdown]
# ## 1. Twins
#
# Huber is ½r² up to δ and δ(|r| − ½δ) beyond; smooth L1 is ½r²/β up to β and |r| − ½β beyond. For β = δ
# the first is δ times the second. The contours then are the same lines, with other values. The paths are
# the same if the learning rates make up for the factor: 0.1/δ for the one and 0.1 for the other.

# %%
huber = tw.descend(problem_with("huber:0.5"), tw.SGD(lr=0.2), steps=100)
smooth = tw.descend(problem_with("smooth_l1:0.5"), tw.SGD(lr=0.1), steps=100)
np.testing.assert_allclose(huber["params"], smooth["params"], rtol=1e-4, atol=1e-5)
ratio = huber["loss"] / smooth["loss"]
print("Huber over smooth L1 along the path:", ratio.values[[0, 50, 100]])

# %% [markdown]
# ## 2. The limit
#
# The MSE of a line is a quadratic with the Hessian 2/n·XᵀX, and descent on a quadratic converges for
# η < 2/λ_max.

# %%
largest = np.linalg.eigvalsh(2 / 50 * X.T @ X).max()
limit = 2 / largest
rates = limit * np.array([0.5, 0.9, 0.99, 1.01, 1.1])
path = tw.descend(mse, tw.SGD(lr=rates), steps=2000)
for lr, loss, status in zip(rates, path["loss"].values[-1], path["status"].values, strict=True):
    print(f"lr = {lr:.4f} = {lr / limit:.2f} of the limit: {status}, loss {loss:.4g}")

# %% [markdown]
# ## 3. How fast does it swing?
#
# The error of a quadratic's descent with momentum obeys e(t+1) = (1 + μ − ηλ)e(t) − μe(t−1). Where the
# roots of z² − (1 + μ − ηλ)z + μ are complex, both have the absolute value √μ: that is the envelope.
# The best momentum makes the roots of the slowest direction just meet, μ = (1 − √(ηλ_min))²; beyond it,
# more momentum only means more swinging.

# %%
momenta = [0.0, 0.5, 0.7, 0.9, 0.99]
path = tw.descend(mse, tw.SGD(lr=0.1, momentum=momenta), steps=100)
distance = np.linalg.norm(path["params"].values - minimum[:, None], axis=1)
figure, ax = plt.subplots(layout="constrained")
for i, momentum in enumerate(momenta):
    (drawn,) = ax.semilogy(distance[:, i], label=f"momentum {momentum:g}")
    if momentum:
        ax.semilogy(
            distance[0, 0] * momentum ** (np.arange(101) / 2), ":", lw=1, color=drawn.get_color()
        )
ax.set(
    xlabel="step", ylabel="distance from the minimum", title="Dotted: √μ a step", ylim=(1e-7, 100)
)
ax.legend()
smallest = np.linalg.eigvalsh(2 / 50 * X.T @ X).min()
print(f"the roots meet at momentum {(1 - np.sqrt(0.1 * smallest)) ** 2:.3f}")

# %% [markdown]
# The curves end near 1e-6, the precision of float32.

# %% [markdown]
# ## 4. A bottom of its own
#
# Weight decay adds λw to the gradient, which is the gradient of ½λ‖w‖².

# %%
penalised = tw.Problem(
    line,
    "mse",
    x,
    y,
    params={"weight": 6.0, "bias": -3.0},
    penalty=lambda w: w["weight"] ** 2 + w["bias"] ** 2,  # ½λ‖w‖² with λ = 2
)
path = tw.descend(mse, tw.SGD(lr=0.1, weight_decay=2.0), steps=100)
bottom = np.linalg.solve(2 / 50 * X.T @ X + 2 * np.eye(2), 2 / 50 * X.T @ y.astype(float))
print("ends at", path["final"].values, "; computed", bottom)
np.testing.assert_allclose(path["final"], bottom, rtol=1e-4)
tw.plot.contour(tw.landscape(penalised, tw.coordinate_plane(mse, window, points=60)), path)

# %% [markdown]
# ## 5. An outlier
#
# The slope of the MSE at a point is proportional to its residual, and the outlier's is large. The other
# losses' slopes are at most 1: one point of 51 counts for one of 51.

# %%
more_x, more_y = np.append(x, np.float32(3)), np.append(y, np.float32(-20))
for loss in ("mse", "l1", "huber", "smooth_l1"):
    ends = [
        tw.descend(problem_with(loss, *data), tw.SGD(lr=0.1, momentum=0.9), steps=2000)["final"]
        for data in ((x, y), (more_x, more_y))
    ]
    without, with_it = (end.values.round(3) for end in ends)
    print(f"{loss:9}  without {without}, with {with_it}")

# %% [markdown]
# ## 6. Open: each at its best
#
# Fifty steps of plain descent, from 0.1 to 30 times the rate of the study. The losses' values cannot be
# compared with each other; the distance to each one's own minimum can.

# %%
rates = 0.1 * np.geomspace(0.1, 30, 40)
figure, ax = plt.subplots(layout="constrained")
for loss in ("mse", "l1", "huber"):
    problem = problem_with(loss)
    best = tw.descend(problem, tw.SGD(lr=lambda t: 0.5 / (1 + 0.01 * t)), steps=20_000)["final"]
    path = tw.descend(problem, tw.SGD(lr=rates), steps=50)
    distance = np.linalg.norm(path["final"].values - best.values[:, None], axis=0)
    ax.loglog(rates, distance, label=loss)
    i = np.nanargmin(distance)
    print(f"{loss}: {distance[i]:.2g} from its minimum at lr = {rates[i]:.2f}")
ax.set(xlabel="learning rate", ylabel="distance from the minimum", title="After fifty steps")
ax.legend()

# %% [markdown]
# The MSE is smooth and round: with any rate from about 0.25 to 0.8 fifty steps bring it to the precision of
# float32. Huber's loss is smooth too and its slopes are smaller: it gets there with rates from about 0.8 to
# 1.9. By this measure both win. The L1 loss has kinks, at which a constant step keeps missing the bottom:
# there a rate that shrinks would help. What one cannot conclude is that the MSE's minimum is the better
# line; with the outlier of exercise 5 it is not.
