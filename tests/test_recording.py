"""PyTorch loops recorded as they run, and checkpoints read, against descents of the same steps."""

import contextlib
import copy
import pickle
import threading
import warnings
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import thalweg as tw
from thalweg import blocks
from thalweg.errors import InputError, MemoryEstimateError
from thalweg.recording import tape


@pytest.fixture
def training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return model, torch.randn(20, 2).double(), torch.randn(20, 1).double()


def loop(model, optimizer, x, y, steps, scheduler=None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


def test_a_loop_is_the_descent_of_the_same_problem(training, tmp_path):
    model, x, y = training
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    wanted = ["params", "loss", "grad", "grad_norm", "movement", "relative_movement", "lr"]
    with tw.record(optimizer, model, record=wanted) as path:
        loop(model, optimizer, x, y, 12, scheduler)
    ours = tw.descend(
        problem,
        tw.SGD(lr=lambda t: 0.1 * 0.1 ** (t // 5), momentum=0.9),
        steps=12,
        record=["grad", "grad_norm", "movement", "relative_movement"],
    )
    assert list(path["param"].values) == list(problem.names)
    for name in wanted[:-1]:
        known = (
            path[name].values[:-1] if name in ("loss", "grad", "grad_norm") else path[name].values
        )
        np.testing.assert_allclose(known, ours[name].values[: len(known)], rtol=1e-9, atol=1e-12)
    assert np.isnan(path["loss"].values[-1])
    np.testing.assert_allclose(path["lr"].values, 0.1 * 0.1 ** (np.minimum(np.arange(13), 12) // 5))
    np.testing.assert_array_equal(path["final"], path["params"][-1])
    assert str(path["status"].values) == "completed"
    limit = tw.stability_threshold(path)
    assert limit.dims == ("step",)
    np.testing.assert_allclose(limit, tw.stability_threshold(ours))
    # what a trajectory is good for
    again = tw.load(tw.save(path, tmp_path / "path.nc"))
    assert again.identical(path)
    plane = tw.pca_plane(problem, path, points=5)
    tw.plot.contour(tw.landscape(problem, plane), path)
    tw.plot.loss(path)


def test_every_so_many_steps(training):
    model, x, y = training
    optimizer = torch.optim.Adam(model.parameters())
    with tw.record(optimizer, model, every=5) as path:
        loop(model, optimizer, x, y, 12)
    assert list(path["step"].values) == [0, 5, 10, 12]
    np.testing.assert_array_equal(np.isnan(path["loss"].values), [False, False, False, True])


def test_accumulated_gradients_add_up(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole = nn.functional.mse_loss(model(x), y).item()
    with tw.record(optimizer, model) as path:
        for part in (slice(0, 10), slice(10, 20)):
            (0.5 * nn.functional.mse_loss(model(x[part]), y[part])).backward()
        optimizer.step()
    assert float(path["loss"][0]) == pytest.approx(whole, rel=1e-12)


def test_losses_are_those_before_a_scaler_scaled_them(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    own, expected, slopes = torch.amp.GradScaler.scale, [], []
    with tw.record(optimizer, model, record=["loss", "grad_norm"]) as path:
        for _ in range(3):
            optimizer.zero_grad()
            for part in (slice(0, 10), slice(10, 20)):  # accumulated
                scaler.scale(nn.functional.mse_loss(model(x[part]), y[part]) / 2).backward()
            whole = nn.functional.mse_loss(model(x), y)
            parts = torch.autograd.grad(whole, list(model.parameters()))
            expected.append(whole.item())
            slopes.append(torch.cat([p.ravel() for p in parts]).norm().item())
            scaler.step(optimizer)
            scaler.update()
    assert torch.amp.GradScaler.scale is own
    np.testing.assert_allclose(path["loss"].values[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(path["grad_norm"].values[:-1], slopes, rtol=1e-12)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_that_is_left_out_leaves_no_loss_behind(training, to_none):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tw.record(optimizer, model) as path:
        for k in range(4):
            optimizer.zero_grad(set_to_none=to_none)
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            if k != 1:
                expected.append(loss.item())
                optimizer.step()
    np.testing.assert_array_equal(path["loss"].values[:-1], expected)


def test_a_closure_is_evaluated_at_the_iterate_first(training):
    model, x, y = training
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    expected, slopes = [], []
    with tw.record(optimizer, model, record=["loss", "grad_norm", "loss"]) as path:
        for _ in range(4):
            loss = nn.functional.mse_loss(model(x), y)
            parts = torch.autograd.grad(loss, list(model.parameters()))
            slopes.append(torch.cat([p.ravel() for p in parts]).norm().item())
            expected.append(loss.item())
            optimizer.step(closure)
    np.testing.assert_allclose(path["loss"].values[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(path["grad_norm"].values[:-1], slopes, rtol=1e-12)


class OwnSGD:
    """An optimizer in torch's style that is none of torch's."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        with torch.no_grad():
            for p in self.parameters:
                p -= self.lr * p.grad


@pytest.mark.parametrize("hooks", [True, False])
def test_what_a_closure_makes_of_its_gradient_is_what_the_optimizer_sees(training, hooks):
    """Clipped, and of two parts of the data in two backward passes, as a loop without a closure has it."""
    model, x, y = training
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    class Wrapped:
        """An optimizer without hooks, as accelerators hand them out."""

        param_groups = sgd.param_groups

        def step(self, closure):
            return sgd.step(closure)

    optimizer = sgd if hooks else Wrapped()
    sizes, losses = [], []

    def closure():
        sgd.zero_grad()
        total = 0.0
        for part in (slice(0, 5), slice(5, 20)):
            loss = nn.functional.mse_loss(model(x[part]), y[part])
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        sizes.append(float(sum((p.grad**2).sum() for p in model.parameters())) ** 0.5)
        losses.append(total)
        return total

    with tw.record(optimizer, model, record=["loss", "grad_norm"]) as path:
        for _ in range(4):
            optimizer.step(closure)
    assert sizes[0] == pytest.approx(0.2)
    np.testing.assert_allclose(path["grad_norm"][:-1], sizes, rtol=1e-12)
    np.testing.assert_allclose(path["loss"][:-1], losses, rtol=1e-12)


def test_a_loop_may_run_in_another_thread(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.record(optimizer, model) as path:
        thread = threading.Thread(target=loop, args=(model, optimizer, x, y, 3))
        thread.start()
        thread.join()
    assert np.isfinite(path["loss"].values[:-1]).all()


def test_recordings_end_in_any_order_and_hear_their_own_thread_alone():
    """Two loops at once, of which the first to begin is the first to end."""
    own = torch.autograd.backward
    begun, ended = threading.Event(), threading.Event()
    found = {}

    def train(name, first):
        torch.manual_seed(first)
        model = nn.Linear(2, 1).double()
        x, y = torch.ones(3, 2).double(), torch.full((3, 1), float(first)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if not first:
            begun.wait(60)
        with tw.record(optimizer, model) as path:
            if not first:
                ended.set()
            else:
                begun.set()
                ended.wait(60)
            loop(model, optimizer, x, y, 5 if first else 50)
        problem = tw.from_torch(nn.Linear(2, 1).double(), "mse", x, y)
        told = [float(problem.risk(point)) for point in path["params"].values[:-1]]
        found[name] = path["loss"].values[:-1], told

    threads = [threading.Thread(target=train, args=(k, k)) for k in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for recorded, told in found.values():
        np.testing.assert_allclose(recorded, told, rtol=1e-9)
    assert len(found) == 2
    assert torch.autograd.backward is own


def test_any_object_with_a_step_is_an_optimizer(training):
    model, x, y = training
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    optimizer = OwnSGD(model.parameters(), 0.1)
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 6)
    assert "step" not in vars(optimizer)
    ours = tw.descend(problem, tw.SGD(lr=0.1), steps=6)
    np.testing.assert_allclose(path["params"], ours["params"], rtol=1e-9, atol=1e-12)


class Centred(torch.optim.SGD):
    """A step of one's own, which ends in that of the class above."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad -= p.grad.mean()
        return super().step(closure)


def test_a_step_that_calls_the_step_of_the_class_above_is_one(training):
    model, x, y = training
    torch.optim.SGD(model.parameters(), lr=0.1)  # from here on PyTorch calls hooks in SGD.step, too
    optimizer = Centred(model.parameters(), lr=0.1)
    expected, slopes = [], []
    with tw.record(optimizer, model, record=["loss", "grad_norm"]) as path:
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            expected.append(loss.item())
            slopes.append(nn.utils.get_total_norm(p.grad for p in model.parameters()).item())
            optimizer.step()
    assert list(path["step"].values) == [0, 1, 2, 3]
    np.testing.assert_allclose(path["loss"].values[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(path["grad_norm"].values[:-1], slopes, rtol=1e-12)


def test_sparse_gradients_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    with tw.record(optimizer, model, record=["params", "grad", "grad_norm"]) as path:
        model(torch.tensor([1, 2, 2])).square().sum().backward()
        dense = model.weight.grad.to_dense().numpy()
        optimizer.step()
    np.testing.assert_array_equal(path["grad"].values[0], dense.ravel())
    assert float(path["grad_norm"][0]) == pytest.approx(np.linalg.norm(dense), rel=1e-6)


def test_a_row_that_fails_is_left_out_whole(training, monkeypatch):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradient = tape.Tape._gradient

    def interrupted(self, name, known=True):
        if known:
            raise KeyboardInterrupt
        return gradient(self, name, known)

    watched = tw.record(optimizer, model, record=["params", "grad"])
    with contextlib.suppress(KeyboardInterrupt), watched as path:
        loop(model, optimizer, x, y, 2)
        monkeypatch.setattr(tape.Tape, "_gradient", interrupted)
        loop(model, optimizer, x, y, 1)
    assert list(path["step"].values) == [0, 1, 2]


def test_all_is_as_before_even_after_an_exception(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = (torch.autograd.backward, optimizer.step.__func__, torch.get_rng_state())
    with contextlib.suppress(ZeroDivisionError), tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 3)
        raise ZeroDivisionError
    assert str(path["status"].values) == "interrupted"
    assert path.attrs["interrupted"] == 1
    assert path.sizes["step"] == 4
    after = (torch.autograd.backward, optimizer.step.__func__, torch.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_what_was_recorded_is_there_where_memory_runs_out(training, monkeypatch):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run_out():
        loop(model, optimizer, x, y, 4)
        monkeypatch.setattr(blocks, "_ALWAYS_THERE", 0)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
        loop(model, optimizer, x, y, 4)

    with pytest.raises(MemoryEstimateError), tw.record(optimizer, model) as path:
        run_out()
    assert path["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert path["status"].item() == "interrupted"
    assert np.isfinite(path["params"]).all()


def test_no_step_and_a_diverging_loop(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=1e200)
    with tw.record(optimizer, model) as path:
        pass
    assert list(path["step"].values) == [0]
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 4)
    at = int(path["diverged_at"])
    assert str(path["status"].values) == "diverged"
    assert np.isnan(path["params"].values[at:]).all()
    assert np.isfinite(path["params"].values[:at]).all()
    tw.plot.loss(path)


def test_one_parameter_that_is_lost():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"))
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, torch.ones(1, 1), torch.zeros(1, 1), 3)
    assert str(path["status"].values) == "diverged"
    assert int(path["diverged_at"]) == 1
    assert np.isnan(path["final"].values).all()


def test_what_was_lost_is_known_where_iterates_are_not_recorded():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"))
    with tw.record(optimizer, model, record=["lr"]) as path:
        loop(model, optimizer, torch.ones(1, 1), torch.zeros(1, 1), 3)
    assert str(path["status"].values) == "diverged"
    assert int(path["diverged_at"]) == 3  # the last that was recorded
    assert np.isnan(path["final"].values).all()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loss_whose_gradient_is_zero_is_accumulated(set_to_none):
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.no_grad():
        model.weight.fill_(1.0)
    seen = []
    with tw.record(optimizer, model, record=["loss"]) as path:
        for _ in range(3):
            # a step that is left out, as where the gradient is too large
            (100 * model(torch.ones(1, 1))).sum().backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            seen.append(0.0)
            for x in (-1.0, 2.0, -1.0):  # the unit is off where x is negative
                loss = (torch.relu(model(torch.tensor([[x]]))) - 3).square().sum()
                loss.backward()
                seen[-1] += loss.item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    np.testing.assert_allclose(path["loss"][:-1], seen)


def test_a_loss_that_is_not_a_number_has_diverged_at_parameters_that_are_finite():
    # log w: the first step leads below 0, where the loss is NaN and its derivative 1/w is not
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self):
            return torch.log(self.w)

    def run(record):
        model = Log()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with tw.record(optimizer, model, record=record) as path:
            for _ in range(4):
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
        return path, model

    problem = tw.Problem.from_function(lambda w: jnp.log(w), 0.5)
    descent = tw.descend(problem, tw.SGD(lr=1.0), steps=4)
    for record in (["params", "loss"], ["loss"]):
        path, model = run(record)
        assert np.isfinite(model.w.item())
        assert str(path["status"].values) == str(descent["status"].values) == "diverged"
        assert int(path["diverged_at"]) == int(descent["diverged_at"]) == 1
        np.testing.assert_array_equal(path["loss"], descent["loss"])
    points = [np.array([0.5]), np.array([-1.5])]
    assert int(tw.trajectory(points, problem)["diverged_at"]) == 1
    assert int(tw.trajectory([{"w": p} for p in points])["diverged_at"]) == -1


# Checkpoints -----------------------------------------------------------------------------------


def states(model, count=3):
    kept = []
    for i in range(count):
        with torch.no_grad():
            for p in model.parameters():
                p += i
        kept.append({k: v.clone() for k, v in model.state_dict().items()})
    return kept


def test_checkpoints_become_a_trajectory(training, tmp_path):
    model, x, y = training
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    kept = states(model)
    files = []
    for i, state in enumerate(kept):
        files += [tmp_path / f"{i}.pt", tmp_path / f"{i}.safetensors", tmp_path / f"{i}-more.pt"]
        torch.save(state, files[-3])
        save_file(state, files[-2])
        torch.save({"epoch": i, "model_state_dict": state, "ema": state}, files[-1])
    expected = tw.trajectory(kept, problem, steps=[0, 10, 20])
    assert list(expected["step"].values) == [0, 10, 20]
    for kind in range(3):
        path = tw.trajectory(files[kind::3], problem, steps=[0, 10, 20])
        assert path.equals(expected)
    assert tw.trajectory(files[2::3], problem, steps=[0, 10, 20], key="ema").equals(expected)
    risks = [float(problem.risk(problem.unflatten(row))) for row in expected["params"].values]
    np.testing.assert_array_equal(expected["loss"], risks)
    alone = tw.trajectory(files[::3])
    np.testing.assert_array_equal(alone["params"], expected["params"])
    assert np.isnan(alone["loss"]).all()
    tw.pca_plane(problem, expected, components=1)


class Harm:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_is_never_unpickled(training, tmp_path, capsys):
    harmful = tmp_path / "harm.pt"
    torch.save({"weight": Harm()}, harmful)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harm()))
    for file in (harmful, tmp_path / "plain.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about the file's format
            with pytest.raises(InputError, match="never unpickled"):
                tw.trajectory([file])
    assert "unpickled" not in capsys.readouterr().out


def test_bad_input_is_one_line(training, tmp_path):
    model, x, y = training
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = model.state_dict()
    for call, words in (
        (lambda: tw.record(optimizer, model, record=["gradd"]).__enter__(), "did you mean 'grad'"),
        (lambda: tw.record(3, model).__enter__(), "a step method was expected"),
        (lambda: tw.record(optimizer, 3).__enter__(), "an nn.Module was expected"),
        (lambda: tw.record(optimizer, model, every=0).__enter__(), "at least 1"),
        (lambda: tw.trajectory([]), "no checkpoints"),
        (lambda: tw.trajectory("one.pt"), "a series of checkpoints"),
        (lambda: tw.trajectory(state), "a series of checkpoints"),
        (lambda: tw.rerun(tw.trajectory([state])), "happened elsewhere"),
        (lambda: tw.trajectory([tmp_path / "none.pt"]), "there is no file"),
        (lambda: tw.trajectory([{"epoch": 3}]), "say under which key"),
        (lambda: tw.trajectory([state], key="emma"), "unknown key of checkpoint 0"),
        (lambda: tw.trajectory([{"0.weight": torch.ones(2)}], problem), "no entry '0.bias'"),
        (lambda: tw.trajectory([{**state, "0.bias": torch.ones(2)}], problem), "expected \\(3,\\)"),
        (lambda: tw.trajectory([state, state], steps=[1, 1]), "increasing whole number"),
        (lambda: tw.trajectory([state, state], steps=[-1, 1]), "from 0 on"),
        (lambda: tw.trajectory([np.ones(3)], problem), r"checkpoint 0: .*entries"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


# What else goes on beside the model -----------------------------------------------------------


def test_another_models_loss_is_not_this_ones(training):
    """Two models trained in one loop, each recorded, and a third on whose loss nobody steps."""
    model, x, y = training
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.5
    first, second = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    losses = []
    with tw.record(first, model) as path, tw.record(second, other) as beside:
        for _ in range(4):
            (100 * nn.functional.mse_loss(third(x), y)).backward()
            row = []
            for one, optimizer in ((model, first), (other, second)):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(one(x), y)
                row.append(loss.item())
                loss.backward()
                optimizer.step()
            losses.append(row)
    np.testing.assert_array_equal(np.stack([path.loss[:-1], beside.loss[:-1]], 1), losses)
    hooks = [p._post_accumulate_grad_hooks for m in (model, other) for p in m.parameters()]
    assert not any(hooks)  # all is as it was


def test_an_optimizer_of_another_model_is_refused(training):
    model, *_ = training
    stale = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with (
        pytest.raises(tw.InputError, match="none of this model's parameters"),
        tw.record(stale, model),
    ):
        pass


def test_a_compiled_models_parameters_have_their_own_names(training):
    model, x, y = training
    compiled = torch.compile(model, backend="eager")
    problem = tw.from_torch(compiled, nn.MSELoss(), x, y)
    assert problem.names == tw.from_torch(model, nn.MSELoss(), x, y).names
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with tw.record(optimizer, compiled) as path:
        loop(compiled, optimizer, x, y, 3)
    assert tuple(path["param"].values) == problem.names
    assert float(problem.risk(compiled.state_dict())) == pytest.approx(
        float(problem.risk(path["final"].values))
    )
    compiled.load_state_dict(tw.to_torch(problem))


# Thresholds of stability ----------------------------------------------------------------------


def test_a_warm_up_has_the_threshold_of_each_step(training):
    model, x, y = training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) / 10)
    with tw.record(optimizer, model, record=["params", "lr"], every=3) as path:
        loop(model, optimizer, x, y, 8, scheduler)
    expected = 2 * 1.5 / (0.1 * np.array([1, 4, 7, 9]) / 10)
    np.testing.assert_allclose(tw.stability_threshold(path), expected)
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 2, scheduler)
    with pytest.raises(tw.InputError, match=r"changed its lr as it ran: record it"):
        tw.stability_threshold(path)
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    ax = tw.plot.sharpness(tw.measure(problem, path, {"sharpness": tw.sharpness}))
    assert any("limit of stability is not known" in text.get_text() for text in ax.texts)


def test_groups_with_rates_of_their_own_have_no_threshold(training):
    model, x, y = training
    weights, biases = ([p for p in model.parameters() if p.ndim == d] for d in (2, 1))
    groups = [{"params": weights, "lr": 0.1}, {"params": biases, "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 2)
    with pytest.raises(tw.InputError, match="which lr SGD made it; where groups"):
        tw.stability_threshold(path)
    groups = [{"params": weights, "nesterov": True}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 2)
    with pytest.raises(tw.InputError, match="which nesterov SGD made it"):
        tw.stability_threshold(path)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), betas=(0.8, 0.9))
    with tw.record(optimizer, model) as path:
        loop(model, optimizer, x, y, 2)
    np.testing.assert_allclose(tw.stability_threshold(path), 2 * 1.8 / (0.2 * 0.01), rtol=1e-6)


# Checkpoints and points -----------------------------------------------------------------------


def test_a_checkpoints_own_statistics_are_its_own():
    """Of batch norm, in a problem that was made before the training."""
    torch.manual_seed(0)
    x = torch.randn(32, 3)
    y = torch.sin(x[:, :1])
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    saved, losses = [], []
    for _ in range(3):
        loop(model.train(), optimizer, x, y, 10)
        saved.append({"model": {k: v.clone() for k, v in model.state_dict().items()}})
        losses.append(nn.functional.mse_loss(model.eval()(x), y).item())
    for checkpoints in (saved, [checkpoint["model"] for checkpoint in saved]):
        found = tw.trajectory(checkpoints, problem)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
        vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        np.testing.assert_allclose(np.sort(found["final"]), np.sort(vector.numpy()))


def test_a_trajectory_of_points():
    """Of a loop of one's own: pytrees and vectors."""
    rng = np.random.default_rng(0)
    params = {"a": {"w": rng.standard_normal((2, 3)), "b": np.zeros(3)}, "c": 1.0}
    problem = tw.Problem(
        lambda p, x: p["c"] * (x @ p["a"]["w"] + p["a"]["b"]).sum(1),
        "mse",
        rng.standard_normal((9, 2)),
        rng.standard_normal(9),
        params=params,
    )
    vectors = rng.standard_normal((3, problem.size))
    expected = [float(problem.risk(problem.unflatten(v))) for v in vectors]
    for points in (vectors, [problem.unflatten(v) for v in vectors]):
        path = tw.trajectory(points, problem, steps=[0, 5, 7])
        np.testing.assert_array_equal(path["params"], vectors)
        np.testing.assert_allclose(path["loss"], expected)
        assert list(path["param"].values) == list(problem.names)
    with pytest.raises(tw.InputError, match="checkpoint 0"):
        tw.trajectory([{"w": vectors}], problem)


def test_a_checkpoint_that_is_not_finite_has_diverged(training):
    model, x, y = training
    problem = tw.from_torch(model, nn.MSELoss(), x, y)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    lost = {k: torch.full_like(v, torch.nan) for k, v in state.items()}
    path = tw.trajectory([state, lost], problem)
    assert path["status"] == "diverged"
    assert path["diverged_at"] == 1
    assert np.isfinite(path["loss"][0])
    assert np.isnan(path["loss"][1])
