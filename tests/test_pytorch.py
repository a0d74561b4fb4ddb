"""The PyTorch door: numbers against PyTorch's own, and nothing of the user's changed."""

import collections
import copy
import dataclasses
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import thalweg as tw
from thalweg import independence, results
from thalweg.errors import InputError
from thalweg.jaxprs import names
from thalweg.pytorch import environment
from thalweg.risks import pointwise

# 1e-5 in float32 and 1e-10 in float64, relative to the largest entry of what is compared
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True, scope="module")
def _as_exact_as_pytorch():
    """A GPU's products in JAX would have 11 bits (TF32), and in PyTorch they have 24."""
    with jax.default_matmul_precision("highest"):
        yield


ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ELU(),
    nn.SELU(), nn.CELU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.Softplus(), nn.Softsign(), nn.Hardtanh(),
    nn.Hardswish(), nn.Mish(), nn.ReLU6(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(),
    nn.Hardshrink(), nn.Threshold(0.1, 0.2), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softmin(-1), nn.GLU(),
]  # fmt: skip


class Activations(nn.Module):
    """A small network for each activation, side by side: an output column each."""

    def __init__(self):
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(4, 6) for _ in ACTIVATIONS)
        self.through = nn.ModuleList(ACTIVATIONS)
        self.out = nn.ModuleList(
            nn.Linear(3 if isinstance(a, nn.GLU) else 6, 1) for a in ACTIVATIONS
        )

    def forward(self, x):
        columns = zip(self.into, self.through, self.out, strict=True)
        return torch.cat([out(act(into(x))) for into, act, out in columns], dim=1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + x)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells = kind(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.embed(tokens))).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 5)
        self.head = nn.Linear(5, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def images(n=6, size=8):
    return torch.randn(n, 3, size, size)


def table():
    """name -> (module, inputs)"""
    torch.manual_seed(0)
    trained = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    trained(images())  # its running statistics are no longer 0 and 1
    return {
        "activations": (Activations(), torch.randn(6, 4)),
        "convolutions": (trained, images()),
        "group norm": (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)),
            images(),
        ),
        "transposed": (
            nn.Sequential(nn.ConvTranspose2d(3, 2, 3, stride=2), nn.Flatten(), nn.Linear(162, 3)),
            images(size=4),
        ),
        "residual": (nn.Sequential(Residual(), nn.Flatten(), nn.Linear(48, 3)), images(size=4)),
        "lstm": (Recurrent(nn.LSTM), torch.randn(6, 7, 4)),
        "gru": (Recurrent(nn.GRU), torch.randn(6, 7, 4)),
        "transformer": (Encoder(), torch.randint(0, 11, (6, 5))),
        "weight norm": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)),
            torch.randn(6, 4),
        ),
        "tied": (Tied(), torch.randint(0, 5, (6,))),
    }  # fmt: skip


TABLE = table()


def off(found, expected):
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(found) - expected).max()) / max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TABLE)
def test_predictions_loss_and_gradient_are_pytorchs(name, dtype):
    module, x = TABLE[name]
    module = copy.deepcopy(module).eval().to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    theirs = module(x)
    y = torch.randn(theirs.shape, dtype=dtype)
    loss = nn.MSELoss()(theirs, y)
    loss.backward()
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    assert problem.layout.dtypes[0] == np.dtype(str(dtype).removeprefix("torch."))
    yhat = jax.jit(problem.predict)(problem.params, problem.x)
    assert off(yhat, theirs.detach()) <= CLOSE[dtype]
    assert off(problem.risk(problem.params), loss.detach()) <= CLOSE[dtype]
    found = problem.gradient(problem.params)
    assert set(found) == {name for name, _ in module.named_parameters()}
    for key, parameter in module.named_parameters():
        largest = max(float(p.grad.abs().max()) for p in module.parameters())
        difference = np.abs(np.asarray(found[key]) - parameter.grad.numpy()).max()
        assert difference <= CLOSE[dtype] * largest, key


def test_pytorchs_own_derivative_of_hardsigmoid_is_rounded():
    """The one activation that is not in the table: PyTorch has 1/6 in single precision there."""
    x = torch.tensor([[0.3]], dtype=torch.float64)
    module = nn.Sequential(nn.Linear(1, 1, dtype=torch.float64), nn.Hardsigmoid())
    module(x).sum().backward()
    problem = tw.from_torch(module, "l1", x, np.full((1, 1), -5.0))  # so that the loss is ŷ + 5
    ours, theirs = (
        float(v["0.bias"][0]) for v in (problem.gradient(problem.params), grads(module))
    )
    assert ours == pytest.approx(1 / 6, rel=1e-15)
    assert theirs == float(np.float32(1 / 6))


def grads(module):
    return {name: p.grad.numpy() for name, p in module.named_parameters()}


# Losses ----------------------------------------------------------------------------------------

CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
LOSSES = [
    (nn.MSELoss(), "real"), (nn.MSELoss(reduction="sum"), "real"), (nn.L1Loss(), "real"),
    (nn.SmoothL1Loss(beta=0.3), "real"), (nn.HuberLoss(delta=0.7), "real"),
    (nn.CrossEntropyLoss(), "class"), (nn.CrossEntropyLoss(reduction="sum"), "class"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "class"),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="sum"), "class"),
    (nn.BCEWithLogitsLoss(), "binary"), (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), "binary"),
    (nn.PoissonNLLLoss(), "positive"), (nn.SoftMarginLoss(), "real"),
    (nn.functional.mse_loss, "real"), (nn.functional.cross_entropy, "class"),
    (lambda yhat, y: ((yhat - y) ** 4).mean(), "real"),
    (lambda yhat, y: ((yhat - y) ** 4).sum(), "real"),
    (lambda yhat, y: ((yhat - y) ** 4).sum(1), "real"),
]  # fmt: skip


def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)


def test_a_modules_code_is_followed_once_for_inputs_of_one_shape():
    followed = []

    class Watched(nn.Linear):
        def forward(self, x):
            if type(x) is not torch.Tensor:  # but what stands for an array
                followed.append(tuple(x.shape))
            return super().forward(x)

    x, y = torch.randn(40, 4), torch.randn(40, 3)
    problem = tw.from_torch(Watched(4, 3), nn.MSELoss(), x, y)
    tw.descend(problem, tw.SGD(lr=0.1), steps=2)
    tw.hessian(problem, problem.params).top(1)
    all_of_them, some = followed  # some are compared with PyTorch
    assert all_of_them == x.shape
    assert some[0] < len(x)


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_what_a_process_or_a_thread_does_once_is_no_part_of_a_program(where):
    """Or the first module's would be another for a part of its samples than for all: they would go all at
    once."""
    environment.own.cache_clear()
    module, x = nn.Conv2d(1, 2, 3, 1, 1), torch.randn(40, 1, 5, 5)

    def asked():
        problem = tw.from_torch(module, nn.MSELoss(), x, torch.randn(40, 2, 5, 5))
        program = jax.make_jaxpr(pointwise)(problem, problem.params)
        return independence.splits(problem, 10), names(program.jaxpr)

    if where == "in a thread":
        environment.own()
        with ThreadPoolExecutor(1) as pool:
            splits, operations = pool.submit(asked).result()
    else:
        splits, operations = asked()
    assert splits
    assert "random_seed" not in operations


