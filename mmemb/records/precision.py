"""Where float64 can be computed: ranks and metrics need it, and Apple's GPUs have none."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices on which a float64 tensor is an error."""


def for_float64(x: Tensor) -> Tensor:
    """Returns a tensor that may be made float64: itself, or its copy on the CPU.

    >>> for_float64(torch.ones(1)).double()
    tensor([1.], dtype=torch.float64)
    """
    return x.to(float64_device(x.device))


def float64_device(device: torch.device) -> torch.device:
    """Returns a device that has float64: the given one, or the CPU.

    >>> float64_device(torch.device("cuda:1")), float64_device(torch.device("mps"))
    (device(type='cuda', index=1), device(type='cpu'))
    """
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device
