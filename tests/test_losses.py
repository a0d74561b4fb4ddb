"""The named losses against `torch.nn.functional`: values, gradients and what happens at kinks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (as everyone writes it)

import thalweg as tw
from thalweg import losses
from thalweg.risks import value_and_gradient

TOLERANCE = 1e-12
REDUCTIONS = ("mean", "sum")

both = jax.jit(value_and_gradient)


def table(yhat, x):
    """The model whose parameters are its predictions: its gradient is the loss's own."""
    return yhat


def problem(loss, yhat, y, reduction="mean"):
    return tw.Problem(table, loss, np.zeros(len(y)), y, params=yhat, reduction=reduction)


def assert_as_in_torch(loss, reference, yhat, y, reduction):
    predictions = torch.tensor(yhat, requires_grad=True)
    expected = reference(predictions, torch.tensor(y), reduction=reduction)
    expected.backward()
    ours = problem(loss, yhat, y, reduction)
    value, gradient = both(ours, ours.params)
    np.testing.assert_allclose(value, expected.item(), rtol=TOLERANCE)
    np.testing.assert_allclose(gradient, predictions.grad.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    total = getattr(np, reduction)(ours.pointwise(ours.params))
    np.testing.assert_allclose(total, expected.item(), rtol=TOLERANCE)


def huber(yhat, y, reduction):
    return F.huber_loss(yhat, y, reduction=reduction, delta=1.35)


def smooth_l1(beta):
    return lambda yhat, y, reduction: F.smooth_l1_loss(yhat, y, reduction=reduction, beta=beta)


# Differences on both sides of every kink (0, ±½, ±1, ±1.35) and on the kinks themselves: all are
# multiples of 1/4 but ±1.35, so that y + d − y is d without rounding.
DIFFERENCES = np.array([0, 0.25, -0.25, 0.5, -0.5, 1, -1, 1.25, 1.5, -3, 1.35, -1.35])
TARGETS = np.array([0, 1, -2, 0.5, 3, 0, 4, -1, 2, 0.25, 0, 0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(12,), (12, 1), (6, 2), (3, 2, 2)])
@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("mse", F.mse_loss),
        ("l1", F.l1_loss),
        ("huber:1.35", huber),
        ("smooth_l1", smooth_l1(1.0)),
        ("smooth_l1:0.5", smooth_l1(0.5)),
        ("smooth_l1:0", smooth_l1(0.0)),
    ],
)
def test_regression(loss, reference, shape, reduction):
    y = TARGETS.reshape(shape)
    assert_as_in_torch(loss, reference, y + DIFFERENCES.reshape(shape), y, reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(12,), (6, 2)])
def test_binary_cross_entropy(shape, reduction):
    logits = (4 * DIFFERENCES).reshape(shape)
    y = np.linspace(0, 1, 12).reshape(shape)
    assert_as_in_torch("bce_with_logits", F.binary_cross_entropy_with_logits, logits, y, reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("extra", [(), (2,), (2, 3)])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_cross_entropy(kind, extra, reduction):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((5, 4, *extra))
    if kind == "classes":
        y = rng.integers(0, 4, (5, *extra))
    else:
        y = rng.random(logits.shape)
        y /= y.sum(axis=1, keepdims=True)
    assert_as_in_torch("cross_entropy", F.cross_entropy, logits, y, reduction)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype):
    # log(1 + e^ŷ) − yŷ is 0 where a sure answer is right, |ŷ| where it is wrong
    logits, y = np.array([1e4, -1e4, 1e4, -1e4], dtype), np.array([1, 0, 0, 1], dtype)
    binary = problem("bce_with_logits", logits, y)
    np.testing.assert_array_equal(binary.pointwise(logits), [0, 0, 1e4, 1e4])
    np.testing.assert_array_equal(binary.gradient(logits), np.array([0, 0, 1, -1]) / 4)
    # the same answers as two classes, whose logits differ by ŷ
    two = np.stack([np.zeros_like(logits), logits], axis=1)
    classes = problem("cross_entropy", two, y.astype(int))
    np.testing.assert_array_equal(classes.pointwise(two), [0, 0, 1e4, 1e4])
    assert np.isfinite(classes.gradient(two)).all()


def test_derivatives_at_zero_are_zero_as_in_torch():
    for loss in (losses.l1(), losses.huber(), losses.smooth_l1(0)):
        assert jax.grad(loss, argnums=0)(1.0, 1.0) == 0
        assert jax.grad(jax.grad(loss, argnums=0))(1.0, 1.0) in (0, 1)  # finite: huber's is 1
    assert jax.grad(losses.absolute)(0.0) == 0