@pytest.mark.parametrize(
    ("loss", "kind"), LOSSES, ids=[f"{i}-{k}" for i, (_, k) in enumerate(LOSSES)]
)
def test_losses_are_pytorchs(loss, kind):
    module, x = small()
    real = torch.randn(6, 3)
    y = {"class": CLASSES, "binary": (real > 0).float(), "positive": real.abs()}.get(kind, real)
    value = loss(module(x), y).mean()
    value.backward()
    problem = tw.from_torch(module, loss, x, y)
    assert off(problem.risk(problem.params), value.detach()) <= 1e-5
    for name, gradient in problem.gradient(problem.params).items():
        assert off(gradient, dict(module.named_parameters())[name].grad) <= 1e-5, name
    # each sample's own: they add up to the risk
    values = problem.pointwise(problem.params)
    total = values.sum() if problem.reduction == "sum" else values.mean()
    assert off(total, value.detach()) <= 1e-5


@dataclasses.dataclass
class Powers:
    """A loss that is no function and has no hash."""

    power: int

    def __call__(self, yhat, y):
        return (yhat - y).abs().pow(self.power).mean()


def test_a_loss_need_not_have_a_hash():
    module, x = small()
    y = torch.randn(6, 3)
    problem = tw.from_torch(module, Powers(4), x, y)
    assert off(problem.risk(problem.params), Powers(4)(module(x), y).detach()) <= 1e-5


def test_a_loss_that_is_no_mean_of_samples_is_refused():
    module, x = small()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(InputError, match=r"class weights .* use reduction='sum'"):
        tw.from_torch(module, weighted, x, CLASSES)
    with pytest.raises(InputError, match="that of the samples one by one has"):
        tw.from_torch(module, lambda yhat, y: yhat.std() + 0 * y.sum(), x, torch.randn(6, 3))


@pytest.mark.parametrize("weights", [[1.0, 10.0, 100.0], [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_a_loss_is_seen_on_samples_of_every_class(kind, weights):
    """Sorted data: the first of them are of one class, where weights change nothing."""
    torch.manual_seed(7)
    x, y = torch.randn(90, 4), torch.arange(3).repeat_interleave(30)
    module = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    loss = kind(weight=torch.tensor(weights))
    if weights[0] != weights[1]:
        with pytest.raises(InputError, match=r"class weights .* use reduction='sum'"):
            tw.from_torch(module, loss, x, y)
    loss = kind(weight=torch.tensor(weights), reduction="sum")
    problem = tw.from_torch(module, loss, x, y)
    assert off(problem.risk(problem.params), loss(module(x), y).detach()) <= 1e-5


def test_losses_that_leave_samples_out_are_refused():
    x, classes = torch.randn(30, 4), torch.randint(0, 3, (30,))
    classes[20] = -100
    real = torch.randn(30, 3)
    real[20:] = -9

    def masked(yhat, y):
        counts = (y > -9).to(yhat.dtype)
        return ((yhat - y).square() * counts).sum() / counts.sum()

    module = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    for loss, y in ((nn.NLLLoss(), classes), (masked, real)):
        with pytest.raises(InputError, match="no loss of their own"):
            tw.from_torch(module, loss, x, y)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_that_an_embedding_does_not_have_is_found(index):
    module = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    x = torch.randint(0, 5, (20, 2))
    x[15, 0] = index
    with pytest.raises(InputError, match="in the module '0' failed in PyTorch: index out of range"):
        tw.from_torch(module, "mse", x, torch.randn(20, 1))


@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.CrossEntropyLoss(), nn.functional.cross_entropy]
)
def test_classes_of_32_bits(loss):
    module, x = small()
    problem = tw.from_torch(module, loss, x, CLASSES.int().numpy())
    value = nn.functional.cross_entropy(module(x), CLASSES)
    assert off(problem.risk(problem.params), value.detach()) <= 1e-5


@pytest.mark.parametrize("gap", [0.0, 1e-7])
def test_at_a_minimum_rounding_is_no_disagreement(gap):
    module, x = small()
    y = module(x).detach() + gap
    for loss in (
        nn.MSELoss(),
        nn.MSELoss(reduction="sum"),
        lambda yhat, y: ((yhat - y) ** 2).mean(),
    ):
        problem = tw.from_torch(module, loss, x, y)
        assert float(problem.risk(problem.params)) < 1e-12
    assert tw.from_torch(module, nn.MSELoss(reduction="sum"), x, y).reduction == "sum"


class Gated(nn.Module):
    """A branch that starts at zero: nothing is seen of it there."""

    def __init__(self, branch):
        super().__init__()
        self.branch, self.gate = branch, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * self.branch(x)


class WritesIntoAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        h = self.inner(x)
        h.transpose(0, 1).mul_(2)
        return h


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_transposed_convolutions_in_groups_behind_a_gate(groups):
    torch.manual_seed(0)
    module = Gated(nn.ConvTranspose2d(6, 6, 3, padding=1, groups=groups)).double()
    x, y = torch.randn(4, 6, 5, 5).double(), torch.randn(4, 6, 5, 5).double()
    problem = tw.from_torch(module, "mse", x, y)
    nn.functional.mse_loss(module(x), y).backward()
    gradient = problem.gradient(problem.params)
    for name, parameter in module.named_parameters():
        assert off(gradient[name], parameter.grad) <= 1e-10, name


def test_what_is_not_seen_at_the_start_is_looked_at_elsewhere():
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    with pytest.raises(InputError, match=r"at other parameters differ.*written in place"):
        tw.from_torch(Gated(WritesIntoAView()), "mse", x, y)


# Batch norm, dropout, buffers ------------------------------------------------------------------


def normed():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def test_batch_norm_frozen_and_recomputed():
    module, x, y = normed(), torch.randn(9, 4).double(), torch.randn(9, 3).double()
    for _ in range(3):
        module(x * 2 + 1)
    frozen = tw.from_torch(module, nn.MSELoss(), x, y)
    recomputed = tw.from_torch(module, nn.MSELoss(), x, y, batch_norm="recomputed")
    trained = copy.deepcopy(module).train()
    for problem, mode in ((frozen, copy.deepcopy(module).eval()), (recomputed, trained)):
        value = nn.MSELoss()(mode(x), y)
        assert off(problem.risk(problem.params), value.detach()) <= 1e-10
    # far away too: there the running statistics mean little, and the batch's own are right
    there = {name: 3 * leaf for name, leaf in recomputed.params.items()}
    trained.load_state_dict({n: torch.tensor(np.array(v)) for n, v in there.items()}, strict=False)
    value = nn.MSELoss()(trained(x), y)
    assert off(recomputed.risk(there), value.detach()) <= 1e-10
    state = tw.to_torch(recomputed)  # strict, with the statistics that the module had
    copy.deepcopy(module).load_state_dict(state)
    assert torch.equal(state["1.running_mean"], module[1].running_mean)
    # a batch that is recomputed is not cut into chunks
    plane = tw.random_plane(recomputed, recomputed.params, points=3)
    surface = tw.landscape(recomputed, plane)
    risk = float(recomputed.risk(recomputed.params))
    assert float(surface.empirical[1, 1]) == pytest.approx(risk, rel=1e-12)


@pytest.mark.parametrize("policy", ["frozen", "recomputed"])
def test_results_and_their_pictures_say_which_statistics_batch_norm_took(policy):
    module, x, y = normed(), torch.randn(9, 4).double(), torch.randn(9, 3).double()
    problem = tw.from_torch(module, nn.MSELoss(), x, y, batch_norm=policy)
    surface = tw.landscape(problem, tw.random_plane(problem, problem.params, points=3))
    away = {name: 2 * value for name, value in problem.params.items()}
    line = tw.landscape(problem, tw.line(problem, problem.params, away, points=3))
    density = tw.hessian(problem, problem.params).density()
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3, record={"sharpness": tw.sharpness})
    words = f"batch norm with {'frozen statistics' if policy == 'frozen' else 'the statistics at'}"
    draw = tw.plot
    for picture in (
        draw.contour(surface), draw.heatmap(surface), draw.surface(surface), draw.profile(line),
        draw.density(density), draw.sharpness(path),
    ):  # fmt: skip
        assert any(words in text.get_text() for text in picture.texts)
    assert any(words in a.text for a in tw.plotly.surface(surface).layout.annotations)
    # what was measured on another problem has that one's
    other = tw.from_torch(nn.Sequential(nn.Linear(4, 3)).double(), nn.MSELoss(), x, y)
    path = tw.descend(other, tw.SGD(lr=0.1), steps=3)
    assert results.batch_norm_of(path) is None
    bare = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    normalized = tw.from_torch(bare, nn.MSELoss(), x, y, batch_norm=policy)
    path = tw.descend(normalized, tw.SGD(lr=0.1), steps=3)
    path = path.assign_attrs(settings=results.to_json({}))  # as of a recorded loop
    measured = tw.measure(normalized, path, {"sharpness": tw.sharpness, "trace": tw.gradient_norm})
    measured = tw.measure(normalized, measured, {"later": tw.gradient_norm})
    assert results.batch_norm_of(measured) is None
    for name in ("sharpness", "trace", "later"):
        assert results.batch_norm_of(measured, name) == policy
    assert results.settings_of(path) == {}


