"""`Problem`: what it keeps, what it computes, and what it refuses."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from jax.tree_util import Partial
from problems import bowl, bowl_problem, data, line, line_problem

import thalweg as tw
from thalweg.errors import InputError

START = {"weight": 6.0, "bias": -3.0}


def by_hand(weight, bias, n=50):
    """The line's errors e, in NumPy."""
    x, y = data(n)
    return weight * x + bias - y


# Which dtype --------------------------------------------------------------------------------


def dtypes(problem):
    return {name: str(leaf.dtype) for name, leaf in problem.params.items()}


@pytest.mark.parametrize(
    ("weight", "data_dtype", "dtype", "becomes"),
    [
        (6.0, np.float64, None, "float64"),  # Python numbers take the data's
        (6.0, np.float32, None, "float32"),
        (6, np.float32, None, "float32"),
        (True, np.float32, None, "float32"),
        (6.0, np.int64, None, "float64"),  # integers are no floating-point data
        (np.array(6), np.float32, None, "float32"),  # whole numbers cannot be descended on
        (np.float64(6), np.float32, None, "float64"),  # arrays and NumPy scalars keep theirs
        (np.array(6.0, np.float32), np.float64, None, "float32"),
        (np.array(6.0, np.float16), np.float64, None, "float16"),
        (torch.tensor(6.0), np.float64, None, "float32"),
        (6.0, np.float64, "float32", "float32"),  # dtype= overrides
        (np.array(6.0), np.float64, np.float32, "float32"),
        (np.array(6.0, np.float32), np.float32, "float64", "float64"),
    ],
)
def test_dtype_follows_what_was_given(weight, data_dtype, dtype, becomes):
    x = np.arange(4).astype(data_dtype)
    problem = tw.Problem(line, "mse", x, x, params={"weight": weight, "bias": 0.0}, dtype=dtype)
    assert dtypes(problem)["weight"] == becomes
    kept = np.dtype(data_dtype) if dtype is None or x.dtype.kind == "i" else np.dtype(dtype)
    assert problem.x.dtype == problem.y.dtype == kept


def test_dtype_without_data():
    assert dtypes(bowl_problem()) == {"x": "float64", "y": "float64"}
    single = bowl_problem(dtype="float32")
    assert dtypes(single) == {"x": "float32", "y": "float32"}
    assert dtypes(single.at({"x": 1.0, "y": 2})) == {"x": "float32", "y": "float32"}
    assert single.risk(single.params).dtype == np.float32


def draw(key):
    return {"weight": jax.random.normal(key, dtype=np.float32), "bias": jnp.zeros(())}


def test_what_init_draws_stays_as_it_is():
    x, y = data()
    drawn = tw.Problem(line, "mse", x, y, init=draw)
    assert drawn.params is None
    assert drawn.names == ("bias", "weight")
    assert drawn.layout.dtypes == (np.float64, np.float32)
    assert tw.Problem(line, "mse", x, y, init=draw, dtype=np.float32).layout.dtypes == (
        np.float32,
        np.float32,
    )


def constants(key):
    return {"weight": 6.0, "bias": jnp.zeros(())}


def test_init_may_give_numbers():
    drawn = tw.Problem(line, "mse", *data(), init=constants, dtype=np.float32)
    assert drawn.layout.dtypes == (np.float32, np.float32)


def scaled_line(scale, w, x):
    return scale * line(w, x)


def test_dtype_reaches_the_arrays_in_a_partial():
    problem = tw.Problem(
        Partial(scaled_line, np.full(50, 2.0)), "mse", *data(), params=START, dtype=np.float32
    )
    assert problem.pointwise(problem.params).dtype == np.float32


# Its own copies -----------------------------------------------------------------------------


