"""Unfinished: the end of a run that a limit or a signal stopped before its work was done."""

from __future__ import annotations

from typing import final

UNFINISHED_STATUS = 75
"""Exit status of such a run (EX_TEMPFAIL of sysexits.h): the same command goes on."""


@final
class Unfinished(Exception):  # noqa: N818  (no error: the run can go on)
    """A run stopped before its end. The message is one line for the user: how to go on."""
