"""What all tests share."""

import matplotlib
import pytest

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _no_figures_left_open():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
