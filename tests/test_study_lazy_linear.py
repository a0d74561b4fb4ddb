"""lazy-linear: linear models against their closed form and against PyTorch."""

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg import report, studies
from thalweg.plots import style
from thalweg.studies import regression

SMALL = {"narrow_steps": 300, "wide_steps": 60, "many_steps": 200, "runs": 3}
DIMENSIONS = {"narrow": 8, "wide": 200, "many": 100}


@pytest.fixture(scope="module")
def tree():
    return studies.run("lazy-linear", **SMALL)


def design(x, dimension, frequency=2 * np.pi):
    """A bias and the features by hand: (n, 1 + dimension), the order of the parameters."""
    waves = [f(frequency * j * x) for j in range(dimension // 2) for f in (np.sin, np.cos)]
    return np.stack([np.ones_like(x), *waves], axis=1)


def closed_form(phi, y, start, lr, steps):
    """w_T of gradient descent on ‖Φw − y‖²/n from w_0, in the singular vectors of Φ.

    The error in the i-th left singular direction falls by 1 − 2·lr·σᵢ²/n each step; w moves in the
    span of the right ones.
    """
    left, sigma, right = np.linalg.svd(phi, full_matrices=False)
    kept = sigma > 1e-10 * sigma[0]
    left, sigma, right = left[:, kept], sigma[kept], right[kept]
    error = left.T @ (phi @ start - y)
    shrunk = (1 - 2 * lr * sigma**2 / len(y)) ** steps
    return start + right.T @ ((shrunk - 1) * error / sigma)


@pytest.mark.parametrize("part", DIMENSIONS)
def test_descents_are_their_closed_form(tree, part):
    x, y = tree["data/x"].values, tree["data/y"].values
    path = tree[f"path/{part}"]
    steps = int(path["step"][-1])
    phi = design(x, DIMENSIONS[part])
    runs = path["run"].values if "run" in path.dims else [None]
    for run in runs:
        one = path if run is None else path.sel(run=run)
        expected = closed_form(phi, y, one["start"].values, 0.01, steps)
        np.testing.assert_allclose(one["final"], expected, atol=1e-11)
        loss = ((phi @ expected - y) ** 2).mean()
        np.testing.assert_allclose(one["risk"][-1], loss, rtol=1e-7)
        moved = expected - one["start"].values
        np.testing.assert_allclose(
            one["relative_movement"][-1],
            np.linalg.norm(moved) / np.linalg.norm(one["start"]),
            rtol=1e-9,
        )
        # the bias is the first parameter: movements by parameter are not each other's
        np.testing.assert_allclose(
            one["moved_l1.bias"][-1], abs(moved[0] / one["start"].values[0]), rtol=1e-8
        )


@pytest.mark.parametrize("part", DIMENSIONS)
def test_the_limit_is_the_nearest_best_fit(tree, part):
    x, y = tree["data/x"].values, tree["data/y"].values
    phi, end = design(x, DIMENSIONS[part]), tree[f"limit/{part}"]
    start = tree[f"path/{part}"]["start"].values.reshape(phi.shape[1], -1)[:, 0]
    final = start + np.linalg.pinv(phi) @ (y - phi @ start)
    np.testing.assert_allclose(end["risk"], ((phi @ final - y) ** 2).mean(), atol=1e-25)
    np.testing.assert_allclose(
        end["relative_movement"].values.ravel()[0],
        np.linalg.norm(final - start) / np.linalg.norm(start),
        rtol=1e-9,
    )
    hessian = 2 / len(y) * phi.T @ phi
    np.testing.assert_allclose(end["fastest"], 2 / np.linalg.eigvalsh(hessian)[-1], rtol=1e-9)
    # a dead sine and two biases: the rank is two below the number of columns, or the samples'
    assert end["rank"] == min(len(y), phi.shape[1] - 2)


def test_batches_are_torchs_loop_over_the_same_batches():
    """Mini-batches in the data's order, then reshuffled, against a loop as people write it."""
    tree = studies.run("lazy-linear", batch_size=4, every=1, **SMALL)
    x, y = (torch.tensor(tree[f"data/{name}"].values) for name in "xy")
    phi = torch.tensor(design(x.numpy(), 8)[:, 1:])
    path = tree["path/narrow"]
    linear = torch.nn.Linear(8, 1, dtype=torch.float64)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor(path["start"].values[:1]))
        linear.weight.copy_(torch.tensor(path["start"].values[None, 1:]))
    sgd = torch.optim.SGD(linear.parameters(), lr=0.01)
    order, step = np.arange(15), 0
    for epoch in range(3):
        if epoch:  # the same permutations: what reshuffling means is in test_sampling
            order = np.random.default_rng([0, epoch]).permutation(15)
        for batch in np.split(order, [4, 8, 12]):
            loss = torch.nn.functional.mse_loss(linear(phi[batch])[:, 0], y[batch])
            np.testing.assert_allclose(path["loss"][step], loss.item(), rtol=1e-12)
            whole = torch.nn.functional.mse_loss(linear(phi)[:, 0], y)
            np.testing.assert_allclose(path["risk"][step], whole.item(), rtol=1e-12)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            step += 1


def test_a_batch_of_all_samples_is_the_full_batch(tree):
    full = studies.run("lazy-linear", batch_size=15, **SMALL)
    np.testing.assert_array_equal(full["path/wide"]["final"], tree["path/wide"]["final"])


def test_wide_models_fit_fast_and_move_little_from_every_start():
    """What the study is to show, at its default steps and dimensions."""
    tree = studies.run("lazy-linear", every=10)
    narrow, wide, many = (tree[f"path/{part}"] for part in ("narrow", "wide", "many"))
    assert wide["risk"][-1] < 1e-3 * narrow["risk"][-1].clip(min=1e-1)
    assert wide["risk"].sel(step=100) < 0.01 * narrow["risk"].sel(step=100)
    assert (many["risk"][-1] < 1e-4).all()
    assert wide["relative_movement"][-1] < many["relative_movement"][-1].min()
    assert many["relative_movement"][-1].max() < 0.5 * narrow["relative_movement"][-1]
    found = studies.findings("lazy-linear", tree)
    assert found.warnings == ()
    assert found.numbers["dimension 8: parameters"] == "9"
    assert "rank 7" in found.sentences[0]


def test_a_heads_norm_is_about_one_over_root_three_and_its_movement_falls_as_the_root():
    """The page's derivation: ‖w_0‖ ≈ 1/√3, and ‖w_∞ − w_0‖ falls as 1/√dimension."""
    moved, dimensions = [], (200, 800)
    for dimension in dimensions:
        tree = studies.run(
            "lazy-linear", many_dimension=dimension, many_steps=0, narrow_steps=0, wide_steps=0, runs=200
        )  # fmt: skip
        norms = np.linalg.norm(tree["path/many"]["start"], axis=0)
        np.testing.assert_allclose(norms, 3**-0.5, atol=5 * 0.26 * dimension**-0.5)
        moved.append((tree["limit/many"]["relative_movement"] ** 2).mean().item())
    # the residuals at the start are of one size at every dimension, and the kernel grows with it
    assert abs(np.sqrt(moved[1] / moved[0]) - np.sqrt(200 / 800)) < 0.1


def test_figures(tree):
    figures = studies.figures("lazy-linear", tree)
    assert list(figures) == [
        "data", "narrow", "wide", "many", "loss", "movement", "movement_by_parameter",
    ]  # fmt: skip
    (loss,) = figures["loss"].axes
    assert (loss.get_xscale(), loss.get_yscale()) == ("log", "log")
    narrow = next(line for line in loss.lines if line.get_label() == "dimension 8")
    np.testing.assert_array_equal(narrow.get_ydata(), tree["path/narrow/risk"].values[1:])
    before, after = figures["wide"].axes
    wide = tree["functions/wide"]
    for ax, moment in ((before, 0), (after, 1)):
        drawn = next(line for line in ax.lines if line.get_label() == "_model")
        np.testing.assert_array_equal(drawn.get_ydata(), wide["yhat_grid"][moment])
    # the fastest wave, j = 99, is drawn with twelve points a period
    assert np.diff(wide["x_grid"])[0] <= 1 / 99 / 12


def test_the_report_has_the_table_of_parameters(tree, tmp_path):
    page = report.write(tree, tmp_path).read_text(encoding="utf-8")
    assert "<td>1 × 200</td><td>200</td>" in page
    table = next(iter(studies.findings("lazy-linear", tree).tables.values()))
    assert [row[3] for row in table if row[1] == "all"] == ["9", "201", "101"]


def test_a_diverging_part_is_named_and_harms_no_other(tree):
    fast = studies.run("lazy-linear", lr=0.2, **SMALL | {"wide_steps": 3000})
    found = studies.findings("lazy-linear", fast)
    assert str(fast["path/wide/status"].values) == "diverged"
    assert fast["path/narrow/status"] == "completed"
    assert "diverged" in found.numbers["dimension 200: 3,000 steps"]
    assert any("dimension 200" in warning for warning in found.warnings)
    right = studies.figures("lazy-linear", fast)["wide"].axes[1]
    assert style.notes(right) == ["1 of 1 model not finite (diverged)"]


@pytest.mark.parametrize(
    "settings",
    [
        {"n_samples": 1},
        {"narrow_steps": 0, "wide_steps": 0, "many_steps": 0},
        {"runs": 1, "every": 7},
        {"target": "complex", "noise": 0.3, "batch_size": 1},
        {"first": 1, "frequency": 0.0},
        {"narrow_dimension": 2, "wide_dimension": 2, "many_dimension": 2},
    ],
)
def test_odd_settings(settings):
    tree = studies.run("lazy-linear", **SMALL | settings)
    assert len(studies.figures("lazy-linear", tree)) == 7
    found = studies.findings("lazy-linear", tree)
    assert all(map(str.strip, found.sentences))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target": "medium"}, "unknown target 'medium'"),
        ({"narrow_dimension": 7}, "come in pairs"),
        ({"runs": 0}, "'runs' must be at least 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "'seed' must be between 0 and"),
        ({"lr": -1.0}, "lr"),
        ({"frequency": float("inf")}, "not finite"),
    ],
)
def test_bad_settings_are_one_line(settings, says):
    with pytest.raises(tw.InputError, match=says) as caught:
        studies.run("lazy-linear", **SMALL | settings)
    assert "\n" not in str(caught.value)


def test_settings_are_those_of_the_description():
    settings = regression.DataSettings()
    assert (settings.target, settings.n_samples, settings.noise) == ("middle", 15, 0.0)
