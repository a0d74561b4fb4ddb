"""Code that takes derivatives itself, or gives them: values and derivatives are PyTorch's."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import functional
from torch.func import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint
from torch_checks import same_as_pytorch

import thalweg as tw
from thalweg.errors import InputError
from thalweg.pytorch.translation import translated

rng = np.random.default_rng(0)
X, W, V = (rng.standard_normal(shape) for shape in ((5, 3), (3, 8), (8, 1)))


def net(x, w, v):
    return torch.tanh(x @ w) @ v


def by(u, *inputs):
    """Derivatives that have derivatives themselves."""
    found = torch.autograd.grad(u, inputs, torch.ones_like(u), create_graph=True)
    return found[0] if len(found) == 1 else found


def leaf(x):
    return x.detach().requires_grad_()


# torch.autograd.grad ------------------------------------------------------------------------------


def burgers(x, w, v):
    x, t, z = (x[:, k : k + 1].requires_grad_() for k in range(3))
    u = net(torch.cat([x, t, z], 1), w, v)
    u_x, u_t = by(u, x, t)
    return u_t + u * u_x - 0.01 * by(u_x, x) + by(u_x, t)


def navier_stokes(x, w, v):
    """Of a stream function: third derivatives, of which most have to do with few of the others."""
    x, y, t = (x[:, k : k + 1].clone().detach().requires_grad_() for k in range(3))
    h = torch.tanh(torch.cat([x, y, t], 1) @ w)
    p, psi = h[:, :4].sum(1, keepdim=True), h @ v
    a, b = by(psi, y), -by(psi, x)
    (a_x, a_y, a_t), (b_x, b_y, b_t) = by(a, x, y, t), by(b, x, y, t)
    one = a_t + a * a_x + b * a_y + by(p, x) - 0.01 * (by(a_x, x) + by(a_y, y))
    other = b_t + a * b_x + b * b_y + by(p, y) - 0.01 * (by(b_x, x) + by(b_y, y))
    return torch.cat([one, other], 1)


def laplacian(x, w, v):
    x = leaf(x)
    slope = by(net(x, w, v).sum(), x)
    return sum(by(slope[:, k].sum(), x)[:, k] for k in range(3))


def adapted(x, w, v):
    """Weights after a step, as in meta-learning."""
    of_w, of_v = by(net(x, w, v).square().mean(), w, v)
    return net(x, w - 0.1 * of_w, v - 0.1 * of_v)


def adapted_at_first_order(x, w, v):
    slopes = torch.autograd.grad(net(x, w, v).square().mean(), [w, v])
    return net(x, w - 0.1 * slopes[0], v - 0.1 * slopes[1])


def by_one_and_what_is_made_of_it(x, w, v):
    """As forces and stresses are derived: by places, and by a strain that moves them."""
    strain = torch.zeros(3, 3, dtype=x.dtype, requires_grad=True)
    x = leaf(x)
    moved = x + x @ (strain + strain.T)
    total = net(moved, w, v).square().sum()
    of_x, of_moved, of_strain, again = by(total, x, moved, strain, x)
    return of_x * of_moved * again + of_strain.sum()


def by_what_is_made_later(x, w, v):
    x = leaf(x)
    h = x @ w
    slope = by((h**3).sum(), x)
    return by(slope.square().sum(), h)


def by_a_written_view(x, w, v):
    h = (x @ w)[1:3]
    h.mul_(2)
    return by(h.square().sum(), h)


def by_what_is_free_already(x, w, v):
    h = x @ w
    a = h.sin()
    h.requires_grad_()
    return by((a * h).sum(), h)


def by_some_parameters(x, w, v):
    free = [p for p in (x, w, v, torch.ones(2), w.detach()) if p.requires_grad]
    return by(net(x, w, v).sum(), *free)[1]


def by_frozen(x, w, v):
    w = w * 1
    return by(net(x, w.detach_(), v).sum(), x)


def of_a_graph_made_where_autograd_is_off(x, w, v):
    x = leaf(x)
    u = net(x, w, v).sum()
    with torch.no_grad():
        return torch.autograd.grad(u, x, create_graph=True)[0]


def in_another_precision(x, w, v):
    x = leaf(x)
    return torch.autograd.grad(net(x, w, v), x, torch.ones(5, 1), create_graph=True)[0]


def caught(x, w, v):
    x = leaf(x)
    try:
        slope = by((net(x, w, v) ** 3).sum(), x)
    except:  # noqa: E722
        slope = x
    return by(slope.square().sum(), x)


def written_into_views(x, w, v):
    h = x @ w
    h[0].fill_(1)
    h[1:3].masked_fill_(h[1:3] > 0, 2)
    h[:, 1] *= 2
    h.masked_fill_(h > 1, 3)
    return h @ v


def copied(x, w, v):
    h = torch.zeros(5, 3, dtype=x.dtype)
    h[:, 0].copy_(x[:, 1])
    h[1].copy_(x[0])
    assert h.requires_grad
    assert not torch.ones_like(h).requires_grad
    return h @ w


def without_views(x, w, v):
    return x[:, :1].detach() * x + x[0].data + torch.detach(x.T)[:1, :1] * x


def langevin(x, w, v):
    """Steps down an energy and then by the start, which is in all of them."""
    start = leaf(x)
    x = start
    for _ in range(6):
        x = x - 0.1 * by(net(x, w, v).square().sum(), x)
    return by(x.square().sum(), start)


def momentum(x, w, v):
    x, m = leaf(x), torch.zeros_like(x)
    for _ in range(8):
        m = 0.9 * m + by(net(x, w, v).square().sum() + (m * x).sum(), x)
        x = x - 0.1 * m
    return x


def symplectic(x, w, v):
    """A Hamiltonian's equations, half a step each."""
    q, p = leaf(x), leaf(2 * x)
    for _ in range(4):
        p = p - 0.1 * by(net(q + p, w, v).sum(), q)
        q = q + 0.1 * by(net(q + p, w, v).sum(), p)
    return q


