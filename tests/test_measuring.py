"""`measure` against what a descent records itself, and against functions of single points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import thalweg as tw
from thalweg import measuring
from thalweg.errors import InputError

RECORD = {
    "grad": True,
    "grad_norm": True,
    "risk": True,
    "movement": True,
    "relative_movement": True,
    "successive_change": True,
    "by_layer": tw.movement_by_parameter,
    "largest": lambda at: jnp.argmax(jnp.abs(at.params["a"]).ravel()),
    "double": (lambda at: 1.0, lambda at, state: (state + at.step, 2 * state)),
}


def network(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 1))
    params = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal((4, 1))}
    return tw.Problem(network, "mse", x, y, params=params)


def same(found, expected, rtol=1e-12):
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        assert found[name].dims == expected[name].dims
        assert found[name].dtype == expected[name].dtype
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(
                found[name], expected[name], rtol=rtol, atol=1e-14, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("room", [3, 1024])
@pytest.mark.parametrize("starts", [None, 2])
@pytest.mark.parametrize("lr", [0.1, [0.05, 0.2, 1e9]])
def test_it_is_what_the_descent_records(problem, lr, starts, room, monkeypatch):
    """Of full batches; of one run that diverges, too."""
    monkeypatch.setattr(measuring, "_MOST_ROWS", room)
    if starts is not None:
        starts = np.stack([problem.flatten(problem.params) * scale for scale in (1, 1.5)])
    options = {"steps": 10, "starts": starts}
    path = tw.descend(problem, tw.SGD(lr=lr), **options)
    expected = tw.descend(problem, tw.SGD(lr=lr), record=RECORD, **options)
    before = path.copy(deep=True)
    found = tw.measure(problem, path, RECORD)
    same(found, expected)
    xr.testing.assert_identical(path, before)
    assert found.attrs["interrupted"] == 0


def test_sharpness_is_that_of_each_point(problem):
    path = tw.descend(problem, tw.Adam(lr=0.05), steps=30, every=10)
    found = tw.measure(problem, path, {"sharpness": tw.sharpness})["sharpness"]
    for step in (0, 10, 30):
        hessian = tw.hessian(problem, path["params"].sel(step=step)).dense()
        np.testing.assert_allclose(found.sel(step=step), np.linalg.eigvalsh(hessian)[-1], rtol=2e-3)


def test_another_problem_and_single_precision(problem):
    """Held-out data, and a path that is kept in other numbers than the problem's."""
    held_out = problem.take(np.arange(4))
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=5)
    found = tw.measure(held_out, path, {"held_out": True} | {"held_out": held_out, "grad": True})
    for row in range(6):
        point = path["params"].isel(step=row)
        np.testing.assert_allclose(
            found["held_out"].isel(step=row), held_out.risk(held_out.unflatten(point.values))
        )
    single = tw.Problem(
        network, "mse", problem.x, problem.y, params=problem.params, dtype="float32"
    )
    risk = tw.measure(single, path, ["risk"])["risk"]
    assert risk.dtype == np.float32
    np.testing.assert_allclose(risk, path["loss"], rtol=1e-5)


def test_a_flow_and_one_step(problem):
    flow = tw.gradient_flow(problem, time=1.0, points=5)
    found = tw.measure(problem, flow, ["grad_norm", "movement"])
    assert found["grad_norm"].dims == ("step",)
    np.testing.assert_allclose(
        found["movement"], np.linalg.norm(flow["params"] - flow["start"], axis=1), atol=1e-15
    )
    last = tw.measure(problem, flow.isel(step=[-1]), ["grad_norm"])
    np.testing.assert_allclose(last["grad_norm"], found["grad_norm"][-1:])


