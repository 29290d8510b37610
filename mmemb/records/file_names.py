"""File names of names that come from data, and back; and names that must be safe as they are.

A task may be called `../../escape`, `docs/x` or `CON`. `file_name` makes one name of a file of it,
below no other folder, on every file system; `name_of_file` reads it back. Ordinary names keep their
letters: what is written otherwise is `%` and two hexadecimal digits for each byte of UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

MAX_BYTES = 200
"""Most bytes of a file name; file systems take 255, and `_values.json` or the like is added."""

_KEPT = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in '"%*/:<>?\\|')
_EMPTY = "%"
_RESERVED = re.compile(
    r"(con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$|clock\$) *(\..*)?", re.I
)
"""Names of devices under Windows, whatever follows the first dot."""


def file_name(name: str) -> str:
    r"""The name of a file that stands for a name from data.

    Two names never have the same file, and none leads to another folder. Files are ASCII, so that
    no file system changes their Unicode form; `check_apart` tells of names that differ in letters'
    case alone.

    Raises:
        ValueError: the file's name would be longer than `MAX_BYTES`, or half of a surrogate pair is
            in the name.

    >>> file_name("ViDoRe_docvqa"), file_name("../up"), file_name("docs/x"), file_name("caf\xe9")
    ('ViDoRe_docvqa', '%2E.%2Fup', 'docs%2Fx', 'caf%C3%A9')
    """
    # `quote` encodes as UTF-8, which has no half of a surrogate pair.
    try:
        quoted = quote(name, safe=_KEPT)
    except UnicodeEncodeError:
        raise ValueError(
            f"The name {name!a:.100} is no valid Unicode, so no file can be named by it."
        ) from None

    # A hidden file, one that Windows cuts, a device.
    if quoted[:1] in (" ", ".") or _RESERVED.fullmatch(quoted):
        quoted = _escaped(quoted[0]) + quoted[1:]
    if quoted[-1:] in (" ", "."):
        quoted = quoted[:-1] + _escaped(quoted[-1])

    if len(quoted) > MAX_BYTES:
        raise ValueError(
            f"The name {name!r:.80} is too long for the name of a file: it takes {len(quoted)} "
            f"bytes there, at most {MAX_BYTES} are written. Give it a shorter name."
        )
    return quoted or _EMPTY


def name_of_file(file: str) -> str:
    """The name that a file stands for; a file that `file_name` has not named stands for its own.

    >>> name_of_file("docs%2Fx"), name_of_file("ImageNet-1K"), name_of_file("50%")
    ('docs/x', 'ImageNet-1K', '50%')
    """
    if file == _EMPTY:
        return ""

    try:
        name = unquote(file, errors="strict")
        # Only the spelling that `file_name` would write is decoded, so `50%` stays `50%`.
        return name if file_name(name) == file else file
    except ValueError:
        return file


def check_apart(names: Iterable[str], where: str) -> None:
    """Refuses names whose files would be one where letters' case does not count.

    Args:
        names: from data, each once.
        where: names the file or folder that they come from.

    Raises:
        ValueError: names two of them.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(file_name(name).lower(), name)
        if other != name:
            raise ValueError(
                f"{where}: {other!r} and {name!r} differ in capital letters alone, so their files "
                "would be one on many file systems. Rename one of them."
            )


def check_plain(name: str, what: str) -> None:
    """Refuses a name that is taken as it is for a folder, and would lead to another one.

    Args:
        name: of one folder.
        what: names the key that it comes from.

    Raises:
        ValueError: it is empty, holds a separator or a control character, begins with a dot, or is
            too long.
    """
    length = len(name.encode(errors="surrogatepass"))
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and name[:1] not in ("", ".")
    if not is_plain or length > MAX_BYTES:
        raise ValueError(
            f"{what} is {name!a:.100}: expected the name of one folder, without / and \\, without "
            f"a dot in front, of at most {MAX_BYTES} bytes."
        )


def _escaped(letter: str) -> str:
    return f"%{ord(letter):02X}"
