"""Checks made before a stage starts, so that it fails in a second and not after an hour."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GIB = 2**30


def check_system(name: str = os.name) -> None:
    """Raises OSError on Windows, which has neither the locks nor the processes that runs need.

    >>> check_system("nt")
    Traceback (most recent call last):
    OSError: mmemb runs on Linux and macOS. On Windows start it in WSL.
    """
    if name == "nt":
        raise OSError("mmemb runs on Linux and macOS. On Windows start it in WSL.")


def check_disk(folder: Path, needed_gib: float) -> None:
    """Raises OSError if the file system that will hold `folder` has less than `needed_gib` free."""
    # The folder may not exist yet, so its nearest existing parent counts.
    existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free_gib = shutil.disk_usage(existing).free / GIB
    if free_gib < needed_gib:
        raise OSError(
            f"{folder} needs {needed_gib:.1f} GiB of free disk, {existing} has {free_gib:.1f}. "
            "Free some room or choose another place (MMEMB_RUNS for runs, --out for data)."
        )


def check_memory(needed_gib: float) -> None:
    """Raises MemoryError if less than `needed_gib` is available (Linux; elsewhere no check)."""
    available = available_memory_gib()
    if available is not None and available < needed_gib:
        raise MemoryError(
            f"This stage needs about {needed_gib:.1f} GiB of free memory, the machine has "
            f"{available:.1f}. Close other programs or lower data.batch_size and needs.memory_gib."
        )


def available_memory_gib() -> float | None:
    """Memory that the kernel can give to a new process; None where it gives no figure."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None

    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / GIB
