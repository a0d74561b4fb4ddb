"""Many small descents: the function of study 8, every iterate and loss recorded, or the last alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import tools
from benchmarks.harness import Contender, Gauge, Race, Timed, case

RUNS, STEPS, RATE = 200, 10_000, 2e-3
NOTEBOOK_STEPS = 1000
MANY, FEW_STEPS = 1_000_000, 100
EAGER_STEPS = 10
REPETITIONS = 4  # in a C program and in a new process; the first warms up
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
LAUNCHES = (
    "a step of few numbers is a handful of operations, each of which a GPU takes microseconds to begin: the "
    "bare scan has them too."
)
FLAG = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true"


@case
def descents() -> Iterator[Race | Gauge]:
    """200 descents of 10,000 steps, in single and in double precision, and the first call."""
    yield from map(_race, TOLERANCE)
    yield Gauge(
        "200 descents, the first call",
        "thalweg.descend, new process, imports apart",
        "s",
        lambda: tools.fresh("descents", "first_call"),
        limit=1.0,
        why="XLA takes longer to compile for a GPU." if tools.on_gpu() else "",
    )


def _race(dtype: str) -> Race:
    call = _public_call(dtype)
    return Race(
        f"{RUNS} descents × {STEPS:,} steps, {dtype}",
        [
            Contender("thalweg.descend", call, _columns),
            Contender(
                "its compiled blocks alone",
                _blocks_alone(call),
                within=(1.5, "C, one thread"),
                why=LAUNCHES if tools.on_gpu() else "",
            ),
            Contender("a bare JAX scan", _bare_scan(dtype), np.stack),
            Contender(
                "thalweg.descend, XLA fusing several outputs",
                partial(_with_flag, dtype),
                part="all, new process with XLA_FLAGS",
                rounds=3,
                skipped="skipped: the flag is the CPU's" if tools.on_gpu() else "",
            ),
            *_c_contenders(dtype, starts(), STEPS, STEPS + 1),
            Contender(
                "PyTorch loop",
                partial(_notebook, dtype),
                share=NOTEBOOK_STEPS / (RUNS * STEPS),
                part=f"1 descent of {NOTEBOOK_STEPS:,} steps",
                goal=1000,
                skipped=tools.missing("torch"),
            ),
        ],
        _deviations,
        TOLERANCE[dtype],
    )


@case
def many_descents() -> Iterator[Race]:
    """A million starts, of which the last iterates are kept."""
    dtype = "float64"  # in which rounding takes longer to grow to another valley
    begin = starts(MANY)
    nothing = {"params": False, "loss": False}
    eager = "PyTorch, all starts in a tensor"
    call = _public_call(dtype, begin, steps=FEW_STEPS, every=FEW_STEPS, record=nothing)

    def deviation(answers: dict[str, Any]) -> dict[str, float]:
        """Of the nearer half of the members: the chaotic ones amplify any rounding to another valley."""
        ours, fewer_steps = answers["thalweg.descend"], begin.T
        for _ in range(EAGER_STEPS):
            fewer_steps = fewer_steps - RATE * _exact(*fewer_steps)[1]
        truth = {eager: fewer_steps}
        return {
            name: float(np.median(np.abs(final - truth.get(name, ours)).max(axis=0)))
            for name, final in answers.items()
        }

    yield Race(
        f"{MANY:,} starts × {FEW_STEPS} steps, not recorded, {dtype}",
        [
            Contender("thalweg.descend", call, lambda path: path["final"].values),
            *_c_contenders(dtype, begin, FEW_STEPS, 1, lambda last: last[:2, 0], rounds=1),
            Contender(
                eager,
                partial(_eager, dtype, begin),
                share=EAGER_STEPS / FEW_STEPS,
                part=f"{EAGER_STEPS} of {FEW_STEPS} steps",
                skipped=tools.missing("torch"),
            ),
        ],
        deviation,
        1e-6,
        rounds=3,
    )


# Ours ----------------------------------------------------------------------------------------


def starts(runs: int = RUNS) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.5, 1.5, (runs, 2))


def risk(params: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    x, y = params["x"], params["y"]
    return jnp.sin(x + 4) * (jnp.cos(3 * y - 5) + 0.3) + 0.5 * jnp.cos(2 * (x + 2) * (y - 4) ** 2)


def _public_call(
    dtype: str, begin: np.ndarray | None = None, steps: int = STEPS, **options: Any
) -> Callable[[], Any]:
    import thalweg as tw

    problem = tw.Problem.from_function(risk, params={"x": 0.0, "y": 0.0}, dtype=dtype)
    begin = starts() if begin is None else begin
    return lambda: tw.descend(problem, tw.SGD(lr=RATE), steps=steps, starts=begin, **options)


def _columns(path: Any) -> np.ndarray:
    """x, y and loss of a trajectory, (3, steps + 1, runs)."""
    return np.concatenate([path["params"].values.swapaxes(0, 1), path["loss"].values[None]])


def _blocks_alone(call: Callable[[], Any]) -> Callable[[], None]:
    """The compiled blocks that the public call runs, in as many threads, their records unused."""

    @cache
    def launches() -> list[list[Any]]:
        from thalweg import job

        by_thread: dict[int, list[Any]] = {}
        block = job.block

        def noted(plan: Any, feed: Any, start: Any, walk: Any, *args: Any, **kwargs: Any) -> Any:
            mine = by_thread.setdefault(threading.get_ident(), [])
            if not mine:  # a block takes over the memory of the walk that it is given
                mine.append(copied(walk))
            mine.append((partial(block, plan, feed, start), args, kwargs))
            return block(plan, feed, start, walk, *args, **kwargs)

        noted.trace = block.trace
        with mock.patch.object(job, "block", noted):
            call()
        return list(by_thread.values())

    def copied(walk: Any) -> Any:
        import jax

        return jax.tree_util.tree_map(lambda leaf: leaf.copy(), walk)

    def one_after_the_other(blocks: list[Any]) -> None:
        import jax

        walk = copied(blocks[0])
        for again, args, kwargs in blocks[1:]:
            walk, *found = again(walk, *args, **kwargs)
            jax.block_until_ready(found)

    def run() -> None:
        from thalweg import backend

        with backend.Threads(len(launches())) as threads:
            working = [
                threads.call(k, one_after_the_other, blocks) for k, blocks in enumerate(launches())
            ]
            for wait in working:
                wait()

    return run


def _bare_scan(dtype: str) -> Callable[[], Any]:
    """The same by hand: nothing is checked, counted, fed or labelled."""
    import jax

    def step(params: Any, _: None) -> Any:
        loss, grad = jax.value_and_grad(risk)(params)
        new = jax.tree_util.tree_map(lambda p, g: p - RATE * g, params, grad)
        return new, (params["x"], params["y"], loss)

    def steps(params: Any) -> Any:
        return jax.lax.scan(jax.vmap(step, in_axes=(0, None)), params, None, STEPS + 1)[1]

    compiled = jax.jit(steps)
    x, y = (jax.device_put(column.astype(dtype)) for column in starts().T)
    return lambda: jax.block_until_ready(compiled({"x": x, "y": y}))


def first_call() -> float:
    """Seconds of a process's first call, compiling included; the imports come before."""
    call = _public_call("float32")
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def warm_calls(dtype: str, file: str) -> float:
    """Seconds of a warm call in a process of its own; the record goes to a file."""
    call = _public_call(dtype)
    np.save(file, _columns(call()))
    times = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def _with_flag(dtype: str) -> Timed:
    file = tools.scratch() / f"flagged-{dtype}.npy"
    taken = tools.fresh("descents", "warm_calls", dtype, str(file), flags=FLAG)
    return Timed(taken, np.load(file))


