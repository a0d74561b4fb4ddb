"""Trajectories of training that happened elsewhere: a PyTorch loop as it runs, or its checkpoints."""

from thalweg.recording.checkpoints import trajectory
from thalweg.recording.loops import record

__all__ = ["record", "trajectory"]
