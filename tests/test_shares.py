"""Members side by side: each core has a share of them, and nobody can tell from the results."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import bowl_problem, line_problem

import thalweg as tw
from thalweg import backend, job, programs, shares

STARTS = np.random.default_rng(1).standard_normal((7, 2))


@pytest.fixture
def workers(monkeypatch):
    """Sets the number of workers, for however little there is to do."""
    monkeypatch.setattr(shares, "_FEW_NUMBERS", 0)
    return lambda count: monkeypatch.setattr(backend, "workers", lambda: count)


def latest(at):
    return at.params["weight"]


def draw(key):
    return {"weight": jax.random.normal(key), "bias": jnp.zeros(())}


def solving(w):
    matrix = jnp.array([[3.0, 1.0], [1.0, 2.0]])
    point = jnp.stack([w["x"], w["y"]])
    return point @ jnp.linalg.solve(matrix, point)


def log_volume(w):
    return jnp.linalg.slogdet(jnp.eye(5) + w["weight"] ** 2)[1]


def sweep():
    adam = tw.Adam(lr=[0.1, 0.01], betas=(0.9, 0.99))
    return tw.descend(line_problem(), adam, steps=30, starts=STARTS, record={"grad": True})


def seeds():
    return tw.descend(
        line_problem(init=draw), tw.SGD(lr=0.05, momentum=0.5), epochs=3, batch_size=20,
        shuffle=True, runs=2, seed=[3, 1, 4], every=4, record=["batch"],
    )  # fmt: skip


def seeds_in_order():
    return tw.descend(
        line_problem(init=draw), tw.SGD(lr=0.05), epochs=2, batch_size=30, seed=[3, 1, 4]
    )


def observed():
    record = {"moved": tw.relative_movement, "latest": latest, "loss": False}
    return tw.descend(line_problem(), tw.SGD(lr=0.1), steps=20, starts=STARTS, record=record)


def stopped():
    stop = {"loss": 1e-6}
    return tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=500, starts=STARTS, stop=stop)


def some_diverge():
    return tw.descend(bowl_problem(), tw.SGD(lr=[0.1, 0.2, 0.9, 1e3, 1e300]), steps=40)


def scheduled():
    momentum = tw.SGD(lr=lambda step: 0.1 / (1 + step), momentum=[0.0, 0.5, 0.9])
    return tw.descend(line_problem(), momentum, steps=20, starts=STARTS[:2])


def resumed():
    adam = tw.Adam(lr=0.05)
    path = tw.descend(line_problem(), adam, steps=10, starts=STARTS, every=3)
    return tw.descend(line_problem(), adam, steps=10, resume=path, every=3)


def damped():
    return tw.descend(
        line_problem(), tw.LevenbergMarquardt(damping=[1e-3, 1.0]), steps=5, starts=STARTS[:2]
    )


DESCENTS = (
    sweep,
    seeds,
    seeds_in_order,
    observed,
    stopped,
    some_diverge,
    scheduled,
    resumed,
    damped,
)


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("descent", DESCENTS, ids=lambda descent: descent.__name__)
def test_shares_give_what_one_gives(descent, count, workers):
    workers(1)
    whole = descent()
    workers(count)
    shared = descent()
    assert shared.attrs["settings"] == whole.attrs["settings"]
    xr.testing.assert_allclose(shared, whole, rtol=1e-12, atol=1e-15)
    for name in ("status", "diverged_at", "stopped_at"):
        np.testing.assert_array_equal(shared[name], whole[name])


@pytest.mark.parametrize(
    "limits",
    [{"_MANY_NUMBERS": 1, "_MANY_MEMBERS": 2}, {"_LONE_NUMBERS": 0}],
    ids=["pieces that a cache holds", "large members one by one"],
)
@pytest.mark.parametrize("descent", DESCENTS, ids=lambda descent: descent.__name__)
def test_smaller_shares_give_what_one_gives(descent, limits, workers, monkeypatch):
    workers(1)
    whole = descent()
    workers(2)
    for name, limit in limits.items():
        monkeypatch.setattr(shares, name, limit)
    xr.testing.assert_allclose(descent(), whole, rtol=1e-12, atol=1e-15)


def test_the_cases_are_not_all_alike(workers):
    workers(2)
    assert set(np.unique(stopped().status)) == {"converged"}
    assert set(np.unique(some_diverge().status)) == {"completed", "diverged"}


def test_the_members_are_shared_out(workers, monkeypatch):
    seen = []

    def counted(plan, feed, start, walk, *rest, **options):
        seen.append((threading.get_ident(), len(walk.loss)))
        return block(plan, feed, start, walk, *rest, **options)

    block = job.block
    counted.trace = block.trace
    monkeypatch.setattr(job, "block", counted)
    workers(3)
    sweep()  # 14 members: 5, 5 and, one of them again, 5
    assert len({thread for thread, _ in seen}) == 3
    assert {size for _, size in seen} == {5}
    seen.clear()
    workers(2)
    monkeypatch.setattr(shares, "_MANY_NUMBERS", 100)
    monkeypatch.setattr(shares, "_MANY_MEMBERS", 1)
    sweep()  # 52 numbers a member
    assert len({thread for thread, _ in seen}) == 2
    assert {size for _, size in seen} == {1}
    seen.clear()
    monkeypatch.setattr(shares, "_MANY_NUMBERS", 2**17)
    monkeypatch.setattr(shares, "_LONE_NUMBERS", 51)
    sweep()
    assert {size for _, size in seen} == {1}
    seen.clear()
    damped()  # whose QR decompositions must not run side by side
    assert set(seen) == {(threading.get_ident(), 4)}
    seen.clear()
    solved = tw.Problem.from_function(solving, params={"x": 0.0, "y": 0.0})
    tw.descend(solved, tw.SGD(lr=0.1), steps=3, starts=STARTS)
    assert set(seen) == {(threading.get_ident(), 7)}


@pytest.mark.parametrize(
    ("options", "alone"),
    [({}, False), ({"penalty": log_volume}, True), ({"expected": log_volume}, True)],
)
def test_what_uses_linear_algebra_runs_alone(options, alone, workers):
    workers(4)
    assert programs.workers(line_problem(**options)) == (1 if alone else 4)


def test_shares_are_one_program(workers, compilations):
    workers(3)
    rule = tw.SGD(lr=0.1)
    problem = bowl_problem()
    tw.descend(problem, rule, steps=3, starts=STARTS[:3])
    job.block.clear_cache()
    compilations.clear()
    tw.descend(problem, rule, steps=3, starts=STARTS[:3])
    assert len(compilations) == 1


def test_few_numbers_stay_in_one_thread(monkeypatch):
    monkeypatch.setattr(backend, "workers", lambda: 4)
    monkeypatch.setattr(backend, "ThreadPoolExecutor", None)
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, starts=STARTS)
    assert path.sizes["run"] == 7


def test_an_error_in_a_thread_is_raised_here_and_leaves_no_thread(workers, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError(threading.current_thread().name)

    workers(2)
    broken.trace = job.block.trace
    monkeypatch.setattr(job, "block", broken)
    with pytest.raises(ZeroDivisionError, match="ThreadPool"):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, starts=STARTS)
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]


@pytest.mark.parametrize(
    ("context", "name", "value"),
    [
        (jax.debug_nans, "jax_debug_nans", True),
        (jax.disable_jit, "jax_disable_jit", True),
        (jax.enable_x64, "jax_enable_x64", False),
        (jax.default_matmul_precision, "jax_default_matmul_precision", "float32"),
    ],
)
def test_threads_inherit_the_context(context, name, value):
    def there():
        return getattr(jax.config, name)

    with backend.Threads(2) as threads:
        before = threads.call(1, there)()
        with context(value):
            inside = threads.call(1, there)
        assert inside() == value != before
        assert threads.call(1, there)() == before


def test_a_thread_does_its_calls_in_order():
    done = []
    with backend.Threads(2) as threads:
        waiting = [threads.call(k % 2, done.append, k) for k in range(40)]
        assert [wait() for wait in waiting] == [None] * 40
    for remainder in (0, 1):
        mine = [k for k in done if k % 2 == remainder]
        assert mine == list(range(remainder, 40, 2))
