"""Networks that a notebook trains one after the other: ten starts, several widths, a sweep of rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

import thalweg as tw
from benchmarks import limits, tools
from benchmarks.harness import Contender, Race, case
from thalweg.catalogue import models
from thalweg.catalogue.data import TARGETS

SAMPLES = 15
DEEP = (1, 10, 10, 10, 10, 10, 1)
MEASURED = 200  # steps of the others
LOOP = "PyTorch loop"
EAGER, COMPILED = "torch.func.vmap, eager", "torch.func.vmap, torch.compile"
SMALL_PRODUCTS = "products of 15 × 10 by 10 × 10 numbers take most of our time: see the row below."
# Losses of the first steps are compared: rounding grows with them.
COMPARED, TOLERANCE = 50, 1e-3


@case
def many_networks() -> Iterator[Race]:
    """Ten deep networks × 10,000 steps; shallow ones of four widths × 50,000 steps."""
    runs, steps, rate = 10, 10_000, 0.01
    starts = [_start(DEEP, seed) for seed in range(runs)]
    yield _race(
        f"ten MLPs of five hidden layers of 10 × {steps:,} steps",
        [_descent(starts, tw.SGD(lr=rate), steps)],
        partial(_loop, starts[:1], [rate]),
        1 / runs,
        _vmapped(starts, [rate] * runs),
        steps,
    )
    widths, steps, rate = (5, 10, 100, 1000), 50_000, 0.002
    single = [[_start((1, width, 1), width)] for width in widths]
    vmapped = [_vmapped(start, [rate]) for start in single]

    def one_by_one(runs: list[Callable[[], np.ndarray]]) -> np.ndarray:
        return np.concatenate([run() for run in runs], axis=1)

    yield _race(
        f"MLPs of widths {', '.join(map(str, widths))} × {steps:,} steps",
        [_descent(start, tw.SGD(lr=rate), steps) for start in single],
        partial(one_by_one, [partial(_loop, start, [rate]) for start in single]),
        1.0,
        {name: partial(one_by_one, [runs[name] for runs in vmapped]) for name in vmapped[0]},
        steps,
    )


@case
def rates() -> Iterator[Race]:
    """64 learning rates on one deep network, 1,000 steps each."""
    count, steps = 64, 1000
    start = _start(DEEP, 0)
    swept = np.geomspace(1e-4, 1e-2, count)
    yield _race(
        f"{count} learning rates on one MLP × {steps:,} steps",
        [_descent([start], tw.SGD(lr=swept), steps)],
        partial(_loop, [start], swept[:1]),
        1 / count,
        _vmapped([start] * count, swept),
        steps,
        Contender("its matrix products alone, in JAX", _products_alone([start] * count, steps)),
        why=SMALL_PRODUCTS,
    )


@case
def wide_network() -> Iterator[Race]:
    """Ten million parameters between two hidden layers, on 50 samples."""
    width, rate, samples = 3162, 1e-5, 50
    # A GPU does twenty in the time that a call takes to bring its ends to the host, which PyTorch's does not
    steps = 1000 if tools.on_gpu() else 20
    start = _start((1, width, width, 1), 0)
    parameters = sum(leaf.size for layer in start.values() for leaf in layer.values())
    for optimizer, name, passes in (
        # weights: read by both passes and the update, and written; gradient: written, and read
        (tw.SGD(lr=rate), "SGD", 6),
        # the same, and two moments, read and written
        (tw.Adam(lr=rate), "Adam", 10),
    ):
        yield Race(
            f"{parameters:,} parameters, {samples} samples × {steps:,} steps of {name}",
            [
                Contender("thalweg.descend", _descent([start], optimizer, steps, samples)),
                Contender(
                    "PyTorch loop",
                    partial(_loop, [start], [rate], name, steps, samples),
                    goal=1.0,
                    skipped=tools.missing("torch"),
                ),
                # forward, and backward to the weights and to what went in
                limits.arithmetic(6.0 * steps * samples * parameters),
                limits.bandwidth(4.0 * passes * steps * parameters),
            ],
            _deviation,
            TOLERANCE,
            rounds=5,
        )


def _race(
    title: str,
    descents: list[Callable[[], np.ndarray]],
    loop: Callable[[], np.ndarray],
    share: float,
    vmapped: dict[str, Callable[[], np.ndarray]],
    steps: int,
    *others: Contender,
    why: str = "",
) -> Race:
    """`loop` and those `vmapped` do MEASURED steps, `loop` for a share of the members."""

    def ours() -> np.ndarray:
        return np.concatenate([run() for run in descents], axis=1)

    part = f"{MEASURED} of {steps:,} steps"
    return Race(
        title,
        [
            Contender("thalweg.descend", ours),
            Contender(
                LOOP,
                loop,
                share=share * MEASURED / steps,
                part=part + (", one network" if share < 1 else ""),
                goal=30,
                skipped=tools.missing("torch"),
            ),
            *(
                Contender(
                    name,
                    run,
                    share=MEASURED / steps,
                    part=part,
                    goal=10 if name == EAGER else None,
                    why=why,
                    skipped=tools.missing("torch"),
                )
                for name, run in vmapped.items()
            ),
            *others,
        ],
        _deviation,
        TOLERANCE,
        rounds=5,
    )


def _deviation(answers: dict[str, Any]) -> dict[str, float]:
    """How far the first losses are from ours."""
    ours = answers["thalweg.descend"]
    off = {}
    for name, losses in answers.items():
        if losses is not None:
            steps = min(COMPARED, len(losses))
            off[name] = float(np.abs(losses[:steps] / ours[:steps, : losses.shape[1]] - 1).max())
    return off


def _data(samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, samples)
    return x.astype(np.float32), TARGETS["middle"](x).astype(np.float32)


def _start(widths: tuple[int, ...], seed: int) -> dict[str, Any]:
    """PyTorch's own initialisation."""
    import jax

    drawn = models.init_mlp(widths, jax.random.key(seed), np.float32)
    return jax.tree_util.tree_map(np.asarray, drawn)


