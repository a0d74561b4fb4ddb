"""Optimizers of one's own, against plain loops and against ours."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.descent import descend_again
from thalweg.errors import InputError
from thalweg.optimizers import Optimizer, hyper, switch

tree_map = jax.tree_util.tree_map


class SAM(Optimizer):
    """Sharpness-aware minimisation (Foret et al., 2021), with momentum."""

    lr: Any = hyper(0.1)
    rho: Any = hyper(0.05)
    momentum: Any = hyper(0.0, high=1.0, open_high=True)
    nesterov: bool = switch(False)

    def init(self, params):
        return tree_map(jnp.zeros_like, params)

    def update(self, at, params, state, step):
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree_util.tree_leaves(at.grad)))
        above = tree_map(lambda w, g: w + self.rho * g / size, params, at.grad)
        loss, grad = at.value_and_gradient(above)
        state = tree_map(lambda b, g: self.momentum * b + g, state, grad)
        ahead = tree_map(lambda b, g: self.momentum * b + g, state, grad)
        along = ahead if self.nesterov else state
        params = tree_map(lambda w, d: w - self.lr * d, params, along)
        return params, state, {"loss_above": loss, "first": step == 0}


def network(params, x):
    return jnp.tanh(x[:, None] * params["a"] + params["b"]) @ params["c"]


def regression(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, 30).astype(dtype)
    params = {name: rng.normal(size=8).astype(dtype) for name in "abc"}
    return tw.Problem(network, "mse", x, np.sin(3 * x), params=params)


def plain(problem, steps, lr, rho, momentum, nesterov=False, batches=None):
    """SAM in NumPy, on the problem's own gradients."""

    def gradient(vector, step):
        batch = problem if batches is None else problem.take(batches[step])
        return np.asarray(problem.flatten(batch.gradient(problem.unflatten(vector))))

    w = np.asarray(problem.flatten(problem.params))
    b, iterates = np.zeros_like(w), [w]
    for step in range(steps):
        g = gradient(w, step)
        g = gradient(w + rho(step) * g / np.linalg.norm(g), step)
        b = momentum * b + g
        w = w - lr * (momentum * b + g if nesterov else b)
        iterates.append(w)
    return np.stack(iterates)


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_swept_and_scheduled_as_ours_are(nesterov):
    problem, steps = regression(), 20
    batches = np.random.default_rng(1).integers(0, 30, (steps + 1, 7))
    rule = SAM(lr=[0.01, 0.05], rho=lambda t: 0.1 / (1 + t), momentum=[0.0, 0.8], nesterov=nesterov)
    path = tw.descend(problem, rule, batches=batches[:-1])
    assert path["params"].dims == ("step", "param", "lr", "momentum")
    for lr in (0.01, 0.05):
        for momentum in (0.0, 0.8):
            got = path["params"].sel(lr=lr, momentum=momentum)
            expected = plain(
                problem, steps, lr, lambda t: 0.1 / (1 + t), momentum, nesterov, batches
            )
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    assert path.attrs["settings"].startswith('{"optimizer": {"name": "SAM", "lr": [0.01, 0.05]')


def test_what_it_records_is_recorded():
    problem = regression()
    path = tw.descend(problem, SAM(rho=0.3), steps=5, every=2)
    assert np.isnan(path["loss_above"][0])
    assert path["first"].values.tolist() == [False, False, False, False]
    assert (path["loss_above"][1:].values > path["loss"][1:].values).all()
    stopped = tw.descend(problem, SAM(), steps=500, stop={"loss_above": 0.1})
    row = int(stopped["stopped_at"])
    assert 0 < row < 500
    assert stopped["loss_above"].values[row] <= 0.1 < stopped["loss_above"].values[row - 1]


def test_it_goes_on_where_it_was(tmp_path):
    problem, rule = regression(), SAM(momentum=0.9)
    whole = tw.descend(problem, rule, steps=20)
    first = tw.descend(problem, rule, steps=8)
    file = tw.save(first, tmp_path / "first.nc")
    rest = tw.descend(problem, rule, steps=12, resume=tw.load(file))
    np.testing.assert_array_equal(rest["params"], whole["params"][8:])


