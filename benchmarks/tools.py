"""What the cases share: C programs, fresh processes, and which machine this is."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_FLAGS = ("-O3", "-march=native", "-ffast-math")

# The processes that are timed keep the byte code of what they import, as those of a user do; without it, one
# waits for seconds while JAX is compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@functools.cache
def scratch() -> Path:
    """A folder for this run, removed when it ends."""
    holder = tempfile.TemporaryDirectory(prefix="thalweg-bench-")
    scratch.holder = holder  # type: ignore[attr-defined]  # it lives as long as the program
    return Path(holder.name)


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def no_compiler() -> str:
    """Why a C program cannot run, or nothing where it can."""
    return "" if compiler() else "skipped: there is no C compiler here"


def missing(package: str) -> str:
    """Why a package's contender cannot run, or nothing where it can."""
    return "" if _installed(package) else f"skipped: {package} is not installed"


def landscaper(module: str) -> Any:
    """A module of landscaper, without the topological half that importing the package loads: that asks
    for NumPy below 2, JAX for 2."""
    if "landscaper" not in sys.modules:
        found = importlib.util.find_spec("landscaper")
        assert found is not None
        bare = types.ModuleType("landscaper")
        bare.__path__ = list(found.submodule_search_locations or ())
        sys.modules["landscaper"] = bare
    return importlib.import_module(f"landscaper.{module}")


@contextmanager
def silenced() -> Iterator[None]:
    """What others print, progress bars too, goes nowhere."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@functools.cache
def c_program(source: str, **macros: Any) -> Path:
    """The program benchmarks/`source`, compiled with the macros given."""
    program = scratch() / "-".join([source.removesuffix(".c"), *map(str, macros.values())])
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    path = Path(__file__).with_name(source)
    threads = ["-fopenmp"] if macros.get("THREADS", 1) > 1 else []
    command = [str(compiler()), *_FLAGS, *threads, *defines, str(path), "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    return program


def run_c(program: Path, *arguments: Any) -> list[float]:
    """The seconds of the repetitions that a C program timed itself."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def fresh(module: str, function: str, *arguments: Any, flags: str = "") -> Any:
    """What `module.function(*arguments)` returns in a new Python process, by way of JSON."""
    code = (
        f"import json, sys; from benchmarks.{module} import {function}; "
        f"json.dump({function}(*json.loads(sys.argv[1])), sys.stdout)"
    )
    environment = dict(os.environ)
    if flags:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    return json.loads(done.stdout)


def forget_peak() -> None:
    """Count the most memory from now on, where the system can (Linux)."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def choose(device: str) -> None:
    """Measure on "cpu" or "gpu", here and in the processes to come; before anything is computed."""
    import jax

    settings = {"jax_platforms": {"cpu": "cpu", "gpu": "cuda,cpu"}[device]}
    if device == "gpu":
        # JAX would round what matrix products take to 11 bits (TF32), PyTorch would not
        settings["jax_default_matmul_precision"] = "highest"
        # Or the first process would take the device's memory, and leave the others none
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for name, value in settings.items():
        os.environ[name.upper()] = value
        jax.config.update(name, value)


def on_gpu() -> bool:
    """Whether a GPU is measured."""
    return os.environ.get("JAX_PLATFORMS", "").startswith("cuda")


def no_gpu() -> str:
    """Why a GPU cannot be measured, or nothing where it can."""
    import jax
    import torch

    try:
        found = jax.default_backend() == "gpu"
    except (RuntimeError, AssertionError):  # the latter where JAX is not built for one
        found = False
    if not found:
        return "JAX finds none"
    return "" if torch.cuda.is_available() else "PyTorch finds none"


def settle() -> None:
    """PyTorch makes this process's tensors on the device that is measured, and multiplies them in single
    precision."""
    if on_gpu():
        import torch

        torch.set_default_device("cuda")
        torch.backends.cudnn.allow_tf32 = False


def generator(seed: int) -> Any:
    """A generator of PyTorch's on the device that is measured."""
    import torch

    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def host(tensor: Any) -> Any:
    """A tensor as an array of NumPy's, once it is computed."""
    return tensor.detach().cpu().numpy()


def peak_mib() -> float:
    """The most memory this process has held, in MiB.

    Linux carries getrusage's number over from the process that started this one, so its own
    count of this program's memory is read instead, where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def growth_mib(job: Callable[[], Any]) -> float:
    """The most memory that this process holds during a job over what it held before, in MiB: the
    device's, on a GPU. It is looked at again and again: a GPU's own peak may be that of compiling."""
    gc.collect()
    before = most = _held()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0002 if on_gpu() else 0.001):
            most = max(most, _held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        job()
    finally:
        done.set()
        watcher.join()
    return (most - before) / 2**20


def device_peak_mib() -> float:
    """The most memory of the GPU that JAX's arrays and programs have held in this process, in MiB."""
    return _of_device("peak_bytes_in_use") / 2**20


def _held() -> int:
    """Bytes that this process holds now, or a GPU for it."""
    if on_gpu():
        import torch

        return _of_device("bytes_in_use") + torch.cuda.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def _of_device(what: str) -> int:
    import jax

    return jax.local_devices()[0].memory_stats()[what]


def machine() -> list[str]:
    """The machine and the versions, one a line; no names of hosts or folders."""
    packages = ("thalweg", "jax", "numpy", "xarray", "torch")
    versions = [f"{name} {metadata.version(name)}" for name in packages if _installed(name)]
    lines = [
        f"Processor: {_cpu()}, {os.cpu_count()} cores; {platform.system()}.",
        f"Python {platform.python_version()}, {', '.join(versions)}.",
    ]
    if on_gpu():
        import jax

        lines.insert(1, f"Device: {jax.devices()[0].device_kind}.")
    if compiler():
        text = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True)
        lines.append(f"C: {text.stdout.splitlines()[0]}, {' '.join(_FLAGS)}.")
    return lines


def busy_seconds() -> float | None:
    """Processor time that everyone on this machine has used; None where that is not told."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(
        int, path.read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time that this process and its ended children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
