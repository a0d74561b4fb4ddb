"""lazy-mlp: networks against PyTorch's loop, and what their movements are."""

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg import report, studies
from thalweg.plots import style
from thalweg.studies import lazy_mlp

SMALL = {
    "deep_steps": 40, "shallow_steps": 40, "runs": 3, "widths": (3, 20), "widths_steps": 40,
    "bad_width": 20, "bad_steps": 30, "every": 5,
}  # fmt: skip
PARTS = ("deep", "shallow", "width-3", "width-20", "bad")


@pytest.fixture(scope="module")
def tree():
    return studies.run("lazy-mlp", **SMALL)


@pytest.fixture(scope="module")
def in_batches():
    return studies.run("lazy-mlp", batch_size=4, **SMALL)


def network(start, layers):
    """The torch.nn network with these parameters: biases and weights, layer by layer."""
    modules, at = [], 0
    for n_in, n_out in layers:
        linear = torch.nn.Linear(n_in, n_out, dtype=torch.float64)
        with torch.no_grad():
            linear.bias.copy_(torch.tensor(start[at : at + n_out]))
            at += n_out
            linear.weight.copy_(torch.tensor(start[at : at + n_in * n_out]).reshape(n_out, n_in))
            at += n_in * n_out
        modules += [linear, torch.nn.ReLU()]
    assert at == len(start)
    return torch.nn.Sequential(*modules[:-1])


def vector(module):
    """A network's parameters in the order of the trajectory's."""
    parts = [(m.bias, m.weight) for m in module if isinstance(m, torch.nn.Linear)]
    return torch.cat([p.detach().reshape(-1) for pair in parts for p in pair]).numpy().copy()


def torchs(path, layers, x, y, lrs, batches):
    """The loop as people write it: weights in a list, and the loss over all samples."""
    module = network(path["start"].values, layers)
    x, y = torch.tensor(x)[:, None], torch.tensor(y)
    weights, losses = [vector(module)], []
    for lr, batch in zip(lrs, batches, strict=True):
        losses.append(torch.nn.functional.mse_loss(module(x)[:, 0], y).item())
        module.zero_grad()
        torch.nn.functional.mse_loss(module(x[batch])[:, 0], y[batch]).backward()
        with torch.no_grad():
            for p in module.parameters():
                p -= lr * p.grad
        weights.append(vector(module))
    losses.append(torch.nn.functional.mse_loss(module(x)[:, 0], y).item())
    return np.array(weights), np.array(losses)


LAYERS = {
    "deep": [(1, 10), *[(10, 10)] * 4, (10, 1)],
    "shallow": [(1, 10), (10, 1)],
    "width-20": [(1, 20), (20, 1)],
    "bad": [(1, 20), (20, 1)],
}