def test_numbers_are_typed_as_pythons_own_are():
    """float32 parameters stay so, and what is computed from numbers alone is in float64."""

    class Forgetful(Optimizer):
        lr: Any = hyper(0.1)
        keep: Any = hyper(0.999)

        def init(self, params):
            return {"size": jnp.zeros(()), "rest": 1 - self.keep}

        def update(self, at, params, state, step):
            assert (1 - self.keep).dtype == jnp.float64
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree_util.tree_leaves(params))
            new = tree_map(lambda w, g: w - self.lr * g, params, at.grad)
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree_util.tree_leaves(new))
            # double precision by mistake: the loop puts it right
            new["a"] = new["a"].astype(jnp.float64)
            return new, {"size": at.loss, "rest": state["rest"]}, {}

    problem = regression(np.float32)
    path = tw.descend(problem, Forgetful(lr=[0.1, 0.2], keep=[0.9, 0.99]), steps=10)
    ours = tw.descend(problem, tw.SGD(lr=[0.1, 0.2]), steps=10)
    assert path["params"].dtype == np.float32
    np.testing.assert_array_equal(path["params"].isel(keep=0), ours["params"])
    np.testing.assert_allclose(path["optimizer_state"][0].isel(lr=0), [1 - 0.9, 1 - 0.99])


def test_other_numbers_do_not_compile_again(compilations):
    problem = regression()
    tw.descend(problem, SAM(lr=0.1), steps=10)
    del compilations[:]
    tw.descend(problem, SAM(lr=0.3, rho=0.2, momentum=0.5), steps=17)
    assert not compilations


def test_a_state_begun_by_a_number_of_pythons_is_compiled_for_once(compilations):
    class Counting(Optimizer):
        lr: Any = hyper(0.1)

        def init(self, params):
            return {"seen": 0.0}

        def update(self, at, params, state, step):
            new = tree_map(lambda w, g: w - self.lr * g, params, at.grad)
            return new, {"seen": state["seen"] + 1}, {}

    problem = regression()
    tw.descend(problem, Counting(), steps=10)
    del compilations[:]
    path = tw.descend(problem, Counting(), steps=3000)  # several blocks
    assert not compilations
    assert path["optimizer_state"].values == [3000]


def test_basins_of_ones_own():
    problem = tw.Problem.from_function(
        lambda w: (w["x"] ** 2 - 1) ** 2 + w["y"] ** 2, params={"x": 0.5, "y": 0.0}
    )
    plane = tw.coordinate_plane(problem, {"x": (-2, 2), "y": (-1, 1)}, points=6)
    of_ours = tw.basins(problem, tw.SGD(lr=0.05), plane, steps=300)
    own = tw.basins(problem, SAM(lr=0.05, rho=0.0), plane, steps=300)
    np.testing.assert_array_equal(own["basin"], of_ours["basin"])


class Wrong(Optimizer):
    """Does as it is told."""

    first: ClassVar = {"text": "fast", "complex state": 1j}

    lr: Any = hyper(0.1)
    what: str = switch("")

    def init(self, params):
        return {"count": 0 if self.what == "fraction" else self.first.get(self.what, 0.0)}

    def update(self, at, params, state, step):
        new = tree_map(lambda w, g: w - self.lr * g, params, at.grad)
        return {
            "two": (new, state),
            "no dict": (new, state, None),
            "cut": (tree_map(lambda w: w[:1], new), state, {}),
            "other names": ({"a": new["a"], "b": new["b"], "d": new["c"]}, state, {}),
            "grown": (new, {"count": jnp.zeros(3)}, {}),
            "fraction": (new, {"count": state["count"] + 0.5}, {}),
            "complex": (tree_map(lambda w: w + 1j, new), state, {}),
            "taken": (new, state, {"loss": at.loss}),
            "batch": (new, state, {"batch": at.loss}),
            "number": (new, state, {3: at.loss}),
            "words": (new, state, {"phase": "warm-up"}),
            "key": (new, state, {"key": jax.random.key(0)}),
        }.get(self.what, (new, state, {}))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("two", "Wrong: update must return three things"),
        ("no dict", "Wrong: update must return three things"),
        ("cut", r"parameters of the shapes it was given, {'a': (8,), 'b': (8,), 'c': (8,)}; {'a': (1,)"),
        ("other names", "{'a': (8,), 'b': (8,), 'd': (8,)} given."),
        ("grown", "a state of the shapes it was given, {'count': ()}; {'count': (3,)} given."),
        ("fraction", "a state of the kinds of numbers it was given; float64 given for int64. Begin with 0.0"),
        ("complex", "parameters of the kinds of numbers it was given; complex128 given for float64."),
        ("text", "Wrong: init must return a pytree of arrays of real numbers, or of jax.random's keys; "
         "['count'] is 'fast'."),
        ("complex state", "['count'] is 1j."),
        ("batch", "Wrong: update records 'batch', which a trajectory has already"),
        ("number", "Wrong: update must record arrays of numbers by name; 3: "),
        ("words", "Wrong: update must record arrays of numbers by name; 'phase': 'warm-up' given."),
        ("key", "Wrong: update must record arrays of numbers by name; 'key': "),
        ("taken", "Wrong: update records 'loss', which a trajectory has already"),
    ],
)  # fmt: skip
def test_an_update_of_another_form_is_one_line(what, words):
    with pytest.raises(InputError) as caught:
        tw.descend(regression(), Wrong(what=what), steps=3)
    assert words in str(caught.value)


