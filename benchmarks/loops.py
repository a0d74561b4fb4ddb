"""The studies' work as PyTorch loops: what a notebook would run instead, unit by unit.

A study's loop is a list of `Work`: how many units there are, and a function that runs some of them.
The code is what people write: autograd, an optimizer, weights copied into a list at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from thalweg.studies import make_settings


@dataclass(frozen=True)
class Work:
    """So many units of work; `run(k)` does k of them, and a time is measured on `measured`."""

    count: int
    what: str
    run: Callable[[int], Any]
    measured: int = 200


LOOPS: dict[str, Callable[[], Iterable[Work]]] = {}


def loop(name: str) -> Callable[[Any], Any]:
    """Mark the loop of a study."""

    def put(function: Any) -> Any:
        LOOPS[name] = function
        return function

    return put


def training(
    model: nn.Module,
    optimizer: Callable[..., torch.optim.Optimizer],
    x: torch.Tensor,
    y: torch.Tensor,
    loss: Callable[..., torch.Tensor] = nn.functional.mse_loss,
    batch: int | None = None,
    **options: Any,
) -> Callable[[int], Any]:
    """k steps of one descent, each weight copied into a list."""
    rule = optimizer(model.parameters(), **options)

    def run(k: int) -> list[Any]:
        losses, weights = [], []
        for step in range(k):
            if batch is not None:
                rows = torch.arange(step * batch, (step + 1) * batch) % len(x)
                now, target = x[rows], y[rows]
            else:
                now, target = x, y
            rule.zero_grad()
            value = loss(model(now), target)
            value.backward()
            rule.step()
            losses.append(value.item())
            weights.append([p.detach().clone() for p in model.parameters()])
        return [losses, weights]

    return run


def grid(risk: Callable[[float, float], Any], side: int = 100) -> Callable[[int], Any]:
    """k points of a double loop over a plane."""
    axis = torch.linspace(-1, 1, side).tolist()

    def run(k: int) -> list[float]:
        values = []
        for i in range(k):
            values.append(float(risk(axis[i // side % side], axis[i % side])))
        return values

    return run


class Line(nn.Module):
    """weight·x + bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(6.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x + self.bias


class Product(nn.Module):
    """w1·relu(w2·x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(3.0))
        self.w2 = nn.Parameter(torch.tensor(-4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w1 * torch.relu(self.w2 * x)


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def pairs(n: int, dtype: Any = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Data of the right size; their values do not matter for the time."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, n)
    y = 2 * x + rng.standard_normal(n)
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


@loop("minimal-mlp")
def _minimal_mlp() -> Iterable[Work]:
    s = make_settings("minimal-mlp", {})
    x, y = pairs(s.n_samples)

    def risks(w1: float, w2: float) -> float:
        pointwise = [(w1 * max(w2 * a, 0.0) - b) ** 2 for a, b in zip(xs, ys, strict=True)]
        values = (w1 * torch.relu(w2 * x) - y) ** 2
        expected = 0.5 * (8 / 3 - 4 / 3 * w1 * w2 + (w1 * w2) ** 2 / 3) + 9
        return float(values.mean()) + expected + len(pointwise)

    xs, ys = x.tolist(), y.tolist()
    steps = s.epochs * -(-s.n_samples // s.batch_size)
    yield Work(steps, "steps", training(Product(), torch.optim.SGD, x, y, batch=1, lr=0.01))
    yield Work(s.points**2, "points of three risks", grid(risks), 1000)


@loop("losses-and-momentum")
def _losses_and_momentum() -> Iterable[Work]:
    s = make_settings("losses-and-momentum", {})
    x, y = pairs(s.n_samples)
    run = training(Line(), torch.optim.SGD, x, y, lr=0.1, momentum=0.9)
    yield Work(4 * 5 * s.steps, "steps", run)
    risk = grid(lambda a, b: ((a * x + b - y) ** 2).mean())
    yield Work(8 * s.points**2, "grid points", risk, 1000)


class Polynomial(nn.Module):
    """c0 + c1 x + c2 x² + …."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(degree + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(c * x**power for power, c in enumerate(self.c))  # type: ignore[return-value]


def _fully_connected(n: int, *widths: int, lr: float = 0.01) -> Callable[[int], Any]:
    """Full-batch steps of an MLP on n samples."""
    torch.manual_seed(0)
    x = torch.rand(n, widths[0]) * 2 - 1
    return training(mlp(*widths), torch.optim.SGD, x, torch.rand(n, 1), lr=lr)


@loop("regression-tour")
def _regression_tour() -> Iterable[Work]:
    s = make_settings("regression-tour", {})
    x, y = pairs(s.n_samples, torch.float64)
    mae = nn.functional.l1_loss
    full = training(Polynomial(2), torch.optim.SGD, x, y, mae, lr=0.01)
    yield Work(s.line_steps + s.quadratic_steps, "full-batch steps", full)
    batch = {"loss": mae, "batch": s.batch_size, "lr": 0.01}
    per_epoch = -(-s.n_samples // s.batch_size)
    quadratic = training(Polynomial(2), torch.optim.Adam, x, y, **batch)
    yield Work((s.sgd_epochs + s.adam_epochs) * per_epoch, "steps of the quadratic", quadratic)
    high = training(Polynomial(s.degree), torch.optim.Adam, x, y, **batch)
    yield Work(s.polynomial_epochs * per_epoch, f"steps of degree {s.degree}", high)
    yield Work(
        3 * s.points**2, "grid points", grid(lambda a, b: (a * x + b - y).abs().mean()), 1000
    )


@loop("two-layer-linear")
def _two_layer_linear() -> Iterable[Work]:
    s = make_settings("two-layer-linear", {})
    torch.set_default_dtype(torch.float64)
    x, target = torch.randn(s.n_samples, s.d_in), torch.randn(s.n_samples, s.d_out)
    model = nn.Sequential(
        nn.Linear(s.d_in, s.width, bias=False), nn.Linear(s.width, s.d_out, bias=False)
    )
    runs = len(s.lrs) + len(s.adam_lrs) + 2
    first = training(model, torch.optim.Adam, x, target, nn.MSELoss(reduction="sum"), lr=1e-5)
    yield Work(runs * s.steps, "first-order steps", first)

    def newton(k: int) -> None:
        w2, w1 = (p.detach().clone() for p in model.parameters())
        for _ in range(k):
            j2, j1 = torch.autograd.functional.jacobian(
                lambda b, a: (x @ b.T @ a.T - target).reshape(-1), (w2, w1), vectorize=True
            )
            rows = torch.cat([j2.flatten(1), j1.flatten(1)], dim=1)
            r = (x @ w2.T @ w1.T - target).reshape(-1, 1)
            step = 0.1 * torch.linalg.lstsq(rows, r, driver="gelsd").solution[:, 0]
            w2 = w2 - step[: w2.numel()].reshape(w2.shape)
            w1 = w1 - step[w2.numel() :].reshape(w1.shape)

    yield Work(len(s.newton_lrs) * s.newton_steps + 15, "second-order steps", newton, 4)


@loop("lazy-linear")
def _lazy_linear() -> Iterable[Work]:
    s = make_settings("lazy-linear", {})
    narrow = _fully_connected(s.n_samples, s.narrow_dimension, 1)
    yield Work(s.narrow_steps, f"steps of dimension {s.narrow_dimension}", narrow)
    wide = _fully_connected(s.n_samples, s.wide_dimension, 1)
    yield Work(s.wide_steps, f"steps of dimension {s.wide_dimension}", wide)
    many = _fully_connected(s.n_samples, s.many_dimension, 1)
    yield Work(s.runs * s.many_steps, f"steps of dimension {s.many_dimension}", many)


@loop("lazy-mlp")
def _lazy_mlp() -> Iterable[Work]:
    s = make_settings("lazy-mlp", {})
    deep = _fully_connected(s.n_samples, 1, *[s.deep_width] * s.deep_layers, 1)
    yield Work(s.deep_steps, "steps of the deep network", deep)
    shallow = _fully_connected(s.n_samples, 1, s.shallow_width, 1)
    yield Work(s.runs * s.shallow_steps, f"steps of width {s.shallow_width}", shallow)
    for width in s.widths:
        one = _fully_connected(s.n_samples, 1, width, 1)
        yield Work(s.widths_steps, f"steps of width {width}", one)
    bad = _fully_connected(s.n_samples, 1, s.bad_width, 1)
    yield Work(s.runs * (s.shocks + s.bad_steps), f"steps of width {s.bad_width}", bad)


@loop("lazy-scaling")
def _lazy_scaling() -> Iterable[Work]:
    s = make_settings("lazy-scaling", {})
    deep = _fully_connected(s.n_samples, 1, *[s.width] * s.depth, 1)
    # each descent with its linearised twin, which costs about as much
    yield Work(2 * (len(s.alphas) + 1) * s.steps, "steps of the deep network", deep)
    smooth = _fully_connected(s.n_samples, 1, *[s.smooth_width] * s.smooth_depth, 1)
    yield Work(2 * 2 * len(s.sweep) * s.steps, "steps of the sweep over α", smooth)


@loop("edge-of-stability")
def _edge_of_stability() -> Iterable[Work]:
    s = make_settings("edge-of-stability", {})
    x, y = torch.randn(s.n_samples, 2).double(), torch.randn(s.n_samples, 1).double()
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((2, *[s.width] * s.depth, 1)):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    descents = len(s.lrs) + len(s.adam_lrs)
    step = training(model, torch.optim.SGD, x, y, lr=0.01)
    yield Work(descents * s.steps, "steps of gradient descent and Adam", step)
    parameters = list(model.parameters())

    def sharpnesses(k: int) -> list[float]:
        """By power iteration, as notebooks do it: ten products of the Hessian with a vector."""
        values = []
        for _ in range(k):
            vector = [torch.randn_like(p) for p in parameters]
            slopes = torch.autograd.grad(
                nn.functional.mse_loss(model(x), y), parameters, create_graph=True
            )
            for _ in range(10):
                size = float(sum((v**2).sum() for v in vector)) ** 0.5
                vector = [v / size for v in vector]
                along = sum((g * v).sum() for g, v in zip(slopes, vector, strict=True))
                vector = list(torch.autograd.grad(along, parameters, retain_graph=True))
            values.append(float(sum((v**2).sum() for v in vector)) ** 0.5)
        return values

    measured = (descents + len(s.adam_lrs)) * (s.steps // s.every + 1)
    yield Work(measured, "sharpnesses", sharpnesses, 100)


@loop("filter-normalisation")
def _filter_normalisation() -> Iterable[Work]:
    s = make_settings("filter-normalisation", {})
    x, y = torch.randn(s.n_samples, 2), (torch.rand(s.n_samples, 1) > 0.5).float()
    loss = nn.functional.binary_cross_entropy_with_logits
    for depth in s.depths:
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((2, *[s.width] * depth, 1)):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        step = training(model, torch.optim.Adam, x, y, loss, lr=s.lr)
        yield Work(2 * s.runs * s.steps, f"steps of {depth} hidden layers", step)
        start = [p.detach().clone() for p in model.parameters()]
        direction = [torch.randn_like(p) for p in start]

        def risks(
            k: int, model: Any = model, start: Any = start, direction: Any = direction
        ) -> list[float]:
            values = []
            with torch.no_grad():
                for i in range(k):
                    for p, w, d in zip(model.parameters(), start, direction, strict=True):
                        p.copy_(w + i * 1e-6 * d)
                    values.append(loss(model(x), y).item())
            return values

        points = 2 * (s.points**2 + s.runs * s.lines * s.line_points)
        if depth == s.depths[0]:
            points += 4 * s.points**2
        yield Work(points, f"risks of {depth} hidden layers", risks)


@loop("lazy-1d")
def _lazy_1d() -> Iterable[Work]:
    s = make_settings("lazy-1d", {})

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return w * x / 2 + torch.log(1 + w**2) * x / 5 + 0.1 * torch.sin(torch.exp(2 * w))

    x, y, start = (torch.tensor(v) for v in (*s.sample, s.start))

    def losses(k: int) -> list[float]:
        values = []
        for i in range(k):
            w = start + i * 1e-6
            for output in (f(x, w) * (w - start), f(x, start) * (w - start)):
                values.append(float((output - y) ** 2 / 2))
        return values

    yield Work(len(s.alphas) * s.points, "points of both losses", losses, 1000)


@loop("eigenbasis")
def _eigenbasis() -> Iterable[Work]:
    s = make_settings("eigenbasis", {})
    torch.set_default_dtype(torch.float64)
    for p, n, steps in ((s.p, s.n, s.steps), (s.wide_p, s.wide_n, s.wide_steps)):
        x, w = torch.randn(p, n) / n**0.5, torch.randn(p, 1) / p**0.5
        y = torch.randn(n, 1)

        def run(k: int, x: Any = x, y: Any = y, w: Any = w) -> list[Any]:
            path = []
            for _ in range(k):
                w = w - 1e-3 * (x @ (x.T @ w - y))
                path.append((w.clone(), float(((x.T @ w - y) ** 2).mean())))
            return path

        yield Work(steps, f"steps of p = {p}, n = {n}", run)


@loop("bias-complexity")
def _bias_complexity() -> Iterable[Work]:
    s = make_settings("bias-complexity", {})
    one = _fully_connected(s.n_samples, s.dimension, 1)
    yield Work(s.steps, f"steps of dimension {s.dimension}", one)
    middling = _fully_connected(s.n_samples, s.largest // 2, 1)
    models = s.largest // 2 * s.runs
    yield Work(models * s.sweep_steps, "steps of the sweep", middling)

    def fit(k: int) -> None:
        for _ in range(k):
            x = torch.randn(s.peak_n, s.peak_largest // 2)
            torch.linalg.lstsq(x, torch.randn(s.peak_n, 1), driver="gelsd")

    yield Work(s.peak_largest * s.peak_draws, "least-squares fits", fit)


@loop("gradient-flow")
def _gradient_flow() -> Iterable[Work]:
    s = make_settings("gradient-flow", {})

    def steps(k: int) -> list[Any]:
        w = torch.zeros(2, requires_grad=True)
        rule = torch.optim.SGD([w], lr=s.small_lr)
        path = []
        for _ in range(k):
            x, y = w
            rule.zero_grad()
            value = torch.sin(x + 4) * (torch.cos(3 * y - 5) + 0.3)
            value = value + 0.5 * torch.cos(2 * (x + 2) * (y - 4) ** 2)
            value.backward()
            rule.step()
            path.append((w.detach().clone(), value.item()))
        return path

    yield Work(2 * s.runs * s.steps, "steps of the recorded descents", steps)
    budget = 2 * s.basin_points**2 * s.basin_steps
    yield Work(budget, "steps of the basin map, if every start used its budget", steps)
