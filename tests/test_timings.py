"""The table of the studies' times: every study has its PyTorch loop, and the loops run."""

import pytest
import torch
from benchmarks.loops import LOOPS

from thalweg import studies


def test_every_study_has_its_loop():
    assert set(LOOPS) == set(studies.STUDIES)


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_loop_runs(name):
    before = torch.get_default_dtype()
    try:
        works = list(LOOPS[name]())
        assert works
        for work in works:
            work.run(1)
            assert work.count > 0
    finally:
        torch.set_default_dtype(before)
