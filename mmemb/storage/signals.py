"""SIGTERM, SIGUSR1 and SIGINT end a command in order: blocks are left one by one, so that
half-written files are removed, and the exit status is 143, or 130 for SIGINT.

SIGUSR1 is how SLURM warns of a time limit (`--signal=SIGUSR1@180`); it counts like SIGTERM.

`mmemb.storage.unfinished` is the other end of a run before its work is done: by a limit, not by a
signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import final

# By name, since Windows has no SIGUSR1.
SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGTERM", "SIGUSR1", "SIGINT"))
GRACE_SECONDS = 15.0
"""A process that still runs so long after it began to end is killed: it waits for a thread, or for
another process."""


@final
class Interrupted(SystemExit):
    """Raised at the line that a signal interrupts; an `except Exception` does not catch it.

    Args:
        signum: of the signal.
        advice: how to go on.
        status: the exit status, if not 130 for SIGINT and 143 for the others.

    Attributes:
        signum: of the signal.
        message: the line for the user.
    """

    def __init__(self, signum: int, advice: str = "", status: int | None = None) -> None:
        counted = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        super().__init__(128 + counted if status is None else status)
        self.signum = signum
        advice = advice or "stopped; the same command goes on with what is missing."
        self.message = f"{signal.Signals(signum).name}: {advice}"

    def report(self) -> None:
        """Prints the message; a process with status 0 leaves that to another one."""
        if self.code:
            print(self.message, file=sys.stderr)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Makes `SIGNALS` raise `Interrupted` within the block, which is a whole command.

    An error after such a signal raises it, too: the error is of a process that the signal has
    ended. At the end of the block the message is printed.
    """
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _received.clear()
    _ending.clear()
    handle_signals(lambda signum: end(Interrupted(signum)))

    try:
        yield
    except Interrupted as interrupted:
        interrupted.report()
        raise
    except Exception as error:
        if not _received:
            raise
        interrupted = Interrupted(_received[0])
        interrupted.report()
        raise interrupted from error
    finally:
        for signum, handler in before.items():
            _set(signum, handler)


def handle_signals(act: Callable[[int], None]) -> None:
    """Makes `SIGNALS` call `act` from now on, until the process begins to end."""

    def handle(signum: int, frame: FrameType | None) -> None:
        _received.append(signum)
        if not _ending.is_set():  # a second signal does not interrupt the cleaning up
            act(signum)

    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as SIGINT is for a shell's background
            _set(signum, handle)


def ignore_warnings() -> None:
    """Makes a process that works for another one ignore SIGUSR1, which SLURM sends to all processes
    of a job: the other one decides when both end."""
    for signum in SIGNALS:
        if signum.name == "SIGUSR1":
            _set(signum, signal.SIG_IGN)


def end(interrupted: Interrupted) -> None:
    """Raises `interrupted`, and kills the process if it has not ended after `GRACE_SECONDS`."""
    _ending.set()
    killer = threading.Timer(GRACE_SECONDS, os._exit, [interrupted.code])
    killer.daemon = True
    killer.start()
    raise interrupted


def _set(signum: int, handler: object) -> None:
    if threading.current_thread() is threading.main_thread():  # Python allows no other
        signal.signal(signum, handler)  # type: ignore[arg-type]


_received: list[int] = []
_ending = threading.Event()
