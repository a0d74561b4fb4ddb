"""Every update rule against `torch.optim`, iterate by iterate."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import thalweg.optimizers as ours
from thalweg.errors import InputError
from thalweg.optimizers.base import check

STEPS = 200
CLASSES = sorted(n for n in ours.__all__ if n[0].isupper() and n not in ("Optimizer", "Optax"))
# How torch executes, and nothing that changes what it computes.
EXECUTION = {"params", "foreach", "fused", "capturable", "differentiable"}


# The problems, written once for both libraries. Sums and products entry by entry promote float32
# parameters and float64 data alike in both; matrix products do not.


def regression(w: Any, tanh: Any, x: Any, y: Any, sign: Any) -> Any:
    predicted = tanh((w["weight"] * x[:, None, :]).sum(-1) + w["bias"])
    return sign * ((predicted - y) ** 2).mean()


def valley(w: Any, tanh: Any, sign: Any) -> Any:
    return sign * ((1 - w["x"]) ** 2 + 10 * (w["y"] - w["x"] ** 2) ** 2)


def rosenbrock(w: Any, tanh: Any) -> Any:
    return (1 - w["x"]) ** 2 + 100 * (w["y"] - w["x"] ** 2) ** 2


def quadratic(w: Any, tanh: Any, a: Any, b: Any) -> Any:
    return 0.5 * (w["w"] * (a * w["w"]).sum(-1)).sum() - (b * w["w"]).sum()


@dataclass(frozen=True)
class Task:
    risk: Any
    params: dict[str, np.ndarray]
    data: tuple[np.ndarray, ...]


def regression_task(sign: float = 1.0) -> Task:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), np.tanh(rng.normal(size=(12, 3)))
    params = {"bias": rng.normal(size=3), "weight": rng.normal(size=(3, 2))}
    return Task(regression, params, (x, y, np.float64(sign)))


def valley_task(start: tuple[float, float] = (-0.8, 1.0), risk: Any = valley) -> Task:
    data = (np.float64(1),) if risk is valley else ()
    return Task(risk, {"x": np.float64(start[0]), "y": np.float64(start[1])}, data)


def quadratic_task() -> Task:
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = q @ np.diag(np.geomspace(0.5, 20, 6)) @ q.T
    return Task(quadratic, {"w": rng.normal(size=6)}, ((a + a.T) / 2, rng.normal(size=6)))


# The two loops -----------------------------------------------------------------------------------


@dataclass
class At:
    """A stand-in for what the loop of `thalweg.descend` hands an optimizer."""

    params: Any
    start: Any
    loss: Any
    grad: Any
    step: Any
    value_and_gradient: Any
    residuals: Any = None


@partial(jax.jit, static_argnames=("risk", "steps"))
def walk(optimizer: Any, start: Any, data: Any, risk: Any, steps: int) -> Any:
    """The iterates after each step, what each step recorded, and the last state."""
    value_and_gradient = jax.value_and_grad(lambda w: risk(w, jnp.tanh, *data))

    def advance(carry: Any, step: Any) -> Any:
        params, state = carry
        loss, grad = value_and_gradient(params)
        at = At(params, start, loss, grad, step, value_and_gradient)
        params, state, info = optimizer.update(at, params, state, step)
        return (params, state), (params, info)

    (_, state), (iterates, info) = jax.lax.scan(
        advance, (start, optimizer.init(start)), jnp.arange(steps)
    )
    return iterates, info, state


def traced(optimizer: Any) -> Any:
    """The optimizer with its numbers as the loop has them: strong float64 scalars or arrays."""
    numbers = {n: np.float64(v) for n, v in optimizer.hyperparameters().items()}
    return optimizer.with_hyperparameters(numbers)


def rows(iterates: Any) -> np.ndarray:
    """Iterates as vectors (steps, p) in float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree_util.tree_leaves(iterates)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def ours_on(task: Task, optimizer: Any, dtype: Any = np.float64, steps: int = STEPS) -> Any:
    start = {name: np.asarray(value, dtype) for name, value in task.params.items()}
    iterates, info, state = walk(traced(optimizer), start, task.data, task.risk, steps)
    return rows(iterates), info, state


