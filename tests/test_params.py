"""Names, order and shapes: a pytree as one vector, and back."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from thalweg import jaxprs
from thalweg.errors import InputError
from thalweg.params import Layout, difference, norm


class Pair(NamedTuple):
    slope: float
    offset: float


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    weight: np.ndarray
    bias: float


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (1.0, ("w",)),
        (np.zeros(2), ("w[0]", "w[1]")),
        ({"weight": 1.0, "bias": 2.0}, ("bias", "weight")),  # dictionaries in the order of keys
        ((1.0, np.zeros(1)), ("0", "1[0]")),
        ([1.0, 2.0], ("0", "1")),
        (Pair(1.0, 2.0), ("slope", "offset")),
        (Layer(np.zeros((1, 2)), 0.0), ("weight[0,0]", "weight[0,1]", "bias")),
        (
            {"l1": {"weight": np.zeros((2, 2))}, "l0": [0.0, Pair(0.0, 0.0)]},
            (
                *("l0.0", "l0.1.slope", "l0.1.offset"),
                *("l1.weight[0,0]", "l1.weight[0,1]", "l1.weight[1,0]", "l1.weight[1,1]"),
            ),
        ),
    ],
)
def test_names(tree, names):
    assert Layout.of(tree).names == names


leaves = st_numpy.arrays(
    st.sampled_from([np.float32, np.float64]),
    st_numpy.array_shapes(min_dims=0, max_dims=3, max_side=3),
    elements=st.floats(-1e6, 1e6, width=32),
)
trees = st.recursive(
    leaves,
    lambda node: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=3), node, min_size=1, max_size=3),
        st.lists(node, min_size=1, max_size=3),
        st.tuples(node, node),
        st.builds(Pair, node, node),
        st.builds(Layer, node, node),
    ),
    max_leaves=6,
)


def assert_same(a, b):
    assert jax.tree_util.tree_structure(a) == jax.tree_util.tree_structure(b)
    for one, other in zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(trees)
def test_flatten_and_unflatten_are_inverse(tree):
    layout = Layout.of(tree)
    vector = layout.flatten(tree)
    assert vector.shape == (layout.size,) == (len(layout.names),)
    assert len(set(layout.names)) == layout.size
    assert_same(layout.unflatten(vector), tree)
    np.testing.assert_array_equal(layout.flatten(layout.unflatten(vector)), vector)


@given(trees)
def test_leading_axes_go_along(tree):
    layout = Layout.of(tree)
    stacked = jax.tree_util.tree_map(lambda leaf: np.stack([leaf, 2 * leaf]), tree)
    vectors = layout.flatten(stacked, lead=1)
    np.testing.assert_array_equal(vectors, [layout.flatten(tree), 2 * layout.flatten(tree)])
    assert_same(layout.unflatten(vectors), stacked)


def test_without_parameters_there_is_an_empty_vector():
    layout = Layout.of({})
    for vector in (layout.flatten({}), jnp.zeros(0)):
        assert vector.shape == (0,)
        assert layout.unflatten(vector) == {}


def test_the_gradient_in_the_vector_puts_leaves_together():
    """Those of slices would each be a vector of zeros but for one leaf, and all of them be added up."""
    layout = Layout.of({"a": np.ones((2, 3)), "b": np.ones(4), "c": np.ones(())})

    def summed(vector):
        return sum(jnp.sin(leaf).sum() for leaf in layout.unflatten(vector).values())

    names = jaxprs.names(jax.make_jaxpr(jax.grad(summed))(jnp.ones(11)).jaxpr)
    assert "concatenate" in names
    assert "pad" not in names


def test_each_name_is_at_its_place():
    tree = {"b": np.array([10.0, 11.0]), "a": np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])}
    layout = Layout.of(tree)
    vector = layout.flatten(tree)
    assert vector[layout.index("a[1,0]")] == 3
    assert vector[layout.index("b[1]")] == 11


def test_leaves_of_two_dtypes_meet_in_the_wider_one_and_come_back():
    tree = {"a": np.float32(0.5), "b": np.float64(0.25)}
    layout = Layout.of(tree)
    assert layout.flatten(tree).dtype == np.float64
    assert_same(layout.unflatten(layout.flatten(tree)), tree)


def test_norm_and_difference():
    a, b = {"x": np.array([4.0, 2.0]), "y": 5.0}, {"x": np.array([1.0, 2.0]), "y": 1.0}
    assert norm(difference(a, b)) == 5  # (3, 0, 4)


LAYOUT = Layout.of({"weight": np.zeros((2, 2)), "bias": 0.0})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: LAYOUT.flatten([1.0, 2.0]), "structure"),
        (
            lambda: LAYOUT.flatten({"weight": np.zeros(4), "bias": 0.0}),
            r"'weight' has shape \(4,\)",
        ),
        (lambda: LAYOUT.unflatten(np.zeros(4)), r"5 parameters was expected, one of shape \(4,\)"),
        (lambda: LAYOUT.unflatten(1.0), r"one of shape \(\)"),
        (lambda: LAYOUT.index("weigth[0,0]"), r"did you mean 'weight\[0,0\]'"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()


def test_an_unknown_name_among_thousands_is_a_short_message():
    with pytest.raises(InputError, match=r"did you mean 'w\[7\]'.*\(3000 in all\)") as caught:
        Layout.of(np.zeros(3000)).index("W[7]")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-23), ("float32", 1e20), ("float16", 1e-6), ("float16", 6e4)]
)
def test_a_norm_is_there_where_the_square_is_not(dtype, size):
    tree = {"a": jnp.full(2, size, dtype), "b": jnp.full((1, 2), size, dtype)}
    assert norm(tree).dtype == jnp.float32
    assert float(norm(tree)) == pytest.approx(2 * float(tree["a"][0]), rel=1e-6)
