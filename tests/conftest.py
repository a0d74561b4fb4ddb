"""What all tests share."""

import hypothesis
import jax
import matplotlib
import pytest

matplotlib.use("agg")

# A first example compiles, and on a busy machine that takes as long as it takes.
hypothesis.settings.register_profile("thalweg", deadline=None)
hypothesis.settings.load_profile("thalweg")


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
