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
from torch.optim.lbfgs import _strong_wolfe

import thalweg as tw
import thalweg.optimizers as ours
from thalweg.errors import InputError
from thalweg.optimizers.base import check
from thalweg.optimizers.wolfe import Point, strong_wolfe

STEPS = 200
_OTHERS = ("Optimizer", "Optax", "GaussNewton", "LevenbergMarquardt")  # not torch.optim's
CLASSES = sorted(n for n in ours.__all__ if n[0].isupper() and n not in _OTHERS)
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

# Step sizes are such that 200 steps descend and do not bounce about the minimum: there two runs of
# torch itself, started 1e-14 apart, part by 1e-4.
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
    ("NAdam", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-4, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
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
    ("Adadelta", {"lr": 1.5, "rho": 0.8, "eps": 1e-5, "weight_decay": 0.1}),
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
    # In float32 each step rounds by up to 2⁻²⁴, and where the rounding is that of w(1 − λη) in one
    # library and that of a fused multiply-add in the other, all of it may go one way. The step itself
    # is rounded as well, before it is added.
    tolerance = 1e-9 if dtype == np.float64 else 2 * STEPS * 2.0**-24
    assert_close(got, expected, tolerance)
    for entry, tree in state.items():
        for leaf, kept in torch_state.items():
            if entry in kept:
                value = tree[leaf] if isinstance(tree, dict) else tree
                np.testing.assert_allclose(
                    np.asarray(value), kept[entry].numpy(), rtol=tolerance, atol=tolerance
                )


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "LBFGS"])
def test_scalar_parameters_of_a_curved_valley(name: str) -> None:
    options = {"lr": {"Adadelta": 1.0, "Adagrad": 0.1}.get(name, 0.003)}
    got, _, _ = ours_on(valley_task(), getattr(ours, name)(**options))
    assert_close(got, torch_on(valley_task(), name, options)[0])


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_bias_corrections_are_float64_also_for_float32_parameters(name: str) -> None:
    # Under a constant gradient m̂ = g and v̂ = g², so each step moves by lr, but for the rounding of
    # m, v and w. With 1 − β₂ᵗ in float32 the first step would be off by 2e-5.
    task = Task(lambda w, tanh: (3 * w["w"]).sum(), {"w": np.zeros(2)}, ())
    optimizer = getattr(ours, name)(lr=0.5, eps=0.0, weight_decay=0.0)
    iterates, _, _ = ours_on(task, optimizer, np.float32, steps=20)
    expected = -0.5 * np.arange(1, 21)
    np.testing.assert_allclose(iterates, np.stack([expected] * 2, axis=1), rtol=1e-6)


# LBFGS -------------------------------------------------------------------------------------------

SEARCHES = [None, "strong_wolfe"]
ONE_BY_ONE = {"max_iter": 1, "max_eval": 25}  # a step is one inner iteration


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "options", [ONE_BY_ONE, {**ONE_BY_ONE, "history_size": 3}, {"max_iter": 7}, {}], ids=label
)
def test_lbfgs_on_a_convex_quadratic(options: dict[str, Any], search: str | None) -> None:
    options = {**options, "line_search_fn": search}
    got, info, state = ours_on(quadratic_task(), ours.LBFGS(**options), steps=30)
    expected, evaluations, _ = torch_on(quadratic_task(), "LBFGS", options, steps=30)
    assert_close(got, expected)
    a, b = quadratic_task().data
    # It ends where the loss moves by less than 1e-9; with curvature 0.5 that is √(4·1e-9) away.
    np.testing.assert_allclose(got[-1], np.linalg.solve(a, b), atol=math.sqrt(4e-9))
    # The first step is well away from the tolerances that end later ones by their last bits.
    assert info["evaluations"][0] == evaluations[0]
    assert state["func_evals"] == info["evaluations"].sum()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("task", [regression_task(), valley_task((-1.2, 1.0), rosenbrock)])
