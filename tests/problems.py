"""Small problems that many tests share. Module-level functions: fresh lambdas would compile anew."""

import os
import signal

import jax
import numpy as np
import pytest

import thalweg as tw
from thalweg import blocks

for_a_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="how the work is cut to a CPU's caches and cores"
)


def line(w, x):
    return w["weight"] * x + w["bias"]


def bowl(w):
    """An asymmetric quadratic with its minimum at (1, −2)."""
    return (w["x"] - 1) ** 2 + 3 * (w["y"] + 2) ** 2 + (w["x"] - 1) * (w["y"] + 2)


def data(n=50, dtype=float):
    rng = np.random.default_rng(7)
    x = rng.standard_normal(n)
    return x.astype(dtype), (2 * x + 1 + 0.3 * rng.standard_normal(n)).astype(dtype)


def line_problem(loss="mse", n=50, dtype=float, **options):
    x, y = data(n, dtype)
    return tw.Problem(line, loss, x, y, params={"weight": 6.0, "bias": -3.0}, **options)


def bowl_problem(**options):
    return tw.Problem.from_function(bowl, params={"x": 0.0, "y": 0.0}, **options)


def press_ctrl_c(monkeypatch, call):
    """Press Ctrl-C during the given call, counted from 1, of the work that `blocks.until` repeats."""
    until = blocks.until

    def and_press(total, advance, **options):
        calls = 0

        def pressing(done, size):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGINT)
            return advance(done, size)

        return until(total, pressing, **options)

    monkeypatch.setattr(blocks, "until", and_press)
