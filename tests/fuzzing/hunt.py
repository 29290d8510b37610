"""Tries inputs of one kind in child processes, which are bounded and may die."""

from __future__ import annotations

import itertools
import json
import os
import resource
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Never, final

from tests.fuzzing.kind import Kind, fault_of

ASLEEP_S = 60.0
"""Longest time in which a child neither says something nor computes."""

MOST_TIMES = 3
"""So often the processor's time for one input is too much for a child that no signal reaches."""

MOST_SAVED = 20
"""Faults of one kind that are saved; then its hunt ends."""

Inputs = Callable[[int], bytes | None]
"""The input of a number; None behind the last one."""


@final
class _TooSlow(BaseException):
    """Too much time for one input; no `except Exception` of a reader catches it."""


@final
@dataclass
class Tally:
    """What was tried of one kind.

    Attributes:
        tried: number of inputs.
        faults: how often each was met, by error and place.
        saved: the first input of each, and what was said about it.
    """

    tried: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    saved: dict[str, tuple[Path, str]] = field(default_factory=dict)


def hunt(kind: Kind, inputs: Inputs, seconds: float, out: Path) -> Tally:
    """Tries inputs for some time, or until there is none, or too many are faults.

    Args:
        kind: whose readers are tried.
        inputs: of numbers from 0.
        seconds: how long.
        out: folder for inputs that are faults.
    """
    tally, end = Tally(), time.monotonic() + seconds
    first: int | None = 0
    while first is not None and time.monotonic() < end and len(tally.saved) < MOST_SAVED:
        first = _watch(kind, inputs, first, end, tally, out)
    return tally


def _watch(
    kind: Kind, inputs: Inputs, first: int, end: float, tally: Tally, out: Path
) -> int | None:
    """Follows one child; returns the number behind the input that ended it, if one did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(kind, inputs, first, end, writer)

    os.close(writer)
    number = first
    with open(reader, "rb", buffering=0) as lines:  # what waits in a buffer is not selected
        while speaks := _speaks(lines, pid, kind.cpu_s * MOST_TIMES):
            if not (line := lines.readline()):
                break
            number, fault = json.loads(line)
            if fault is None:
                tally.tried += 1
            else:
                _note(tally, kind, inputs(number), fault, out)
            if len(tally.saved) >= MOST_SAVED:
                break
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if status == 0 or len(tally.saved) >= MOST_SAVED:
        return None
    if os.WIFEXITED(status):
        raise RuntimeError(f"The input of {kind.name} behind number {number} cannot be made.")
    ended = f"died of signal {os.WTERMSIG(status)}" if speaks else "hangs"
    _note(tally, kind, inputs(number), f"the process {ended}", out)
    return number + 1


def _speaks(lines: IO[bytes], pid: int, cpu_s: float) -> bool:
    """Waits until a child says something or ends; not if it hangs. Other processes may take most
    of the clock."""
    first = last = _cpu_s(pid)
    awake = time.monotonic()
    while not select.select([lines], [], [], min(cpu_s, 1.0))[0]:
        now = _cpu_s(pid)
        if now > last:
            last, awake = now, time.monotonic()
        if now - first > cpu_s or time.monotonic() - awake > ASLEEP_S:
            return False
    return True


def _cpu_s(pid: int) -> float:
    """Time of the processor that a process has taken."""
    *_, user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _child(kind: Kind, inputs: Inputs, first: int, end: float, pipe: int) -> Never:
    """Writes a line before each input, and one more for a fault."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # nobody is to be asked, and warnings are many
        os.dup2(nothing, stream)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + kind.megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _stop)

    def tell(number: int, fault: str | None) -> None:
        os.write(pipe, json.dumps([number, fault]).encode() + b"\n")

    try:
        for number in itertools.count(first):
            data = inputs(number)
            if data is None or time.monotonic() > end:
                os._exit(0)
            tell(number, None)
            if fault := _bounded(kind, data):
                tell(number, fault)
    finally:  # nothing of the parent's is done here
        os._exit(1)


def _stop(*_: Any) -> None:
    raise _TooSlow


def _bounded(kind: Kind, data: bytes) -> str | None:
    try:
        signal.setitimer(signal.ITIMER_PROF, kind.cpu_s)
        fault = fault_of(kind, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooSlow:
        return f"more than {kind.cpu_s:g} s of the processor"
    return fault


def _note(tally: Tally, kind: Kind, data: bytes | None, fault: str, out: Path) -> None:
    place = fault.split(": ")[0]
    tally.faults[place] += 1
    if place not in tally.saved and data is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{kind.name}-{sha256(data).hexdigest()[:8]}"
        path.write_bytes(data)
        tally.saved[place] = (path, fault)