def test_what_becomes_of_your_arrays_changes_nothing():
    x, y = data()
    params = {"weight": np.array(6.0), "bias": np.array(-3.0)}
    scale = np.full(50, 2.0)
    given = [x, y, scale, *params.values()]
    before = [array.copy() for array in given]
    problem = tw.Problem(Partial(scaled_line, scale), "mse", x, y, params=params)
    risk = problem.risk(problem.params)
    problem.gradient(params)
    for array, old in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, old)
        array += 1
    assert problem.risk(problem.params) == risk
    assert problem.params["weight"] == 6


@pytest.mark.parametrize(
    "column", [list, torch.tensor, pd.Series, partial(pd.Series, dtype="Float64"), jnp.asarray]
)
def test_lists_tensors_and_series_are_data(column):
    x, y = data()
    problem = tw.Problem(line, "mse", column(x), column(y), params=START)
    np.testing.assert_array_equal(problem.x, x)
    np.testing.assert_allclose(problem.risk(START), np.mean(by_hand(6, -3) ** 2), rtol=1e-12)


def test_tensors_with_gradients_and_frames():
    features = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]})
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    problem = tw.Problem(inner, "mse", features, torch.zeros(3), params=weight)
    # predictions 1, 1, 3 against zeros
    assert problem.risk(problem.params) == 11 / 3
    assert weight.requires_grad


def inner(w, x):
    return x @ w


# Pytrees ------------------------------------------------------------------------------------


class Line(NamedTuple):
    weight: float
    bias: float


@jax.tree_util.register_dataclass
@dataclass
class LineLayer:
    weight: float
    bias: float


def positional(w, x):
    return w[0] * x + w[1]


def attributes(w, x):
    return w.weight * x + w.bias


def nested(w, x):
    return w["out"][0]["weight"] * x + w["out"][1]


def slope(w, x):
    return w * x


@pytest.mark.parametrize(
    ("predict", "params", "names"),
    [
        (line, START, ("bias", "weight")),
        (positional, (6.0, -3.0), ("0", "1")),
        (positional, [6.0, -3.0], ("0", "1")),
        (positional, np.array([6.0, -3.0]), ("w[0]", "w[1]")),
        (attributes, Line(6.0, -3.0), ("weight", "bias")),
        (attributes, LineLayer(6.0, -3.0), ("weight", "bias")),
        (nested, {"out": ({"weight": 6.0}, -3.0)}, ("out.0.weight", "out.1")),
        (slope, 6.0, ("w",)),
    ],
)
def test_any_pytree_is_parameters(predict, params, names):
    problem = tw.Problem(predict, "mse", *data(), params=params)
    assert problem.names == names
    assert problem.size == len(names)
    e = by_hand(6, 0 if predict is slope else -3)
    np.testing.assert_allclose(problem.risk(params), np.mean(e**2), rtol=1e-12)
    x, _ = data()
    wanted = {"weight": np.mean(2 * e * x), "bias": np.mean(2 * e)}
    gradient = problem.flatten(problem.gradient(params))
    order = ["weight"] if predict is slope else ["weight", "bias"]
    if predict is line:
        order.reverse()
    np.testing.assert_allclose(gradient, [wanted[name] for name in order], rtol=1e-12)
    there_and_back = problem.unflatten(problem.flatten(problem.params))
    assert jax.tree_util.tree_structure(there_and_back) == jax.tree_util.tree_structure(params)
    jax.tree_util.tree_map(np.testing.assert_array_equal, there_and_back, problem.params)


def two_inputs(w, x):
    return w["weight"] * x["a"] + w["bias"] * x["b"]


def test_data_may_be_a_pytree():
    x = {"a": np.array([1.0, 2.0]), "b": np.array([0, 1])}
    problem = tw.Problem(two_inputs, "mse", x, np.zeros(2), params=START)
    np.testing.assert_array_equal(problem.pointwise(START), [36, 81])  # 6·1, then 6·2 − 3


# Risks --------------------------------------------------------------------------------------


def decay(w):
    return 0.1 * (w["weight"] ** 2 + w["bias"] ** 2)