def test_a_smaller_last_batch_is_not_filled_up_where_samples_are_compared():
    torch.manual_seed(0)
    module = normed().train()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    frozen = tw.from_torch(module, "mse", x, y)
    recomputed = tw.from_torch(module, "mse", x, y, batch_norm="recomputed")
    with pytest.raises(
        InputError, match="would have 4 samples instead of 8: leave it out with drop_last"
    ):
        tw.descend(recomputed, tw.SGD(lr=0.1), epochs=1, batch_size=8)
    stays, fast = tw.SGD(lr=0.0), {"batch_size": 8}
    for options in (
        {"epochs": 2, "drop_last": True},
        {"steps": 1},
        {"epochs": 1, "batch_size": 10},
    ):
        path = tw.descend(recomputed, stays, record="batch", **fast | options)
        for used, loss in zip(
            path["batch"].values[: len(path["step"]) - 1], path["loss"], strict=False
        ):
            theirs = nn.MSELoss()(module(x[used]), y[used]).item()
            assert float(loss) == pytest.approx(theirs, rel=1e-10)
    assert tw.descend(frozen, stays, epochs=1, batch_size=8)["status"] == "completed"


def test_batch_norm_without_statistics_cannot_be_frozen():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(InputError, match="batch_norm='recomputed'"):
        tw.from_torch(module, "mse", torch.randn(5, 4), torch.randn(5, 3))
    tw.from_torch(module, "mse", torch.randn(5, 4), torch.randn(5, 3), batch_norm="recomputed")


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.5), nn.LSTM(4, 4, 2, dropout=0.3), nn.TransformerEncoderLayer(4, 2, 8)],
    ids=["dropout", "lstm", "transformer"],
)
def test_dropout_in_training_mode_is_refused(layer):
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(InputError, match=r"call module.eval\(\) first"):
        tw.from_torch(module, "mse", torch.randn(5, 4), torch.randn(5, 4))


def test_dropout_in_evaluation_mode_does_nothing():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    assert off(problem.risk(problem.params), nn.MSELoss()(module(x), y).detach()) <= 1e-5


def test_parameters_without_gradient_stay_as_they_are():
    module, x = small()
    module[0].weight.requires_grad_(False)
    problem = tw.from_torch(module, "mse", x, torch.randn(6, 3))
    assert sorted(problem.params) == ["0.bias", "2.bias", "2.weight"]
    assert off(problem.predict(problem.params, problem.x), module(x).detach()) <= 1e-6
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3)
    state = tw.to_torch(problem, path["final"])
    assert torch.equal(state["0.weight"], module[0].weight)
    assert not torch.equal(state["2.weight"], module[2].weight)


# Inputs ----------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0 * torch.rand(()), self.y[i]  # a transform that draws


