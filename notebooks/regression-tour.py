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
# # A line, an outlier, and on to polynomials
#
# A hundred points lie about a parabola, and one lies far off. We fit them by a line, look at two
# losses from above, take a derivative apart, and descend. Everything here runs in seconds; the whole
# study, with more steps and with interactive figures, is `thalweg run regression-tour --out out/tour`.

# %%
import jax.numpy as jnp
import numpy as np
import xarray as xr

import thalweg as tw
from thalweg.catalogue import data, models

x, y = data.parabola_with_outlier()
table = xr.Dataset({"x": ("sample", x), "y": ("sample", y)})
tw.plot.points(table)

# %% [markdown]
# ## Two losses
#
# **Which line is best?** That depends on what is made small: the mean squared error (MSE) or the mean
# absolute error (MAE). For the first there is a closed form.


# %%
def line(w, x):
    return w["intercept"] + w["slope"] * x


zero = np.float32(0)  # float32 parameters on float64 data
start = {"intercept": zero, "slope": zero}
squared = tw.Problem(line, "mse", x, y, params={"intercept": 0.0, "slope": 0.0})
absolute = tw.Problem(line, "l1", x, y, params=start)
best = tw.least_squares(squared)
print({name: float(value) for name, value in best.items()})

# %%
fit = table.assign(
    yhat=("sample", np.asarray(line(best, x))),
    x_grid=("grid", np.linspace(-1.5, 1, 200)),
    yhat_grid=("grid", np.asarray(line(best, np.linspace(-1.5, 1, 200)))),
)
tw.plot.fit_and_residuals(fit, title="The line with the least MSE")

# %% [markdown]
# **Is it the best line under the MAE too?** Both landscapes about it, with the least-squares point.

# %%
middle = {name: float(value) for name, value in best.items()}
around = {name: (value - 1, value + 1) for name, value in middle.items()}
figure, axes = tw.plot.grid(1, 2)
for ax, problem, name in zip(axes.flat, (squared, absolute), ("MSE", "MAE"), strict=True):
    surface = tw.landscape(problem, tw.coordinate_plane(problem, around, points=50))
    tw.plot.contour(surface, ax=ax, title=name)
    tw.plot.mark(surface, list(middle.values()), ax=ax, label="least squares")

# %% [markdown]
# ## Derivatives
#
# **Where does a gradient come from?** From the chain rule, one operation at a time. Left, the
# computation of z(θ) = (1 − log(1 + e^θ))² at θ = 1; right, its reverse pass. Each box on the right
# multiplies what comes from below by one local derivative.


# %%
def z(θ):
    return (1 - jnp.log(1 + jnp.exp(θ))) ** 2


tw.plot.graph(tw.computation_graph(z, 1.0, reverse=True))

# %% [markdown]
# The same happens for a loss with data. At zero, the MAE of the line has this value and this gradient:

# %%
print(float(absolute.risk(absolute.params)), absolute.gradient(absolute.params))

# %% [markdown]
# ## Descent
#
# **Where does gradient descent on the MAE go?** The learning rate is 6/(t + 1).

# %%
path = tw.descend(absolute, tw.SGD(lr=lambda t: 6 / (t + 1)), steps=50)
window = {"intercept": (-1, 1), "slope": (-0.5, 5)}
surface = tw.landscape(absolute, tw.coordinate_plane(absolute, window, points=50))
ax = tw.plot.contour(surface, path, title="MAE of the line")
tw.plot.mark(surface, list(middle.values()), ax=ax, label="least squares")

# %% [markdown]
# **Do mini-batches get there too?** A quadratic, fitted three ways for 100 steps each.

# %%
quadratic = tw.Problem(models.polynomial, "l1", x, y, params={"c0": 0.0, "c1": 0.0, "c2": 0.0})
batches = {"batch_size": 10, "shuffle": True, "epochs": 10, "record": ["risk"]}
full = tw.descend(quadratic, tw.SGD(lr=lambda t: 10 / (t + 1)), steps=100, record=["risk"])
sgd = tw.descend(quadratic, tw.SGD(lr=lambda t: 1 / (t // 10 + 1)), **batches)
adam = tw.descend(quadratic, tw.Adam(lr=0.1), **batches)
ax = tw.plot.record(full, "risk", label="full batch")
tw.plot.record(sgd, "risk", ax=ax, label="mini-batches")
tw.plot.record(adam, "risk", ax=ax, label="Adam", title="MAE of the quadratic over all data")

# %% [markdown]
# ## Exercises
#
# 1. Differentiate z at θ = −2 by hand, with the rule that each box of the reverse pass states. Check
#    every adjoint against `tw.computation_graph(z, -2.0, reverse=True)`.
# 2. In the graph of x·eˣ the input is used twice. What stands in the box at the top of its reverse
#    pass, and why? Predict the two numbers that meet there at x = 1 before you draw it.
# 3. Replace the loss by `"huber:1.35"`. Where does its line lie, between which two? What happens for
#    `"huber:0.01"` and `"huber:100"`?
# 4. Descend the MAE of the line with the fixed learning rates 6, 3, 1 and 0.01 for 300 steps, in one
#    call. At which level does each stop falling? Explain the levels from the size of the gradient.
# 5. Move the outlier's y from −10 to 30. Plot the least-squares slope and the slope of the least MAE
#    against it. Which of the two can one bad sample move as far as it likes?
# 6. Open: the polynomial of degree 12 is hard for descent in powers of x. Write the same polynomials
#    in another basis, in which descent comes closer to the least MAE, 0.455654, in as many steps.
#
# Solutions are in `solutions/regression-tour.py`.