def true_risk(w):
    """With x ~ N(0, 1) and y = 2x + 1 + ε, ε ~ N(0, 0.3²)."""
    return (w["weight"] - 2) ** 2 + (w["bias"] - 1) ** 2 + 0.3**2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_three_risks_and_the_penalty(reduction):
    problem = line_problem(reduction=reduction, penalty=decay, expected=true_risk)
    e, penalty = by_hand(6, -3), 0.1 * (36 + 9)
    empirical = getattr(np, reduction)(e**2)
    np.testing.assert_allclose(problem.pointwise(START), e**2, rtol=1e-12)
    np.testing.assert_allclose(problem.risk(START), empirical + penalty, rtol=1e-12)
    np.testing.assert_allclose(problem.risk(START, penalty=False), empirical, rtol=1e-12)
    np.testing.assert_allclose(problem.expected(START), 16 + 16 + 0.09 + penalty, rtol=1e-12)
    np.testing.assert_allclose(problem.expected(START, penalty=False), 32.09, rtol=1e-12)
    x, _ = data()
    gradient = problem.gradient(START)
    reduce = getattr(np, reduction)
    np.testing.assert_allclose(gradient["weight"], reduce(2 * e * x) + 0.2 * 6, rtol=1e-12)
    np.testing.assert_allclose(gradient["bias"], reduce(2 * e) - 0.2 * 3, rtol=1e-12)


def test_expected_risk_where_none_was_given():
    with pytest.raises(InputError, match="has no expected risk; give it as"):
        line_problem().expected(START)


def mlp(w, x):
    return jnp.tanh(x @ w["l1"]["weight"].T + w["l1"]["bias"]) @ w["l2"].T