# The others ----------------------------------------------------------------------------------


def _c_contenders(
    dtype: str,
    begin: np.ndarray,
    steps: int,
    rows: int,
    answer: Callable[[Any], Any] = lambda result: result,
    rounds: int | None = None,
) -> Iterator[Contender]:
    """The same in C: one thread and two; and one whose sines are vectorised."""
    for name, threads, shift in (
        ("C, one thread", 1, 0),
        ("C, two threads", 2, 0),
        ("C, one thread, sines vectorised", 1, 1),
    ):
        yield Contender(
            name,
            partial(_in_c, dtype, begin, STEPS=steps, ROWS=rows, SHIFT=shift, THREADS=threads),
            answer,
            rounds=rounds,
            skipped=tools.no_compiler(),
        )


def _in_c(dtype: str, begin: np.ndarray, **macros: int) -> Timed:
    real = {"float32": "float", "float64": "double"}[dtype]
    program = tools.c_program("descents.c", RUNS=len(begin), REAL=real, **macros)
    file, record = tools.scratch() / "starts.bin", tools.scratch() / f"record-{dtype}.bin"
    begin.tofile(file)
    times = tools.run_c(program, file, record, REPETITIONS)
    return Timed(
        median(times[1:]), np.fromfile(record, dtype).reshape(3, macros["ROWS"], len(begin))
    )


