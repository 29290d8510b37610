"""The command that comes next, as it is typed in the shell that ran this one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

_STAGES = ("fit", "validate", "test", "predict")


def next_command(program: str, words: Sequence[str]) -> str:
    """Returns a command line of the same form as the one that was typed.

    Args:
        program: as it was typed: `mmemb ...` or `python -m ...`.
        words: of the next command, as behind `mmemb`.

    >>> next_command("python -m datamodules.prepare", ["fit", "--config", "own/train"])
    'python -m experiments.run fit --config own/train'
    >>> next_command("python -m datamodules.prepare", ["prepare", "folder", "--out", "my data"])
    "python -m datamodules.prepare folder --out 'my data'"
    """
    command, *arguments = words
    if not program.startswith("python"):
        # `--root` was taken out of the arguments, and all paths start at its folder.
        root = os.environ.get("MMEMB_ROOT")
        return shlex.join(["mmemb", command, *(["--root", root] if root else []), *arguments])

    if command in _STAGES:
        return shlex.join(["python", "-m", "experiments.run", *words])
    room = "datamodules" if command == "prepare" else "experiments"
    return shlex.join(["python", "-m", f"{room}.{command}", *arguments])
