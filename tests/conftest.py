"""What all tests share."""

import gc
import os
import re
from pathlib import Path

# The processes that run side by side, and those that they start: one LAPACK thread each, since the
# threads of several would wait for each other, and what one test compiled is there for the next. The
# folder is a worker's own: two that write the same program would read each other's halves.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
_MOST = 3 * 2**30  # bytes that a worker may hold before it forgets its programs
_COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled" / _WORKER
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from small import SMALL  # noqa: E402

import thalweg.backend  # noqa: E402, F401  (64-bit mode, whichever test is the first to use JAX)

matplotlib.use("agg")

# A first example compiles, and on a busy machine that takes as long as it takes.
hypothesis.settings.register_profile("thalweg", deadline=None)
hypothesis.settings.load_profile("thalweg")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """A study's tests, figures, page and notebooks go to one worker, and so do a file's tests: what a
    module's fixture made is then made once. Studies take longest and come first.

    A wrapper, because xdist reads the groups in its own hook, which would be called first.
    """
    studies = {name.replace("-", "_") for name in SMALL}
    for item in items:
        file = item.path.stem
        of_study = re.search(r"\[(?:.*/)?([a-z0-9-]+)(?:\.md|\.py)?\]$", item.name)
        if file in ("test_pages", "test_study_figures", "test_reports") and of_study:
            group = of_study[1].replace("-", "_")
        else:
            group = file.removeprefix("test_study_")
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] not in studies)
    return (yield)


def pytest_collection_finish():
    """A million objects stay to the end: no collection of garbage need look them through."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    """Numbers for one test alone: of a generator that a file shares, each would get others in another
    order of the tests."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _few_programs_left_behind():
    """Each program a worker compiled stays in its memory: gigabytes, by the end."""
    yield
    if psutil.Process().memory_info().rss > _MOST:
        from thalweg import clear_caches

        clear_caches()


@pytest.fixture(autouse=True)
def _nobody_has_pressed_ctrl_c():
    """Not in the seconds before, in which it would be the program's to answer."""
    from thalweg import blocks

    blocks._pressed = -np.inf


@pytest.fixture(autouse=True)
def _no_figures_left_open():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def compilations():
    """The number of programs XLA has compiled since the fixture was asked for."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    from jax._src import monitoring

    monitoring.unregister_event_duration_listener(listen)
