"""Messages of a command as its user reads them: without secrets, pages of a parser, and tips."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from mmemb.storage.signals import Interrupted, exit_on_signals
from mmemb.storage.unfinished import Unfinished

USER_ERRORS = (ValueError, FileNotFoundError, OSError, MemoryError, ModuleNotFoundError)
"""Errors of bad input, such as a precision whose package is not installed; their message is written
for people, so they see it alone."""

MOST_LETTERS = 300
"""Of a reason in the list of runs."""

_PARSER_PAGE = re.compile(
    r"Does not validate against any of the Union subtypes\n.*?Errors:\n *- (.*)\n *- Expected a "
    r"<class 'NoneType'>\n *Given value type: .*",
    re.DOTALL,
)

_PACKAGE = re.compile(r"Problem with given class_path '([\w.]+)':\s+(Requirement '.*' not met\..*)")
"""A class of Lightning's whose package is not installed, such as that of a logger."""

_SECRET_KEYS = re.compile(
    r"""(\b(?:url|api_key_env)["']?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,)}]+)"""
)
_SECRET_URLS = re.compile(r"""(\bhttps?://)[^\s'"]*[@?#][^\s'"]*""")


def innermost(text: str) -> str:
    """Returns the complaint of a constructor, without the parser's page around it."""
    if package := _PACKAGE.search(text):
        return f"{package[1]}: {package[2]}"
    while page := _PARSER_PAGE.match(text):
        text = textwrap.dedent("    " + page[1])
    return text


def without_secrets(text: str) -> str:
    """Returns a text without keys and addresses of chat servers: a parser shows each given value.

    >>> without_secrets("Given value: Namespace(url='http://me:pw@h/v1', api_key_env='sk-1', n=2)")
    "Given value: Namespace(url='***', api_key_env='***', n=2)"
    >>> without_secrets("asked http://h/v1?key=sk-1 once")
    'asked http://*** once'
    """
    return _SECRET_URLS.sub(r"\1***", _SECRET_KEYS.sub(r"\1'***'", text))


def _without(pattern: str) -> Callable[[logging.LogRecord], bool]:
    """Returns a filter that drops messages which hold a pattern."""
    return lambda record: re.search(pattern, record.getMessage()) is None


def reason_of(error: BaseException, run: Path) -> str:
    """Returns why a run has ended, in one line without secrets, as the list of runs shows it.

    >>> reason_of(RuntimeError("the power\\nwent out"), Path("runs/pocket/1-trunk"))
    'failed: RuntimeError: the power went out'
    """
    # These two are no failures; their messages are written for people as they stand.
    if isinstance(error, Interrupted):
        text = f"unfinished: {error.message}"
    elif isinstance(error, Unfinished):
        text = f"unfinished: {error}"
    else:
        text = f"failed: {type(error).__name__}: {innermost(str(error))}"

    # The list names the run in front.
    text = without_secrets(text).replace(f"{run}: ", "")
    return textwrap.shorten(text, MOST_LETTERS, placeholder=" ...")


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Frame of a command: tips are silent, a signal ends it, and bad input ends in one line."""
    quieten()

    with exit_on_signals():
        try:
            yield
        except USER_ERRORS as error:
            sys.exit(f"error: {error}")


_LOUD_LOGGERS = {
    "lightning.pytorch.utilities.rank_zero": "",  # tips, and what the progress bar shows
    "lightning.fabric.utilities.seed": "Seed set to",
    # Backbones and writers cut a text at their own bound.
    "transformers.tokenization_utils_base": "Token indices sequence length is longer",
    # What is tried again is no news; the last failure is an error.
    "huggingface_hub.utils._http": "thrown while requesting|Retrying in|before retry",
}
"""Logger -> pattern of messages that no user can act on; empty: all messages below a warning."""


def quieten() -> None:
    """Silences tips, and hints about choices made on purpose: no user can act on them."""
    for name, pattern in _LOUD_LOGGERS.items():
        logger = logging.getLogger(name)
        if not pattern:
            logger.setLevel(logging.WARNING)
        elif not logger.filters:
            logger.addFilter(_without(pattern))

    for message in (
        ".*does not have many writers.*",
        ".*args parameter is intended to run from within Python.*",
        ".*treespec, LeafSpec.*",
        ".*fit will run with no optimizer.*",
        ".*callbacks list already contains.*",
        ".*Unable to serialize instance.*",  # such defaults stay what they are
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run goes on
        ".*dirpath has changed from.*",  # a checkpoint is continued in a run of its own
        ".*is smaller than the logging interval.*",  # a quick look; the last line has the metrics
        ".*MLFlow only allows.*",  # recall@1 is recall1 there
        ".*in eval mode at the start of training.*",  # frozen towers; encoders without dropout
    ):
        warnings.filterwarnings("ignore", message=message)
