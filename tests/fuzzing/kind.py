"""One kind of input: its seeds, its changes, its readers; and what counts as a fault of theirs."""

from __future__ import annotations

import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import ClassVar

from tests.fuzzing.mutations import mutate_bytes

LONGEST_MESSAGE = 3000
"""Letters. A message is a paragraph, whatever it quotes."""

_NEVER = re.compile(
    r"\[Errno|Traceback|object at 0x|MemoryError|RecursionError|AssertionError|NoneType|"
    r"has no attribute|keyword argument|(?:Error|Exception)\((?!s\))"
)
"""What a sentence for a user does not hold, beside what it quotes."""

_QUOTED = re.compile(r'it says ".*?"\. ', re.DOTALL)
"""What another library says."""


class Kind(ABC):
    """Readers of one kind of input, an input being one file's bytes.

    Args:
        folder: for files that the readers need; empty at first.
    """

    name: ClassVar[str]
    cpu_s: ClassVar[float] = 5.0
    """Longest time of the processor for one input."""
    megabytes: ClassVar[int] = 512
    """Most memory for one input, beside what the process has before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds = list(self.make_seeds())

    @abstractmethod
    def make_seeds(self) -> Sequence[bytes]:
        """Inputs that are read without an error; writes what the readers need into the folder."""

    @abstractmethod
    def read(self, data: bytes) -> None:
        """Gives an input to its readers and asserts that what they return is right.

        Raises:
            ValueError, FileNotFoundError: as the readers do, for what they refuse.
        """

    @abstractmethod
    def marks(self, data: bytes) -> Sequence[str]:
        """Names of which a refusal must hold one: the file, the sample, the server."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Ends what the readers need."""

    def mutate(self, data: bytes, random: Random) -> bytes:
        """One change."""
        return mutate_bytes(data, random, self.seeds)

    def input(self, seed: str, number: int) -> bytes:
        """The input of a number: some changes of a seed; equal arguments make equal inputs."""
        random = Random(f"{self.name} {seed} {number}")
        data = random.choice(self.seeds)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            data = self.mutate(data, random)
        return data


def fault_of(kind: Kind, data: bytes) -> str | None:
    """What the readers do wrongly with an input; None if it is read right, or refused by name."""
    try:
        kind.read(data)
    except (ValueError, FileNotFoundError) as error:
        return _complaint(error, kind.marks(data))
    except Exception as error:  # a fault, whatever it is
        return f"{_place(error)}: {error!s:.500}"
    return None


def _complaint(error: Exception, marks: Sequence[str]) -> str | None:
    """What is wrong with a message that refuses an input."""
    said = str(error)
    if isinstance(error, UnicodeError) or type(error).__module__ == "json.decoder":
        return f"{_place(error)}: {said:.500}"

    wrong = None
    if never := _NEVER.search(_QUOTED.sub("", said)):
        wrong = f"the message holds {never[0]!r}"
    elif not any(mark in said for mark in marks):
        wrong = f"the message names none of {list(marks)}"
    elif len(said) > LONGEST_MESSAGE:
        wrong = f"the message has {len(said)} letters"
    elif said != said.encode(errors="replace").decode():
        wrong = "the message is no valid Unicode"
    return wrong and f"{_place(error)}: {wrong}: {said.encode(errors='replace').decode():.500}"


def _place(error: Exception) -> str:
    """The error's type, and the line of the project that raised it or called what did."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
    ]
    ours = [frame for frame in frames if "/tests/fuzzing/kind.py" not in frame.filename]
    last = (ours or frames)[-1]
    name = "/".join(Path(last.filename).parts[-3:])
    return f"{type(error).__name__} in {name}:{last.lineno}"
