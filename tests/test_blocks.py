"""Long jobs in blocks."""

import contextlib
import io
import math
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from thalweg import blocks


def job(total, seconds=0.0, most=1000, **options):
    done = []

    def launch(start, count):
        time.sleep(seconds * count)
        return start

    def collect(start, count, handle):
        assert handle == start
        done.extend(range(start, start + count))

    return blocks.run(total, launch, collect, most=most, label="job", **options), done


@pytest.mark.parametrize("total", [0, 1, 5, 16, 17, 12345])
def test_every_unit_once_in_order(total):
    (count, interrupted), done = job(total)
    assert (count, interrupted) == (total, False)
    assert done == list(range(total))


def test_blocks_are_no_longer_than_allowed():
    lengths = []
    blocks.run(100, lambda s, n: lengths.append(n), lambda s, n, h: None, most=7, label="job")
    assert max(lengths) == 7


def test_the_next_block_takes_about_as_long_as_aimed_at():
    aim, most = blocks._AIM, 1000
    for seconds, size in ((aim, 16), (aim / 2, 32), (2 * aim, 8), (aim / 9, 128), (99 * aim, 1)):
        assert blocks._next_size(16, 16, seconds, most) == size
    assert blocks._next_size(16, 4, aim, most) == 4  # a shorter block, at the end
    assert blocks._next_size(200, 200, aim / 8, most) == most
    assert blocks._next_size(16, 16, 0.0, most) == 128


def test_units_of_unknown_work_are_counted_once(monkeypatch):
    shown = []
    bar = contextlib.nullcontext(SimpleNamespace(update=shown.append))
    monkeypatch.setattr(blocks, "bar", lambda *_: bar)
    options = {"most": 5, "label": "job", "unit": "unit"}
    assert blocks.until(7, lambda done, size: min(done + 3, 7), **options) == (7, False)
    assert shown == [3, 3, 1]


def test_ctrl_c_in_the_last_block_loses_nothing():
    def press(*_):
        os.kill(os.getpid(), signal.SIGINT)

    assert blocks.run(5, lambda *_: None, press, most=5, label="job") == (5, False)


def test_a_finished_job_ends_early_as_complete():
    (count, interrupted), done = job(10_000, most=10, finished=lambda: True)
    assert not interrupted
    assert count == len(done) < 10_000


def _press_twice():
    with blocks.interruptible() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert pressed
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ctrl_c_ends_the_job_and_a_second_one_raises(monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(blocks, "_AGAIN", 0.0)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    (count, interrupted), done = job(1_000_000, seconds=1e-4, most=100)
    assert interrupted
    assert count == len(done) < 1_000_000
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        _press_twice()
    assert signal.getsignal(signal.SIGINT) is handler


def test_jobs_within_an_interrupted_one_end_at_once():
    with blocks.interruptible() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert pressed
        assert job(100)[0] == (0, True)
    assert job(100)[0] == (100, False)


def _press_soon():
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def _loop(interrupted):
    for _ in range(5):
        timer = _press_soon()
        interrupted.append(job(1000, seconds=1e-3, most=10)[0][1])
        timer.join()


def test_ctrl_c_again_ends_a_loop_around_short_jobs(monkeypatch):
    """The second press comes while the next job is at work, and is not that job's own."""
    interrupted = []
    with pytest.raises(KeyboardInterrupt):
        _loop(interrupted)
    assert interrupted == [True]
    monkeypatch.setattr(blocks, "_pressed", -math.inf)  # some seconds later
    timer = _press_soon()
    assert job(1000, seconds=1e-3, most=10)[0][1]
    timer.join()


def test_ctrl_c_long_after_the_last_one_is_a_jobs_own(monkeypatch):
    """Also of a job that began just after that one."""
    with blocks.interruptible() as first:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert first
    with blocks.interruptible() as second:
        monkeypatch.setattr(blocks, "_AGAIN", 0.0)  # some seconds later
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert second


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_bar_that_cannot_be_written_ends_alone(error, monkeypatch):
    """A pipe whose reader has left; a closed file."""

    class Broken(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    assert job(14, seconds=0.1, most=1, progress=True)[0] == (14, False)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert job(3, progress=True)[0] == (3, False)


def test_jobs_run_outside_the_main_thread():
    result = []
    thread = threading.Thread(target=lambda: result.append(job(50)))
    thread.start()
    thread.join()
    assert result[0][0] == (50, False)


def test_the_bar_comes_after_a_second_and_never_in_a_pipe(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    job(12, seconds=0.1, most=1)
    assert pipe.getvalue() == ""
    job(3, progress=True)
    assert pipe.getvalue() == ""
    job(14, seconds=0.1, most=1, progress=True)
    assert "job" in pipe.getvalue()


def test_sizes_for_people():
    assert blocks.size_text(12) == "12 B"
    assert blocks.size_text(1.5 * 2**30) == "1.5 GiB"
    with pytest.raises(MemoryError, match=r"a thing would need 1.0 EiB.*; use less\."):
        blocks.check_memory(2**60, "a thing", "use less")


GiB = 2**30


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8 * GiB),
        ({"": ("max", 5 * GiB, 0)}, 8 * GiB),
        ({"": (6 * GiB, 5 * GiB, 0)}, GiB),
        ({"": (6 * GiB, 5 * GiB, 2 * GiB)}, 3 * GiB),  # of which 2 are a file cache
        ({"job": (6 * GiB, 2 * GiB, 0), "": (5 * GiB, 3 * GiB, 0)}, 2 * GiB),
        ({"job": (GiB, 2 * GiB, 0)}, 0),
        ({"other": (GiB, GiB, 0)}, 8 * GiB),
    ],
)
def test_memory_is_what_the_machine_and_every_container_leave(
    limits, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GiB))
    for name, (limit, used, cache) in limits.items():
        group = tmp_path / "groups" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\n")
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(blocks, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(blocks, "_GROUPS", tmp_path / "groups")
    assert blocks._available() == expected
