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