def test_a_recorded_loop(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    problem = tw.from_torch(model, torch.nn.MSELoss(), x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.record(optimizer, model, record=["params", "loss", "grad_norm"]) as path:
        for _ in range(8):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    found = tw.measure(problem, path, {"risk": True, "norm": tw.gradient_norm})
    np.testing.assert_allclose(found["risk"][:-1], path["loss"][:-1], rtol=1e-6)
    np.testing.assert_allclose(found["norm"][:-1], path["grad_norm"][:-1], rtol=1e-5)
    assert np.isfinite(found["norm"][-1])  # which the loop did not know
    tw.save(found, tmp_path / "found.nc")
    xr.testing.assert_identical(tw.load(tmp_path / "found.nc"), found)


def test_ctrl_c_keeps_what_was_measured(problem, monkeypatch):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=20)
    run = measuring.blocks.run

    def cut(total, launch, collect, **how):
        return run(8, launch, collect, **how)[0], True

    monkeypatch.setattr(measuring.blocks, "run", cut)
    found = tw.measure(problem, path, ["risk"])
    assert found.attrs["interrupted"] == 1
    np.testing.assert_allclose(found["risk"][:8], path["loss"][:8])
    assert np.isnan(found["risk"][8:]).all()


def test_one_program_for_paths_of_all_lengths(problem, compilations):
    paths = [tw.descend(problem, tw.SGD(lr=0.1), steps=steps) for steps in (3000, 2500)]
    tw.measure(problem, paths[0], ["grad_norm"])
    compilations.clear()
    tw.measure(problem, paths[1], ["grad_norm"])
    assert not compilations


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["batch"], "'batch' is known only to a descent"),
        (["loss"], "nothing to measure"),
        ({"sharp": tw.preconditioned_sharpness}, "needs the optimizer of a descent"),
        (["start"], "unknown observable"),
        ("sharpness", "give 'sharpness' as a function, {'sharpness': thalweg.sharpness}"),
        ({"loss ": lambda at: np.exp(at.loss)}, "written with jax.numpy"),
        (
            {"word": lambda at: "word"},
            "the observable 'word' must return numbers or arrays; str returned",
        ),
        ({"pair": (lambda at: 0.0, lambda at, state: state)}, "a value and the next state"),
        ({"status": lambda at: at.loss}, "is taken"),
    ],
)
def test_what_cannot_be_measured(problem, record, message):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2)
    with pytest.raises(InputError, match=message):
        tw.measure(problem, path, record)


def test_what_is_not_a_path(problem):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2, record=["grad_norm"])
    other = tw.Problem(lambda w, x: w["a"] * x, "mse", np.ones(2), np.ones(2), params={"a": 1.0})
    for problem_, given, message in [
        (problem, path.drop_vars("params"), "needs a trajectory with its iterates"),
        (problem, path["params"], "needs a trajectory with its iterates"),
        (problem, path.isel(step=-1), r"isel\(step=\[-1\]\)"),
        (problem, path.isel(step=slice(0, 0)), "this has none"),
        (problem, path.isel(param=0), "other parameters"),
        (other, path, "other parameters"),
        (problem, path, "has 'grad_norm' already"),
    ]:
        with pytest.raises(InputError, match=message):
            tw.measure(problem_, given, ["grad_norm"])


def test_a_problem_without_a_starting_point_is_measured_as_one_with_it(problem):
    """`at.problem` knows its layout, which observables of single samples' gradients ask for."""

    def init(key):
        return {"a": jax.random.normal(key, (3, 4)), "b": jax.random.normal(key, (4, 1))}

    drawn = tw.Problem(network, "mse", problem.x, problem.y, init=init)
    record = {
        "noise": tw.gradient_noise,
        "norms": tw.sample_gradient_norms,
        "flat": lambda at: at.problem.flatten(at.params),
    }
    full = tw.descend(drawn, tw.SGD(lr=0.1), steps=3, runs=2, record=record)
    same(tw.measure(drawn, full.drop_vars(record), record), full)
    flow = tw.gradient_flow(drawn, 0.5, points=3, runs=2, record=record)
    same(tw.measure(drawn, flow.drop_vars(record), record), flow, rtol=1e-9)