def test_mean_over_outputs_is_not_sum_over_outputs():
    # trap 2: e = (1, 2) and (−1, 3). Σe² = 15, (Σe)² = 25; per sample 5 and 10, halves for the mean
    yhat, y = np.array([[1.0, 2.0], [-1.0, 3.0]]), np.zeros((2, 2))
    np.testing.assert_array_equal(problem("mse", yhat, y, "sum").pointwise(yhat), [5, 10])
    np.testing.assert_array_equal(problem("mse", yhat, y, "mean").pointwise(yhat), [2.5, 5])
    assert problem("mse", yhat, y, "sum").risk(yhat) == 15
    assert problem("mse", yhat, y, "mean").risk(yhat) == 15 / 4


def test_a_loss_of_your_own_is_reduced_over_samples_alone():
    yhat, y = np.array([[1.0, 2.0], [-1.0, 3.0]]), np.zeros((2, 2))
    norms = problem(euclidean, yhat, y)
    np.testing.assert_allclose(norms.pointwise(yhat), np.sqrt([5, 10]), rtol=TOLERANCE)
    np.testing.assert_allclose(norms.risk(yhat), np.sqrt([5, 10]).mean(), rtol=TOLERANCE)


def euclidean(yhat, y):
    return jnp.sqrt(jnp.sum((yhat - y) ** 2, axis=1))


def test_a_name_with_its_parameter_is_the_loss_itself():
    named, made = losses.by_name("huber:1.35"), losses.huber(1.35)
    assert named(3.0, 0.0) == made(3.0, 0.0) == 1.35 * (3 - 1.35 / 2)
    assert losses.by_name("huber")(3.0, 0.0) == 3 - 0.5
    assert named(np.array([3]), np.array([0])) == made(3.0, 0.0)  # and δ is no integer for integers


def test_what_is_no_name_is_refused_as_an_unknown_one():
    with pytest.raises(tw.InputError, match="unknown loss None"):
        losses.by_name(None)
    with pytest.raises(tw.InputError, match="unknown optimizer None"):
        tw.optimizers.by_name(None)
    with pytest.raises(tw.InputError, match="not made by a study"):
        tw.studies.name_of(3)


def squared(yhat, y):
    return (yhat - y) ** 2


@pytest.mark.parametrize("spec", [*losses.NAMED, "huber:1.35", "smooth_l1:0.25"])
def test_a_loss_is_called_what_it_was_asked_for_by(spec):
    name = losses.name_of(losses.by_name(spec))
    assert name == {"huber": "huber:1.0", "smooth_l1": "smooth_l1:1.0"}.get(spec, spec)
    assert losses.name_of(squared) == "squared"


def test_another_delta_is_the_same_program():
    yhat, y = TARGETS + DIFFERENCES, TARGETS
    both(problem("huber:1.1", yhat, y), yhat)
    before = both._cache_size()
    both(problem("huber:1.2", yhat, y), yhat)
    assert both._cache_size() == before


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hubber", "did you mean 'huber'"),
        ("MSE", "did you mean 'mse'"),
        ("cross-entropy", "did you mean 'cross_entropy'"),
        ("mse:2", "takes no parameter"),
        ("huber:one", "'one' is not a number"),
        ("huber:0", "delta must be a positive number"),
        ("huber:-1", "delta must be a positive number"),
        ("huber:nan", "delta must be a positive number"),
        ("smooth_l1:-1", "beta must be a positive number"),
    ],
)
def test_a_loss_that_is_not_there_is_refused(spec, says):
    with pytest.raises(tw.InputError, match=says) as caught:
        problem(spec, TARGETS, TARGETS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [losses.huber, losses.smooth_l1])
@pytest.mark.parametrize("value", ["one", None, np.inf])
def test_a_parameter_that_is_no_number_is_refused(make, value):
    with pytest.raises(tw.InputError, match="must be a positive number"):
        make(value)


@pytest.mark.parametrize(
    ("yhat", "y", "says"),
    [
        (np.zeros((3, 2)), np.array([0, 1, 2]), "classes go from 0 to 1; y holds 0 to 2"),
        (np.zeros((3, 2)), np.array([0, 1, -1]), "y holds -1 to 1"),
        (np.zeros((3, 2)), np.array([0.0, 1.0, 1.0]), "integer classes, or probabilities"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), r"must have shape \(3,\)"),
        (np.zeros(3), np.zeros(3, int), r"needs predictions \(n, classes\)"),
    ],
)
def test_classes_that_do_not_fit_are_refused(yhat, y, says):
    with pytest.raises(tw.InputError, match=says):
        problem("cross_entropy", yhat, y)


@dataclasses.dataclass
class Asymmetric:
    """A loss of the user's own, which has no hash."""

    above: float

    def __call__(self, yhat, y):
        return jnp.where(yhat > y, self.above, 1.0) * (yhat - y) ** 2


def test_a_loss_need_not_have_a_hash():
    own = Asymmetric(3.0)
    for loss in (own, jax.tree_util.Partial(own)):
        problem = tw.Problem(lambda w, x: w * x, loss, np.ones(2), np.array([0.0, 2.0]), params=1.0)
        assert float(problem.risk(1.0)) == 2.0  # 3 · 1² and 1², on average
