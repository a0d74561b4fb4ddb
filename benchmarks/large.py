"""Planes through a large convolutional network, against PyTorch's own forward passes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import thalweg as tw
from benchmarks.harness import Contender, Race, case

IMAGES, BATCH, POINTS = 512, 128, 3


@functools.cache
def resnet20() -> Any:
    """The residual network of He et al. (2016) for images of 32 × 32: 272,474 parameters."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inside: int, out: int, stride: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
            self.norm_one = nn.BatchNorm2d(out)
            self.two = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.norm_two = nn.BatchNorm2d(out)
            self.around = nn.Identity()
            if stride > 1:
                self.around = nn.Sequential(
                    nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x: Any) -> Any:
            hidden = torch.relu(self.norm_one(self.one(x)))
            return torch.relu(self.norm_two(self.two(hidden)) + self.around(x))

    torch.manual_seed(0)
    widths = [(16, 16, 1), *[(16, 16, 1)] * 2, (16, 32, 2), *[(32, 32, 1)] * 2, (32, 64, 2)]
    widths += [(64, 64, 1)] * 2
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*first, *(Block(*w) for w in widths), *last).eval()


@case
def large_landscape() -> Iterator[Race]:
    """ResNet-20 on 512 images of 32 × 32, in nine points of a filter-normalised plane."""
    import torch

    model = resnet20()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (IMAGES,), generator=generator)
    problem = tw.from_torch(model, torch.nn.CrossEntropyLoss(), x, y)
    plane = tw.random_plane(problem, problem.params, points=POINTS)

    def ours() -> np.ndarray:
        return tw.landscape(problem, plane)["empirical"].values

    def theirs() -> float:
        total = 0.0
        with torch.no_grad():
            for _ in range(
                POINTS**2
            ):  # as many forward passes; the weights do not matter to the clock
                total = 0.0
                for i in range(0, IMAGES, BATCH):
                    part = slice(i, i + BATCH)
                    logits = model(x[part])
                    loss = torch.nn.functional.cross_entropy(logits, y[part], reduction="sum")
                    total += loss.item()
        return total / IMAGES

    middle = POINTS // 2
    yield Race(
        f"plane of ResNet-20, {POINTS} × {POINTS}, {IMAGES} images",
        [
            Contender("thalweg.landscape", ours, lambda s: float(s[middle, middle])),
            # at most 1.2 times PyTorch's: PyTorch's at least 1/1.2 of ours
            Contender("PyTorch's forward passes alone", theirs, goal=1 / 1.2),
        ],
        deviation=lambda answers: {
            name: abs(a / answers["PyTorch's forward passes alone"] - 1)
            for name, a in answers.items()
        },
        tolerance=1e-5,
        rounds=5,
    )
