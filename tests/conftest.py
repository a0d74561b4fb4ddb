"""What all tests share."""

import hypothesis
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