def test_a_class_of_another_form_is_one_line():
    class Undeclared(Optimizer):
        lr: float = 0.1

        def update(self, at, params, state, step):
            return params, state, {}

    class Idle(Optimizer):
        lr: Any = hyper(0.1)

    with pytest.raises(InputError, match=r"declare lr as hyper\(0.1\)"):
        tw.descend(regression(), Undeclared(), steps=3)
    with pytest.raises(InputError, match="Idle has no update"):
        tw.descend(regression(), Idle(), steps=3)
    with pytest.raises(
        InputError, match="SAM: momentum must be between 0 and 1, and below 1; 1 given"
    ):
        tw.descend(regression(), SAM(momentum=1.0), steps=3)
    with pytest.raises(InputError, match="SAM: nesterov is True or False"):
        tw.descend(regression(), SAM(nesterov=[True, False]), steps=3)


def test_what_it_writes_into_is_its_own():
    """As in PyTorch, a rule may change the dicts it is given; one that has stopped stays where it was."""

    class InPlace(Optimizer):
        lr: Any = hyper(0.1)

        def init(self, params):
            params["a"] = params["a"] + 1
            return {"count": jnp.zeros((), int)}

        def update(self, at, params, state, step):
            for name in params:
                at.grad[name] = self.lr * at.grad[name]
                params[name] = params[name] - at.grad[name]
            state["count"] = state["count"] + 1
            return params, state, {}

    problem, options = regression(), {"steps": 60, "stop": {"loss": 0.5}, "record": ["grad_norm"]}
    path = tw.descend(problem, InPlace(lr=[0.05, 0.1]), **options)
    ours = tw.descend(problem, tw.SGD(lr=[0.05, 0.1]), **options)
    assert (ours["stopped_at"] > 0).all()
    for name in ("stopped_at", "params", "final", "grad_norm"):
        np.testing.assert_array_equal(path[name], ours[name])
    np.testing.assert_array_equal(path["optimizer_state"][0], ours["stopped_at"])


def test_a_state_may_hold_random_keys():
    class Langevin(Optimizer):
        lr: Any = hyper(0.1)

        def init(self, params):
            return {
                "key": jax.random.key(3),
                "more": jax.random.split(jax.random.key(4, impl="rbg")),
            }

        def update(self, at, params, state, step):
            key, now = jax.random.split(state["key"])
            noise = 0.01 * jax.random.normal(now)
            params = tree_map(lambda w, g: w - self.lr * g + noise, params, at.grad)
            return params, {**state, "key": key}, {"noise": noise}

    problem, rule = regression(), Langevin(lr=[0.05, 0.1])
    path = tw.descend(problem, rule, steps=8)
    key, noise = jax.random.key(3), []
    for _ in range(8):
        key, now = jax.random.split(key)
        noise.append(0.01 * float(jax.random.normal(now)))
    np.testing.assert_allclose(path["noise"].sel(lr=0.1)[1:], noise, rtol=1e-12)
    rest = tw.descend(problem, rule, steps=5, resume=path.copy())
    whole = tw.descend(problem, rule, steps=13)
    np.testing.assert_array_equal(rest["params"], whole["params"][8:])


@pytest.mark.parametrize("name", ["seed", "step", "run", "status", "loss"])
def test_a_sweep_needs_a_name_of_its_own(name):
    def update(self, at, params, state, step):
        factor = 0.1 * getattr(self, name)
        return tree_map(lambda w, g: w - factor * g, params, at.grad), state, {}

    body = {"__annotations__": {name: Any}, name: hyper(1.0), "update": update}
    rule: Any = type("Rule", (Optimizer,), body)
    one = tw.descend(regression(), rule(**{name: 2.0}), steps=3)
    np.testing.assert_array_equal(
        one["params"], tw.descend(regression(), tw.SGD(lr=0.2), steps=3)["params"]
    )
    with pytest.raises(
        InputError, match=f"Rule: {name} cannot be swept, .* call the field {name}_"
    ):
        tw.descend(regression(), rule(**{name: [1.0, 2.0]}), steps=3, seed=[0, 1])


def test_a_field_of_another_form_is_one_line():
    with pytest.raises(InputError, match=r"Faster: lr is a field; .* as in lr: Any = hyper"):

        class Faster(tw.SGD):
            lr = 0.3

    with pytest.raises(InputError, match="Taken: a field cannot be called init"):

        class Taken(Optimizer):
            init: Any = hyper(1.0)  # type: ignore[assignment]

    class Bare(Optimizer):
        more: Any

        def update(self, at, params, state, step):
            return params, state, {}

    class Slower(SAM):
        lr: Any = hyper(0.01)

    with pytest.raises(InputError, match=r"Bare: declare more as hyper\(...\), a number"):
        tw.descend(regression(), Bare(more=1.0), steps=3)
    np.testing.assert_array_equal(
        tw.descend(regression(), Slower(), steps=3)["params"],
        tw.descend(regression(), SAM(lr=0.01), steps=3)["params"],
    )


