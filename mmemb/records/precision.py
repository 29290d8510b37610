"""Devices for float64: ranks and metrics need it, and Apple's GPUs do not have it."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices on which a float64 tensor is an error."""


def to_float64_device(x: Tensor) -> Tensor:
    """Moves a tensor to a device that has float64: it stays where it is, or goes to the CPU.

    >>> to_float64_device(torch.ones(1)).double()
    tensor([1.], dtype=torch.float64)
    """
    return x.to(float64_device(x.device))


def float64_device(device: torch.device) -> torch.device:
    """Returns a device that has float64: the given one, or the CPU.

    >>> float64_device(torch.device("cuda:1")), float64_device(torch.device("mps"))
    (device(type='cuda', index=1), device(type='cpu'))
    """
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device
