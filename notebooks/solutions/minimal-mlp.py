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
# # Solutions: the stochastic landscape of a two-parameter network

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw


def samples(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x, 2 * x + 3 * rng.standard_normal(n)


def relu_model(w, x):
    return w["w1"] * jax.nn.relu(w["w2"] * x)


def relu_risk(w):
    return (8 - 4 * w["w1"] * w["w2"] + (w["w1"] * w["w2"]) ** 2) / 6 + 9


x, y = samples(100)
start = {"w1": 3.0, "w2": -4.0}
problem = tw.Problem(relu_model, "mse", x, y, params=start, expected=relu_risk)
one_pass = {"epochs": 1, "batch_size": 1}

# %% [markdown]
# ## 1. Without the kink

# %%
linear = tw.Problem(
    lambda w, x: w["w1"] * w["w2"] * x,
    "mse",
    x,
    y,
    params=start,
    expected=lambda w: (w["w1"] * w["w2"] - 2) ** 2 / 3 + 9,
)
window = {"w1": (-5, 5), "w2": (-5, 5)}
path = tw.descend(linear, tw.SGD(lr=0.01), record=["grad"], **one_pass)
print("steps with no gradient:", int((~path["grad"].values[:-1].any(axis=1)).sum()))
tw.plot.contour(tw.landscape(linear, tw.coordinate_plane(linear, window, points=60)), path)

# %% [markdown]
# Every sample has a gradient now: in the other model about half of them had none.

# %% [markdown]
# ## 2. Check the formula
#
# The pointwise risks' standard deviation over √n is the standard error of their mean. Differences of
# one or two of them are what chance explains.

# %%
many = tw.Problem(relu_model, "mse", *samples(100_000, seed=1), params=start)
for w1, w2 in ((3.0, -4.0), (1.0, 2.0), (-1.0, 1.0)):
    w = {"w1": w1, "w2": w2}
    risks = np.asarray(many.pointwise(w))
    error = risks.std() / np.sqrt(len(risks))
    off = float(risks.mean() - problem.expected(w))
    print(f"w = ({w1:g}, {w2:g}): off by {off:+.4f}, {off / error:+.2f} standard errors")
    assert abs(off) < 4 * error

# %% [markdown]
# ## 3. Starts that go nowhere
#
# Where w2 = 0 the unit is off for every sample, and the derivative of relu at 0 is taken as 0: neither
# (0, 0) nor (1, 0) moves. From (1, 0.01) only samples with x > 0 count. The step's change of w2 is
# −2η(f(x) − y)x·w1, so with w1 = 1 it is the sign of y at those samples that decides: on average y > 0,
# and w2 grows.

# %%
starts = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.01]])  # in the order of problem.names
path = tw.descend(problem, tw.SGD(lr=0.01), starts=starts, **one_pass)
for run in range(3):
    print(starts[run], "→", path["final"].isel(run=run).values.round(4))
surface = tw.landscape(
    problem, tw.coordinate_plane(problem, {"w1": (-2, 2), "w2": (-2, 2)}, points=60)
)
tw.plot.contour(surface, path)

# %% [markdown]
# ## 4. A hyperbola
#
# A step is w1 ← w1 − s·w2, w2 ← w2 − s·w1 with the same s for both, because the model depends on them
# only through their product wherever the unit is on. Squaring, the mixed terms cancel:
# w1² − w2² ← (1 − s²)(w1² − w2²). Since s is proportional to the learning rate and the number of steps
# that it takes to get anywhere to its inverse, the total change is proportional to the learning rate.

# %%
path = tw.descend(
    problem, tw.SGD(lr=[0.01, 0.003, 0.001]), epochs=10, batch_size=1, shuffle=True, seed=0
)
w1, w2 = (path["params"].sel(param=name) for name in ("w1", "w2"))
figure, ax = plt.subplots(layout="constrained")
for lr in path["lr"].values:
    ax.plot(path["step"], (w1**2 - w2**2).sel(lr=lr), label=f"lr = {lr:g}")
ax.set(xlabel="step", ylabel="w1² − w2²", title="Nearly kept, the better the smaller the step")
ax.legend()

# %% [markdown]
# ## 5. Too fast
#
# Twenty learning rates, and for each eight orders of the samples (`seed=` is swept too). A run that
# diverges is marked and does not affect the others.

# %%
rates = np.geomspace(0.001, 1, 20)
path = tw.descend(
    problem,
    tw.SGD(lr=rates),
    epochs=20,
    batch_size=1,
    shuffle=True,
    seed=list(range(8)),
    record={"params": False},
)
diverged = (path["status"] == "diverged").mean("seed")
figure, ax = plt.subplots(layout="constrained")
ax.semilogx(rates, diverged, "o-", label="of eight orders of the samples")
ax.set(xlabel="learning rate", ylabel="share of descents that diverge", title="Too fast")
ax.legend()
print(diverged.to_series().round(2).to_string())

# %% [markdown]
# Between the rates that are always safe and those that never are lies a range in which the order of the
# samples decides. A step overshoots where its own sample is steep: the pointwise risk of a sample with
# the unit on has the curvature 2x²(w1² + w2²) along its gradient, so that for |x| near 1 a step is too long
# from 2/(2·25) = 0.04 on at the start. Many a descent survives that, since the next samples lead back. But
# the curvature grows with the distance from the origin, and an iterate thrown far enough out is thrown
# further by every step that follows.

# %% [markdown]
# ## 6. Open: how far above the bottom?
#
# One way to measure: take many steps, and average the empirical risk over the second half of them.

# %%
lowest = float(
    tw.descend(problem, tw.SGD(lr=0.01), steps=5000, record={"params": False})["loss"][-1]
)
figure, ax = plt.subplots(layout="constrained")
for replacement in (True, False):
    for batch_size in (1, 10):
        path = tw.descend(
            problem,
            tw.SGD(lr=[0.001, 0.003, 0.01]),
            steps=50_000,
            batch_size=batch_size,
            shuffle=not replacement,
            replacement=replacement,
            record={"risk": True, "params": False},
            every=10,
        )
        second_half = path["risk"].isel(step=slice(path.sizes["step"] // 2, None))
        excess = second_half.mean("step") - lowest
        how = "with" if replacement else "without"
        ax.loglog(path["lr"], excess, "o-", label=f"batches of {batch_size}, {how} replacement")
ax.set(xlabel="learning rate", ylabel="mean empirical risk above the lowest", title="Hovering")
ax.legend()

# %% [markdown]
# With replacement every batch is drawn afresh. The excess grows with the learning rate, and with ten
# samples per batch it is about a tenth: the mean of ten gradients has a tenth of the variance. Without
# replacement the batches of an epoch make up all the data. What one step adds to the risk, the others
# of its epoch take back for the most part, so that the excess is far smaller, and falls faster than the
# learning rate.