def by_a_hidden_layer(x, w, v):
    h = torch.tanh(x @ w)
    return by((h @ v).square().sum(), h) * h


def by_a_dictionary(x, w, v):
    x = leaf(x)
    found = torch.autograd.grad(net(x, w, v).sum(), {"x": x}, create_graph=True)
    return found["x"]


def only_from_there_on(x, w, v):
    earlier = 2 * x
    x = leaf(x)
    x.requires_grad_()
    return by(net(x, w, v) * earlier, x)


def by_what_was_written_into(x, w, v):
    x = leaf(x)
    h = x @ w
    h[:, 0] = 1
    h.mul_(2)
    return by(h.square().sum(), h) + by(h.sum(), x).sum()


def set_by_an_attribute(x, w, v):
    x = x.detach()
    x.requires_grad = True
    return by(net(x, w, v).sum(), x)


def unused(x, w, v):
    x, z = leaf(x), leaf(x)
    slope, none = torch.autograd.grad(
        net(x, w, v).sum(), [x, z], create_graph=True, allow_unused=True
    )
    assert none is None
    zero = torch.autograd.grad(net(x, w, v).sum(), z, create_graph=True, materialize_grads=True)
    return slope + zero[0]


def unused_the_second_time(x, w, v):
    x, z = leaf(x), leaf(x)
    slope, none = torch.autograd.grad(
        net(x, w, v).sum(), [x, z], create_graph=True, allow_unused=True
    )
    return by(slope.sum(), x) if none is None else slope


def weighted(x, w, v):
    x = leaf(x)
    u = net(x, w, v)
    with torch.no_grad():
        weights = u.abs()
    return torch.autograd.grad(u, x, weights, create_graph=True)[0]


def several_outputs(x, w, v):
    x = leaf(x)
    h = x @ w
    weights = [torch.ones_like(h), None]
    return torch.autograd.grad([h.tanh(), h.square().sum()], x, weights, create_graph=True)[0]


def in_batches(x, w, v):
    x = leaf(x)
    u = torch.tanh(x @ w).sum(0)
    units = torch.eye(8, dtype=u.dtype)
    return torch.autograd.grad(u, x, units, create_graph=True, is_grads_batched=True)[0]


def by_its_weights(x, w, v):
    """The derivative along a direction, by the derivative of a derivative."""
    x = leaf(x)
    u = torch.tanh(x @ w)
    weights = torch.ones_like(u, requires_grad=True)
    slope = torch.autograd.grad(u, x, weights, create_graph=True)[0]
    return by(slope, weights)


