"""A few inputs of each kind that `python -m tests.fuzz` tries; and it finds what is planted."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import ClassVar, final

import pytest

from tests.fuzz import corpus, main
from tests.fuzzing import KINDS
from tests.fuzzing.hunt import hunt
from tests.fuzzing.kind import Kind, fault_of

NUM_INPUTS = {
    "json": 80, "names": 150, "texts": 60, "servers": 20, "pictures": 40, "drawings": 3, "clips": 6,
    "tables": 30, "tars": 25, "containers": 30,
}  # fmt: skip
"""Folders take a third of a second each: they are left to the command."""


@pytest.mark.parametrize("name", NUM_INPUTS)
def test_inputs_are_read_right_or_refused_by_name(name: str, tmp_path: Path) -> None:
    with closing(KINDS[name](tmp_path)) as kind:
        inputs = [*corpus(name), *kind.seeds]
        inputs += [kind.input("test", number) for number in range(NUM_INPUTS[name])]
        assert [fault for data in inputs if (fault := fault_of(kind, data))] == []


@final
class _Planted(Kind):
    """A reader with a fault for each of its inputs but one."""

    name: ClassVar[str] = "planted"
    cpu_s: ClassVar[float] = 0.1
    megabytes: ClassVar[int] = 64

    def make_seeds(self) -> Sequence[bytes]:
        return [b"fine"]

    def marks(self, data: bytes) -> Sequence[str]:
        return ("row 1",)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return data

    def read(self, data: bytes) -> None:
        match data:
            case b"slow":
                while True:
                    pass
            case b"deaf":
                signal.signal(signal.SIGPROF, signal.SIG_IGN)
                while True:
                    pass
            case b"large":
                bytearray(2**30)
            case b"dead":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"named":
                raise ValueError("row 1 is wrong")
            case b"unnamed":
                raise ValueError("something is wrong")
            case b"errno":
                raise ValueError("row 1: [Errno 2] no such file")
            case b"crash":
                raise KeyError("a")


def test_planted_faults_are_found_and_saved(tmp_path: Path) -> None:
    given = b"fine slow deaf large dead named unnamed errno crash fine".split()
    kind = _Planted(tmp_path)
    tally = hunt(kind, lambda n: given[n] if n < len(given) else None, 60.0, tmp_path / "out")
    assert tally.tried == len(given)
    said = {path.read_bytes(): fault for path, fault in tally.saved.values()}
    assert "more than 0.1 s" in said[b"slow"]
    assert "MemoryError" in said[b"large"]
    assert "the process hangs" in said[b"deaf"]
    assert f"died of signal {signal.SIGKILL:d}" in said[b"dead"]
    assert "names none of ['row 1']" in said[b"unnamed"]
    assert "holds '[Errno'" in said[b"errno"]
    assert said[b"crash"].startswith("KeyError in ")
    assert len(said) == 7


def test_an_input_that_cannot_be_made_is_no_end(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="planted behind number 0 cannot be made"):
        hunt(_Planted(tmp_path), lambda n: [b"fine"][n], 60.0, tmp_path)


def test_the_command_replays_what_it_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names-0").write_bytes("a\n\u00e9".encode())
    assert main(["--replay", str(tmp_path / "names-0"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["names", "1", "0", "0"]