def test_a_loader_is_read_once_and_in_order():
    module, x = small()
    y = torch.randn(6, 3)
    loader = torch.utils.data.DataLoader(Pairs(x, y), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    problem = tw.from_torch(module, nn.MSELoss(), loader)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(problem.x, x)
    np.testing.assert_array_equal(problem.y, y)


class Batches(torch.utils.data.IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter([(self.x[:4], self.y[:4]), (self.x[4:], self.y[4:])])


def test_loaders_of_batches_and_of_a_part():
    module, x = small()
    y = torch.randn(6, 3)
    loaders, samplers = torch.utils.data.DataLoader, torch.utils.data
    batches = loaders(Batches(x, y), batch_size=None)
    one_by_one = loaders(Pairs(x, y), batch_size=None)
    for loader, count in (
        (batches, 6),
        (one_by_one, 6),
        (loaders(samplers.Subset(Pairs(x, y), range(4)), batch_size=3), 4),
    ):
        problem = tw.from_torch(module, nn.MSELoss(), loader)
        np.testing.assert_array_equal(problem.x, x[:count])
        np.testing.assert_array_equal(problem.y, y[:count])
    some = samplers.SubsetRandomSampler(range(4))
    for options in (
        {"sampler": some},
        {"batch_sampler": samplers.BatchSampler(some, 2, drop_last=False)},
    ):
        with pytest.raises(InputError, match=r"SubsetRandomSampler chooses.*Subset\("):
            tw.from_torch(module, nn.MSELoss(), loaders(Pairs(x, y), **options))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, first, second):
        return self.a(first) * torch.sigmoid(self.b(second))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_module_in_another_precision(dtype):
    module, x = small()
    problem = tw.from_torch(module, nn.MSELoss(), x, x[:, :3], dtype=dtype)
    assert problem.layout.dtype == dtype
    state = tw.to_torch(problem)
    for name, own in module.state_dict().items():
        torch.testing.assert_close(state[name], own, rtol=2**-8, atol=0)


def test_half_precision_of_torchs_own_kind():
    module, x = small()
    y = torch.randn(6, 3)
    problem = tw.from_torch(module.bfloat16(), nn.MSELoss(), x.float(), y)
    assert problem.layout.dtype == np.float32
    assert tw.to_torch(problem)["0.weight"].dtype == torch.bfloat16
    same = tw.from_torch(module, nn.MSELoss(), x.float(), y.bfloat16())
    np.testing.assert_array_equal(same.y, y.bfloat16().float())


def test_inference_mode():
    with torch.inference_mode():
        module, x = small()
        module.insert(1, nn.LayerNorm(5))
        problem = tw.from_torch(module, "mse", x, x[:, :3])
        path = tw.descend(problem, tw.SGD(lr=0.1), steps=2)
        assert off(path["loss"][0], nn.functional.mse_loss(module(x), x[:, :3])) <= 1e-5


def test_several_inputs():
    module, x = TwoInputs(), (torch.randn(5, 2), torch.randn(5, 4))
    y = torch.randn(5, 3)
    value = nn.MSELoss()(module(*x), y).item()
    for inputs in (x, {"first": x[0], "second": x[1]}):
        problem = tw.from_torch(module, nn.MSELoss(), inputs, y)
        assert float(problem.risk(problem.params)) == pytest.approx(value, rel=1e-5)


# Training: studies 1 and 2 with the model as a module -----------------------------------------------


class Line(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(6.0, dtype=dtype))
        self.bias = nn.Parameter(torch.tensor(-3.0, dtype=dtype))

    def forward(self, x):
        return self.weight * x + self.bias


class Product(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(3.0, dtype=dtype))
        self.w2 = nn.Parameter(torch.tensor(-4.0, dtype=dtype))

    def forward(self, x):
        return self.w1 * torch.relu(self.w2 * x)


def in_torch(module, optimizer, loss, x, y, batches):
    """PyTorch's own training: the losses and the iterates, in the order of the problem's names."""
    losses, iterates = [], []
    module = copy.deepcopy(module)
    rule = optimizer(module.parameters())
    for index in batches:
        iterates.append([p.item() for _, p in sorted(module.named_parameters())])
        rule.zero_grad()
        value = loss(module(x[index]), y[index])
        value.backward()
        rule.step()
        losses.append(value.item())
    return np.array(losses), np.array(iterates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_study_1_as_a_module(dtype):
    """SGD, one sample a step, in data order, from (3, −4): `minimal-mlp`, and PyTorch on its batches."""
    tree = tw.studies.run("minimal-mlp", points=3)
    x, y = (torch.tensor(tree["data"][k].values).to(dtype) for k in ("x", "y"))
    module, batches = Product(dtype), np.arange(len(x))[:, None]
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    path = tw.descend(problem, tw.SGD(lr=0.01), batches=batches)
    losses, iterates = in_torch(
        module, lambda p: torch.optim.SGD(p, lr=0.01), nn.MSELoss(), x, y, batches
    )
    assert off(path.params[:-1], iterates) <= CLOSE[dtype]
    assert off(path.loss[:-1], losses) <= CLOSE[dtype]
    assert off(path.params, tree["path"]["params"]) <= CLOSE[dtype]  # the study's own, in float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["mse", "l1", "huber", "smooth_l1"])
def test_study_2_as_a_module(name, dtype):
    """The line of `losses-and-momentum` under Nesterov momentum and weight decay."""
    loss = {"mse": nn.MSELoss(), "l1": nn.L1Loss(), "huber": nn.HuberLoss()}.get(
        name, nn.SmoothL1Loss()
    )
    rng = np.random.RandomState(20240215)
    x = rng.standard_normal(50).astype(np.float32)
    y = (0.75 * x**2 + x + 2 + 0.3 * rng.standard_normal(50)).astype(np.float32)
    x, y = (torch.tensor(v).to(dtype) for v in (x, y))
    module = Line(dtype)
    problem = tw.from_torch(module, loss, x, y)
    assert problem.names == ("bias", "weight")
    steps = 100 if dtype == torch.float64 else 20  # single precision parts by rounding later on
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 2.0}
    path = tw.descend(problem, tw.SGD(**options), steps=steps)
    every = [np.arange(50)] * steps
    losses, iterates = in_torch(module, lambda p: torch.optim.SGD(p, **options), loss, x, y, every)
    assert off(path.params[:-1], iterates) <= CLOSE[dtype]
    assert off(path.loss[:-1], losses) <= CLOSE[dtype]


# Nothing of the user's is changed --------------------------------------------------------------


def snapshot(module):
    return {
        "state": {k: (v.clone(), v.dtype, v.device) for k, v in module.state_dict().items()},
        "modes": [m.training for m in module.modules()],
        "requires": [p.requires_grad for p in module.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in module.parameters()],
        "hooks": [
            list(map(len, (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)))
            for m in module.modules()
        ],
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients enabled": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_nothing_of_the_users_is_changed():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    module[4].bias.requires_grad_(False)
    module.train()
    watched = []
    module[2].register_forward_hook(lambda *_: watched.append(1))
    module[4].register_full_backward_pre_hook(lambda *_: watched.append(1))
    module[4].register_full_backward_hook(lambda *_: watched.append(1))
    x, y = images(), torch.randn(6, 3)
    module(x).sum().backward()
    watched.clear()
    before, data = snapshot(module), (x.clone(), y.clone())
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    path = tw.descend(problem, tw.Adam(lr=0.01), steps=3)
    tw.landscape(problem, tw.random_plane(problem, problem.params, points=3))
    tw.hessian(problem, problem.params).matvec(np.ones(problem.size))
    tw.to_torch(problem, path["final"])
    assert same(snapshot(module), before)
    assert same((x, y), data)
    assert not watched
    # and what the user changes afterwards is not the problem's
    risk = float(problem.risk(problem.params))
    with torch.no_grad():
        module[0].weight.zero_()
        x.zero_()
    assert float(problem.risk(problem.params)) == risk


def test_torch_compile_goes_on_working():
    """torchax names an accelerator that PyTorch's compiler would ask for its stream, and that autograd
    would take for the one that tensors on a GPU are on."""
    module, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5, 1)
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    compiled = torch.compile(lambda x: torch.nn.functional.mse_loss(module(x), y), backend="eager")
    assert compiled(x).item() == pytest.approx(float(problem.risk(problem.params)), rel=1e-6)
    found = torch.accelerator.current_accelerator()
    assert found is None or found.type in ("cuda", "mps", "xpu")


def test_pytorch_finds_the_devices_that_there_are():
    module, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5, 1)
    tw.from_torch(module, lambda yhat, y: ((yhat - y) ** 2).mean(), x, y)
    found = torch._utils._get_available_device_type()  # what DataParallel and checkpoints ask
    assert found in (None, "cuda", "mps", "xpu")
    torch.testing.assert_close(nn.DataParallel(module)(x).cpu(), module(x))
    with torch.random.fork_rng():
        torch.rand(1)
    torch.manual_seed(0)