def torch_on(
    task: Task, name: str, options: dict[str, Any], dtype: Any = np.float64, steps: int = STEPS
) -> Any:
    params = {
        name: torch.tensor(np.asarray(value, dtype), requires_grad=True)
        for name, value in task.params.items()
    }
    data = [torch.tensor(array) for array in task.data]
    optimizer = getattr(torch.optim, name)(list(params.values()), **options)
    evaluations = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = task.risk(params, torch.tanh, *data)
        loss.backward()
        evaluations[-1] += 1
        return loss.detach()

    iterates = []
    for _ in range(steps):
        evaluations.append(0)
        optimizer.step(closure)
        vectors = [p.detach().double().reshape(-1).numpy() for p in params.values()]
        iterates.append(np.concatenate(vectors))
    state = {name: optimizer.state[p] for name, p in params.items()}
    return np.array(iterates), evaluations, state


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    """‖Δ‖ ≤ tolerance·max(1, ‖w‖) at every step."""
    apart = np.linalg.norm(got - expected, axis=1)
    allowed = tolerance * np.maximum(1, np.linalg.norm(expected, axis=1))
    worst = int(np.argmax(apart / allowed))
    assert (apart <= allowed).all(), f"{apart[worst]:.2e} apart at step {worst + 1}"


# The table ---------------------------------------------------------------------------------------

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    ("SGD", {"lr": 0.1, "dampening": 0.4}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("ASGD", {}),
    ("ASGD", {"lr": 0.1, "lambd": 0.02, "alpha": 0.6, "weight_decay": 0.05}),
    ("ASGD", {"lr": 0.1, "t0": 20}),
    ("ASGD", {"lr": 0.1, "t0": -3.5, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3}),
    ("Adam", {"lr": 0.02, "betas": (0.0, 0.0), "eps": 0.1}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"lr": 0.05, "betas": (0.9, 0.8), "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.02}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.3, "maximize": True}),
    ("AdamW", {"lr": 0.02, "betas": (0.8, 0.9), "amsgrad": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.02, "momentum_decay": 0.5, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("NAdam", {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-4, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.02, "betas": (0.9, 0.5)}),  # ρ∞ = 3: never rectified
    ("RAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.02, "maximize": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.02, "maximize": True}),
    ("RMSprop", {"lr": 0.002}),
    ("RMSprop", {"lr": 0.002, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.002, "momentum": 0.7}),
    ("RMSprop", {"lr": 0.002, "centered": True}),
    ("RMSprop", {"lr": 0.002, "centered": True, "momentum": 0.5, "maximize": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-2}),
    ("Adagrad", {"lr": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 3.0, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1}),
    ("Adadelta", {"maximize": True}),
    ("Rprop", {"lr": 0.003}),
    ("Rprop", {"lr": 0.003, "etas": (0.7, 1.05), "step_sizes": (1e-3, 0.02)}),
    ("Rprop", {"lr": 0.003, "maximize": True}),
]


def label(value: Any) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return None


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_iterates_and_state_are_torchs(name: str, options: dict[str, Any], dtype: Any) -> None:
    task = regression_task(-1.0 if options.get("maximize") else 1.0)
    got, _, state = ours_on(task, getattr(ours, name)(**options), dtype)
    expected, _, torch_state = torch_on(task, name, options, dtype)
    tolerance = 1e-9 if dtype == np.float64 else 1e-6
    assert_close(got, expected, tolerance)
    for entry, tree in state.items():
        for leaf, kept in torch_state.items():
            if entry in kept:
                value = tree[leaf] if isinstance(tree, dict) else tree
                np.testing.assert_allclose(
                    np.asarray(value), kept[entry].numpy(), rtol=tolerance, atol=tolerance
                )
