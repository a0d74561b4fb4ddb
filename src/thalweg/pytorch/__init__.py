"""The PyTorch door: modules as problems, and points as `state_dict`s again."""

from thalweg.pytorch.door import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
