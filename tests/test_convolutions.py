"""Convolutions against PyTorch's, and which of them are put in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

import thalweg as tw
from thalweg import jaxprs
from thalweg.pytorch.translation import translated
from thalweg.tuning import tuned

# of each number of dimensions: JAX's layout, and PyTorch's functions
LAYOUTS = {
    1: ("NCH", "OIH", torch.nn.functional.conv1d),
    2: ("NCHW", "OIHW", torch.nn.functional.conv2d),
    3: ("NCDHW", "OIDHW", torch.nn.functional.conv3d),
}


def convolved(x, w, stride=1, padding=0, dilation=1, groups=1):
    n = x.ndim - 2
    layout, kernel, _ = LAYOUTS[n]
    return lax.conv_general_dilated(
        x, w, (stride,) * n, [(padding, padding)] * n, rhs_dilation=(dilation,) * n,
        dimension_numbers=(layout, kernel, layout), feature_group_count=groups,
    )  # fmt: skip


def arranged(function, *arguments):
    """How many of a function's convolutions are put in order."""
    return str(jax.make_jaxpr(tuned(function))(*arguments)).count("name=convolved_")


def looped(function):
    """A function inside a loop, where XLA would not put its convolutions in order."""
    return lambda *arguments: lax.fori_loop(
        0, 1, lambda _, found: jax.tree_util.tree_map(jnp.add, found, function(*arguments)),
        jax.tree_util.tree_map(jnp.zeros_like, jax.eval_shape(function, *arguments)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((5, 3, 9), (6, 3, 3), {}),
        ((5, 3, 8, 7), (6, 3, 3, 2), {"stride": 2, "padding": 1}),
        ((5, 3, 8, 9), (6, 3, 3, 3), {"dilation": 2}),
        ((5, 6, 8, 7), (12, 3, 3, 3), {"groups": 2, "padding": 1}),
        ((3, 3, 5, 6, 4), (6, 3, 2, 3, 2), {"stride": 2, "padding": 1}),
        ((3, 3, 7, 6, 5), (6, 3, 3, 2, 1), {"dilation": 2, "padding": 2}),
        ((5, 8, 5, 6, 4), (8, 4, 2, 3, 2), {"groups": 2}),
        ((17, 6, 8, 7), (12, 1, 3, 2), {"groups": 6, "stride": 2, "padding": 1}),
        ((17, 1, 8, 7), (3, 1, 3, 3), {"padding": 1}),
        ((17, 3, 9, 10), (3, 1, 7, 8), {"groups": 3, "padding": 3}),
        ((17, 3, 90), (6, 1, 70), {"groups": 3, "stride": 2}),
    ],
)
@pytest.mark.parametrize("members", [0, 3])
def test_values_and_gradients_are_pytorchs(x, w, options, members, rng):
    """In double precision, alone and of several models' kernels, inside a loop."""
    lead = (members,) if members else ()
    x, w = rng.standard_normal(x), rng.standard_normal((*lead, *w))

    def risk(x, w):
        return jnp.sum(jnp.tanh(convolved(x, w, **options)))

    value = jax.value_and_grad(risk, (0, 1))
    many = jax.vmap(value, (None, 0)) if members else value
    assert arranged(looped(many), x, w) == 3
    total, (by_x, by_w) = jax.jit(tuned(looped(many)))(x, w)
    for k in range(members or 1):
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, w[k] if members else w)]
        told = LAYOUTS[x.ndim - 2][2](*tensors, **options).tanh().sum()
        told.backward()
        found = [a[k] if members else a for a in (total, by_x, by_w)]
        for mine, theirs in zip(found, (told, *(t.grad for t in tensors)), strict=True):
            np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_transposed_convolutions_too(rng):
    x, w = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((3, 6, 3, 3))

    def transposed(x, w):
        return lax.conv_transpose(
            x, w, (2, 2), [(2, 2), (2, 2)], dimension_numbers=("NCHW", "IOHW", "NCHW")
        )

    flipped = torch.tensor(w[:, :, ::-1, ::-1].copy())
    told = torch.nn.functional.conv_transpose2d(torch.tensor(x), flipped, stride=2)
    assert arranged(transposed, x, w) == 1
    found = jax.jit(tuned(looped(transposed)))(x, w)
    np.testing.assert_allclose(found, told.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((5, 6, 5, 4), (6, 8, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((5, 4, 6), (4, 8, 4), {"stride": 3}),
        ((5, 4, 3, 4, 3), (4, 6, 2, 3, 2), {"stride": 2}),
        ((5, 6, 5, 4), (6, 1, 3, 2), {"stride": 2, "groups": 6}),
    ],
)
def test_the_way_back_through_transposed_convolutions_is_pytorchs(x, w, options, rng):
    """To the kernel it is one of spread inputs with a kernel as large as the images."""
    call = getattr(torch.nn.functional, f"conv_transpose{len(x) - 2}d")
    x, w = rng.standard_normal(x), rng.standard_normal(w)

    def curved(x, w):
        return call(x, w, **options).tanh().square().sum()

    ours = translated(curved, lambda: "")
    found = jax.jit(tuned(looped(jax.grad(ours, (0, 1)))))(x, w)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    curved(*tensors).backward()
    for mine, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("reach", "seed"),
    [*(("some", k) for k in range(16)), *((r, k) for r in ("one", "all") for k in range(8))],
)
def test_any_convolution_is_jaxs(reach, seed):
    """Values, gradients and a curvature product, of settings drawn at random; of kernels that reach over some
    places, over one, or over all."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3 if reach == "all" else 4))
    groups, summed, made = (int(rng.choice(some)) for some in ([1, 2, 5], [1, 2, 4], [1, 3, 8]))
    x = rng.standard_normal((rng.integers(1, 6), groups * summed, *rng.integers(4, 8, n)))
    places = {"some": rng.integers(1, 4, n), "one": [1] * n, "all": x.shape[2:]}[reach]
    w = rng.standard_normal((groups * made, summed, *places))
    layout, kernel, _ = LAYOUTS[n]
    strides, spread, apart = (tuple(rng.integers(1, 3, n).tolist()) for _ in range(3))
    padding = rng.integers(-1, 3, (n, 2)).tolist()
    if reach != "some" and seed % 3:
        padding, spread = [(0, 0)] * n, (1,) * n
        apart = apart if reach == "one" else (1,) * n
    last = rng.random() < 0.3
    if last:
        layout, kernel = layout[:1] + layout[2:] + "C", kernel[2:] + "IO"

    def own(x, w):
        if last:
            x, w = jnp.moveaxis(x, 1, -1), jnp.moveaxis(w, (1, 0), (-2, -1))
        found = lax.conv_general_dilated(
            x, w, strides, padding, spread, apart, (layout, kernel, layout), groups
        )
        return jnp.moveaxis(found, -1, 1) if last else found

    def told(x, w):
        """The same without a convolution: XLA's own of volumes may end the process."""
        edges = [(low, high, k - 1) for (low, high), k in zip(padding, spread, strict=True)]
        x = lax.pad(x, np.float64(0), [(0, 0, 0), (0, 0, 0), *edges])
        x = x.reshape(len(x), groups, summed, *x.shape[2:])
        w = w.reshape(groups, made, *w.shape[1:])
        sizes = [
            max(0, (length - (k - 1) * step - 1) // stride + 1)
            for length, k, step, stride in zip(
                x.shape[3:], w.shape[3:], apart, strides, strict=True
            )
        ]
        total = jnp.zeros((len(x), groups, made, *sizes))
        for at in np.ndindex(*w.shape[3:]):
            here = x
            for axis, (k, step, stride, size) in enumerate(
                zip(at, apart, strides, sizes, strict=True)
            ):
                here = jnp.take(here, k * step + stride * np.arange(size), axis=3 + axis)
            total += jnp.einsum("ngs...,gms->ngm...", here, w[(..., *at)])
        return total.reshape(len(x), groups * made, *sizes)

    def everything(function, x, w):
        slope = jax.grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), (0, 1))
        return function(x, w), slope(x, w), jax.jvp(slope, (x, w), (x, w))[1]

    found = jax.jit(tuned(lambda x, w: everything(own, x, w)))(x, w)
    expected = jax.jit(lambda x, w: everything(told, x, w))(x, w)
    for mine, theirs in zip(*map(jax.tree_util.tree_leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("x", "w", "dtype"),
    [
        ((5, 1, 32, 32), (2, 1, 17, 17), "float32"),  # a large kernel of a thin convolution
        ((5, 3, 8, 8), (6, 3, 3, 3), "bfloat16"),  # for which there is no kernel
    ],
)
def test_others_stay_as_they_are(x, w, dtype):
    def own(x, w):
        return lax.conv(x, w, (1,) * (x.ndim - 2), "VALID")

    assert arranged(own, jnp.ones(x, dtype), jnp.ones(w, dtype)) == 0


@pytest.mark.parametrize(
    ("x", "w", "options", "left"),
    [
        ((5, 8, 7, 6), (4, 8, 1, 1), {}, 0),
        ((5, 8, 7, 6), (4, 8, 1, 1), {"stride": 2}, 0),
        ((5, 8, 7), (4, 8, 1), {}, 0),
        ((5, 8, 7, 6, 5), (4, 8, 1, 1, 1), {"stride": 2}, 0),
        ((5, 8, 7, 6), (4, 8, 1, 1), {"stride": 2, "padding": 1}, 1),  # back to the kernel
        ((5, 8, 7, 6), (4, 8, 7, 6), {}, 1),  # back to the images
        ((5, 8, 7, 5), (4, 8, 4, 3), {"dilation": 2}, 1),
    ],
)
def test_of_one_place_they_are_products_of_matrices_there_and_back(x, w, options, left, rng):
    x, w = rng.standard_normal(x), rng.standard_normal(w)

    def slopes(x, w):
        return jax.grad(lambda *a: jnp.sum(convolved(*a, **options) ** 2), (0, 1))(x, w)

    program = str(jax.make_jaxpr(tuned(slopes))(x, w))
    assert program.count("conv_general_dilated[") == left
    for mine, theirs in zip(jax.jit(tuned(slopes))(x, w), slopes(x, w), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)


def test_what_lies_in_order_stays_as_it_is_but_for_volumes():
    def own(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def of_volumes(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )

    assert arranged(own, jnp.ones((5, 8, 8, 8)), jnp.ones((3, 3, 8, 16))) == 0
    assert arranged(of_volumes, jnp.ones((5, 4, 8, 8, 3)), jnp.ones((2, 3, 3, 3, 6))) == 1


def test_a_descent_of_a_convolutional_network(rng):
    """All of its convolutions are in order: the step's, with those that go back."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.Tanh(), torch.nn.Conv2d(6, 4, 3), torch.nn.Flatten(),
        torch.nn.LazyLinear(1),
    ).double()  # fmt: skip
    x = torch.tensor(rng.standard_normal((6, 3, 7, 7)))
    y = torch.tensor(rng.standard_normal((6, 1)))
    module(x)
    problem = tw.from_torch(module, torch.nn.MSELoss(), x, y)
    path = tw.descend(problem, tw.SGD(lr=[0.01, 0.02]), steps=5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    for step in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x), y)
        assert float(path["loss"][step, 1]) == pytest.approx(loss.item(), rel=1e-10)
        loss.backward()
        optimizer.step()


def test_the_same_convolution_is_compiled_once():
    def twice(x, w):
        return convolved(convolved(x, w, padding=1), w, padding=1)

    jaxprs._call.cache_clear()
    assert arranged(twice, jnp.ones((5, 4, 8, 8)), jnp.ones((4, 4, 3, 3))) == 2
    assert jaxprs._call.cache_info().currsize == 1


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("length", [9, 10, 11])
def test_where_nothing_is_padded_one_position_is(length, stride, rng):
    """XLA's kernels are several times as fast then; the outputs that it adds are left out."""
    x, w = rng.standard_normal((4, length, length, 32)), rng.standard_normal((3, 3, 32, 17))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "window_strides": (stride, stride)}

    def unpadded(x, w):
        return jax.lax.conv_general_dilated(x, w, padding="VALID", **options)

    def padded(x, w):
        return jax.lax.conv_general_dilated(x, w, padding=((1, 0), (0, 0)), **options)

    assert "padding=((0, 1), (0, 0))" in str(jax.make_jaxpr(tuned(unpadded))(x, w))
    found = jax.jit(tuned(unpadded))(x, w)
    assert found.shape == unpadded(x, w).shape
    np.testing.assert_allclose(found, unpadded(x, w), rtol=1e-12, atol=1e-12)
    assert str(jax.make_jaxpr(tuned(padded))(x, w)) == str(jax.make_jaxpr(padded)(x, w))


@pytest.mark.parametrize(
    "dilations",
    [
        {"lhs_dilation": (2, 1)},
        {"lhs_dilation": (3, 2), "rhs_dilation": (1, 2)},
        {"rhs_dilation": (2, 1)},
        {"rhs_dilation": (3, 2)},
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_ones_too(dilations, stride, rng):
    x, w = rng.standard_normal((2, 9, 9, 32)), rng.standard_normal((3, 3, 32, 5))

    def unpadded(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            ((0, 0), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **dilations,
        )

    assert "padding=((0, 1), (0, 0))" in str(jax.make_jaxpr(tuned(unpadded))(x, w))
    np.testing.assert_allclose(
        jax.jit(tuned(unpadded))(x, w), unpadded(x, w), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(
    ("layout", "padded"), [(("NHC", "HIO", "NHC"), False), (("NDHWC", "DHWIO", "NDHWC"), True)]
)
def test_of_volumes_but_not_of_series(layout, padded, rng):
    n = len(layout[0]) - 2
    x, w = rng.standard_normal((2, *[5] * n, 32)), rng.standard_normal((*[3] * n, 32, 5))

    def unpadded(x, w):
        return lax.conv_general_dilated(x, w, (1,) * n, "VALID", dimension_numbers=layout)

    assert ("(0, 1)" in str(jax.make_jaxpr(tuned(unpadded))(x, w))) == padded
    np.testing.assert_allclose(
        jax.jit(tuned(unpadded))(x, w), unpadded(x, w), rtol=1e-11, atol=1e-11
    )