@pytest.mark.parametrize("value", [[1.0], {"a": 1.0}, np.ones(2), jnp.ones(2)], ids=repr)
def test_a_switch_cannot_change(value):
    class Scaled(Optimizer):
        lr: Any = hyper(0.1)
        by: Any = switch((1.0,))

        def update(self, at, params, state, step):
            return tree_map(lambda w, g: w - sum(self.by) * self.lr * g, params, at.grad), state, {}

    with pytest.raises(InputError, match="Scaled: by must be of a type that cannot change"):
        tw.descend(regression(), Scaled(by=value), steps=3)
    path = tw.descend(regression(), Scaled(by=(1.0, 1.0)), steps=3)
    np.testing.assert_array_equal(
        path["params"], tw.descend(regression(), tw.SGD(lr=0.2), steps=3)["params"]
    )


def test_basins_know_gradient_descent_by_more_than_its_name():
    """Ascent leaves the minima that it starts beside, whatever the class is called."""

    class SGD(Optimizer):
        lr: Any = hyper(0.1)

        def update(self, at, params, state, step):
            return tree_map(lambda w, g: w + self.lr * g, params, at.grad), state, {}

    problem = tw.Problem.from_function(
        lambda w: jnp.sum((w["w"] ** 2 - 1) ** 2), params={"w": np.array([0.5, 0.5])}
    )
    plane = tw.coordinate_plane(problem, {"w[0]": (0.92, 1.06), "w[1]": (0.92, 1.06)}, points=4)
    assert (tw.basins(problem, tw.SGD(lr=0.05), plane, steps=50)["basin"] == 0).all()
    assert not (tw.basins(problem, SGD(lr=0.05), plane, steps=50)["basin"] >= 0).any()


def test_what_no_update_has_recorded_yet_is_missing():
    class Kinds(Optimizer):
        lr: Any = hyper(0.1)

        def update(self, at, params, state, step):
            new = tree_map(lambda w, g: w - self.lr * g, params, at.grad)
            return new, state, {"z": 1j * at.loss, "n": step, "u": jnp.uint8(3)}

    path = tw.descend(regression(), Kinds(), steps=2)
    assert np.isnan(path["z"][0])
    assert not np.isnan(path["z"][1:]).any()
    assert path["n"].values.tolist() == [-1, 0, 1]
    assert path["u"].values.tolist() == [0, 3, 3]


def test_a_result_does_not_hold_a_class():
    """Not even one that has the name of ours."""

    class Adam(Optimizer):
        lr: Any = hyper(0.001)

        def update(self, at, params, state, step):
            return tree_map(lambda w, g: w - self.lr * g, params, at.grad), state, {}

    path = tw.descend(tw.Problem.from_catalogue("rosenbrock"), Adam(), steps=3)
    with pytest.raises(
        InputError, match=r"a class of your own \(.*Adam\), which a result cannot hold"
    ):
        descend_again(path)


def test_the_names_of_a_pair_are_its_own():
    class Clash(SAM):
        PAIRS: ClassVar = {"betas": ("lr", "beta2")}
        betas: Any = hyper((0.5, 0.9))

    with pytest.raises(InputError, match="Clash: two hyperparameters are called lr"):
        tw.descend(regression(), Clash(), steps=3)


def test_python_that_branches_on_numbers_is_one_line():
    class Branching(Optimizer):
        lr: Any = hyper(0.1)

        def update(self, at, params, state, step):
            rate = self.lr if self.lr > 0.05 else 0.0
            return tree_map(lambda w, g: w - rate * g, params, at.grad), state, {}

    with pytest.raises(InputError, match=r"Branching.update must be a pure function .* switches"):
        tw.descend(regression(), Branching(), steps=3)


def test_no_limit_of_stability_is_claimed_for_a_class_of_the_name_of_ours():
    class Adagrad(Optimizer):
        lr: Any = hyper(0.1)

        def update(self, at, params, state, step):
            return tree_map(lambda w, g: w - 3 * self.lr * g, params, at.grad), state, {}

    path = tw.descend(regression(), Adagrad(), steps=3, record={"preconditioned": at_one})
    with pytest.raises(InputError, match=r"made by .*Adagrad\."):
        tw.stability_threshold(path)
    ax = tw.plot.sharpness(path, "preconditioned")
    assert not any("stable" in text.get_text() for text in ax.get_legend().get_texts())
    assert not ax.texts


def at_one(at):
    return jnp.float64(1.0)
