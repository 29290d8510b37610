"""Building blocks of self-contained pages: elements, tables, embedded data, the frame.

Whatever is not `Markup` is text of unknown origin, and is escaped where it enters an element.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

MEDIA_TYPES = {"webp": "image/webp", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg"}


@final
class Markup(str):
    """HTML that was made here, in which all text is escaped."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Any text as HTML.

    >>> text("<b> & Co")
    '&lt;b&gt; &amp; Co'
    """
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An element; `class_` is the attribute `class`.

    >>> element("p", "<i>", element("b", 1), class_="x")
    '<p class="x">&lt;i&gt;<b>1</b></p>'
    """
    given = "".join(f' {k.strip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    return Markup(f"<{tag}{given}>{join(*content)}</{tag}>")


def join(*content: object) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(map(text, content)))


def image(url: str, description: str) -> Markup:
    """A picture; `url` is a data URL."""
    return Markup(f'<img src="{html.escape(url)}" alt="{html.escape(description)}">')


def table(headings: Sequence[str], lines: Sequence[Sequence[object]]) -> Markup:
    """A table whose first column names its lines; it scrolls where the screen is narrow."""
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = [
        element("tr", element("th", line[0], scope="row"), *(element("td", c) for c in line[1:]))
        for line in lines
    ]
    inner = element("table", element("thead", head), element("tbody", *body))
    return element("div", inner, class_="scroll")


def bullets(lines: Sequence[object]) -> Markup:
    """A list of sentences."""
    return element("ul", *(element("li", line) for line in lines))


def embedded(identifier: str, data: Any) -> Markup:
    r"""JSON for a script to read; no text in it can end the element that holds it.

    >>> embedded("rows", ["</script>"])
    '<script type="application/json" id="rows">["\\u003c/script\\u003e"]</script>'
    """
    content = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{identifier}">{content}</script>')


def data_url(file_name: str, data: bytes) -> str:
    """A picture's bytes as an address that needs no network.

    >>> data_url("c0.webp", b"abc")
    'data:image/webp;base64,YWJj'
    """
    media_type = MEDIA_TYPES[file_name.rsplit(".", 1)[-1]]
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def page_bytes(title: str, *body: object, script: str = "") -> bytes:
    """A whole page: inline style, pictures as data, and no script but the given one may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {runs}"
    pieces = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{read_asset('style.css')}</style>\n"
        f"</head>\n<body>\n<main>\n{join(*body)}\n</main>\n",
        f"<script>{script}</script>\n" if script else "",
        "</body>\n</html>\n",
    )
    return "".join(pieces).encode(errors="replace")  # a text of JSON may hold half a character


def read_asset(name: str) -> str:
    """Reads a style sheet or a script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
