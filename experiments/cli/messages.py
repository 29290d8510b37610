"""Messages of a command as its user reads them: without secrets, pages of a parser, and tips."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator

from mmemb.storage.signals import exit_on_signals

USER_ERRORS = (ValueError, FileNotFoundError, OSError, MemoryError, ModuleNotFoundError)
"""Errors of bad input, such as a precision whose package is not installed; their message is written
for people, so they see it alone."""

_PARSER_PAGE = re.compile(
    r"Does not validate against any of the Union subtypes\n.*?Errors:\n *- (.*?)\n *- Expected a "
    r"<class 'NoneType'>\n *Given value type: .*",
    re.DOTALL,
)

_SECRET_KEYS = re.compile(
    r"""(\b(?:url|api_key_env)["']?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,)}]+)"""
)
_SECRET_URLS = re.compile(r"""(\bhttps?://)[^\s'"]*[@?#][^\s'"]*""")


def innermost(text: str) -> str:
    """Returns the complaint of a constructor, without the parser's page around it."""
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


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Frame of a command: tips are silent, a signal ends it, and bad input ends in one line."""
    quieten()

    with exit_on_signals():
        try:
            yield
        except USER_ERRORS as error:
            sys.exit(f"error: {error}")


def quieten() -> None:
    """Silences tips, and hints about choices made on purpose: no user can act on them."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)

    for message in (
        ".*does not have many writers.*",
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
