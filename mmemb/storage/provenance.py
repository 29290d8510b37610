"""The code and the packages that made a result: commit, changes since, versions."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "lightning", "transformers", "webdataset", "torchmetrics", "open_clip_torch")
"""Packages whose version may change a number."""


def git_state(folder: Path) -> tuple[str, str]:
    """Returns the commit and the uncommitted changes of a checkout.

    Args:
        folder: any folder in the checkout.

    Returns:
        The short hash of the commit, and the diff against it; empty strings outside of git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        return process.stdout if process.returncode == 0 else ""

    return git("rev-parse", "--short=10", "HEAD").strip(), git("diff", "HEAD")


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