class _AsksForItsDevice(nn.Module):
    """Makes tensors where its input is, and where a part of it is; C++ code sees these on another device."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x.to(x.device))
        places = torch.arange(3, device=hidden[:1].device, dtype=hidden.dtype)
        return torch.softmax(hidden + places, -1, dtype=torch.float64).to(torch.zeros_like(x).dtype)


def test_modules_that_ask_for_their_device():
    module, x, y = _AsksForItsDevice(), torch.randn(6, 4), torch.randn(6, 3)
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    expected = nn.functional.mse_loss(module(x), y)
    expected.backward()
    assert float(problem.risk(problem.params)) == pytest.approx(expected.item(), rel=1e-6)
    slope = problem.gradient(problem.params)["layer.weight"]
    torch.testing.assert_close(torch.tensor(np.asarray(slope)), module.layer.weight.grad)


def test_parameters_go_back():
    module = normed()
    x, y = torch.randn(9, 4).double(), torch.randn(9, 3).double()
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=5)
    other = normed()
    for params in (path["final"], path["final"].values, problem.unflatten(path["final"].values)):
        other.load_state_dict(tw.to_torch(problem, params))  # strict: all entries are there
        other.eval()
        assert nn.MSELoss()(other(x), y).item() == pytest.approx(float(path.loss[-1]), rel=1e-10)
    assert tw.to_torch(problem)["1.num_batches_tracked"].dtype == torch.int64
    tied = Tied()
    state = tw.to_torch(tw.from_torch(tied, "cross_entropy", torch.arange(5), torch.arange(5)))
    assert torch.equal(state["head.weight"], state["embed.weight"])
    with pytest.raises(InputError, match="did not come from PyTorch"):
        tw.to_torch(tw.Problem.from_catalogue("beale"))


# A plane that does not see how layers are scaled ------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))))


def scaled(net, factor):
    """The same function: one ReLU layer and its bias times a factor, the next layer divided by it."""
    other = Net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.one.weight *= factor
        other.one.bias *= factor
        other.two.weight /= factor
    return other


@pytest.mark.parametrize(
    ("normalize", "agrees"), [("filter", True), ("layer", True), ("none", False)]
)
def test_scale_invariance(normalize, agrees):
    """A ReLU network with one layer × 10 and the next ÷ 10 has the same filter-normalised landscape."""
    torch.manual_seed(0)
    net, x, y = Net(), torch.randn(64, 4), torch.randn(64, 1)
    surfaces = []
    for module in (net, scaled(net, 10.0)):
        problem = tw.from_torch(module, nn.MSELoss(), x, y)
        plane = tw.random_plane(problem, problem.params, normalize=normalize, points=11)
        surfaces.append(tw.landscape(problem, plane).empirical.values)
    off = np.abs(surfaces[0] - surfaces[1]).max() / surfaces[0].max()
    assert (off < 1e-5) if agrees else (off > 0.1)


# Bad input -------------------------------------------------------------------------------------


class Forgets(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.shift = torch.ones(3)

    def forward(self, x):
        return self.inner(x) + self.shift


class Packs(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, torch.full((len(x),), 4, device="cpu"), batch_first=True
        )
        return self.cells(packed)[1][0][0]


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5, training=True)


class Rounds(nn.Linear):
    """A part of it in half precision, where that is enabled."""

    enabled = True

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return super().forward(x)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


# What autograd is told beside the numbers ---------------------------------------------------------


class Gate(nn.Module):
    """Whose gate has no derivative, by one of PyTorch's ways to say so."""

    def __init__(self, gate):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)
        self.gate = gate

    def forward(self, x):
        return self.b(self.gate(self.a, x) * x)


def off_in_a_block(layer, x):
    with torch.no_grad():
        return torch.sigmoid(layer(x))


@torch.no_grad()
def off_in_a_function(layer, x):
    return torch.sigmoid(layer(x))[:, :1].expand(-1, 4)


def off_by_a_switch(layer, x):
    torch.set_grad_enabled(False)
    gate = torch.sigmoid(layer(x))
    torch.set_grad_enabled(True)
    return gate


def off_in_inference(layer, x):
    with torch.inference_mode():
        gate = torch.sigmoid(layer(x))
    return gate.clone()


@pytest.mark.parametrize(
    "gate",
    [
        off_in_a_block,
        off_in_a_function,
        off_by_a_switch,
        off_in_inference,
        lambda layer, x: torch.sigmoid(layer(x)).data,
        lambda layer, x: torch.sigmoid(layer(x)).detach(),
    ],
)
def test_what_has_no_derivative_in_pytorch_has_none(gate):
    torch.manual_seed(0)
    module = Gate(gate).double()
    x, y = torch.randn(9, 4).double(), torch.randn(9, 1).double()

    def weighted(yhat, y):
        with torch.no_grad():
            weights = (yhat - y).abs()
        return (weights * (yhat - y).square()).mean()

    with torch.no_grad():  # the user's own, around all of it
        problem = tw.from_torch(module, weighted, x, y)
        gradient = problem.gradient(problem.params)
    weighted(module(x), y).backward()
    for name, parameter in module.named_parameters():
        expected = 0 if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-12, atol=1e-14)
    assert np.any(gradient["b.weight"])


def unseen(layer, x):
    """A hook on a node of autograd's graph, which is not there where the model is translated."""
    h = layer(x)
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda slopes: (2 * slopes[0],))
    return h


def test_a_derivative_that_is_not_followed_is_refused():
    torch.manual_seed(0)
    x, y = torch.randn(9, 4), torch.randn(9, 1)
    with pytest.raises(InputError, match="predictions are PyTorch's, and their derivative is not"):
        tw.from_torch(Gate(unseen), "mse", x, y)
    with pytest.raises(InputError, match="the loss is PyTorch's, and its derivative is not"):
        tw.from_torch(
            nn.Linear(4, 1), lambda yhat, y: (unseen(abs, yhat) - y).square().mean(), x, y
        )


