"""What Thalweg asks of JAX as a whole: 64-bit mode. Every room that uses JAX imports this first.

dtypes follow what the user gave, as in NumPy and PyTorch, and without 64-bit mode JAX would
silently turn float64 arrays into float32. It is the one global that the package touches, and
`JAX_ENABLE_X64` in the environment has the last word.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from threadpoolctl import ThreadpoolController

from thalweg.errors import unknown

_WORKERS = 8  # at most so many programs run concurrently: each holds its own intermediate results
# Settings that `with jax.debug_nans(True):` and the like change for the current thread only
_CONTEXT = (
    "default_device",
    "debug_nans",
    "debug_infs",
    "default_matmul_precision",
    "default_prng_impl",
    "disable_jit",
    "enable_x64",
    "log_compiles",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)

if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)


def device() -> Any:
    """The device computations run on, of jax.devices()."""
    chosen = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def on_cpu() -> bool:
    """Whether computations run on the CPU, not on a GPU or TPU."""
    return device().platform == "cpu"


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """The device computations run on, as `platform:kind`."""
    here = device()
    return f"{here.platform}:{here.device_kind}"


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in `folder`, so that a later process does not compile them again.

    For programs that own their process, such as the command; a library does not decide this.
    The threshold is zero because the many programs of a study each compile in a fraction of a second.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Options with which XLA compiles in a third of the time, but whose programs take up to twice as long to run
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# XLA would leave 2-D convolutions of many features to a library that computes each of them on one core
_ON_ALL_CORES = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


def compiled_quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for functions that run only a few times: compiles faster, runs slower."""
    return _Program(function, lambda: _QUICKLY)


def outermost(**how: Any) -> Callable[[Callable[..., Any]], Any]:
    """`jax.jit`, with its arguments `how`, for functions that compute for long, and that are never called
    within a trace, where JAX does not take options for XLA."""

    def options() -> dict[str, Any]:
        return _ON_ALL_CORES if on_cpu() and cores() > 1 else {}

    return lambda function: _Program(function, options, **how)


class _Program:
    """`jax.jit` of a function, made when it is first used, with those options for XLA that this version of it
    knows: they come and go."""

    def __init__(
        self, function: Callable[..., Any], options: Callable[[], dict[str, Any]], **how: Any
    ) -> None:
        functools.update_wrapper(self, function)
        self._options = options
        self._compiled = functools.cache(
            lambda options: jax.jit(function, compiler_options=dict(options), **how)
        )

    def _jitted(self) -> Any:
        options = {k: v for k, v in self._options().items() if (k, v) not in _unknown}
        return self._compiled(tuple(options.items()))

    def __call__(self, *args: Any, **static: Any) -> Any:
        # To ask XLA what it knows takes longer than most first calls can spare: it is asked after an error
        jitted = self._jitted()
        try:
            return jitted(*args, **static)
        except jax.errors.JaxRuntimeError:
            _unknown.update(option for option in self._options().items() if not _is_known(option))
            if self._jitted() is jitted:
                raise
            return self._jitted()(*args, **static)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted(), name)


_unknown: set[tuple[str, Any]] = set()  # options that this version of XLA does not know


def _is_known(option: tuple[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict([option])).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def prefer_cpu() -> None:
    """Compute on the CPU, whatever devices there are, unless `JAX_PLATFORMS` names something.

    For programs that own their process and whose models are small: on a GPU, dispatching a step would take
    longer than the whole step takes here, and JAX would reserve most of the GPU's memory.
    """
    if not setting("platforms"):
        jax.config.update("jax_platforms", "cpu")


def workers() -> int:
    """How many programs run best concurrently: on the CPU as many as there are cores. An operation spread
    over all cores takes as long as the slowest of them; programs with a core each wait for no other."""
    return min(cores(), _WORKERS) if on_cpu() else 1


def matmul(a: Any, b: Any) -> Any:
    """a @ b in the full precision of its dtype; by default a GPU keeps 11 bits of float32 (TF32)."""
    return jnp.matmul(a, b, precision="highest")


def outlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a call that XLA does not inline, for use inside a trace.

    On a CPU, XLA fuses cheap operations into every consumer and computes them anew for each; it removes
    optimization barriers before it does so. The results of a call are computed once.
    """
    compiled = jax.jit(function)

    # XLA inlines this outer call. It is there because `jaxprs.call_for` gives the outermost equation another
    # context, which would overwrite the metadata of the call itself.
    @jax.jit
    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return called


def in_full_precision() -> bool:
    """Whether computations run on a GPU with JAX set to multiply float32 in full precision."""
    return device().platform == "gpu" and setting("default_matmul_precision") in (
        "highest",
        "float32",
    )


def return_memory() -> None:
    """Give memory that is free back to the system, where the C library would keep it (glibc)."""
    with suppress(AttributeError, TypeError):  # not glibc; Windows has no such lookup
        ctypes.CDLL(None).malloc_trim(0)


def setting(name: str) -> Any:
    """One of JAX's settings, as it is in this thread."""
    return getattr(jax.config, f"jax_{name}")


def inheriting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be called in another thread, with the JAX settings of this one."""
    here = {name: setting(name) for name in _CONTEXT}

    def there(*arguments: Any) -> Any:
        with ExitStack() as stack:
            for name, value in here.items():
                # entering a context makes JAX compile again, even if it changes nothing
                if setting(name) != value:
                    stack.enter_context(getattr(jax, name)(value))
            return function(*arguments)

    return there


class Threads:
    """`count` worker threads, each of which runs its calls in order. With a count of one, calls run in the
    calling thread."""

    def __init__(self, count: int) -> None:
        self._pools = [ThreadPoolExecutor(1) for _ in range(count if count > 1 else 0)]

    def call(self, which: int, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Start function(*arguments) in thread `which`; returns a function that waits for its result."""
        if self._pools:
            done = inheriting(lambda: jax.block_until_ready(function(*arguments)))
            return self._pools[which % len(self._pools)].submit(done).result
        result = function(*arguments)
        return lambda: result

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *error: Any) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


class _Alone:
    """LAPACK computes in one thread as long as somebody is within; then in as many as before."""

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._limited = _libraries().limit(limits=1)
            self._within += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._limited.restore_original_limits()


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries with LAPACK, among them SciPy's, which jaxlib takes."""
    # jaxlib loads it when the first program needs it
    importlib.import_module("scipy.linalg.cython_lapack")
    return ThreadpoolController().select(user_api="blas")


# LAPACK's threads wait for each other actively. In loops over small matrices they save a fifth on an idle
# machine, and take ten times as long where something else computes.
lapack_alone = _Alone()


@contextmanager
def on_device(device: Any) -> Iterator[Callable[[Any], Any]]:
    """Compute on a device: "cpu", "gpu", "tpu", or one of jax.devices(); JAX's own where it is None.

    Yields a function that moves arrays there.

    Raises:
        InputError: a device that this machine does not have.
    """
    if device is None:
        yield lambda tree: tree
        return
    if not isinstance(device, jax.Device):
        try:
            device = jax.devices("gpu" if device == "cuda" else device)[0]
        except (RuntimeError, TypeError, AttributeError):
            known = sorted({d.platform for d in jax.devices()} | {"cpu"})
            raise unknown("device", device, known) from None
    with jax.default_device(device):
        yield lambda tree: jax.device_put(tree, device)
