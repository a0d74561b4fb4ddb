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
# # Solutions: when is a step small enough?

# %%
import numpy as np
from jax.tree_util import Partial

import thalweg as tw

# %% [markdown]
# ## 1. By hand
#
# The flow is w(t) = w_0 e^(−λt), descent w_k = w_0 (1 − λη)^k. With kη = 1,
# (1 − λη)^(1/η) = e^(log(1 − λη)/η) = e^(−λ − λ²η/2 − …) ≈ e^(−λ) (1 − ½λ²η): the distance is ½λ²e^(−λ)η.


# %%
def parabola(c, w):
    return 0.5 * c * w["w"] ** 2


c = 2.0
bowl = tw.Problem.from_function(Partial(parabola, np.float64(c)), params={"w": 1.0})
flow = tw.gradient_flow(bowl, time=1.0)
for lr in (1e-2, 1e-3, 1e-4):
    path = tw.descend(bowl, tw.SGD(lr=lr), steps=round(1 / lr))
    apart = float(abs(path["final"] - flow["final"])[0])
    print(lr, apart, "expected", 0.5 * c**2 * np.exp(-c) * lr)
    assert np.isclose(apart, 0.5 * c**2 * np.exp(-c) * lr, rtol=0.05)

# %% [markdown]
# ## 2. Too long to rest
#
# Near a minimum a step multiplies the direction of λ by 1 − ηλ: −0.8 with 0.9 · 2/λ, −1.2 with 1.1 · 2/λ.
# The first swings to rest. The second swings out, until it is thrown into another valley or finds a
# place where the curvature is below 2/η. The map gives such a minimum the radius 0: no start arrives.

# %%
problem = tw.Problem.from_catalogue("ripples")
plane = tw.coordinate_plane(problem, {"x": (-3, 0), "y": (0, 3)}, points=20)
found = tw.basins(problem, tw.SGD(lr=2e-3), plane, steps=500)
minimum, steepest = found["minima"].values[0], float(found["largest_eigenvalue"][0])
near = problem.at(dict(zip(("x", "y"), minimum + 1e-4, strict=True)))
for share in (0.9, 1.1):
    path = tw.descend(near, tw.SGD(lr=share * 2 / steepest), steps=200)
    print(share, "distance after 200 steps:", np.linalg.norm(path["final"] - minimum))

# %% [markdown]
# ## 3. A quantity that is kept
#
# With e = abx − y, ∂L/∂a = 2e·bx and ∂L/∂b = 2e·ax, so that d(a² − b²)/dt = −4e·abx + 4e·abx = 0. A step
# of descent changes a² − b² by η²(g_a² − g_b²), and 1/η steps by a multiple of η.


# %%
def product(w, x):
    return w["a"] * w["b"] * x


pair = tw.Problem(product, "mse", [1.0], [2.0], params={"a": 2.0, "b": 0.1})


def kept(path):
    a, b = path["params"].values.T
    return a**2 - b**2


flow = tw.gradient_flow(pair, time=1.0)
print("flow:", np.ptp(kept(flow)))
assert np.ptp(kept(flow)) < 1e-6
for lr in (1e-2, 1e-3, 1e-4):
    path = tw.descend(pair, tw.SGD(lr=lr), steps=round(1 / lr))
    print(lr, "descent:", kept(path)[-1] - kept(path)[0])

# %% [markdown]
# ## 4. Stiff
#
# An explicit solver is stable only for steps of a few 1/c, however little the solution changes: its
# number of steps grows in proportion to c. An implicit one is stable for any step and follows what
# changes.


# %%
def long_bowl(c, w):
    return 0.5 * (w["x"] ** 2 + c * w["y"] ** 2)


for c in (1.0, 1e2, 1e4, 1e6):
    long = tw.Problem.from_function(Partial(long_bowl, np.float64(c)), params={"x": 1.0, "y": 1.0})
    counts = []
    for solver in ("explicit", "stiff"):
        flow = tw.gradient_flow(long, time=1.0, points=2, solver=solver, max_steps=30_000)
        counts.append(f"{solver} {int(flow['accepted'])} ({flow['status'].item()})")
    print(f"c = {c:g}:", ", ".join(counts))

# %% [markdown]
# ## 5. Momentum
#
# With momentum μ the velocity builds up to the gradient divided by 1 − μ: a step is worth the time η/(1
# − μ). Once the velocity has built up, heavy-ball descent follows the flow at that time, again at order
# one.

# %%
slow = tw.Problem.from_function(Partial(parabola, np.float64(1.0)), params={"w": 1.0})
end = tw.gradient_flow(slow, time=1.0)["final"]
lrs = np.array([1e-3, 1e-4, 1e-5])
apart = [
    float(
        abs(
            tw.descend(slow, tw.SGD(lr=lr * 0.1, momentum=0.9), steps=round(1 / lr))["final"] - end
        )[0]
    )
    for lr in lrs
]
print("slope:", tw.plot.log_slope(lrs, apart))

# %% [markdown]
# ## 6. Open
#
# One beginning: the value at the minima reached, weighted by who reaches them, and the share that
# arrives. Large steps rest in wide minima only, which here lie at all values.

# %%
for lr in (1e-4, 2e-3):
    found = tw.basins(problem, tw.SGD(lr=lr), plane, steps=1000)
    share = float((found["basin"] >= 0).mean())
    reached = found["reached"].values
    mean = np.average(found["minimum_loss"].values, weights=reached) if reached.any() else np.nan
    print(f"lr {lr:g}: {100 * share:.0f} % have arrived, at {mean:.3f} in the mean")
