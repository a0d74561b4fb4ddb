"""PyTorch's operations where they have no derivative, or a root is of zero, against PyTorch's own."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from torch_checks import same_as_pytorch  # noqa: E402

import thalweg as tw  # noqa: E402
from thalweg.pytorch.translation import translated  # noqa: E402

# zeros, ties within a row, a row that is all the same, and every bound below
X = np.array(
    [
        [-6.0, -3.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 3.0, 6.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [2.0, 2.0, 1.0, 2.0, -1.0, 0.0, 3.0, 3.0, 3.0, -3.0],
    ]
)
Y = np.array(
    [
        [-6.0, 3.0, 1.0, -0.5, 0.0, 1.0, 0.5, -1.0, 3.0, 2.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 2.0, 1.0, 2.0, -2.0, 0.0, 1.0, 3.0, 0.0, -3.0],
    ]
)

ACTIVATIONS = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "glu": F.glu,
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu_": lambda x: F.leaky_relu(x + 0, 0.1, inplace=True),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype, device=x.device)),
    "relu": F.relu,
    "relu6": F.relu6,
    "relu6_": lambda x: F.relu6(x + 0, inplace=True),
    "rrelu": F.rrelu,
    "selu": F.selu,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.5, 0.5),
}
ENTRYWISE = {
    "abs": lambda x: x.abs(),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_": lambda x: (x + 0).clamp_(-1, 1),
    "clamp_max": lambda x: x.clamp(max=3),
    "clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "copysign": lambda x: torch.copysign(x, -torch.ones_like(x)),
    "crossed clamp": lambda x: x.clamp(1, -1),
    "relative": lambda x: x / (1 + x.abs()),
    "sign": torch.sign,
    "i0": torch.special.i0,
    "sinc": torch.sinc,
}
REDUCING = {
    "aminmax": lambda x: x.aminmax(dim=1).max,
    "amax": lambda x: x.amax(1),
    "cosine": lambda x: F.cosine_similarity(x, torch.ones_like(x)),
    "cdist": lambda x: torch.cdist(x, x),
    "cdist of order 1": lambda x: torch.cdist(x, x, p=1.0),
    "cummax": lambda x: x.cummax(1).values,
    "cummin": lambda x: x.cummin(1).values,
    "dist": lambda x: torch.dist(x, x * 1.0),
    "max": lambda x: x.max(),
    "max of each": lambda x: x.max(1).values,
    "max of each, kept": lambda x: x.max(-1, keepdim=True).values,
    "max_pool1d": lambda x: F.max_pool1d(x[:, None], 2),
    "median": lambda x: x.median(),
    "median of five": lambda x: x[0, 5:].median(),
    "median of six": lambda x: x[0, 4:].median(),
    "min of each": lambda x: x.min(0).values,
    "norm": lambda x: x.norm(dim=1),
    "norm of all": lambda x: x.norm(),
    "norm of order 0": lambda x: torch.linalg.vector_norm(x, 0, dim=1) + x.sum(1),
    "norm of order ½": lambda x: x.norm(p=0.5, dim=1),
    "norm of order 1": lambda x: x.norm(p=1, dim=1),
    "norm of order 3": lambda x: x.norm(p=3, dim=1),
    "norm of order ∞": lambda x: x.norm(p=float("inf"), dim=1),
    "norms beside entries": lambda x: x - x.norm(p=float("inf"), dim=1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "pdist": lambda x: F.pdist(x),
    "sorted upwards": lambda x: torch.sort(x, dim=1, stable=True).values,
    "sorted downwards": lambda x: torch.sort(x, dim=0, stable=True, descending=True).values,
    "rms_norm": lambda x: F.rms_norm(x, (10,)),
    "std": lambda x: x.std(1),
    "std of all": lambda x: x.std(),
    "std_mean": lambda x: sum(torch.std_mean(x, dim=1, correction=0)),
}
OF_TWO = {
    "clamp by a tensor": lambda x, y: torch.clamp(x, min=y, max=y + 1),
    "cosine embedding": lambda x, y: F.cosine_embedding_loss(x, y, torch.ones_like(x[:, 0])),
    "difference": lambda x, y: (x - y).abs(),
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "hinge": lambda x, y: F.hinge_embedding_loss(x, torch.sign(y)),
    "huber": lambda x, y: F.huber_loss(x, y),
    "l1": lambda x, y: F.l1_loss(x, y),
    "margin ranking": lambda x, y: F.margin_ranking_loss(x, y, torch.ones_like(x)),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "multilabel": lambda x, y: F.multilabel_soft_margin_loss(x, (y > 0).to(x.dtype)),
    "norm of the difference": lambda x, y: (x - y).norm(dim=1),
    "smooth l1": lambda x, y: F.smooth_l1_loss(x, y),
    "triplet": lambda x, y: F.triplet_margin_loss(x, y, x.flip(0)),
}
FUNCTIONS = ACTIVATIONS | ENTRYWISE | REDUCING | OF_TWO


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_pytorchs(name):
    function = FUNCTIONS[name]
    given = (X, Y) if name in OF_TWO else (X,)
    # PyTorch takes hardsigmoid's sixth in single precision
    same_as_pytorch(function, *given, rounding=1e-7 if name == "hardsigmoid" else 1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.max(1).values,
        lambda x: x.max(1).indices,
        lambda x: x.min(0).indices,
        lambda x: x.cummax(1).values,
        lambda x: x.cummax(1).indices,
        lambda x: torch.sort(x[1:], dim=1, stable=True, descending=True).indices,
        lambda x: x.clamp(-1, 2),
        lambda x: x.median(),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_places_dtypes_and_what_is_not_a_number(function, dtype):
    x = X.astype(dtype)
    if dtype == "float32":
        x[0, 4] = np.nan
    theirs = function(torch.tensor(x))
    found = np.asarray(translated(function, lambda: "")(jnp.array(x)))
    np.testing.assert_array_equal(found, theirs)
    assert found.dtype == theirs.numpy().dtype


def test_a_head_of_zeros_takes_pytorchs_first_step():
    """Its predictions are all 0, and so is a target: the loss is at a kink, and its norm a root of zero."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    y[3:6] = 0
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU6(), torch.nn.Linear(3, 2))
    module = module.double()
    torch.nn.init.zeros_(module[2].weight)
    torch.nn.init.zeros_(module[2].bias)

    def loss(yhat, y):
        return (yhat - y).norm(dim=1).mean() + (yhat - y).abs().mean()

    path = tw.descend(tw.from_torch(module, loss, x, y), tw.SGD(lr=0.1), steps=5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        value = loss(module(x), y)
        np.testing.assert_allclose(path["loss"][step], value.item(), rtol=1e-12)
        value.backward()
        optimizer.step()
    assert path["status"] == "completed"
