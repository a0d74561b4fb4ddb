"""Planes through networks: a middling one against the loss-landscapes package, a large convolutional one
against PyTorch's own forward passes; and a descent of that one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np

import thalweg as tw
from benchmarks import limits, tools
from benchmarks.harness import Contender, Gauge, Race, case

SAMPLES, SIDE = 1000, 41
IMAGES, BATCH, POINTS = 512, 128, 3
RATE = 0.01


def middling(activation: str) -> tuple[Any, Any, Any, Any, tw.Problem]:
    """A network of 10-64-64-3 (5,059 parameters), its loss, its samples, their classes, and the problem of
    them all."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    phi = getattr(nn, activation)
    model = nn.Sequential(
        nn.Linear(10, 64), phi(), nn.Linear(64, 64), phi(), nn.Linear(64, 3)
    )  # fmt: skip
    loss, x, y = nn.CrossEntropyLoss(), torch.randn(SAMPLES, 10), torch.randint(0, 3, (SAMPLES,))
    return model, loss, x, y, tw.from_torch(model, loss, x, y)


@case
def middling_landscape() -> Iterator[Race]:
    """A network of 10-64-64-3 on 1,000 samples, in 41 × 41 points of one and the same plane."""
    import torch

    model, loss, x, y, problem = middling("ReLU")
    missing = tools.missing("loss-landscapes")
    origin = problem.flatten(problem.params)
    directions = np.random.default_rng(0).standard_normal((2, problem.size))
    if not missing:
        directions = _their_directions(model, problem)
    # They evaluate their even rows from 1 − n/2 to n/2, the odd ones from −n/2 to n/2 − 1.
    steps = np.arange(SIDE) - SIDE / 2
    plane = tw.Plane(("one", "two"), (steps, steps + 1), origin, directions, problem.names)

    def ours() -> np.ndarray:
        return tw.landscape(problem, plane)["empirical"].values

    def theirs() -> np.ndarray:
        import loss_landscapes
        from loss_landscapes.metrics import Loss

        torch.manual_seed(1)
        return loss_landscapes.random_plane(
            model, Loss(loss, x, y), steps=SIDE, deepcopy_model=True
        )

    flat = [p.detach().clone() for p in model.parameters()]
    rows = [
        [torch.as_tensor(v, dtype=p.dtype) for v, p in zip(parts, flat, strict=True)]
        for parts in (list(in_order(model, problem, d)) for d in directions)
    ]

    def notebook() -> np.ndarray:
        """The double loop that people write, each point afresh."""
        surface = np.empty((SIDE, SIDE))
        copy = deepcopy(model)
        with torch.no_grad():
            for i, a in enumerate(steps):
                for j, b in enumerate(steps + 1):
                    for p, w, d, e in zip(copy.parameters(), flat, *rows, strict=True):
                        p.copy_(w + a * d + b * e)
                    surface[i, j] = loss(copy(x), y).item()
        return surface

    weights = [tools.host(p).T.copy() for p in model.parameters() if p.ndim == 2]
    activations = [np.ones((SAMPLES, len(w)), np.float32) for w in weights]

    def products() -> None:
        for _ in range(SIDE**2):
            for a, w in zip(activations, weights, strict=True):
                a @ w

    def deviation(answers: dict[str, Any]) -> dict[str, float]:
        ours = answers["thalweg.landscape"]
        off = {"PyTorch's double loop": np.abs(answers["PyTorch's double loop"] / ours - 1).max()}
        if "loss-landscapes 3.0.6" in answers:
            theirs = answers["loss-landscapes 3.0.6"]
            even = np.abs(theirs[::2] / ours[::2] - 1).max()
            odd = np.abs(theirs[1::2, 1:] / ours[1::2, :-1] - 1).max()
            off["loss-landscapes 3.0.6"] = max(even, odd)
        return {name: float(value) for name, value in off.items()}

    yield Race(
        f"plane of an MLP 10-64-64-3, {SIDE} × {SIDE}, {SAMPLES:,} samples",
        [
            Contender("thalweg.landscape", ours),
            Contender("loss-landscapes 3.0.6", theirs, goal=2.0, skipped=missing),
            Contender("PyTorch's double loop", notebook),
            Contender(
                "its matrix products alone (NumPy)",
                products,
                skipped="skipped: NumPy is not on the device" if tools.on_gpu() else "",
            ),
            limits.arithmetic(2.0 * SIDE**2 * SAMPLES * sum(map(np.size, weights))),
        ],
        deviation=deviation,
        tolerance=1e-3,  # they walk through the plane by adding up steps in single precision
        rounds=5,
    )


