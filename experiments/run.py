"""`python -m experiments.run fit|validate|test|predict --config ...`: one stage, one run.

With `--explain KEY` nothing runs; it says which file or flag gave the setting its value.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import textwrap
import traceback
import warnings

from experiments.cli.explain import asked_for, explain
from mmemb.storage.signals import exit_on_signals
from mmemb.storage.unfinished import UNFINISHED_STATUS, Unfinished

USER_ERRORS = (ValueError, FileNotFoundError, OSError, MemoryError, ModuleNotFoundError)
"""What bad input raises, such as a precision whose package is not installed; their message is
written for people, so they see it alone."""

_LIGHTNING_ERROR = "MisconfigurationException"  # by name: to import it takes seconds


_PARSER_PAGE = re.compile(
    r"Does not validate against any of the Union subtypes\n.*?Errors:\n *- (.*?)\n *- Expected a "
    r"<class 'NoneType'>\n *Given value type: .*",
    re.DOTALL,
)


_SECRET_KEYS = re.compile(
    r"""(\b(?:url|api_key_env)["']?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,)}]+)"""
)
_SECRET_URLS = re.compile(r"""(\bhttps?://)[^\s'"]*[@?#][^\s'"]*""")


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
            from experiments.cli.experiment_cli import ExperimentCLI

            ExperimentCLI(arguments)
    except Unfinished as end:
        # Lightning kills the first process, and with it this status, when another one fails.
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            sys.exit(0)
        print(end, file=sys.stderr)
        sys.exit(UNFINISHED_STATUS)
    except Exception as error:
        if not (isinstance(error, USER_ERRORS) or type(error).__name__ == _LIGHTNING_ERROR):
            raise
        said = without_secrets(innermost(str(error)))
        sys.exit(f"error: {said}\n(traceback: {write_traceback()})")


def innermost(text: str) -> str:
    """What a constructor complained about, without the parser's page around it."""
    while found := _PARSER_PAGE.match(text):
        text = textwrap.dedent("    " + found[1])
    return text


def without_secrets(text: str) -> str:
    """Text without what may hold the key of a chat server: a parser shows every value it was given.

    >>> without_secrets("Given value: Namespace(url='http://me:pw@h/v1', api_key_env='sk-1', n=2)")
    "Given value: Namespace(url='***', api_key_env='***', n=2)"
    >>> without_secrets("asked http://h/v1?key=sk-1 once")
    'asked http://*** once'
    """
    return _SECRET_URLS.sub(r"\1***", _SECRET_KEYS.sub(r"\1'***'", text))


def quieten() -> None:
    """Silences what no user can act on: tips, and hints about choices made on purpose."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*args parameter is intended to run from within Python.*",
        ".*treespec, LeafSpec.*",
        ".*fit will run with no optimizer.*",
        ".*callbacks list already contains.*",
        ".*Unable to serialize instance.*",  # such defaults stay what they are
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run goes on
        ".*dirpath has changed from.*",  # a checkpoint is continued in a run of its own
        ".*in eval mode at the start of training.*",  # frozen towers; encoders without dropout
    ):
        warnings.filterwarnings("ignore", message=message)


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
