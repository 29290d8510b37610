"""Arguments and failures that the converters of data share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from mmemb.records.counted_nouns import counted


def add_converting(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds the arguments by which a converter works.

    Args:
        parser: of the subcommand.
        of: what it reads, in the plural.
    """
    parser.add_argument("--check", action="store_true", help="find faults alone; writes nothing")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="skip: leave faulty rows out"
    )
    parser.add_argument(
        "--recheck", action="store_true", help=f"read all {of}, also those that look unchanged"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="that convert at once"
    )


def raise_failures(failures: Sequence[str], count: int, of: str) -> None:
    """Raises ValueError with what is wrong with each of some tasks or sources, if any is."""
    if failures:
        listed = "\n".join(f"- {failure}" for failure in failures)
        raise ValueError(f"{len(failures)} of {counted(count, of)} failed:\n{listed}")
