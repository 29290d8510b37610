"""`python -m experiments.run fit|validate|test|predict --config ...`: one stage, one run.

With `--explain KEY` nothing runs; it says which file or flag gave the setting its value. With
`--sweep KEY=VALUE,VALUE` a fit runs once for each value, one after another.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

from experiments.cli.config_files import config_names, lookup_lines
from experiments.cli.explain import asked_for, explain
from experiments.cli.messages import USER_ERRORS, innermost, quieten, without_secrets
from experiments.pipelines.sweep import read_sweep, sweep
from mmemb.storage.requeue import requeue
from mmemb.storage.signals import Interrupted, exit_on_signals
from mmemb.storage.unfinished import UNFINISHED_STATUS, Unfinished

_LIGHTNING_ERROR = "MisconfigurationException"  # by name: to import it takes seconds


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage; a user's mistake ends in one paragraph, the traceback goes to a file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    quieten()
    try:
        with exit_on_signals():
            arguments, key = asked_for(arguments)
            if key is not None:
                print(explain(arguments, key))
                return
            arguments, axes = read_sweep(arguments)
            if axes:
                sweep(arguments, axes)
                return

            # Of the ranks that Lightning starts the first one says it.
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                for line in lookup_lines(config_names(arguments)):
                    print(line, file=sys.stderr)

            from experiments.cli.experiment_cli import ExperimentCLI

            ExperimentCLI(arguments)
    except Interrupted as interrupted:
        requeue(interrupted.signum, os.environ)
        raise
    except Unfinished as end:
        # Lightning kills the first process, and with it this status, when another one fails.
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            sys.exit(0)
        print(end, file=sys.stderr)
        sys.exit(UNFINISHED_STATUS)
    except Exception as error:
        if not (isinstance(error, USER_ERRORS) or is_of_lightning(error)):
            raise
        message = without_secrets(innermost(str(error)))
        sys.exit(f"error: {message}\n(traceback: {write_traceback()})")


def is_of_lightning(error: Exception) -> bool:
    """Tells whether Lightning itself refuses what it was given, such as a monitor that is missing.

    Its messages are written for users; the error of a module or of torch keeps its traceback.
    """
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    raised_there = "/lightning/pytorch/" in where.replace(os.sep, "/")
    return type(error).__name__ == _LIGHTNING_ERROR or (
        isinstance(error, RuntimeError) and raised_there
    )


def write_traceback() -> str:
    """Writes the traceback of the current exception to a file of its own and returns its path."""
    text = without_secrets(traceback.format_exc())
    if os.environ.get("MMEMB_TRACEBACK"):
        print(text, end="", file=sys.stderr)
    handle, path = tempfile.mkstemp(prefix="mmemb-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return path


if __name__ == "__main__":
    main()