def _descent(
    starts: list[dict[str, Any]], optimizer: Any, steps: int, samples: int = SAMPLES
) -> Callable[[], np.ndarray]:
    """Ours: the losses (steps + 1, members)."""
    x, y = _data(samples)
    problem = tw.Problem(models.mlp, "mse", x, y, params=starts[0])
    vectors = np.stack([np.asarray(problem.flatten(start)) for start in starts])
    options = {"starts": vectors} if len(starts) > 1 else {}

    def run() -> np.ndarray:
        path = tw.descend(problem, optimizer, steps=steps, record={"params": False}, **options)
        return path["loss"].values.reshape(steps + 1, -1)

    return run


def _products_alone(starts: list[dict[str, Any]], steps: int) -> Callable[[], None]:
    """The products of forward and backward passes, of each core's share of the members in a thread."""
    import jax
    import jax.numpy as jnp

    from thalweg import backend
    from thalweg.tuning import tuned

    workers = backend.workers()
    members = [starts[k::workers] for k in range(workers)]
    weights = [
        [np.stack([start[layer]["weight"] for start in some]) for layer in starts[0]]
        for some in members
    ]
    x = _data()[0][:, None]

    @jax.jit
    @tuned  # as ours are done
    def run(weights: list[Any]) -> Any:
        def step(_: Any, weights: list[Any]) -> list[Any]:
            seen = [jnp.broadcast_to(x, (len(weights[0]), *x.shape))]
            for w in weights:
                seen.append(jnp.einsum("mni,moi->mno", seen[-1], w))
            slope, moved = seen[-1], []
            for w, before in zip(weights[::-1], seen[-2::-1], strict=True):
                moved.append(w - 1e-30 * jnp.einsum("mno,mni->moi", slope, before))
                slope = jnp.einsum("mno,moi->mni", slope, w)
            return moved[::-1]

        return jax.lax.fori_loop(0, steps, step, weights)

    def side_by_side() -> None:
        with backend.Threads(workers) as threads:
            waiting = [threads.call(k, run, some) for k, some in enumerate(weights)]
            for wait in waiting:
                jax.block_until_ready(wait())

    return side_by_side


def _module(start: dict[str, Any]) -> Any:
    import torch
    from torch import nn

    layers: list[Any] = []
    for layer in start.values():
        linear = nn.Linear(*layer["weight"].shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(layer["weight"]))
            linear.bias.copy_(torch.tensor(layer["bias"]))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _loop(
    starts: list[dict[str, Any]],
    rates: Any,
    optimizer: str = "SGD",
    steps: int = MEASURED,
    samples: int = SAMPLES,
) -> np.ndarray:
    """As it is written in a notebook, the losses in a list."""
    import torch

    x, y = (torch.tensor(column)[:, None] for column in _data(samples))
    columns = []
    for start, rate in zip(starts, rates, strict=True):
        model = _module(start)
        rule = getattr(torch.optim, optimizer)(model.parameters(), lr=float(rate))
        losses = []
        for _ in range(steps):
            rule.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            rule.step()
            losses.append(loss.item())
        columns.append(losses)
    return np.array(columns).T


def _vmapped(starts: list[dict[str, Any]], rates: Any) -> dict[str, Callable[[], np.ndarray]]:
    """All members at once, by torch.func: operation by operation, and compiled."""

    @cache  # a step is compiled once, as ours is
    def prepared(compiled: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
        import torch
        from torch.func import functional_call, grad_and_value, stack_module_state, vmap

        x, y = (torch.tensor(column)[:, None] for column in _data())
        members = [_module(start) for start in starts]
        params, buffers = stack_module_state(members)
        base = members[0]
        rate = torch.tensor(np.asarray(rates, np.float32))

        def risk(params: Any) -> Any:
            return torch.nn.functional.mse_loss(functional_call(base, (params, buffers), (x,)), y)

        def step(params: Any) -> Any:
            slopes, loss = vmap(grad_and_value(risk))(params)
            moved = {
                name: value - rate.reshape(-1, *[1] * (value.ndim - 1)) * slopes[name]
                for name, value in params.items()
            }
            return moved, loss

        begin = {name: value.detach() for name, value in params.items()}
        return torch.compile(step) if compiled else step, begin

    def run(compiled: bool) -> np.ndarray:
        import torch

        step, params = prepared(compiled)
        losses = []
        with torch.no_grad():
            for _ in range(MEASURED):
                params, loss = step(params)
                losses.append(loss)
        return tools.host(torch.stack(losses))

    return {EAGER: partial(run, False), COMPILED: partial(run, True)}