def test_a_loss_that_reads_parameters_is_refused():
    class Uncertain(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, yhat, y):
            return ((yhat - y).square() * self.scale.exp() - self.scale).mean()

    module, x, y = nn.Linear(4, 1), torch.randn(9, 4), torch.randn(9, 1)

    def regularised(yhat, y):
        return (yhat - y).square().mean() + sum(p.square().sum() for p in module.parameters())

    for loss in (regularised, Uncertain()):
        with pytest.raises(InputError, match="give penalty= for what"):
            tw.from_torch(module, loss, x, y)
        with pytest.raises(InputError, match="give penalty= for what"), torch.no_grad():
            tw.from_torch(module, loss, x, y)


def test_a_losss_own_frozen_parameters_are_constants():
    class Judged(nn.Module):
        def __init__(self):
            super().__init__()
            self.judge = nn.Linear(1, 3).requires_grad_(False)

        def forward(self, yhat, y):
            return (self.judge(yhat) - self.judge(y)).square().mean()

    module, x, y = nn.Linear(4, 1), torch.randn(9, 4), torch.randn(9, 1)
    loss = Judged()
    problem = tw.from_torch(module, loss, x, y)
    assert problem.size == 5
    assert float(problem.risk(problem.params)) == pytest.approx(loss(module(x), y).item(), rel=1e-5)


def test_complex_predictions_are_compared_whole():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x):
            h = torch.view_as_complex(self.layer(x).reshape(-1, 4, 2))
            return torch.complex(h.real, unseen(abs, h.imag))

    def loss(yhat, y):
        return (yhat - y).abs().square().mean()

    x, y = torch.randn(9, 4), torch.randn(9, 4)
    with pytest.raises(InputError, match="their derivative is not"):
        tw.from_torch(Complex(), loss, x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_may_round(dtype):
    for seed in range(4):
        torch.manual_seed(seed)
        module = Recurrent(nn.LSTM).to(dtype)
        problem = tw.from_torch(
            module, "mse", torch.randn(9, 7, 4).to(dtype), torch.randn(9, 3).to(dtype)
        )
        assert np.isfinite(float(problem.risk(problem.params)))


def test_what_a_forward_pass_has_left_behind_is_no_obstacle():
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(4, 1), None

        def forward(self, x):
            self.seen = self.layer(x)
            return self.seen, x.clone().requires_grad_()

    module, x, y = Leaves(), torch.randn(9, 4), torch.randn(9, 1)
    seen, _ = module(x)
    problem = tw.from_torch(module, lambda out, y: (out[0] - y).square().mean(), x, y)
    expected = (seen - y).square().mean()
    assert float(problem.risk(problem.params)) == pytest.approx(expected.item(), rel=1e-6)
    assert module.seen is seen


class Turns(nn.Module):
    """Classes along axis 1, where a loss has them."""

    def forward(self, x):
        return x.transpose(1, 2)


@dataclasses.dataclass
class Out:
    yhat: torch.Tensor


class Output(collections.OrderedDict):
    """As Hugging Face's `ModelOutput`: a dictionary with attributes, which PyTorch looks into."""

    def __init__(self, **values):
        super().__init__(**values)
        vars(self).update(values)


pytree.register_pytree_node(
    Output,
    lambda output: (list(output.values()), list(output.keys())),
    lambda values, keys: Output(**dict(zip(keys, values, strict=True))),
    serialized_type_name="tests.Output",
    flatten_with_keys_fn=pytree._dict_flatten_with_keys,
)


class Classifier(nn.Module):
    """As theirs: it takes a tokenizer's dictionary, and returns an output with more than the loss needs."""

    def __init__(self, cache=None):
        super().__init__()
        self.embedding, self.head, self.cache = nn.Embedding(10, 4), nn.Linear(4, 3), cache

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        out = {"logits": self.head(hidden.sum(1)), "inner": Output(states=hidden)}
        return Output(**out, **({"cache": self.cache} if self.cache else {}))


def _of_logits(out, y):
    return nn.functional.cross_entropy(out.logits, y) + out.inner.states.square().mean()


TOKENS = collections.UserDict(  # a tokenizer's BatchEncoding is one
    input_ids=torch.arange(24).reshape(6, 4) % 10,
    attention_mask=torch.ones(6, 4, dtype=torch.long).tril(2),
)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("cache", [None, object()])
def test_a_tokenizers_dictionary_and_an_output_with_attributes(cache):
    module = Classifier(cache).double()
    problem = tw.from_torch(module, _of_logits, TOKENS, LABELS)
    value, slopes = jax.value_and_grad(problem.risk)(problem.params)
    theirs = _of_logits(module(**TOKENS), LABELS)
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-12)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(slopes[name], parameter.grad, rtol=1e-10, atol=1e-12)
    assert tw.descend(problem, tw.SGD(lr=0.1), steps=2)["loss"][-1] < value


@pytest.mark.parametrize(
    ("module", "loss", "words"),
    [
        (Classifier(), nn.CrossEntropyLoss(), r"returns Output with \['logits'\], \['inner'\]"),
        (Classifier(object()), lambda out, y: out.cache.keys, r"\['cache'\], which is object"),
        (Classifier(object()), lambda out, y: out.cache[0], r"\['cache'\], which is object"),
    ],
)
def test_outputs_that_a_loss_cannot_take_are_named(module, loss, words):
    with pytest.raises(InputError, match=words):
        tw.from_torch(module, loss, TOKENS, LABELS)


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.layer, self.what = nn.Linear(4, 1), what
        self.register_buffer("sparse", torch.eye(6).to_sparse() if what == "sparse" else None)

    def forward(self, x):
        yhat = self.layer(x)
        return {"dataclass": lambda: Out(yhat), "state": lambda: (yhat, yhat.T),
                "sparse": lambda: torch.sparse.mm(self.sparse, yhat)}[self.what]()  # fmt: skip


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Returns("dataclass"), "returns Out; tensors were expected"),
        (Returns("state"), r"its output \[1\] has shape \(1, 6\); return what the loss needs"),
        (Returns("sparse"), r"to_dense\(\)"),
    ],
)
def test_modules_that_cannot_be_translated(module, words):
    with pytest.raises(InputError, match=words) as raised:
        tw.from_torch(module, lambda out, y: out[0].mean(), torch.randn(6, 4), torch.randn(6, 1))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ignored", [-100, 1])
def test_padding_that_a_loss_ignores_is_left_out_of_its_sum(ignored):
    """As causal language models have it; a mean over what is left is none over samples."""
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), Turns()).double()
    x = torch.arange(24).reshape(6, 4) % 5
    y = (x % 2) * 2
    y[0, 2:] = y[1, :3] = ignored
    y[5] = ignored  # a sample without any loss
    loss = nn.CrossEntropyLoss(ignore_index=ignored, reduction="sum")
    problem = tw.from_torch(module, loss, x, y)
    theirs = loss(module(x), y)
    theirs.backward()
    value, slopes = jax.value_and_grad(problem.risk)(problem.params)
    assert float(value) == pytest.approx(theirs.item(), rel=1e-12)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(slopes[name], parameter.grad, rtol=1e-10, atol=1e-12)
    mean = nn.CrossEntropyLoss(ignore_index=ignored)
    for some, words in (
        (slice(None), "no loss of their own"),
        (slice(5), "ignored padding"),
    ):
        with pytest.raises(InputError, match=words + ".*reduction='sum'"):
            tw.from_torch(module, mean, x[some], y[some])


