"""`descend`: from its arguments to a labelled trajectory."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import blocks, observables, results, sampling, stopping
from thalweg.ensemble import Members, check_same_parameters, members, reaches_the_end
from thalweg.errors import InputError, first_line, whole_number
from thalweg.feeds import Feeds
from thalweg.independence import splits
from thalweg.job import Job
from thalweg.logbook import source_of
from thalweg.optimizers import by_name
from thalweg.optimizers.base import Optimizer, check, check_range
from thalweg.problem import Problem, check_is_problem, described
from thalweg.walks import Plan


def descend(
    problem: Problem,
    optimizer: Optimizer,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool | str = False,
    replacement: bool = False,
    drop_last: bool = False,
    batches: Any = None,
    starts: Any = None,
    runs: int | None = None,
    seed: Any = None,
    resume: xr.Dataset | None = None,
    record: Any = None,
    every: int = 1,
    stop: Any = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run an optimizer on a problem's empirical risk, and record the path it takes.

    Args:
        problem: what is minimised.
        optimizer: the update rule. Each hyperparameter is a number; a list or an array, which is a
            sweep (all combinations run at once); or a function of the step index.
        steps, epochs: how long; one of the two. Without batches an epoch is a step.
        batch_size: samples per step. Without it every step sees all the data. Batches go through the
            data in order; the last, smaller one of an epoch is used as it is, and refused where the
            model compares samples.
        shuffle: a new order each epoch, from the seed and the epoch alone; "after_first" leaves the
            first epoch in the data's own order.
        replacement: draw each batch's samples independently instead.
        drop_last: leave an epoch's last batch out where it is smaller.
        batches: the sample indices themselves (steps, batch), for the steps of this call; repeated
            where `steps` asks for more.
        starts: (runs, p) in the order of `problem.names`, or a list of points as `Problem.at` takes them
            (pytrees, `state_dict`s), or a pytree of the problem's structure with a leading axis, or a
            trajectory, whose last iterates are taken.
        runs: that many random starts; run i starts from init(fold_in(key(seed), i)).
        seed: for starts and batches, 0 by default, or that of `resume`. A list is a swept
            dimension, `seed`.
        resume: a trajectory to continue, with the optimizer's state, the step count and the seed. The
            optimizer and the batches' options must be given again; where its sweeps, or the seeds, have
            dimensions that the trajectory has not, each of its members goes on for every value of them.
            States of observables begin anew, and so do records of updates. Members that had stopped
            continue, unless `stop` has the same thresholds as before.
        record: what to record besides parameters and loss: a list of names (thalweg.observables),
            or a mapping from names to True, False, functions of `at`, pairs (init, measure), or
            problems (the risk on them). {"params": False} leaves the iterates out.
        every: record steps 0, every, 2·every, … and the last.
        stop: when a member has arrived: a mapping from names to thresholds, such as {"loss": 1e-20,
            "grad_norm": 1e-10}, one of which must be reached from above; or a function of `at` that
            returns a boolean. Names are "loss" (of the step's batch), "grad_norm", "risk", "expected",
            and what the optimizer records of an update. (Movements are 0 at the start, and a change
            between steps is not known there: for these give a function.) A member that has arrived
            stays where it is, with status "converged", while others go on; when none is left, the
            descent ends.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        A trajectory: an `xarray.Dataset` with `params` (step, param, run, …) and `loss` (step, run, …),
        both at steps 0 … T; see docs/results.md. The loss at a step is that of the batch the step
        used, before its update; at T, that of the next batch, which is not applied. A run that
        became NaN or infinite has status "diverged" and is NaN from `diverged_at` on; one that met
        `stop` has status "converged" and stays where it was at `stopped_at`; after Ctrl-C the
        trajectory holds what was computed and its runs have status "interrupted".

    Raises:
        InputError: contradicting or impossible arguments.
    """
    check_is_problem(problem)
    check(optimizer).check_problem(problem)
    every = min(whole_number("every", every, 1), 2**31 - 1)
    if resume is not None:
        _check_resumable(resume, problem, optimizer)
    if seed is None:
        seed = 0 if resume is None else _seed_of(resume)
    who = members(problem, optimizer, starts=starts, runs=runs, seed=seed, resume=resume)
    first = 0 if resume is None else int(resume.attrs["last_step"])
    batching: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "replacement": replacement,
        "drop_last": drop_last,
    }
    total, order = sampling.plan(
        problem.n_samples, who.seeds, steps=steps, batches=batches, first=first, **batching
    )
    built_in, observed = observables.chosen(record)
    if built_in["batch"] and order is None:
        raise InputError(
            "record 'batch' needs mini-batches: give batches=, or a batch_size= below the number of "
            "samples."
        )
    if first + total >= np.iinfo(np.int32).max:
        raise InputError(f"at most 2³¹ − 2 steps can be counted; {first + total} asked for.")
    schedules = _schedule_tables(optimizer, who, first, total)
    plan = Plan(
        problem=problem,
        optimizer=optimizer.with_hyperparameters(
            {name: who.hyper.get(name, np.float64(0)) for name in optimizer.hyperparameters()}
        ),
        observed=observed,
        lane=who.lane if who.batched else who.lane[0],
        stop=stopping.rule(stop, first),
        swept=who.swept,
        scheduled=tuple(schedules),
        batched=who.batched,
        lanes=order is not None and order.lanes > 1,
        kept=tuple(name for name in ("params", "loss", "grad") if built_in[name]),
    )
    _check_smaller_batch(problem, order, first, total)
    feeds = Feeds(order, schedules, first)
    same_rule = resume is not None and stopping.is_again(stop, results.settings_of(resume))
    job = Job(plan, feeds, who, first, total, every, resume, same_rule)
    settings = {
        "optimizer": optimizer.described(),
        "problem": described(problem),
        "steps": total,
        **batching,
        "batches": None if batches is None else np.shape(batches),
        "runs": runs,
        "every": every,
        "stop": stopping.as_settings(stop),
        "record": observables.names(built_in, observed),
        "first_step": first,
        "seed": list(who.seeds) if np.ndim(seed) else who.seeds[0],
    }
    with blocks.interruptible():  # otherwise Ctrl-C while the result is assembled would lose it
        interrupted = job.run(progress)
        return job.trajectory(interrupted, settings, built_in["batch"])