@case
def landscaper_landscape() -> Iterator[Race]:
    """The same network, in landscaper's plane: its directions have layers of chosen norms."""
    import torch

    model, loss, x, y, problem = middling("ReLU")
    missing = tools.missing("landscaper")
    generator = tools.generator(1)
    given = [
        [torch.randn(p.shape, generator=generator) for p in model.parameters()] for _ in range(2)
    ]
    names = [name for name, _ in model.named_parameters()]

    def vector(parts: Any) -> np.ndarray:
        named = zip(names, parts, strict=True)
        return np.asarray(problem.flatten({n: tools.host(p) for n, p in named}), float)

    # Each layer's part has the norm √(its entries), the whole ‖w‖ · distance / (steps / 2)
    layered = [[p / p.norm() * p.numel() ** 0.5 for p in parts] for parts in given]
    origin = vector(model.parameters())
    rows = np.array([vector(parts) for parts in layered])
    rows *= np.linalg.norm(origin) / (SIDE / 2) / np.linalg.norm(rows, axis=1, keepdims=True)
    steps = np.arange(SIDE) - SIDE // 2
    plane = tw.Plane(("one", "two"), (steps, steps), origin, rows, problem.names)

    def theirs() -> np.ndarray:
        compute = tools.landscaper("compute").compute_loss_landscape
        with tools.silenced():
            return compute(
                model, (x, y), given, lambda model, data: loss(model(data[0]), data[1]).item(),
                steps=SIDE, distance=1.0, dim=2, device=x.device.type,
            )[0]  # fmt: skip

    def deviation(answers: dict[str, Any]) -> dict[str, float]:
        ours, theirs = (answers.get(c.name) for c in contenders)
        if theirs is None:
            return {}
        highest = ours == ours.max()  # which they make higher or lower by a random number
        return {contenders[1].name: float(np.abs(theirs / ours - 1)[~highest].max())}

    contenders = [
        Contender("thalweg.landscape", lambda: tw.landscape(problem, plane)["empirical"].values),
        Contender("landscaper 1.3.1", theirs, goal=2.0, skipped=missing),
    ]
    title = f"plane of the same MLP, landscaper's directions, {SIDE} × {SIDE}, {SAMPLES:,} samples"
    yield Race(title, contenders, deviation, tolerance=1e-3, rounds=3)


def _their_directions(model: Any, problem: tw.Problem) -> np.ndarray:
    """The steps that loss_landscapes.random_plane takes after torch.manual_seed(1)."""
    import torch
    from loss_landscapes.model_interface.model_parameters import orthogonal_to, rand_u_like
    from loss_landscapes.model_interface.model_wrapper import wrap_model

    start = wrap_model(model).get_module_parameters()
    torch.manual_seed(1)
    one = rand_u_like(start)
    rows = []
    for direction in (one, orthogonal_to(one)):
        direction.filter_normalize_(start)
        direction.mul_(start.model_norm() / SIDE / direction.model_norm())
        named = dict(zip((name for name, _ in model.named_parameters()), direction, strict=True))
        rows.append(np.asarray(problem.flatten({k: tools.host(v) for k, v in named.items()})))
    return np.array(rows)