@pytest.mark.parametrize("part", LAYERS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_every_part_is_torchs_loop(tree, in_batches, part, batch_size):
    """Loss, movement and successive change at every recorded step, on the same start and batches."""
    tree = in_batches if batch_size else tree
    x, y = tree["data/x"].values, tree["data/y"].values
    path = tree[f"path/{part}"]
    path = path.isel(run=1) if "run" in path.dims else path
    total = int(path["step"][-1])
    batches, epoch = [], 0
    while len(batches) < total:
        # the study's order: the data's own, then that of (seed, epoch)
        order = np.random.default_rng([0, epoch]).permutation(15) if epoch else np.arange(15)
        batches += np.split(order, [4, 8, 12]) if batch_size else [order]
        epoch += 1
    lr = {"deep": [0.1], "shallow": [0.001], "width-20": [0.002]}
    lrs = lr[part] * total if part != "bad" else [1.0] * 2 + [0.001] * 30
    weights, losses = torchs(path, LAYERS[part], x, y, lrs, batches[:total])
    steps = path["step"].values
    norms = np.linalg.norm(weights, axis=1)
    moved = np.linalg.norm(weights - weights[0], axis=1) / norms[0]
    change = np.linalg.norm(np.diff(weights, axis=0, prepend=weights[:1]), axis=1) / norms
    # the two large steps of a badly started network amplify what PyTorch and XLA round differently
    rtol = 1e-9 if part == "bad" else 1e-11
    np.testing.assert_allclose(path["final"], weights[-1], rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(path["risk"], losses[steps], rtol=rtol)
    np.testing.assert_allclose(path["relative_movement"], moved[steps], rtol=rtol, atol=1e-13)
    np.testing.assert_allclose(path["successive_change"], change[steps], rtol=1e-6, atol=1e-13)
    first = LAYERS[part][0][1]
    bias = weights[:, :first]
    of_bias = np.linalg.norm(bias - bias[0], axis=1) / np.linalg.norm(bias[0])
    np.testing.assert_allclose(path["moved_l1.bias"], of_bias[steps], rtol=1e-8, atol=1e-13)


def test_parameters_are_counted(tree):
    tables = next(iter(studies.findings("lazy-mlp", tree).tables.values()))
    counts = [row[3] for row in tables if row[1] == "all"]
    # shallow h: 3h + 1; deep: 20 + 4·110 + 11
    assert counts == ["471", "31", "10", "61", "61"]


def test_bad_networks_are_drawn_over_the_range_of_the_data(tree):
    x, seen = tree["data/x"].values, tree["functions/bad"]
    assert (seen["x_grid"].values[0], seen["x_grid"].values[-1]) == (x.min(), x.max())
    assert [str(m) for m in seen["moment"].values] == [
        "initialisation", "after 2 steps at 1", "after 32 steps",
    ]  # fmt: skip
    # the functions in the middle are those of the trajectory two steps on
    path = tree["path/bad"]
    at_two = (
        (np.interp(x, seen["x_grid"], seen["yhat_grid"][1, :, 0]) - tree["data/y"]) ** 2
    ).mean()
    np.testing.assert_allclose(path["risk"].sel(step=2)[0], at_two, rtol=0.02)  # off by the grid
    assert path["schedule_lr"].values[:3].tolist() == [1.0, 1.0, 0.001]


def test_bends_are_kinks_of_the_function(tree):
    """A unit bends where the slope of the network jumps: counted on a fine grid."""
    path, x = tree["path/shallow"], tree["data/x"].values
    found = lazy_mlp.bends(path, x.min(), x.max())
    fine = np.linspace(x.min(), x.max(), 200_001)
    for moment in ("start", "final"):
        for run in range(3):
            w = path[moment].sel(run=run).values
            b1, w1, w2 = w[:10], w[10:20], w[21:]
            yhat = np.maximum(w1[:, None] * fine + b1[:, None], 0).T @ w2
            # a kink lies on or between grid points: one jump or two neighbouring ones
            jumps = np.flatnonzero(abs(np.diff(yhat, 2)) > 1e-10)
            kinks = np.count_nonzero(np.diff(jumps, prepend=-9) > 1)
            assert found[moment][run] == kinks


def test_figures(tree):
    figures = studies.figures("lazy-mlp", tree)
    assert list(figures) == [
        "data", "deep", "shallow", "widths", "bad", "loss", "movement", "successive_change",
        "movement_by_parameter", "movement_by_width",
    ]  # fmt: skip
    widths = figures["loss"].axes[2]
    names = [text.get_text() for text in widths.get_legend().get_texts()]
    assert names == ["width 3", "width 20"]
    for line, width in zip(widths.lines, (3, 20), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), tree[f"path/width-{width}/risk"].values[1:])
    lines = [line for line in figures["shallow"].axes[1].lines if line.get_label() == "_model"]
    assert len(lines) == 3


def test_the_report_is_written(tree, tmp_path):
    page = report.write(tree, tmp_path).read_text(encoding="utf-8")
    assert "<td>10 × 10</td><td>100</td>" in page


def test_wider_networks_move_less():
    """Over all parameters, at the study's learning rate and the default widths."""
    tree = studies.run(
        "lazy-mlp", **SMALL | {"widths": (10, 100, 1000), "widths_steps": 5000, "every": 500}
    )
    moved = [float(tree[f"path/width-{w}/relative_movement"][-1]) for w in (10, 100, 1000)]
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


def test_a_diverging_part_is_named_and_harms_no_other():
    tree = studies.run("lazy-mlp", **SMALL | {"shock_lr": 1e200})
    assert (tree["path/bad/status"] == "diverged").all()
    assert tree["path/deep/status"] == "completed"
    found = studies.findings("lazy-mlp", tree)
    assert any("diverged" in value for value in found.numbers.values())
    assert found.sentences[-1] == "No badly started network stayed finite."
    last = studies.figures("lazy-mlp", tree)["bad"].axes[-1]
    assert style.notes(last) == ["3 of 3 models not finite (diverged)"]


@pytest.mark.parametrize(
    "settings",
    [
        {"n_samples": 1},
        {"deep_steps": 0, "shallow_steps": 0, "widths_steps": 0, "bad_steps": 0, "shocks": 0},
        {"runs": 1, "widths": (4,), "deep_layers": 1, "every": 1000},
        {"target": "complex", "noise": 0.3, "batch_size": 1, "bad_width": 1},
        {"widths_lr": 100.0, "deep_lr": 1e6},
    ],
)
def test_odd_settings(settings):
    tree = studies.run("lazy-mlp", **SMALL | settings)
    assert len(studies.figures("lazy-mlp", tree)) == 10
    assert all(map(str.strip, studies.findings("lazy-mlp", tree).sentences))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": ()}, "'widths' must be different numbers above 0"),
        ({"widths": (5, 5)}, "'widths' must be different numbers above 0"),
        ({"widths": (0, 5)}, "'widths' must be different numbers above 0"),
        ({"deep_layers": 0}, "'deep_layers' must be at least 1; 0 given"),
        ({"runs": 0}, "'runs' must be at least 1"),
        ({"bad_steps": -1}, "'bad_steps' must be at least 0; -1 given"),
        ({"every": 0}, "every must be"),
        ({"shock_lr": -1.0}, "lr"),
    ],
)
def test_bad_settings_are_one_line(settings, says):
    with pytest.raises(tw.InputError, match=says) as caught:
        studies.run("lazy-mlp", **SMALL | settings)
    assert "\n" not in str(caught.value)