def without_autograd(x, w, v):
    x = leaf(x)
    u = net(x, w, v)
    total = u.sum()
    with torch.no_grad():
        slope = torch.autograd.grad(total, x, retain_graph=True)[0]
    return slope + u


ASKS = [
    burgers,
    navier_stokes,
    laplacian,
    adapted,
    adapted_at_first_order,
    by_one_and_what_is_made_of_it,
    by_what_is_made_later,
    by_a_written_view,
    by_what_is_free_already,
    by_some_parameters,
    by_frozen,
    of_a_graph_made_where_autograd_is_off,
    in_another_precision,
    caught,
    written_into_views,
    copied,
    without_views,
    langevin,
    momentum,
    symplectic,
    by_a_hidden_layer,
    by_a_dictionary,
    only_from_there_on,
    by_what_was_written_into,
    set_by_an_attribute,
    unused,
    unused_the_second_time,
    weighted,
    several_outputs,
    in_batches,
    by_its_weights,
    without_autograd,
]


@pytest.mark.parametrize("function", ASKS)
def test_code_that_asks_for_derivatives(function):
    same_as_pytorch(function, X, W, V, rounding=1e-11)


@pytest.mark.parametrize(
    ("function", "most"), [(navier_stokes, 25), (langevin, 25), (momentum, 20), (symplectic, 25)]
)
def test_code_runs_no_more_often_than_its_questions_need(function, most):
    """Once, and for each question once or twice."""
    runs = []

    def counted(x, w, v):
        runs.append(0)
        return function(x, w, v)

    jax.jit(translated(counted, lambda: "")).lower(*map(jnp.array, (X, W, V)))
    assert len(runs) <= most


# torch.func and torch.autograd.functional ---------------------------------------------------------


def total(x, w, v):
    return net(x, w, v).square().sum()