def test_lbfgs_elsewhere(task: Task, search: str | None) -> None:
    options = {**ONE_BY_ONE, "line_search_fn": search}
    got, info, _ = ours_on(task, ours.LBFGS(**options))
    expected, evaluations, _ = torch_on(task, "LBFGS", options)
    assert_close(got[:10], expected[:10])
    assert info["evaluations"][:10].tolist() == evaluations[:10]
    np.testing.assert_allclose(got[-1], expected[-1], atol=1e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_lbfgs_with_float32_parameters(search: str | None) -> None:
    options = {"max_iter": 5, "line_search_fn": search}
    got, _, _ = ours_on(quadratic_task(), ours.LBFGS(**options), np.float32, steps=20)
    expected, _, _ = torch_on(quadratic_task(), "LBFGS", options, np.float32, steps=20)
    # What the smallest eigenvalue, 0.5, leaves of gradients rounded to float32.
    np.testing.assert_allclose(got[-1], expected[-1], atol=1e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_lbfgs_with_many_parameters(search: str | None) -> None:
    """Whose vectors are padded."""
    rng = np.random.default_rng(2)
    size = 1037
    task = Task(
        quadratic,
        {"w": rng.normal(size=size)},
        (np.diag(np.geomspace(0.5, 20, size)), rng.normal(size=size)),
    )
    options = {"max_iter": 4, "history_size": 5, "line_search_fn": search}
    got, info, state = ours_on(task, ours.LBFGS(**options), steps=5)
    expected, evaluations, _ = torch_on(task, "LBFGS", options, steps=5)
    assert_close(got, expected)
    assert info["evaluations"].tolist() == evaluations
    assert state["old_dirs"].shape == (5, 1040)
    assert not np.asarray(state["old_dirs"])[:, size:].any()


def hidden(x: Any, y: Any) -> Any:
    """A loss that is finite where its gradient is not: at w = 0."""
    root = jnp.where(y > 0, jnp.sqrt(y), 0.0)
    return (x - 1) ** 2 * 1e-20 + 1e-20 * root.sum()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("size", [100, 100_003])
def test_lbfgs_does_not_take_nan_for_a_minimum(size: int, search: str | None) -> None:
    problem = tw.Problem.from_function(
        lambda p: hidden(p["x"], p["y"]), {"x": 0.0, "y": np.r_[0.0, np.ones(size - 1)]}
    )
    path = tw.descend(problem, ours.LBFGS(line_search_fn=search, history_size=3), steps=2)
    assert path["status"].item() == "diverged"


def test_lbfgs_ends_a_step_as_torch_does() -> None:
    for options in (
        {"max_iter": 50, "tolerance_grad": 1e-2},
        {"max_iter": 50, "tolerance_change": 1e-3},
        {"max_iter": 50, "max_eval": 4},
        {"max_iter": 50, "max_eval": 4, "line_search_fn": "strong_wolfe"},
        {"max_iter": 1, "line_search_fn": "strong_wolfe"},
    ):
        got, info, _ = ours_on(regression_task(), ours.LBFGS(**options), steps=4)
        expected, evaluations, _ = torch_on(regression_task(), "LBFGS", options, steps=4)
        assert_close(got, expected)
        assert info["evaluations"].tolist() == evaluations


def test_lbfgs_goes_on_where_every_parameter_falls() -> None:
    task = Task(quadratic, {"w": np.array([3.0])}, (np.array([[2.0]]), np.zeros(1)))
    options = {"lr": 0.1, "max_iter": 5}
    got, info, _ = ours_on(task, ours.LBFGS(**options), steps=2)
    expected, evaluations, _ = torch_on(task, "LBFGS", options, steps=2)
    assert_close(got, expected)
    assert info["evaluations"].tolist() == evaluations == [5, 5]


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_lbfgs_where_a_change_is_exactly_the_tolerance(change: float) -> None:
    """On w² the first move, of slope −1, goes from ½ to −½, where the loss is the same; the second to 0."""
    task = Task(quadratic, {"w": np.array([0.5])}, (np.array([[2.0]]), np.zeros(1)))
    options = {"tolerance_grad": 0.0, "tolerance_change": change}
    got, info, _ = ours_on(task, ours.LBFGS(**options), steps=1)
    expected, evaluations, _ = torch_on(task, "LBFGS", options, steps=1)
    assert got.item() == expected.item() == (0.0 if change == 0 else -0.5)
    assert info["evaluations"].tolist() == evaluations == ([3] if change == 0 else [2])


def wavy(x: Any, sin: Any, c: Any) -> tuple[Any, Any]:
    """A wave, a parabola and a kink, and the derivative."""
    a, b, shift, bend, kink, place = c
    side = (x > place) * 2.0 - 1
    value = a * sin(b * x + shift) + bend * x * x + kink * (x - place) * side
    return value, a * b * sin(b * x + shift + math.pi / 2) + 2 * bend * x + kink * side


def test_the_line_search_is_torchs_on_lines_with_waves_and_kinks() -> None:
    """150 lines x = t·d: the point that is found, and after how many evaluations. None is so short that
    rounding decides where the search goes."""
    rng, n = np.random.default_rng(0), 150
    lines = np.stack(
        [
            rng.uniform(0.0, 2.0, n),
            rng.uniform(0.5, 6.0, n),
            rng.uniform(0.0, 6.0, n),
            rng.uniform(0.0, 0.3, n),
            rng.uniform(0.0, 3.0, n) * (np.arange(n) % 2),
            rng.uniform(0.0, 3.0, n),
        ],
        axis=1,
    )
    trials, most = 10 ** rng.uniform(-1, 1, n), np.resize([3, 25, 25, 60], n)
    reach = 10 ** rng.uniform(-1, 0, n)
    slope = np.array([wavy(0.0, math.sin, c)[1] for c in lines])
    d = -np.sign(slope) * reach

    def search(c: Any, d: Any, trial: Any, most: Any) -> Any:
        def point(t: Any) -> Point:
            value, grad = wavy(t * d, jnp.sin, c)
            return Point(t, value, grad[None], grad * d)

        end, spent = strong_wolfe(point, point(jnp.zeros(())), trial, jnp.abs(d), most)
        return end.t, end.value, end.gradient[0], spent

    got = np.stack(jax.jit(jax.vmap(search))(lines, d, trials, most), axis=1)
    expected = []
    for c, d_, trial, limit in zip(lines, d, trials, most, strict=True):

        def at(x: Any, t: float, step: Any, c: Any = c) -> tuple[float, Any]:
            value, grad = wavy(float(t * step), math.sin, c)
            return value, torch.tensor([grad], dtype=torch.float64)

        step = torch.tensor([d_])
        value, grad = at(None, 0.0, step)
        value, grad, t, spent = _strong_wolfe(
            at, None, trial, step, value, grad, grad.dot(step), max_ls=int(limit)
        )
        expected.append([float(t), value, float(grad), spent])
    np.testing.assert_array_equal(got[:, 3], np.array(expected)[:, 3])
    np.testing.assert_allclose(got, expected, rtol=1e-9)


# Sweeps, and what is traced ----------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_sweep_is_its_separate_runs(name: str) -> None:
    options = {"line_search_fn": "strong_wolfe", "max_iter": 5} if name == "LBFGS" else {}
    rates = np.array([0.01, 0.1, 0.5])
    optimizer = traced(getattr(ours, name)(lr=0.0, **options))
    numbers = optimizer.hyperparameters()
    axes = optimizer.with_hyperparameters({n: 0 if n == "lr" else None for n in numbers})
    task = regression_task()
    one = partial(walk, data=task.data, risk=task.risk, steps=10)
    swept = optimizer.with_hyperparameters({**numbers, "lr": rates})
    together, _, _ = jax.vmap(lambda o: one(o, task.params), in_axes=(axes,))(swept)
    for i, lr in enumerate(rates):
        alone, _, _ = one(optimizer.with_hyperparameters({**numbers, "lr": lr}), task.params)
        member = jax.tree_util.tree_map(lambda leaf, i=i: leaf[i], together)
        assert_close(rows(member), rows(alone))


def test_other_numbers_do_not_compile_again() -> None:
    traces = []

    def counted(w: Any, tanh: Any) -> Any:
        traces.append(1)
        return (w["w"] ** 2).sum()

    task = Task(counted, {"w": np.ones(2)}, ())
    ours_on(task, ours.Adam(), steps=3)
    first = len(traces)
    ours_on(task, ours.Adam(lr=1, betas=(0.5, 0.0), eps=0, weight_decay=1), steps=3)
    assert len(traces) == first


def test_pairs_are_swept_by_their_entries() -> None:
    rprop = ours.Rprop(etas=(0.5, [1.1, 1.2]))
    assert list(rprop.hyperparameters()) == [
        "lr",
        "etaminus",
        "etaplus",
        "step_size_min",
        "step_size_max",
    ]
    assert rprop.hyperparameters()["etaplus"] == [1.1, 1.2]
    assert list(ours.Adam().hyperparameters())[:3] == ["lr", "beta1", "beta2"]
    changed = ours.Adam().with_hyperparameters(dict(enumerate(range(5))))
    assert (changed.lr, changed.betas, changed.eps) == (0, (1, 2), 3)


# Fields and their ranges -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_defaults_are_torchs(name: str) -> None:
    fields = inspect.signature(getattr(ours, name)).parameters
    torchs = inspect.signature(getattr(torch.optim, name)).parameters
    positional = [n for n, p in torchs.items() if p.kind is not p.KEYWORD_ONLY]
    assert {n: p.default for n, p in fields.items()} == {
        n: p.default for n, p in torchs.items() if n not in EXECUTION
    }
    assert [n for n in fields if n in positional] == [n for n in positional if n not in EXECUTION]


REFUSED = [
    *((name, {"lr": -0.1}) for name in CLASSES),
    *((name, {"weight_decay": -1.0}) for name in CLASSES if name not in ("LBFGS", "Rprop")),
    *(
        (name, {"betas": betas})
        for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
        for betas in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9))
    ),
    ("Adam", {"eps": -1e-8}),
    ("NAdam", {"momentum_decay": -1.0}),
    ("SGD", {"momentum": -0.5}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("RMSprop", {"alpha": -0.1}),
    ("RMSprop", {"momentum": -0.1}),
    ("Adagrad", {"lr_decay": -1.0}),
    ("Adagrad", {"initial_accumulator_value": -1.0}),
    ("Adadelta", {"rho": 1.1}),
    ("Rprop", {"etas": (0.0, 1.2)}),
    ("Rprop", {"etas": (1.0, 1.2)}),
    ("Rprop", {"etas": (0.5, 1.0)}),
]


@pytest.mark.parametrize(("name", "options"), REFUSED, ids=label)
def test_what_torch_refuses_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        getattr(torch.optim, name)([torch.zeros(1)], **options)
    with pytest.raises(InputError, match=f"^{name}: .*{next(iter(options))[:4]}"):
        check(getattr(ours, name)(**options))


ALLOWED = [
    ("SGD", {"lr": 0.0, "dampening": -2.0}),
    ("Adam", {"betas": (0.0, 0.0), "eps": 0.0}),
    ("RMSprop", {"alpha": 1.5}),
    ("Adadelta", {"rho": 1.0}),
    ("ASGD", {"lambd": -1.0, "alpha": -1.0, "t0": -1.0}),
    ("Rprop", {"step_sizes": (-1.0, 2.0)}),
    ("LBFGS", {"tolerance_grad": -1.0, "tolerance_change": -1.0}),
]


@pytest.mark.parametrize(("name", "options"), ALLOWED, ids=label)
def test_what_torch_allows_is_allowed(name: str, options: dict[str, Any]) -> None:
    getattr(torch.optim, name)([torch.zeros(1)], **options)
    check(getattr(ours, name)(**options))


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (ours.SGD(lr=[0.1, -0.1]), "lr must be at least 0; -0.1 given"),
        (ours.SGD(momentum=[0.0, 0.9], nesterov=True), "momentum above 0"),
        (ours.SGD(dampening=math.nan), "dampening must be a number"),
        (ours.SGD(lr="0.1"), "lr must be a number, a list .*'0.1' given"),
        (ours.SGD(lr=None), "lr must be a number, a list .*None given"),
        (ours.SGD(nesterov=[True, False]), "nesterov is True or False and cannot be swept"),
        (ours.Adam(betas=[0.9, 0.999]), r"betas is a pair, \(beta1, beta2\)"),
        (ours.LBFGS(line_search_fn="armijo"), "unknown line_search_fn of LBFGS: 'armijo'"),
        (ours.Adam(betas=(0.9, 0.99, 0.999)), r"betas is a pair, .*\(0.9, 0.99, 0.999\) given"),
        (ours.LBFGS(max_iter=0), "max_iter must be a whole number"),
        (ours.LBFGS(history_size=2.5), "history_size must be a whole number"),
        (ours.LBFGS(max_eval=0), "max_eval must be a whole number"),
        (ours.LBFGS(lr=0.0, line_search_fn="strong_wolfe"), "lr must be above 0"),
        (ours.SGD, r"give SGD\(\.\.\.\)"),
        (torch.optim.SGD, r"such as thalweg.SGD\(lr=0.1\) was expected, type given"),
    ],
)
def test_bad_input_gets_one_clear_error(optimizer: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check(optimizer)
    assert "\n" not in str(caught.value)


def test_schedules_are_not_checked_before_they_are_tables() -> None:
    check(ours.SGD(lr=lambda step: 0.1 / (step + 1), momentum=lambda step: 0.9, nesterov=True))
    check(ours.Rprop(etas=(lambda step: 0.5, 1.2)))