def _check_smaller_batch(
    problem: Problem, order: sampling.Batches | None, first: int, total: int
) -> None:
    """An error where padding would change the predictions on an epoch's last, smaller batch. All batches
    of a program have one size: padding samples do not count, but batch norm would see them."""
    smaller = order.smaller_within(first, total) if order else 0
    if not (order and smaller):
        return
    # sliced on the host: JAX would compile a program per array
    x, y = jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[: order.size], (problem.x, problem.y)
    )
    if not splits(problem.replace(x=x, y=y, mask=None), smaller):
        raise InputError(
            f"the model's predictions depend on the whole batch (as with batch norm), and an epoch's last "
            f"one would have {smaller} samples instead of {order.size}: leave it out with drop_last=True, "
            f"or take a batch_size that divides {order.n_samples}."
        )


def _check_resumable(resume: Any, problem: Problem, optimizer: Optimizer) -> None:
    """An error unless `resume` is a complete trajectory of this problem, by the same kind of optimizer."""
    if not isinstance(resume, xr.Dataset) or "optimizer_state" not in resume:
        raise InputError("resume= needs a trajectory, as descend returns it.")
    if not reaches_the_end(resume):
        raise InputError(
            "resume= was given a part of a trajectory, which holds the optimizer's state at its end; "
            "give all of it."
        )
    check_same_parameters("resume=", resume, problem)
    before = results.settings_of(resume)["optimizer"]["name"]
    if before != optimizer.name:
        raise InputError(
            f"resume= holds the state of another optimizer, {before}; {optimizer.name} given."
        )


def _seed_of(path: xr.Dataset) -> Any:
    """The seeds of a trajectory's members, which may be some that were picked from a sweep of seeds."""
    if "seed" in path.coords:
        return path["seed"].values.tolist()
    return json.loads(path.attrs["seed"])


def descend_again(path: xr.Dataset) -> xr.Dataset:
    """Repeat a saved descent on a catalogue problem, from its result alone.

    Raises:
        InputError: where the result does not hold all that is needed.
    """
    problem, starts, recorded = source_of(path)
    settings = results.settings_of(path)
    if settings["first_step"]:
        raise InputError("this descent went on from another; do the first one again and resume it.")
    if isinstance(settings.get("stop"), str):
        raise InputError(
            f"this descent stopped by a function of your own ({settings['stop']}), which a result "
            f"cannot hold."
        )
    options = dict(settings["optimizer"])
    if options["name"].startswith("optax"):
        raise InputError(
            "this descent's optimizer was made of optax's functions, which a result cannot hold."
        )
    if "class" in options:
        raise InputError(
            f"this descent's optimizer was a class of your own ({options['class']}), which a result cannot "
            f"hold."
        )
    optimizer = by_name(options.pop("name"), **_with_schedules(options, path))
    return descend(
        problem,
        optimizer,
        steps=path.attrs["last_step"] if path.attrs["interrupted"] else settings["steps"],
        starts=starts,
        seed=settings["seed"],
        every=settings["every"],
        stop=settings.get("stop"),
        record=recorded,
    )


def _with_schedules(options: dict[str, Any], path: xr.Dataset) -> dict[str, Any]:
    """The optimizer's options, with the recorded tables in place of schedules' names."""
    for name in options:
        if f"schedule_{name}" in path:
            table = path[f"schedule_{name}"].values
            options[name] = lambda step, table=table: table[step]
    return options


def _schedule_tables(
    optimizer: Optimizer, who: Members, first: int, total: int
) -> dict[str, np.ndarray]:
    """Scheduled hyperparameters (total,), each function called on the host for every step."""
    bounds = optimizer.bounds()
    tables = {}
    for name, function in who.schedules.items():
        try:
            table = np.fromiter((function(first + t) for t in range(total)), float, total)
        except Exception as error:  # the user's function may fail in any way
            raise InputError(
                f"{optimizer.name}: the schedule of {name} must give a number for every step: "
                f"{type(error).__name__}: {first_line(error)}."
            ) from error
        check_range(optimizer.name, f"{name} (its schedule)", table, *bounds[name])
        tables[name] = table
    return tables