MAPS = {
    "grad": lambda x, w, v: vmap(grad(lambda x: net(x, w, v)[0]))(x),
    "grad of grad": lambda x, w, v: vmap(grad(lambda x: grad(lambda x: net(x, w, v)[0])(x)[0]))(x),
    "grad of a dictionary": lambda x, w, v: grad(lambda p: total(x, p["w"], p["v"]))(
        {"w": w, "v": v}
    )["w"],
    "grad by an entry": lambda x, w, v: grad(lambda p: total(p["w"] @ p["a"], w, v))(
        {"w": x, "a": w @ w.T}
    )["w"],
    "grad by entries in order": lambda x, w, v: next(
        iter(grad(lambda p: total(x, p["z"], p["a"]))({"z": w, "a": v}).values())
    ),
    "vmap of a dictionary": lambda x, w, v: vmap(lambda p: next(iter(p.values())))(
        {"z": x, "a": 2 * x}
    ),
    "grad by the last": lambda x, w, v: grad(total, argnums=-1)(x, w, v),
    "grad by two": lambda x, w, v: grad(total, argnums=(0, 2))(x, w, v)[1],
    "grad of named arguments": lambda x, w, v: grad(total)(x, w=w, v=v),
    "grad and more": lambda x, w, v: grad(lambda w: (total(x, w, v), net(x, w, v)), has_aux=True)(
        w
    )[1],
    "grad and value": lambda x, w, v: torch.mul(*grad_and_value(total)(x, w, v)),
    "grad without autograd": lambda x, w, v: torch.no_grad()(grad(total, argnums=1))(x, w, v) * w,
    "jacrev": lambda x, w, v: vmap(jacrev(lambda x: torch.tanh(x @ w)))(x),
    "jacrev by two": lambda x, w, v: jacrev(lambda x, w: (x @ w, x), argnums=(0, 1))(x, w)[0][1],
    "jacrev in chunks": lambda x, w, v: jacrev(lambda x: torch.tanh(x @ w), chunk_size=3)(x),
    "jacfwd": lambda x, w, v: vmap(jacfwd(lambda x: torch.tanh(x @ w)))(x),
    "hessian": lambda x, w, v: vmap(hessian(lambda x: net(x, w, v)[0]))(x),
    "vjp": lambda x, w, v: vjp(lambda x, w: net(x, w, v), x, w)[1](torch.ones(5, 1, dtype=x.dtype))[
        1
    ],
    "jvp": lambda x, w, v: jvp(lambda x: net(x, w, v), (x,), (torch.ones_like(x),))[1],
    "vmap by axes": lambda x, w, v: vmap(torch.matmul, in_dims=(0, None), out_dims=1)(x, w),
    "vmap of keywords": lambda x, w, v: vmap(lambda x, scale: scale * net(x, w, v))(x, scale=2.0),
    "vmap in chunks": lambda x, w, v: vmap(lambda x: net(x, w, v), chunk_size=2)(x),
    "autograd of func": lambda x, w, v: by(vmap(grad(lambda x: net(x, w, v)[0]))(x).sum(), w),
    "jacobian": lambda x, w, v: functional.jacobian(
        lambda x: net(x, w, v).sum(0), x, create_graph=True
    ),
    "functional hessian": lambda x, w, v: functional.hessian(
        lambda w: total(x, w, v), w, create_graph=True
    ),
    "jacobian at once": lambda x, w, v: functional.jacobian(
        lambda x: net(x, w, v).sum(0), x, create_graph=True, vectorize=True
    ),
    "strict jacobian": lambda x, w, v: functional.jacobian(
        lambda x: net(x, w, v).sum(0), x, create_graph=True, strict=True
    ),
    "hvp": lambda x, w, v: functional.hvp(
        lambda w: total(x, w, v), w, torch.ones_like(w), create_graph=True
    )[1],
    "checkpoint": lambda x, w, v: checkpoint(net, x, w, v, use_reentrant=False),
    "reentrant checkpoint": lambda x, w, v: checkpoint(net, x, w, v, use_reentrant=True),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which PyTorch's jvp calls
@pytest.mark.parametrize("name", MAPS)
def test_functions_of_functions(name):
    same_as_pytorch(MAPS[name], X, W, V, rounding=1e-11)


# torch.autograd.Function --------------------------------------------------------------------------


class Reversed(torch.autograd.Function):
    """As adversarial training has it; with a number beside the tensor."""

    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -ctx.by * slope, None


class StraightThrough(torch.autograd.Function):
    """Of a saved tensor, written into; not a derivative of any function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        slope = slope.clone()
        slope[x.abs() > 1] = 0
        return torch.nn.functional.hardtanh(slope)


class Scaled(torch.autograd.Function):
    """Of two tensors, of which one goes along an axis, and of whole numbers."""

    @staticmethod
    def forward(ctx, x, y, k):
        out = (x * k).exp() * y
        ctx.save_for_backward(x, y, out, k)
        ctx.held = {"tensor": 2 * k, "needed": ctx.needs_input_grad[2]}
        return out

    @staticmethod
    def backward(ctx, slope):
        _, y, out, _ = ctx.saved_tensors
        assert not ctx.held["needed"]
        return slope * out * ctx.held["tensor"] / 2, slope * out / y, None


class Swish(torch.autograd.Function):
    """In PyTorch's newer way, with a default, and a second output that has no derivative."""

    @staticmethod
    def forward(x, beta=2.0):
        return x * torch.sigmoid(beta * x), x > 0, x.floor()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.beta = inputs
        ctx.save_for_backward(x)
        ctx.mark_non_differentiable(output[1], output[2])

    @staticmethod
    def backward(ctx, slope, *others):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(ctx.beta * x)
        return slope * (s + ctx.beta * x * s * (1 - s)), None


class Needed(Swish):
    """Which derives by what is asked for alone."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0] if ctx.needs_input_grad[0] else None


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


class AskingOutside(torch.autograd.Function):
    """By a tensor that is none of its arguments."""

    @staticmethod
    def forward(ctx, x, of):
        return torch.autograd.grad(x.sum(), of())[0]


class Asking(torch.autograd.Function):
    """Whose backward asks for derivatives, as layers that are defined by an equation do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(x.tanh(), x, slope)[0]


def hooked(h, hook):
    if h.requires_grad:
        h.register_hook(hook)
    return h


def unhooked(h):
    h.register_hook(lambda g: 2 * g).remove()
    h.register_hook(torch.tanh)
    h.retain_grad()
    return h


def written_unseen(h, write):
    with torch.no_grad():
        write(h)
    return h


seen = []
reversed_ = Reversed.apply  # bound before anything is translated
FUNCTIONS = {
    "reversed": lambda x, w, v: net(reversed_(x, 0.3), w, v),
    "straight through": lambda x, w, v: StraightThrough.apply(x @ w) @ v,
    "scaled": lambda x, w, v: Scaled.apply(x @ w, v.T, torch.tensor(2)),
    "swish": lambda x, w, v: (
        torch.mul(*Swish.apply(x @ w)[::2]) + Swish.apply(x @ w, 1.0)[0] * Swish.apply(x)[1][:, :1]
    ),
    "square": lambda x, w, v: Square.apply(x @ w) @ v,
    "asking": lambda x, w, v: Asking.apply(x @ w) @ v,
    "hooked": lambda x, w, v: hooked(x @ w, lambda slope: 2 * slope) @ v,
    "hooked, and watched": lambda x, w, v: hooked((x @ w)[:, :2], seen.append) @ v[:2],
    "hooked and asked for": lambda x, w, v: by(hooked(x @ w, torch.tanh).square().sum(), x),
    "hooked twice": lambda x, w, v: hooked(hooked(x @ w, lambda g: 2 * g), torch.tanh) @ v,
    "hooked no more": lambda x, w, v: unhooked(x @ w) @ v,
    "needed in a grad": lambda x, w, v: x @ grad(lambda w: Needed.apply(w).sum())(w) @ v,
    "written unseen": lambda x, w, v: written_unseen(x @ w, lambda h: h.clamp_(min=0)) @ v,
    "set unseen": lambda x, w, v: written_unseen(x @ w, lambda h: h.__setitem__(0, 1)) @ v,
    "asked for": lambda x, w, v: by(Scaled.apply(x @ w, v.T, torch.tensor(2)).sum(), x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_that_code_gives(name):
    same_as_pytorch(FUNCTIONS[name], X, W, V, rounding=1e-11)


def problem_of(function):
    """A layer, and a function of it and its input, as a problem."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            return function(self.layer, x)

    torch.manual_seed(0)
    module = Module().double()
    x, y = torch.from_numpy(X), torch.zeros(5, 1, dtype=torch.float64)
    return module, tw.from_torch(module, "mse", x, y)


def test_a_physics_informed_network_is_a_problem():
    """u″ = −π² sin πx on (0, 1), by its residual: as quick as others to fit, and of streaming samples."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

        def u(self, x):
            return x * (1 - x) * self.net(x)

        def forward(self, x):
            x.requires_grad_()
            return by(by(self.u(x), x), x) + torch.pi**2 * torch.sin(torch.pi * x)

    torch.manual_seed(0)
    module = Residual().double()
    x = torch.linspace(0, 1, 32, dtype=torch.float64)[:, None]
    problem = tw.from_torch(module, "mse", x, torch.zeros_like(x))
    assert not x.requires_grad
    path = tw.descend(problem, tw.LevenbergMarquardt(), steps=30)
    module.load_state_dict(tw.to_torch(problem, path["final"]))
    with torch.no_grad():
        np.testing.assert_allclose(module.u(x), torch.sin(torch.pi * x), atol=1e-4)


def test_second_derivatives_of_a_backward_are_its_own():
    module, problem = problem_of(
        lambda layer, x: Scaled.apply(layer(x), x[:, :1].exp(), torch.tensor(1))
    )
    matrix = tw.hessian(problem, problem.params)
    weight = torch.cat([module.layer.bias, module.layer.weight[0]]).detach()

    def risk(p):
        x = torch.from_numpy(X)
        h = x @ p[1:, None] + p[0]
        return (h.exp() * x[:, :1].exp()).square().mean()

    vector = np.random.default_rng(0).standard_normal(4)
    expected = functional.hvp(risk, weight, torch.from_numpy(vector))[1]
    np.testing.assert_allclose(matrix @ vector, expected, rtol=1e-10)


def test_what_is_differentiable_once_has_no_curvature():
    _, problem = problem_of(lambda layer, x: Square.apply(layer(x)))
    with pytest.raises(InputError, match="Square is marked as once_differentiable"):
        tw.hessian(problem, problem.params) @ np.ones(4)


def test_what_pytorch_must_compute_itself_is_named():
    """A loss that takes derivatives of the network beside its arguments, and a penalty of tensors."""
    layer, x = nn.Linear(3, 1).double(), torch.from_numpy(X)

    def loss(yhat, y):
        z = x.clone().requires_grad_()
        return (yhat - y).square().mean() + by(layer(z).tanh(), z).square().mean()

    def penalty(params):
        return torch.func.functional_call(layer, params, (x,)).square().mean()

    with pytest.raises(InputError, match="the loss reads parameters by itself"):
        tw.from_torch(layer, loss, x, torch.zeros(5, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="penalty must be a pure function written with jax"):
        tw.from_torch(layer, "mse", x, torch.zeros(5, 1, dtype=torch.float64), penalty=penalty)


class Rounded(torch.autograd.Function):
    """Straight through, which is nobody's derivative, of a saved output."""

    @staticmethod
    def forward(ctx, x):
        out = torch.round(4 * x) / 4
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, slope):
        return slope * (1 + ctx.saved_tensors[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda h: Rounded.apply(h),
        lambda h: Reversed.apply(h, 0.5) * h,
        lambda h: Swish.apply(h)[0],
        lambda h: Scaled.apply(h, h.exp(), torch.tensor(1)),
    ],
)
def test_second_derivatives_are_pytorchs(function):
    """Of what a backward gives, also where it is no derivative of what forward computes."""
    module, problem = problem_of(lambda layer, x: function(layer(x)))
    vector = np.random.default_rng(1).standard_normal(4)
    loss = module(torch.from_numpy(X)).square().mean()
    parameters = [module.layer.bias, module.layer.weight]
    slope = torch.cat([g.ravel() for g in by(loss, *parameters)])
    # rows of a derivative's derivative; it need not be symmetric
    rows = [torch.autograd.grad(s, parameters, retain_graph=True) for s in slope]
    matrix = np.array([torch.cat([g.ravel() for g in row]).numpy() for row in rows])
    found = tw.hessian(problem, problem.params) @ vector
    np.testing.assert_allclose(found, matrix @ vector, rtol=1e-10)


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope[:2]


class Undecided(Wrong):
    @staticmethod
    def backward(ctx, slope):
        return slope if slope.sum() > 0 else -slope


def calls_backward(layer, x):
    x = x.requires_grad_()
    layer(x).sum().backward()
    return x.grad


def test_what_cannot_be_followed_is_named():
    for function, words in (
        (calls_backward, "backward.. inside a model has no translation; ask for derivatives"),
        (lambda layer, x: Undecided.apply(layer(x)), "Function Undecided branches on the values"),
        (lambda layer, x: vmap(lambda x: layer(x[:2]))(x), "the module 'layer' failed: "),
        (lambda layer, x: by(layer(x), x)[:, :1], "failed in PyTorch: One of the differentiated"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            problem_of(function)
        assert "\n" not in str(raised.value)
    for function, words in (
        (lambda x: AskingOutside.apply(x, lambda: x), "by tensors on which"),
        (lambda x: torch.autograd.grad(x + 1, x), "only for scalar outputs"),
        (lambda x: torch.autograd.grad((x + 1).sum(), leaf(x)), "Set allow_unused=True"),
    ):
        with pytest.raises(InputError, match=words):
            translated(function, lambda: "")(jnp.ones(2))
    wrong = translated(Wrong.apply, lambda: "")
    with pytest.raises(
        InputError, match=r"derivative of shape \(2,\) for a tensor of shape \(3,\)"
    ):
        jax.grad(lambda x: wrong(x).sum())(jnp.ones(3))


def test_pytorch_is_as_it_was():
    """Also where code ends in an error, and in another thread while code is at work."""
    function = torch.autograd.function._SingleLevelFunction
    assert "apply" not in vars(function)
    theirs = torch._functorch.apis.vmap_impl
    x = torch.ones(3, requires_grad=True)

    def meanwhile():
        Reversed.apply(x, 2.0).sum().backward()
        return vmap(grad(lambda x: x.square()))(x.detach())

    def fails(h):
        found.append("apply" in vars(function))
        with ThreadPoolExecutor(1) as other:
            found.append(other.submit(meanwhile).result())
        raise ValueError("so")

    found = []
    with pytest.raises(InputError, match="failed: so"):
        translated(fails, lambda: "")(jnp.ones(2))
    assert found[0] is True
    assert found[1].tolist() == [2, 2, 2]
    assert x.grad[0] == -2 * len(found[1::2])  # the code runs again for PyTorch's words
    assert "apply" not in vars(function)
    assert torch._functorch.apis.vmap_impl is theirs
