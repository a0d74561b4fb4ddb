"""Names of parameters: spelt out where there are few, made when asked for where there are many."""

import itertools
import operator

import numpy as np
import pytest

import thalweg as tw
from thalweg import names

TENSORS = (("a", (2, 3)), ("empty", (0, 4)), ("b", ()), ("c.weight", (2, 1, 2)))
SPELT = (
    *(f"a[{i},{j}]" for i, j in itertools.product(range(2), range(3))),
    "b",
    *(f"c.weight[{i},0,{k}]" for i, k in itertools.product(range(2), range(2))),
)


def test_many_names_are_the_same_names():
    many = names.Names(TENSORS)
    assert len(many) == len(SPELT) == 11
    assert tuple(many) == SPELT
    assert tuple(many[i] for i in range(11)) == SPELT
    assert many[-1] == SPELT[-1]
    assert many[2:9:3] == SPELT[2:9:3]
    with pytest.raises(IndexError):
        many[11]
    assert many == SPELT
    assert operator.eq(SPELT, many)
    assert many == names.Names(TENSORS)
    assert many != SPELT[:-1]
    assert many != names.Names(TENSORS[:-1])
    assert "c.weight[1,0,0]" in many
    assert many.index("b") == 6
    assert many.index("b", 3) == 6
    for absent in (("b", 7), ("b", 0, 6), ("a",)):
        with pytest.raises(ValueError, match="not among"):
            many.index(*absent)
    assert "11 names" in repr(many)
    assert len(names.Names(())) == 0


def test_few_are_a_tuple():
    assert names.names_of(TENSORS) == SPELT
    assert type(names.names_of(TENSORS)) is tuple
    assert type(names.names_of([("w", (names.FEW,))])) is tuple
    assert type(names.names_of([("w", (names.FEW + 1,))])) is names.Names


@pytest.mark.parametrize("spelt", [True, False])
def test_where_a_tensor_lies(spelt):
    every = SPELT if spelt else names.Names(TENSORS)
    for tensor, first, end in (("a", 0, 6), ("b", 6, 7), ("c.weight", 7, 11), ("c", 0, 0)):
        np.testing.assert_array_equal(
            np.flatnonzero(names.within(every, tensor)), np.arange(first, end)
        )


@pytest.mark.parametrize("count", [1, 4])  # spelt out, and not
def test_names_with_brackets_of_their_own(few, count):
    start = {"w[0]": np.ones(count), "w[1]": np.zeros(1)}
    problem = tw.Problem.from_function(
        lambda w: ((w["w[0]"] - 2) ** 2).sum() + (w["w[1]"] ** 2).sum(), params=start
    )
    record = {"moved": tw.movement_by_parameter}
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3, record=record)
    assert tw.plot.movement_by_parameter(path, "moved").get_lines()
    np.testing.assert_array_equal(names.within(problem.names, "w[0]"), [True] * count + [False])


@pytest.mark.parametrize("name", ["tensor", "tensor_shape", "param"])
def test_records_may_not_take_their_place(name):
    problem = tw.Problem.from_catalogue("beale")
    with pytest.raises(tw.InputError, match=name):
        tw.descend(problem, tw.SGD(lr=1e-3), steps=1, record={name: tw.gradient_norm})


def model(w, x):
    return x @ w["w1"] @ w["w2"]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(names, "FEW", 3)


def test_results_of_many_parameters(few, tmp_path):
    """What holds for results with every name holds for those with the tensors' names alone."""
    x = np.linspace(-1, 1, 12).reshape(6, 2)
    start = {"w1": np.eye(2), "w2": np.ones(2)}
    problem = tw.Problem(model, "mse", x, x[:, 0], params=start)
    assert isinstance(problem.names, names.Names)
    record = {"params": True, "moved": tw.movement_by_parameter}
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=5, record=record)
    plane = tw.pca_plane(problem, path)
    surface = tw.landscape(problem, plane)
    for number, result in enumerate((path, surface)):
        assert "param" not in result.coords
        assert result["tensor"].values.tolist() == ["w1", "w2"]
        assert result["tensor_shape"].values.tolist() == ["[2, 2]", "[2]"]
        tw.save(result, tmp_path / f"{number}.nc")
        again = tw.load(tmp_path / f"{number}.nc")
        assert again.identical(result)
        assert names.found(again) == problem.names
    assert plane.project(path)["residual"].max() < 1
    tw.plot.contour(surface, path)
    tw.plotly.surface(surface, path)
    tw.plot.movement_by_parameter(path)
    assert tw.descend(problem, tw.SGD(lr=0.1), steps=5, resume=path).sizes["param"] == 6

    transposed = tw.Problem(
        lambda w, x: model({"w1": w["u1"], "w2": w["w2"]}, x), "mse", x, x[:, 0],
        params={"u1": np.eye(2), "w2": np.ones(2)},
    )  # fmt: skip
    with pytest.raises(tw.InputError, match=r"'w1\[0,0\]'.*'u1\[0,0\]'"):
        tw.descend(transposed, tw.SGD(lr=0.1), steps=5, resume=path)
    with pytest.raises(tw.InputError, match="parameters"):
        tw.landscape(transposed, plane)
    with pytest.raises(tw.InputError, match="parameters"):
        tw.pca_plane(transposed, path)
    with pytest.raises(tw.InputError, match="parameters"):
        tw.pca_plane(transposed, tw.descend(transposed, tw.SGD(lr=0.1), steps=5)).project(path)