def test_a_named_loss_ignores_no_class():
    y = np.array([0, 1, -100, 2, 2, 1])
    with pytest.raises(InputError, match="y holds -100 to 2: leave such samples out"):
        tw.from_torch(nn.Linear(4, 3), "cross_entropy", torch.randn(6, 4), y)


def test_autocast_that_is_disabled_does_nothing():
    module, x, y = Rounds(4, 1), torch.randn(6, 4), torch.randn(6, 1)
    module.enabled = False
    problem = tw.from_torch(module, "mse", x, y)
    assert off(problem.risk(problem.params), nn.functional.mse_loss(module(x), y).detach()) <= 1e-6


def test_a_caller_within_autocast_does_not_matter():
    """As in the middle of a training loop in half precision."""
    module, x, y = (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        torch.randn(20, 4),
        torch.ones(20, 1),
    )
    expected = nn.functional.mse_loss(module(x), y).item()
    with torch.autocast("cpu", torch.bfloat16):
        problem = tw.from_torch(module, nn.MSELoss(), x, y)
        assert float(problem.risk(problem.params)) == pytest.approx(expected, rel=1e-6)
        assert torch.is_autocast_enabled("cpu")


def test_other_threads_may_train_in_half_precision():
    """While a module's code runs on arrays."""

    def trained():
        with torch.autocast("cpu", torch.bfloat16):
            return nn.Linear(4, 1)(torch.ones(2, 4)).dtype

    class Watches(nn.Linear):
        def forward(self, x):
            if type(x) is not torch.Tensor:
                with ThreadPoolExecutor(1) as other:
                    found.append(other.submit(trained).result())
            return super().forward(x)

    found = []
    tw.from_torch(Watches(4, 1), "mse", torch.randn(6, 4), torch.randn(6, 1))
    assert set(found) == {torch.bfloat16}


def test_bad_input_is_one_line():
    module, x = small()
    y = torch.randn(6, 3)
    untranslated = nn.Sequential(nn.Linear(4, 3), Packs())
    with warnings.catch_warnings(action="ignore"):  # deprecated
        scripted = nn.Sequential(torch.jit.script(nn.Linear(4, 3)))
    for call, words in (
        (lambda: tw.from_torch(3, "mse", x, y), "an nn.Module was expected, int given"),
        (lambda: tw.from_torch(module, 3, x, y), "a loss module, a function or a name"),
        (lambda: tw.from_torch(module, "msee", x, y), "did you mean 'mse'"),
        (lambda: tw.from_torch(module, "mse", x, y, batch_norm="froze"), "did you mean 'frozen'"),
        (lambda: tw.from_torch(module, "mse", x, y[:, 0]), "Reshape one"),
        (lambda: tw.from_torch(nn.ReLU(), "mse", x, y), "no parameters that require a gradient"),
        (lambda: tw.from_torch(nn.LazyLinear(3), "mse", x, y), "call it once on a batch first"),
        (lambda: tw.from_torch(untranslated, "mse", torch.randn(6, 5, 4), torch.randn(6, 2)),
         r"_pack_padded_sequence in the module '1' has no translation"),
        (lambda: tw.from_torch(Rounds(4, 1), "mse", x, y), "a part in half precision"),
        (lambda: tw.from_torch(Decides(), "mse", x, y), "branches on the values of its tensors"),
        (lambda: tw.from_torch(Draws(), "mse", x, y), "draws random numbers"),
        (lambda: tw.from_torch(Forgets(), "mse", x, y), "self.register_buffer"),
        (lambda: tw.from_torch(module, nn.CrossEntropyLoss(ignore_index=1), x, CLASSES),
         "have no loss of their own"),
        (lambda: tw.from_torch(scripted, "mse", x, y), "give the module that it was made of"),
        (lambda: tw.from_torch(nn.Embedding(3, 3, scale_grad_by_freq=True), "mse", CLASSES, y),
         "not those of any risk"),
        (lambda: tw.from_torch(nn.Embedding(3, 3, max_norm=1.0), "mse", CLASSES, y),
         "max_norm= changes its weights .* make it one without"),
        (lambda: tw.from_torch(module, nn.MSELoss, x, y), r"give an instance of it: MSELoss\(\)"),
        (lambda: tw.from_torch(module, "mse", x[:, :3], y), "in the module '0' failed: .*reduction dim"),
        (lambda: tw.from_torch(nn.Linear(4, 3, device="meta"), "mse", x, y), "on the device 'meta'"),
        (lambda: tw.from_torch(module, "mse", x.fill_(float("nan")), y), "not finite"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_other_data_and_hyperparameters_compile_nothing(compilations):
    module, x = small()
    problem = tw.from_torch(module, nn.MSELoss(), x, torch.randn(6, 3))
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3)
    compilations.clear()
    other = problem.replace(x=jnp.asarray(np.asarray(problem.x) + 1, np.float32))
    tw.descend(other, tw.SGD(lr=0.2), steps=4, starts=None)
    assert len(compilations) <= 1  # the sum above
    assert jax.tree_util.tree_leaves(path["final"].values)


def test_class_weights_are_no_mean_where_all_samples_have_the_same_loss():
    """At a head of zeros Σ w l / Σ w is the mean of l, and nowhere else."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = (x[:, 0] > 1).long()
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in module[2].parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(InputError, match="use reduction='sum'"):
        tw.from_torch(module, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])), x, y)


def test_a_loss_need_not_be_finite_elsewhere():
    class Log(nn.Module):
        def forward(self, yhat, y):
            return -(yhat.log() * y).mean()

    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 0.0)
    nn.init.constant_(module.bias, 0.01)
    x = torch.linspace(-30, 30, 9)[:, None]
    problem = tw.from_torch(module, Log(), x, torch.ones(9, 1))
    assert float(problem.risk(problem.params)) == pytest.approx(-np.log(0.01), rel=1e-6)


def test_threads_may_trace_one_module():
    """Programs of several shapes, compiled from several threads at once."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    problem = tw.from_torch(module, nn.MSELoss(), x, y)

    def risk(n):
        return float(problem.take(np.arange(n)).risk(problem.params))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(risk, range(1, 13)))
    with torch.no_grad():
        expected = [float(nn.functional.mse_loss(module(x[:n]), y[:n])) for n in range(1, 13)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_module_may_be_traced_while_it_is_compared():
    """Another thread that meets a new shape traces every problem of the same program."""
    compared, traced, made = threading.Event(), threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self, waits):
            super().__init__()
            self.inner, self.waits = nn.Linear(2, 1), waits

        def forward(self, x):
            ours = type(x) is not torch.Tensor
            if self.waits and ours and compared.is_set() and not traced.is_set():
                traced.set()
                made.wait(1)
            elif self.waits and not ours and not compared.is_set():
                compared.set()
                traced.wait(1)
            return torch.tanh(self.inner(x))

    torch.manual_seed(0)
    x, y = torch.randn(10, 2), torch.randn(10, 1)
    module = Slow(True)

    def make():
        try:
            return tw.from_torch(module, "mse", x, y)
        finally:
            made.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: tw.from_torch(Slow(False), "mse", x, y).take(range(7))).result()
        problem = pool.submit(make)
        assert compared.wait(20)
        risk = pool.submit(lambda: first.risk(first.params))
        assert np.isfinite(float(risk.result()))
        problem = problem.result()
    expected = nn.functional.mse_loss(torch.tanh(module.inner(x)), y).item()
    assert float(problem.risk(problem.params)) == pytest.approx(expected, rel=1e-5)


