"""What the studies of regression share: nodes of data, functions and parameters."""

from functools import partial

import numpy as np
import pytest

import thalweg as tw
from thalweg.catalogue import models
from thalweg.catalogue.data import TARGETS
from thalweg.studies import regression

SETTINGS = regression.DataSettings(n_samples=6, seed=2)


@pytest.fixture(scope="module")
def table():
    return regression.data(SETTINGS)


@pytest.fixture(scope="module")
def problem(table):
    init = partial(models.init_mlp, (1, 4, 1))
    return tw.Problem(models.mlp, "mse", table["x"].values, table["y"].values, init=init)


def trained(problem, **options):
    return tw.descend(problem, tw.SGD(lr=0.05), steps=20, **options)


def test_data_are_samples_of_their_target(table):
    assert table.attrs["target"] == "middle"
    np.testing.assert_array_equal(table["y"], TARGETS["middle"](table["x"]))
    grid = table["x_grid"].values
    assert (grid[0], grid[-1]) == (-1, 1)
    for name, target in TARGETS.items():
        np.testing.assert_array_equal(table["y_grid"].sel(target=name), target(grid))
        assert all(abs(grid - kink).min() < 1e-15 for kink in target.kinks)


def test_functions_are_the_models_at_their_moments(table, problem):
    path = trained(problem, runs=3)
    grid = table["x_grid"].values
    moments = {"before": path["start"], "after": path["final"]}
    seen = regression.functions(problem, moments, grid)
    assert seen["yhat_grid"].dims == ("moment", "grid", "run")
    for moment, vectors in moments.items():
        for run in range(3):
            by_hand = models.mlp(problem.unflatten(vectors.sel(run=run).values), grid)
            np.testing.assert_allclose(seen["yhat_grid"].sel(moment=moment, run=run), by_hand)


def test_functions_of_one_model_and_of_features(table):
    def features(x):
        return models.fourier_features(x, 4)

    init = partial(models.init_mlp, (4, 1))
    problem = tw.Problem(models.mlp, "mse", features(table["x"].values), table["y"], init=init)
    path, grid = trained(problem), table["x_grid"].values
    seen = regression.functions(problem, {"after": path["final"]}, grid, features(grid))
    assert seen["yhat_grid"].dims == ("moment", "grid")
    bias, *weight = path["final"].values  # the names in the order of JAX's leaves
    by_hand = np.asarray(features(grid)) @ weight + bias
    np.testing.assert_allclose(seen["yhat_grid"].sel(moment="after"), by_hand, atol=1e-14)


def test_the_table_of_parameters_by_hand(problem):
    path = trained(problem, runs=3)
    table = regression.parameters(problem, path)
    assert dict(zip(table["tensor"].values, table["shape"].values, strict=True)) == {
        "l1.bias": "4", "l1.weight": "4 × 1", "l2.bias": "1", "l2.weight": "1 × 4",
    }  # fmt: skip
    assert regression.count(table) == 13
    for run in range(3):
        start = problem.unflatten(path["start"].sel(run=run).values)
        final = problem.unflatten(path["final"].sel(run=run).values)
        for tensor in table["tensor"].values:
            layer, key = tensor.split(".")
            a, b = start[layer][key], final[layer][key]
            one = table.sel(tensor=tensor, run=run)
            np.testing.assert_allclose(one["norm_start"], np.linalg.norm(a))
            np.testing.assert_allclose(one["norm_final"], np.linalg.norm(b))
            np.testing.assert_allclose(one["moved"], np.linalg.norm(b - a))


def test_rows_are_medians_over_runs_and_end_with_the_whole_model(problem):
    path = trained(problem, runs=3)
    head, *rows = regression.rows({"shallow": regression.parameters(problem, path)})
    assert all(len(row) == len(head) for row in rows)
    assert [row[:4] for row in rows] == [
        ("shallow", "l1.bias", "4", "4"), ("", "l1.weight", "4 × 1", "4"), ("", "l2.bias", "1", "1"),
        ("", "l2.weight", "1 × 4", "4"), ("", "all", "", "13"),
    ]  # fmt: skip
    start, final = path["start"].values, path["final"].values
    norms = np.linalg.norm(start, axis=0)
    whole = [norms, np.linalg.norm(final, axis=0), np.linalg.norm(final - start, axis=0) / norms]
    assert rows[-1][4:] == tuple(f"{np.median(values):.4g}" for values in whole)


def test_rows_of_a_zero_start_and_of_diverged_runs():
    problem = tw.Problem(
        models.line, "mse", np.array([1.0, 2.0]), np.array([1.0, 2.0]), params={"weight": 0.0, "bias": 2.0}
    )  # fmt: skip
    path = tw.descend(problem, tw.SGD(lr=0.01), steps=1)
    # the gradient at (0, 2) is 2·mean(2 − y)x = 2·½(1·1 + 0·2) = 1 for the weight
    weight = regression.rows({"line": regression.parameters(problem, path)})[2]
    assert weight[1:] == ("weight", "scalar", "1", "0", "0.01", "0.01 (absolute)")
    lost = tw.descend(problem, tw.SGD(lr=1e200), steps=9)
    weight = regression.rows({"line": regression.parameters(problem, lost)})[2]
    assert weight[4:] == ("0", "not finite", "not finite (absolute)")


def test_batches():
    assert regression.batches(SETTINGS) == {}
    some = regression.DataSettings(batch_size=4)
    assert regression.batches(some) == {"batch_size": 4, "shuffle": "after_first"}
