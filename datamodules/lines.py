"""Lines of a text file from elsewhere: they end at a line feed, and at nothing else.

`str.splitlines` also splits at U+2028, U+0085, vertical tabs and others, which stand unescaped in
JSON and in names, and files in text mode also end lines at a carriage return alone.
"""

from __future__ import annotations


def split_lines(data: bytes) -> list[bytes]:
    r"""The lines of a file without their ends, `\n` or `\r\n`; a byte-order mark is dropped.

    >>> split_lines("a\x0bb\r\n\u2028c\rd\n".encode()) == ["a\x0bb".encode(), "\u2028c\rd".encode()]
    True
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")

    # A file that ends with a line feed has no empty line behind it.
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]