def _eager(dtype: str, begin: np.ndarray) -> np.ndarray:
    """One tensor of all starts, without a record: the last iterates (2, starts)."""
    import torch

    x, y = (
        column.clone().requires_grad_()
        for column in torch.tensor(begin, dtype=getattr(torch, dtype)).T
    )
    optimizer = torch.optim.SGD([x, y], lr=RATE)
    for _ in range(EAGER_STEPS):
        optimizer.zero_grad()
        _torch_risk(x, y).sum().backward()
        optimizer.step()
    return tools.host(torch.stack([x, y]))


def _notebook(dtype: str) -> np.ndarray:
    """As it is written in a notebook: lists, and a number out of every tensor."""
    import torch

    begin = torch.tensor(starts()[0], dtype=getattr(torch, dtype))
    x, y = (value.clone().requires_grad_() for value in begin)
    optimizer = torch.optim.SGD([x, y], lr=RATE)
    xs, ys, losses = [], [], []
    for _ in range(NOTEBOOK_STEPS):
        loss = _torch_risk(x, y)
        xs.append(x.item())
        ys.append(y.item())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array([xs, ys, losses], dtype)[:, :, None]


def _torch_risk(x: Any, y: Any) -> Any:
    import torch

    loss = torch.sin(x + 4) * (torch.cos(3 * y - 5) + 0.3)
    return loss + 0.5 * torch.cos(2 * (x + 2) * (y - 4) ** 2)


# Agreement -----------------------------------------------------------------------------------


def _deviations(answers: dict[str, np.ndarray | None]) -> dict[str, float]:
    """How far each record is from gradient descent, at every step from the one before it.

    At this rate many descents are chaotic for a while: a rounding is enough for another valley, so
    that whole records of two correct programs differ. But each must start where it was told to,
    every loss must be the risk at its iterate, and every iterate one exact step from the last. The
    cosine's phase reaches thousands, and its rounding with it: the deviation is in parts of that.
    """
    return {name: _off(record) for name, record in answers.items() if record is not None}


def _exact(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The risk, its slopes along x and y, and the phase of its second cosine."""
    u, v = x + 2, y - 4
    phase = 2 * u * v**2
    first, second, third = np.sin(x + 4), np.cos(3 * y - 5) + 0.3, np.sin(phase)
    slope_x = np.cos(x + 4) * second - third * v**2
    slope_y = -3 * first * np.sin(3 * y - 5) - 2 * third * u * v
    return first * second + 0.5 * np.cos(phase), np.stack([slope_x, slope_y]), phase


def _off(record: np.ndarray) -> float:
    begin = starts()[: record.shape[2]].astype(record.dtype).T
    x, y, loss = record.astype(float)
    value, (slope_x, slope_y), phase = _exact(x, y)
    off = np.abs(loss - value)
    off[1:] += np.abs(np.diff(x, axis=0) + RATE * slope_x[:-1])
    off[1:] += np.abs(np.diff(y, axis=0) + RATE * slope_y[:-1])
    scale = 1 + np.abs(phase)
    scale[1:] = np.maximum(scale[1:], scale[:-1])
    return float((off / scale).max() + np.abs(record[:2, 0] - begin).max())
