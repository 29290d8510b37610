"""Reads files of tensors; runs no code from them, and names the file if it is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def read_weights(path: Path, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain data, nothing that executes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no file of torch, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the step that writes it was interrupted.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch's reader raises whatever the bytes make it raise
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} cannot be read: expected a whole file of plain tensors, found "
            f"{type(error).__name__} {first:.120}. It is truncated or holds code, which "
            "is refused: delete it and run the step that makes it again."
        ) from None
