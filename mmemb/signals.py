"""SIGTERM and SIGINT end a command in order: blocks are left one by one, so that what is half
written goes, and the exit status is 143 or 130."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import final

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 15.0
"""A process that is still there so long after it began to end is ended at once: it waits for a
thread, or for another process."""


@final
class Interrupted(SystemExit):
    """Raised where a signal finds the process; an `except Exception` does not hold it.

    Args:
        signum: of the signal.
        said: how to go on.
        status: the exit status, if not 128 + signum.

    Attributes:
        said: the line for the user.
    """

    def __init__(self, signum: int, said: str = "", status: int | None = None) -> None:
        super().__init__(128 + signum if status is None else status)
        said = said or "stopped; the same command goes on with what is missing."
        self.said = f"{signal.Signals(signum).name}: {said}"

    def tell(self) -> None:
        """Prints the line; not in a process whose status 0 says that another one reports."""
        if self.code:
            print(self.said, file=sys.stderr)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within the block, which is a whole command, SIGTERM and SIGINT raise `Interrupted`.

    So does an error behind such a signal: it is that of a process that the signal has ended, too.
    At the end of the block a line says how to go on.
    """
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _received.clear()
    _ending.clear()
    handle_signals(lambda signum: end(Interrupted(signum)))
    try:
        yield
    except Interrupted as interrupted:
        interrupted.tell()
        raise
    except Exception as error:
        if not _received:
            raise
        interrupted = Interrupted(_received[0])
        interrupted.tell()
        raise interrupted from error
    finally:
        for signum, handler in before.items():
            _set(signum, handler)


def handle_signals(act: Callable[[int], None]) -> None:
    """From now on SIGTERM and SIGINT call `act`, until the process begins to end."""

    def handle(signum: int, frame: FrameType | None) -> None:
        _received.append(signum)
        if not _ending.is_set():  # what is being cleaned up is not disturbed
            act(signum)

    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as SIGINT is for a shell's background
            _set(signum, handle)


def end(interrupted: Interrupted) -> None:
    """Raises `interrupted`, and sees to it that the process ends soon."""
    _ending.set()
    last = threading.Timer(GRACE_SECONDS, os._exit, [interrupted.code])
    last.daemon = True
    last.start()
    raise interrupted


def _set(signum: int, handler: object) -> None:
    if threading.current_thread() is threading.main_thread():  # Python allows no other
        signal.signal(signum, handler)  # type: ignore[arg-type]


_received: list[int] = []
_ending = threading.Event()