def in_order(model: Any, problem: tw.Problem, vector: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of a vector of parameters in the order of `model.parameters()`."""
    parts = problem.unflatten(vector)
    return (np.asarray(parts[name]) for name, _ in model.named_parameters())


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
def large_landscape() -> Iterator[Race | Gauge]:
    """ResNet-20 on 512 images of 32 × 32, in nine points of a filter-normalised plane."""
    import torch

    x, y = _images()
    problem = tw.from_torch(resnet20(), torch.nn.CrossEntropyLoss(), x, y)
    plane = tw.random_plane(problem, problem.params, points=POINTS)

    def ours() -> np.ndarray:
        return tw.landscape(problem, plane)["empirical"].values

    def theirs() -> float:
        # as many passes; the weights do not matter to the clock
        return [_forward(x, y) for _ in range(POINTS**2)][-1]

    middle = POINTS // 2
    yield Race(
        f"plane of ResNet-20, {POINTS} × {POINTS}, {IMAGES} images",
        [
            Contender("thalweg.landscape", ours, lambda s: float(s[middle, middle])),
            # at most 1.2 times PyTorch's: PyTorch's at least 1/1.2 of ours
            Contender("PyTorch's forward passes alone", theirs, goal=1 / 1.2),
            limits.arithmetic(POINTS**2 * _operations(resnet20(), x)),
        ],
        deviation=lambda answers: {
            name: abs(a / answers["PyTorch's forward passes alone"] - 1)
            for name, a in answers.items()
            if a is not None
        },
        tolerance=1e-5,
        rounds=5,
    )

    parameters = 272_474 * 4 / 2**20
    passes = tools.fresh("large", "memory_of_a_pass")
    title = f"memory over the baseline: ResNet-20, {IMAGES} images"
    yield Gauge(title, f"PyTorch's forward pass of {BATCH}", "MiB", lambda: passes, rounds=1)
    yield Gauge(
        title,
        "thalweg.landscape",
        "MiB",
        lambda: tools.fresh("large", "memory_of_a_plane"),
        limit=2 * parameters + passes,
        rounds=3,
    )


@case
def large_descent() -> Iterator[Race]:
    """ResNet-20 on batches of 128 images, its batch norm frozen."""
    import torch

    x, y = _images()
    problem = tw.from_torch(resnet20(), torch.nn.CrossEntropyLoss(), x, y)
    yield descent_of(
        f"ResNet-20, batches of {BATCH} images", problem, resnet20(), x, y, BATCH, epochs=2
    )


def descent_of(
    title: str, problem: tw.Problem, module: Any, x: Any, y: Any, batch: int, epochs: int
) -> Race:
    """Steps of SGD of a module under cross-entropy, on its data's batches in their order; 40 epochs on a GPU,
    which takes less time for few than a call to begin and to label."""
    import jax
    import torch

    epochs = 40 if tools.on_gpu() else epochs
    order = [slice(i, i + batch) for i in range(0, len(x), batch)] * epochs
    steps = len(order)

    def ours() -> np.ndarray:
        path = tw.descend(
            problem, tw.SGD(lr=RATE), steps=steps, batch_size=batch, record={"params": False}
        )
        return path["loss"].values[:steps]

    @jax.jit
    def step(params: Any, x: Any, y: Any) -> Any:
        loss, slope = jax.value_and_grad(problem.replace(x=x, y=y).risk)(params)
        return loss, jax.tree_util.tree_map(lambda w, g: w - RATE * g, params, slope)

    def alone() -> np.ndarray:
        params, losses = problem.params, []
        for part in order:
            loss, params = step(params, problem.x[part], problem.y[part])
            losses.append(loss)
        return np.array(losses)

    def theirs() -> np.ndarray:
        model, losses = deepcopy(module), []
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for part in order:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[part]), y[part])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    bare = "a step compiled by JAX, called from a Python loop"
    return Race(
        f"{title} × {steps} steps of SGD",
        [
            # which looks at the gradient of one more batch, for its last row
            Contender("thalweg.descend", ours),
            Contender(bare, alone, goal=steps / (steps + 1) / 1.2),
            Contender("PyTorch loop", theirs),
            # a pass back takes as many operations as two forward
            limits.arithmetic(3 * (steps + 1) * _operations(module, x[:batch])),
        ],
        deviation=lambda answers: {
            name: float(np.abs(losses / answers["PyTorch loop"] - 1).max())
            for name, losses in answers.items()
            if losses is not None
        },
        tolerance=1e-4,
        rounds=3,
    )


def _images() -> tuple[Any, Any]:
    import torch

    generator = tools.generator(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    return x, torch.randint(0, 10, (IMAGES,), generator=generator)


def _operations(module: Any, x: Any) -> float:
    """Of a forward pass, as PyTorch counts them: two for a multiplication and its sum."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


def _forward(x: Any, y: Any) -> float:
    """The mean loss by PyTorch's own passes."""
    import torch

    total = 0.0
    with torch.no_grad():
        for i in range(0, IMAGES, BATCH):
            part = slice(i, i + BATCH)
            logits = resnet20()(x[part])
            total += torch.nn.functional.cross_entropy(logits, y[part], reduction="sum").item()
    return total / IMAGES


def memory_of_a_pass() -> float:
    """MiB over the baseline of PyTorch's passes, once warm; in a process of its own."""
    tools.settle()
    x, y = _images()
    _forward(x, y)
    return tools.growth_mib(lambda: _forward(x, y))


def memory_of_a_plane() -> float:
    """MiB over the baseline of 5 × 5 points of a plane, once compiled; in a process of its own."""
    import torch

    tools.settle()
    problem = tw.from_torch(resnet20(), torch.nn.CrossEntropyLoss(), *_images())
    small, large = (tw.random_plane(problem, problem.params, points=n) for n in (2, 5))
    tw.landscape(problem, small)
    return tools.growth_mib(lambda: tw.landscape(problem, large))
