"""Drawings (SVG) as pixels: nothing that a drawing names is opened, and its size is bounded."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree import ElementTree

from torch import Tensor

from mmemb.media.data_urls import picture_of_url
from mmemb.media.libraries import require_library
from mmemb.media.pictures import PictureError, check_picture, read_pixels
from mmemb.media.resvg_process import REFUSED
from mmemb.records.text import has_text, printable

SUFFIX = ".svg"

LONGEST_SIDE = 512
"""Pixels of a drawing's longer side, whatever size it states: towers read fewer."""

MAX_BYTES = 4_000_000
"""Most bytes of a drawing, which is read whole, as a tree."""

MAX_SECONDS = 60
"""Longest time of the clock that a drawing may take; of the processor it may take 20 s."""

_PROGRAM = Path(__file__).with_name("resvg_process.py")

_HEADS = (b"<?xml", b"<svg", b"<!--", b"<!DOCTYPE")
_INSIDE = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats of pictures inside of a drawing."""

_PICTURES, _LETTERS = ("image", "feImage"), ("text", "tspan", "textPath")
"""Elements that show a picture, and letters."""

_USERS = ("use", "linearGradient", "radialGradient", "pattern", "filter", "mask", "clipPath")
"""Elements that take a part of a drawing by its name."""

_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?\s*([^"')\s;]*)""")
_HTML = "{http://www.w3.org/1999/xhtml}"


def is_drawing(data: bytes) -> bool:
    """Tells an SVG by its head, as XML."""
    return data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_HEADS)


def draw_pixels(data: bytes, where: str) -> Tensor:
    """Draws an SVG on white, with its aspect, as uint8 (3, H, W); see `draw_picture`."""
    return read_pixels(draw_picture(data, where), ["PNG"], printable(where))


def draw_picture(data: bytes, where: str) -> bytes:
    """Draws an SVG with its aspect, as a PNG file.

    Pictures inside of it must be data URLs. Letters are refused: which font draws them depends on
    the machine, and without one they would be missing.

    Args:
        data: the file.
        where: names it in errors.

    Raises:
        PictureError: it is no SVG, holds letters, names a file or a URL, or takes too much.
        ModuleNotFoundError: the library that draws is not installed.
    """
    require_library("resvg_py", "Drawing SVG")
    name = printable(where)
    if len(data) > MAX_BYTES:
        raise PictureError(f"{name} has {len(data)} bytes: at most {MAX_BYTES} are drawn.")

    try:
        # A tree holds no such line, so that its colours would be missing.
        if b"<?xml-stylesheet" in data:
            raise _names_another(name, "a style sheet")
        root = ElementTree.fromstring(data)
        # What is drawn is what is checked: the tree is written anew, without a DTD. A deep one is
        # refused here, before a check whose time grows with the size times the depth.
        text = ElementTree.tostring(root, encoding="unicode")
        _check(root, name)
    except PictureError:
        raise
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise _cannot_be_drawn(name, str(error)) from None
    return _draw(text, name)


def _draw(text: str, name: str) -> bytes:
    """Draws as PNG in a process of its own, which has bounds and can open nothing."""
    # `-P` keeps the working directory, where anything may lie, off the path of imports.
    command = [sys.executable, "-P", str(_PROGRAM), str(LONGEST_SIDE)]
    try:
        drawn = subprocess.run(
            command, input=text.encode(), capture_output=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _cannot_be_drawn(name, f"it takes more than {MAX_SECONDS} s") from None

    if drawn.returncode == REFUSED:
        raise _cannot_be_drawn(name, drawn.stderr.decode(errors="replace"))
    if drawn.returncode:
        raise _cannot_be_drawn(
            name, "it takes too much time or memory, or its numbers are too large"
        )
    return drawn.stdout


def _cannot_be_drawn(name: str, reason: str) -> PictureError:
    return PictureError(
        f"{name} cannot be drawn: expected an SVG; {printable(reason.strip())[:200]}."
    )


def _check(root: ElementTree.Element, name: str) -> None:
    """Refuses a drawing of which a part would be missing in silence: letters, another file."""
    if any(has_text("".join(each.itertext())) for each in _outermost(root, _LETTERS)):
        raise PictureError(
            f"{name} holds letters, which need a font: turn them into paths, or save it as PNG."
        )
    if any(_holds_html(each) for each in _outermost(root, ("foreignObject",))):
        raise PictureError(f"{name} holds HTML, which is not drawn: save it as PNG.")

    for element in root.iter():
        kind = _kind(element)
        if kind in (*_PICTURES, *_USERS):
            links = [v for k, v in element.items() if k.rpartition("}")[2] == "href"]
            for link in links:
                _check_link(link, name, shows=kind in _PICTURES)

        styles = [*element.attrib.values(), (element.text or "") if kind == "style" else ""]
        for url in _URL.findall("\n".join(styles)):
            # Without letters, a font inside of the drawing shows nothing.
            if not url.startswith(("#", "data:")):
                raise _names_another(name, url)


def _kind(element: ElementTree.Element) -> str:
    """Returns the name of an element without its namespace: `image` of `{http://...}image`."""
    return str(element.tag).rpartition("}")[2]


def _outermost(root: ElementTree.Element, kinds: Collection[str]) -> Iterator[ElementTree.Element]:
    """Yields elements of some kinds that lie in no other of them, whose content is theirs, too.

    Each element is looked at once: what lies in each other a thousand times would cost the square.
    """
    stack = [root]
    while stack:
        element = stack.pop()
        if _kind(element) in kinds:
            yield element
        else:
            stack += element


def _holds_html(element: ElementTree.Element) -> bool:
    is_text = has_text("".join(element.itertext()))
    return is_text or any(str(part.tag).startswith(_HTML) for part in element.iter())


def _check_link(link: str, name: str, shows: bool) -> None:
    if link.startswith("#"):
        return
    if not (shows and link.startswith("data:")):
        raise _names_another(name, link)
    check_picture(picture_of_url(link, f"A picture in {name}"), _INSIDE, f"A picture in {name}")


def _names_another(name: str, link: str) -> PictureError:
    return PictureError(
        f"{name} names another file ({printable(link)[:60]}), and none is opened: put what it "
        "shows into the drawing, or save it as PNG."
    )
