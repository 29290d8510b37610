"""Runs a function where some libraries cannot be imported, in a process forked from this one."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, final

OURS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")


def run_without(refused: Sequence[str], fn: Callable[[], str]) -> str:
    """What `fn` returns; all that it imports of this project is imported anew.

    Torch stays loaded: importing it takes two seconds.

    Raises:
        RuntimeError: with the traceback of `fn`, if it failed.
    """
    context = get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(writer, refused, fn))
    process.start()
    writer.close()
    good, said = reader.recv()
    process.join()
    if not good:
        raise RuntimeError(said)
    return said


@final
class _Refuse(MetaPathFinder):
    """Finds no library of some names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] in self.names:
            raise ImportError(f"{fullname} was asked for")


def _child(pipe: Connection, refused: Sequence[str], fn: Callable[[], str]) -> None:
    try:
        for name in list(sys.modules):
            if name.split(".")[0] in {*OURS, *refused}:
                del sys.modules[name]
        sys.meta_path.insert(0, _Refuse(refused))
        message = (True, fn())
    except BaseException:
        message = (False, traceback.format_exc())
    pipe.send(message)