def test_where_new_tensors_are_made_does_not_matter():
    """As after torch.set_default_device("cuda"), with class weights."""
    torch.manual_seed(0)
    module, loss = (
        nn.Linear(4, 3),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="sum"),
    )
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    expected = loss(module(x), y).item()
    with torch.device("meta"):
        problem = tw.from_torch(module, loss, x, y)
        state = tw.to_torch(problem)
    assert float(problem.risk(problem.params)) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(state, dict(module.state_dict()))


# A module's state_dict as a point -------------------------------------------------------------


class Shared(nn.Module):
    """Two layers of one weight, and a bias that stays as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.b.weight = self.a.weight
        self.c.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return self.scale * self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def test_a_state_dict_is_a_point_with_all_its_entries():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    module = Shared()
    problem = tw.from_torch(module, nn.MSELoss(), x, y)
    with torch.no_grad():
        module.a.weight *= 1.5
        module.c.weight += 0.5
    expected = nn.functional.mse_loss(module(x), y).item()
    for wrapped in (module, nn.DataParallel(module), torch.compile(module, backend="eager")):
        state = wrapped.state_dict()
        assert float(problem.risk(state)) == pytest.approx(expected, rel=1e-6)
    state = module.state_dict()
    moved = problem.at(state)
    assert tw.sharpness(problem, state) == tw.sharpness(problem, moved.params)
    np.testing.assert_array_equal(problem.flatten(state), moved.flatten(moved.params))
    assert tw.sharpness(problem, tw.to_torch(moved)) == tw.sharpness(problem, state)
    tw.interpolation(problem, problem.params, state)
    started = tw.descend(problem, tw.SGD(), steps=0, starts=[state, problem.params])
    np.testing.assert_array_equal(started["start"].isel(run=0), problem.flatten(state))
    state["scale"] = torch.tensor([3.0])
    for function in (problem.at, problem.risk, lambda point: tw.hessian(problem, point)):
        with pytest.raises(tw.InputError, match=r"'scale' is another than .* with from_torch"):
            function(state)
    state["more"] = torch.zeros(3)
    with pytest.raises(tw.InputError, match="params have the entries"):
        problem.risk(state)


@pytest.mark.parametrize("policy", ["frozen", "recomputed"])
def test_a_state_dict_with_batch_norms_statistics(policy):
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    problem = tw.from_torch(module, nn.MSELoss(), x, y, batch_norm=policy)
    module.train()(x)  # which changes the statistics alone
    if policy == "recomputed":
        assert float(problem.risk(module.state_dict())) == float(problem.risk(problem.params))
    else:
        with pytest.raises(tw.InputError, match="batch_norm='recomputed' helps"):
            problem.risk(module.state_dict())
        anew = tw.from_torch(module, nn.MSELoss(), x, y)
        assert float(anew.risk(module.state_dict())) == float(anew.risk(anew.params))


def test_what_looks_like_a_point_of_torchs_is_told_what_is_one():
    module, x = nn.Linear(2, 1), torch.randn(5, 2)
    problem = tw.from_torch(module, nn.MSELoss(), x, x[:, :1])
    vector = torch.nn.utils.parameters_to_vector(module.parameters())
    for function in (problem.at, problem.risk, problem.flatten, lambda p: tw.hessian(problem, p)):
        with pytest.raises(tw.InputError, match=r"give the module's state_dict\(\)"):
            function(vector)
        with pytest.raises(tw.InputError, match=r"give its state_dict\(\)"):
            function(module)


# Models whose numbers have few digits ------------------------------------------------------------


class Kernel(nn.Module):
    """An ill-conditioned system, whose solution has few digits in any order of the same arithmetic."""

    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.zeros(())), nn.Linear(4, 3)
        self.register_buffer("z", torch.linspace(-1, 1, 20))

    def forward(self, x):
        near = torch.exp(-(self.z[:, None] - self.z).square() / 2 * self.scale.exp())
        near = near + 1e-12 * torch.eye(20, dtype=near.dtype)
        return (self.out(x) * torch.linalg.solve(near, self.z.sin())[:3]).sum(1, keepdim=True)


class Lower(nn.Module):
    """Of double precision, with a part in single precision that cancels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 1)

    def forward(self, x):
        h = nn.functional.layer_norm((self.a(x) + 100).float(), (32,))
        return self.b(h.to(x.dtype))


class Difference(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)
        self.b.load_state_dict({k: 1.0001 * v for k, v in self.a.state_dict().items()})

    def forward(self, x):
        return self.a(x) - self.b(x)


@pytest.mark.parametrize(
    "module", [Kernel().double(), Lower().double(), Difference()], ids=lambda m: type(m).__name__
)
def test_few_digits_are_no_wrong_translation(module):
    torch.manual_seed(0)
    dtype = next(module.parameters()).dtype
    x, y = torch.randn(12, 4, dtype=dtype), torch.randn(12, 1, dtype=dtype)
    problem = tw.from_torch(module, "mse", x, y)
    theirs = nn.functional.mse_loss(module(x), y).item()
    assert float(problem.risk(problem.params)) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [14, 20, 40])
def test_fits_without_a_slope_are_accepted(margin, dtype):
    x = torch.eye(3).repeat(4, 1).to(dtype)
    layer = nn.Linear(3, 3, bias=False).to(dtype)
    layer.weight.data = margin * torch.eye(3, dtype=dtype)
    classes = torch.arange(3).repeat(4)

    def loss(a, y):
        return (torch.logsumexp(a, 1) - a.gather(1, y[:, None])[:, 0]).mean()

    tw.from_torch(layer, loss, x, classes)
    tw.from_torch(nn.Sequential(layer, nn.Sigmoid()), nn.BCELoss(), x, x)


def test_a_small_wrong_term_is_seen_in_double_precision():
    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            h = self.layer(x)
            return h if h.grad_fn is None else (1 + 1e-5) * h

    with pytest.raises(InputError, match="differ from PyTorch's by"):
        tw.from_torch(Off().double(), "mse", torch.randn(9, 4).double(), torch.randn(9, 1).double())