def test_gradient_of_a_network_is_torchs():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    params = {
        "l1": {"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(4)},
        "l2": rng.standard_normal((2, 4)),
    }
    weight, bias, out = (
        torch.tensor(a, requires_grad=True)
        for a in (params["l1"]["weight"], params["l1"]["bias"], params["l2"])
    )
    hidden = torch.tanh(torch.nn.functional.linear(torch.tensor(x), weight, bias))
    risk = torch.nn.MSELoss()(torch.nn.functional.linear(hidden, out), torch.tensor(y))
    risk.backward()
    problem = tw.Problem(mlp, "mse", x, y, params=params)
    gradient = problem.gradient(params)
    np.testing.assert_allclose(problem.risk(params), risk.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient["l1"]["weight"], weight.grad, rtol=1e-12)
    np.testing.assert_allclose(gradient["l1"]["bias"], bias.grad, rtol=1e-12)
    np.testing.assert_allclose(gradient["l2"], out.grad, rtol=1e-12)


# Residuals ----------------------------------------------------------------------------------


def columns(w, x):
    return jnp.stack([line(w, x), -line(w, x), x], axis=1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("outputs", [None, 3])
def test_squared_residuals_sum_to_the_risk(reduction, outputs):
    x, y = data()
    predict, y = (line, y) if outputs is None else (columns, np.stack([y, y, y], axis=1))
    problem = tw.Problem(predict, "mse", x, y, params=START, reduction=reduction, penalty=decay)
    residuals = problem.residuals(START)
    assert residuals.shape == (y.size,)
    np.testing.assert_allclose(
        np.sum(np.square(residuals)), problem.risk(START, penalty=False), rtol=1e-12
    )


def rosenbrock_residuals(w):
    return jnp.array([10 * (w["y"] - w["x"] ** 2), 1 - w["x"]])


def test_from_residuals():
    # Rosenbrock at (−1.2, 1): residuals 10·(1 − 1.44) and 2.2, risk 19.36 + 4.84
    problem = tw.Problem.from_residuals(rosenbrock_residuals, params={"x": -1.2, "y": 1.0})
    np.testing.assert_allclose(problem.residuals(problem.params), [-4.4, 2.2], rtol=1e-12)
    np.testing.assert_allclose(problem.risk(problem.params), 24.2, rtol=1e-12)
    assert problem.n_samples == 0


def test_residuals_belong_to_least_squares():
    for problem in (line_problem("l1"), bowl_problem()):
        with pytest.raises(InputError, match="least-squares problems only"):
            problem.residuals(problem.params)


def test_from_function():
    problem = bowl_problem()
    assert problem.names == ("x", "y")
    assert problem.risk({"x": 1.0, "y": -2.0}) == 0
    assert problem.risk({"x": 2.0, "y": 0.0}) == 1 + 12 + 2
    np.testing.assert_array_equal(problem.pointwise({"x": 2.0, "y": 0.0}), [15])
    assert problem.gradient({"x": 2.0, "y": 0.0}) == {"x": 2 * 1 + 2, "y": 6 * 2 + 1}


def test_from_catalogue():
    # Rosenbrock's minimum is 0 at (1, 1)
    problem = tw.Problem.from_catalogue("rosenbrock")
    assert problem.risk({"x": 1.0, "y": 1.0}) == 0
    with pytest.raises(InputError, match="did you mean 'himmelblau'"):
        tw.Problem.from_catalogue("Himmelbrau")


# A part of the samples ----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_take_is_the_problem_on_those_samples(reduction):
    index = np.array([3, 0, 3, 41])
    e = by_hand(6, -3)[index]
    part = line_problem(reduction=reduction).take(index)
    np.testing.assert_allclose(part.pointwise(START), e**2, rtol=1e-12)
    np.testing.assert_allclose(part.risk(START), getattr(np, reduction)(e**2), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_is_masked_counts_for_nothing(reduction):
    index, valid = np.array([3, 7, 0, 0]), np.array([True, True, False, False])
    whole = line_problem(reduction=reduction)
    masked, part = whole.take(index, valid), whole.take(index[:2])
    np.testing.assert_allclose(masked.risk(START), part.risk(START), rtol=1e-12)
    np.testing.assert_allclose(
        whole.flatten(masked.gradient(START)), whole.flatten(part.gradient(START)), rtol=1e-12
    )
    residuals = np.asarray(masked.residuals(START))
    np.testing.assert_allclose(residuals[:2], part.residuals(START), rtol=1e-12)
    np.testing.assert_array_equal(residuals[2:], 0)
    listed = whole.take(index.tolist(), valid.tolist())
    np.testing.assert_array_equal(listed.risk(START), masked.risk(START))
    assert listed.without_left_out().n_samples == 2
    for wrong in (valid[:3], [1, 1, 0, 0], True):
        with pytest.raises(InputError, match="one boolean for each of the 4 samples"):
            whole.take(index, wrong)


# As a pytree --------------------------------------------------------------------------------

TRACES = []


def counted(w, x):
    TRACES.append(1)
    return line(w, x)


def counted_scaled(scale, w, x):
    TRACES.append(1)
    return scale * line(w, x)


@jax.jit
def compiled_risk(problem, params):
    return problem.risk(params)


@pytest.mark.parametrize("predict", [counted, Partial(counted_scaled, np.float64(1))])
def test_other_numbers_are_the_same_program(predict):
    x, y = data()
    another = predict if predict is counted else Partial(counted_scaled, np.float64(2))
    factor = 1 if predict is counted else 2
    first = tw.Problem(predict, "mse", x, y, params=START)
    second = tw.Problem(another, "mse", x + 1, y - 1, params={"weight": 1.0, "bias": 2.0})
    for risk in (tw.Problem.risk, compiled_risk, tw.Problem.gradient, tw.Problem.pointwise):
        risk(first, first.params)
        before = len(TRACES)
        risk(second, second.params)
        assert len(TRACES) == before
    e = factor * ((x + 1) + 2) - (y - 1)
    np.testing.assert_allclose(compiled_risk(second, second.params), np.mean(e**2), rtol=1e-12)


def test_risks_go_through_transformations():
    problem = bowl_problem()
    xs = np.array([0.0, 1.0, 2.0])
    risks = jax.vmap(problem.risk)({"x": xs, "y": np.full(3, -2.0)})
    np.testing.assert_array_equal(risks, (xs - 1) ** 2)
    assert jax.grad(problem.risk)({"x": 2.0, "y": 0.0}) == {"x": 4, "y": 13}


def test_a_problem_with_init_alone_goes_through_jit():
    problem = tw.Problem(line, "mse", *data(), init=draw)
    np.testing.assert_allclose(
        compiled_risk(problem, START), np.mean(by_hand(6, -3) ** 2), rtol=1e-12
    )


def test_another_start():
    moved = line_problem().at({"weight": 1, "bias": 2})
    assert moved.params == {"weight": 1, "bias": 2}
    assert moved.risk(moved.params) == line_problem().risk({"weight": 1.0, "bias": 2.0})


@jax.tree_util.register_pytree_with_keys_class
class Frozen(Mapping):
    """A mapping of a library's own, as FrozenDict."""

    def __init__(self, entries):
        self.entries = dict(entries)

    def __getitem__(self, key):
        return self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)

    def tree_flatten_with_keys(self):
        keys = sorted(self.entries)
        return [(jax.tree_util.DictKey(key), self.entries[key]) for key in keys], tuple(keys)

    @classmethod
    def tree_unflatten(cls, keys, values):
        return cls(zip(keys, values, strict=True))


def test_mappings_of_other_libraries_stay_what_they_are():
    problem = tw.Problem(line, "mse", *data(), params=Frozen(START))
    for given in (problem.params, Frozen(START), START, np.array([-3.0, 6.0])):
        assert isinstance(problem.at(given).params, Frozen)
        assert isinstance(problem.gradient(given), Frozen)
        assert problem.risk(given) == line_problem().risk(START)


def test_a_point_may_be_a_vector_an_ordered_mapping_or_an_iterate():
    problem = line_problem()
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2)
    vector = path["params"].values[2]
    point = problem.unflatten(vector)
    risk, gradient = problem.risk(point), problem.gradient(point)
    for given in (vector, OrderedDict(weight=vector[1], bias=vector[0]), path["final"]):
        assert problem.risk(given) == risk
        assert problem.gradient(given) == gradient
        np.testing.assert_array_equal(problem.flatten(given), vector)
        np.testing.assert_array_equal(tw.hessian(problem, given).point, vector)
        plane = tw.line(problem, problem.params, given)
        np.testing.assert_allclose(plane.origin + plane.directions[0], vector, rtol=1e-12)
    nested = tw.Problem.from_function(
        lambda w: w["a"]["b"] ** 2 + (w["c"][0]["d"] ** 2).sum(),
        params={"a": {"b": 1.0}, "c": [{"d": np.ones(2)}]},
    )
    inner = [OrderedDict(d=torch.ones(2, requires_grad=True, dtype=torch.float64))]
    assert nested.risk(OrderedDict(c=inner, a={"b": 3.0})) == 11
    with pytest.raises(InputError, match="this iterate has other parameters"):
        problem.risk(path["final"].assign_coords(param=["a", "b"]))


# Bad input ----------------------------------------------------------------------------------

X, Y = data(6)
NAN = np.where(np.arange(6) == 4, np.nan, X)
MASKED = np.ma.masked_array(X, mask=np.arange(6) == 4)


def column(w, x):
    return line(w, x)[:, None]


def constant(w, x):
    return w["weight"] * jnp.ones(3)


def number(w, x):
    return w["weight"]


def pair(w, x):
    return line(w, x), line(w, x)


def averaged(yhat, y):
    return jnp.mean((yhat - y) ** 2)


def vector(w):
    return jnp.array([w["weight"], w["bias"]])


def triple(key):
    return jnp.zeros(3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # the classic silent broadcast: both shapes, and a remedy
        ({"predict": column}, r"shape \(6, 1\) but y has shape \(6,\).*predict\(\.\.\.\)\[:, 0\]"),
        ({"y": Y[:, None]}, r"shape \(6,\) but y has shape \(6, 1\).*y\[\.\.\., 0\]"),
        ({"predict": columns}, r"shape \(6, 3\) but y has shape \(6,\)"),
        ({"predict": column, "loss": lambda yhat, y: (yhat - y) ** 2}, r"returns \(6, 6\)"),
        ({"y": Y[:5]}, r"same number of samples; x has shape \(6,\), y has shape \(5,\)"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": 1.0, "y": 2.0}, "first axis over samples"),
        ({"y": tuple(Y)}, "write a list or an array"),
        ({"y": None}, "y is None"),
        ({"x": None}, "x holds no data; a model without inputs is Problem.from_function"),
        ({"x": {}, "y": None}, "x holds no data"),
        # numbers that are none
        ({"x": NAN}, r"x holds values that are not finite: 1 of 6, the first at x\[4\]"),
        ({"y": np.where(X[2] == X, np.inf, Y)}, r"the first at y\[2\]"),
        ({"x": np.stack([X, NAN], axis=1)}, r"the first at x\[4, 1\]"),
        ({"x": {"a": X, "b": NAN}}, r"the first at x\['b'\]\[4\]"),
        ({"x": MASKED}, "x holds masked values"),
        ({"x": ["1", "2"]}, "x must hold real numbers; dtype <U1"),
        ({"x": pd.Series(["a", "b"])}, "x must hold real numbers"),
        ({"x": [[1.0], [1.0, 2.0]]}, "x cannot be read as an array"),
        # names
        ({"loss": "mes"}, "unknown loss 'mes'; did you mean 'mse'"),
        ({"reduction": "meen"}, "unknown reduction 'meen'; did you mean 'mean'"),
        ({"dtype": "flaot32"}, "dtype must be a floating-point type"),
        ({"dtype": int}, "dtype must be a floating-point type"),
        # functions
        ({"loss": averaged}, r"shape \(6,\); it returns \(\)\. Do not average inside it"),
        ({"loss": lambda yhat, y: (yhat, y)}, "one value per sample"),
        ({"loss": 3}, "loss must be a function, int given"),
        ({"predict": "line"}, "predict must be a function, str given"),
        ({"predict": constant}, r"one prediction per sample, 6 along.*shape \(3,\)"),
        ({"predict": number}, r"one prediction per sample, 6 along.*shape \(\)"),
        ({"predict": pair}, "one array with one array"),
        ({"penalty": vector}, r"penalty\(params\) must return a scalar; it returns shape \(2,\)"),
        ({"expected": vector}, r"expected\(params\) must return a scalar"),
        ({"penalty": lambda params: "none"}, "penalty must return numbers or arrays; str returned"),
        # parameters
        ({"params": None}, r"needs params= \(a starting point\) or init="),
        ({"params": {}}, "params hold no parameters"),
        ({"params": np.zeros(0)}, "params hold no parameters"),
        ({"params": {"weight": np.nan, "bias": 0.0}}, "'weight' holds values that are not finite"),
        ({"params": {"weight": np.array([1, np.inf]), "bias": 0.0}}, "not finite"),
        ({"params": {"weight": "6", "bias": 0.0}}, "'weight' must hold real numbers; '6' given"),
        ({"params": {"weight": 1j, "bias": 0.0}}, "'weight' must hold real numbers; 1j given"),
        ({"params": torch.nn.Sequential(torch.nn.Linear(1, 1))}, "'w' must hold real numbers"),
        ({"params": {"a": {"b": 1.0}, "a.b": 2.0}}, "two parameters have the name 'a.b'"),
        ({"init": triple}, "init= and params= must give the same parameters"),
        ({"params": None, "init": lambda key: {}}, "params hold no parameters"),
        (
            {"params": None, "init": lambda key: {"weight": 0, "bias": 0.0}},
            "'weight' must be a real",
        ),
    ],
)
def test_bad_input_is_one_clear_line(change, says):
    given = {"predict": line, "loss": "mse", "x": X, "y": Y, "params": START} | change
    with pytest.raises(InputError, match=says) as caught:
        tw.Problem(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tw.Problem.from_function(vector, params=START), "must return a scalar"),
        (lambda: tw.Problem.from_residuals(decay, params=START), r"must return a vector \(m,\)"),
        (lambda: tw.Problem.from_function(bowl), "needs params="),
        (lambda: line_problem().at({"weight": 1.0}), r"expected \{bias \(\), weight \(\)\}"),
        # three weights would broadcast against three samples
        (lambda: line_problem(n=3).risk({"weight": np.ones(3), "bias": 0.0}), r"weight \(3,\)"),
        (lambda: line_problem().gradient({"wieght": 1.0, "bias": 0.0}), "entries.*wieght"),
        (lambda: line_problem().risk(np.zeros(3)), "entries"),
    ],
)
def test_what_does_not_fit_the_problem_is_refused(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_error_is_one_line_whatever_it_repeats():
    assert str(InputError("expected this;\n  that\n given.")) == "expected this; that given."


def in_numpy(w, x):
    return np.exp(w["weight"]) * x


def with_if(w, x):
    return x if w["weight"] > 0 else -x


@pytest.mark.parametrize("predict", [in_numpy, with_if])
def test_models_that_jax_cannot_trace_are_one_clear_line(predict):
    with pytest.raises(InputError, match=r"predict must be .* jax\.numpy") as caught:
        tw.Problem(predict, "mse", [1.0, 2.0], [1.0, 2.0], params={"weight": 1.0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "says"),
    [({1: 0.0, "a": 1.0}, "must all be strings"), ({"w": None}, "params hold no parameters")],
)
def test_parameters_that_are_no_tree_of_numbers_are_refused(params, says):
    with pytest.raises(InputError, match=says):
        tw.Problem.from_function(lambda w: 0.0, params=params)


def test_what_is_left_out_stays_so_in_parts():
    kept = np.arange(12) % 3 > 0
    whole = tw.Problem(lambda w, x: w * x, "mse", np.arange(1.0, 13), np.zeros(12), params=1.0)
    masked = whole.take(np.arange(12), kept)
    part = masked.take(np.arange(6))
    assert float(part.risk(1.0)) == pytest.approx((np.array([2, 3, 5, 6]) ** 2).mean())
    path = tw.descend(masked, tw.SGD(lr=0.0), epochs=1, batch_size=4)
    squares = np.where(kept, np.arange(1.0, 13) ** 2, np.nan).reshape(3, 4)
    np.testing.assert_allclose(path.loss[:3], np.nanmean(squares, axis=1), rtol=1e-12)
    norms = tw.gradient_norms(masked, 1.0)
    np.testing.assert_allclose(norms, 2 * np.arange(1, 13)[kept] ** 2, rtol=1e-12)
    with pytest.raises(InputError, match="all samples of this problem are left out"):
        tw.gradient_norms(whole.take(np.arange(12), np.zeros(12, bool)), 1.0)


def test_a_loss_without_targets_is_given_none():
    def size(yhat, y):
        assert y is None
        return (yhat["code"] ** 2).sum(axis=1)

    x, params = np.ones((5, 4)), {"w": np.ones((4, 2)), "bias": None}
    problem = tw.Problem(lambda w, x: {"code": x @ w["w"]}, size, x, None, params=params)
    assert float(problem.risk(problem.params)) == 32
    assert problem.size == 8  # where a pytree has None it has nothing
    assert tw.descend(problem, tw.SGD(lr=0.001), steps=2).loss[-1] < 32


def test_a_step_of_a_trajectory_is_a_point():
    problem = line_problem()
    path = tw.descend(problem, tw.SGD(lr=[0.1, 0.2]), steps=3)
    one = path.isel(lr=0)
    expected = float(one.loss[2])
    for point in (one.isel(step=2), one["params"].isel(step=2)):
        assert float(problem.at(point).risk(point)) == pytest.approx(expected, rel=1e-12)
    for several in (path, one["params"], path["final"]):
        with pytest.raises(
            InputError, match=r"one iterate, on the dimension 'param' alone; this has .*, "
        ):
            problem.at(several)


@jax.tree_util.register_dataclass
@dataclass
class Sized:
    weight: object
    dims: object


def test_parameters_may_have_whatever_fields():
    problem = tw.Problem(
        lambda w, x: w.weight * x + w.dims, "mse", *data(), params=Sized(2.0, np.ones(()))
    )
    assert problem.at(Sized(1.0, 0.5)).params.weight == 1


def test_torchs_losses_are_refused_with_the_remedy():
    x, y = data()
    for loss in (torch.nn.MSELoss(), torch.nn.functional.mse_loss):
        with pytest.raises(InputError, match=r"PyTorch's (MSELoss|mse_loss).*from_torch"):
            tw.Problem(line, loss, x, y, params=START)


def test_functions_without_a_module_are_functions():
    names = {}
    exec("def predict(w, x): return w['weight'] * x + w['bias']", names)
    assert names["predict"].__module__ is None or names["predict"].__module__ == "builtins"
    x, y = data()
    problem = tw.Problem(names["predict"], "mse", x, y, params=START)
    assert float(problem.risk(START)) == pytest.approx(float(line_problem().risk(START)), rel=1e-12)


def test_what_cannot_be_trained_is_refused():
    x, y = data()
    with pytest.raises(InputError, match="parameter 'kept' holds booleans"):
        tw.Problem(line, "mse", x, y, params={**START, "kept": np.array([True, False])})
    with pytest.raises(InputError, match="parameter 'key' must hold real numbers"):
        tw.Problem(line, "mse", x, y, params={**START, "key": jax.random.key(0)})
    keys = jax.random.split(jax.random.key(0), len(x))
    with pytest.raises(InputError, match=r"x\['key'\] must hold real numbers"):
        tw.Problem(line, "mse", {"x": x, "key": keys}, y, params=START)


TAKING = [
    name
    for name in tw.__all__
    if inspect.isroutine(call := getattr(tw, name))
    and next(iter(inspect.signature(call).parameters), None) == "problem"
    and name != "to_torch"  # which asks for a problem of from_torch's
]


@pytest.mark.parametrize("name", TAKING)
def test_what_is_not_a_problem_is_refused_in_one_line(name):
    call = getattr(tw, name)
    required = [p for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    positional = [p for p in required if p.kind is not p.KEYWORD_ONLY]
    with pytest.raises(InputError, match=r"a thalweg\.Problem was expected, str given"):
        call("a name", *positional[1:])


def test_a_models_code_is_run_once_for_all_programs_of_its_shapes():
    runs = []

    def predict(params, x):
        runs.append(x.shape)
        return jnp.tanh(x @ params["w"]) @ params["v"]

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=7)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=4)}
    jax.clear_caches()
    problem = tw.Problem(predict, "mse", x, y, params=params)
    runs.clear()
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3, record={"sharpness": tw.sharpness})
    assert np.isfinite(path["sharpness"]).all()
    tw.descend(problem, tw.Adam(lr=0.1), steps=3, stop={"loss": 1e-9})
    tw.hessian(problem, params).top(1)
    problem.gradient(params)
    # once to see that it is the program that it was, and once for all that is compiled
    assert runs == [x.shape, x.shape]
