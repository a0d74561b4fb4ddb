"""What the device does at best, as contenders: the ratio of their times to ours is the share that ours
reaches of the device's arithmetic, or of its memory's bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from benchmarks import tools
from benchmarks.harness import Contender

ENTRIES = 2**26  # of the array that is passed over


def arithmetic(operations: float) -> Contender:
    """So many operations, in products of large matrices in single precision."""
    size = 8192 if tools.on_gpu() else 2048
    return Contender(
        "as much arithmetic in products of large matrices",
        lambda: _product(size)(),
        share=2.0 * size**3 / operations,
        part=f"{size:,} × {size:,}",
    )


def bandwidth(count: float) -> Contender:
    """So many bytes, read and written in passes over a large array."""
    return Contender(
        "as many bytes in passes over a large array",
        lambda: _pass()(),
        share=2.0 * 4 * ENTRIES / count,
        part=f"{ENTRIES * 4 // 2**20} MiB, read and written",
    )


@cache
def _product(size: int) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    square = jnp.ones((size, size), jnp.float32)
    return _ready(jax.jit(jnp.matmul), square, square)


@cache
def _pass() -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    array = jnp.ones(ENTRIES, jnp.float32)
    return _ready(jax.jit(lambda array: array + 1), array)


def _ready(compiled: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    """A call that returns once its result is there, and keeps nothing of it."""

    def run() -> None:
        compiled(*arguments).block_until_ready()

    return run
