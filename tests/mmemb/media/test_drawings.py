"""Drawings: bounded, on white; nothing that they name is opened."""

from __future__ import annotations

import io
import time
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import resvg_py
from PIL import Image

from mmemb.media import drawings, picture, side
from mmemb.media.drawings import LONGEST_SIDE
from tests.fixtures.tiny_data import picture as webp

HEAD = b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
BAR = HEAD + b'viewBox="0 0 20 10"><rect width="10" height="10" fill="#f00"/></svg>'


def drawing(body: str, size: str = 'width="20" height="20"') -> bytes:
    return HEAD + f"{size}>{body}</svg>".encode()


def test_a_drawing_is_a_picture_on_white(tmp_path: Path) -> None:
    (tmp_path / "bar.svg").write_bytes(b"\xef\xbb\xbf\n<!-- a bar -->" + BAR)
    for thing in (
        BAR,
        "data:image/svg+xml;base64," + b64encode(BAR).decode(),
        tmp_path / "bar.svg",
    ):
        pixels = picture(thing).pixels
        assert pixels.shape == (3, LONGEST_SIDE // 2, LONGEST_SIDE)
        assert pixels[:, 9, 9].tolist() == [255, 0, 0]
        assert pixels[:, 9, -9].tolist() == [255, 255, 255]
    assert side(tmp_path / "bar.svg").modalities == {"image"}


@pytest.mark.parametrize("size", ['width="1" height="90000"', 'viewBox="0 0 9e9 1"'])
def test_a_drawing_of_any_stated_size_is_bounded(size: str) -> None:
    assert max(picture(drawing('<rect width="9" height="9"/>', size)).pixels.shape) <= LONGEST_SIDE


@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
@pytest.mark.parametrize("element", ["image", "feImage"])
@pytest.mark.parametrize("scheme", ["", "file://", "http://localhost"])
def test_a_drawing_opens_nothing(tmp_path: Path, attribute: str, element: str, scheme: str) -> None:
    secret = tmp_path / "secret.webp"
    secret.write_bytes(webp(1))
    shown = f'<{element} {attribute}="{scheme}{secret}" width="20" height="20"/>'
    if element == "feImage":
        shown = f'<filter id="f">{shown}</filter><rect width="20" height="20" filter="url(#f)"/>'
    with pytest.raises(ValueError, match="^The picture names another file .*, and none is opened"):
        picture(drawing(shown))


def test_the_program_that_draws_can_open_nothing(tmp_path: Path) -> None:
    """The library opens what a drawing names; even what passes the check would find no file."""
    (tmp_path / "secret.png").write_bytes(_png())
    shown = drawing(f'<image href="{tmp_path}/secret.png" width="20" height="20"/>').decode()
    nothing = drawing("").decode()

    by_library = [
        bytes(resvg_py.svg_to_bytes(svg_string=text, width=LONGEST_SIDE))
        for text in (shown, nothing)
    ]
    assert by_library[0] != by_library[1]
    by_program = [drawings._draw(text, "x") for text in (shown, nothing)]
    assert by_program[0] == by_program[1]


def test_ways_around_the_check_lead_nowhere(tmp_path: Path) -> None:
    """An entity, a drawing inside of a drawing, a text in the place of a picture."""
    (tmp_path / "secret.png").write_bytes(_png())
    link = f'<image href="{tmp_path}/secret.png" width="20" height="20"/>'
    inner = b64encode(drawing(link)).decode()
    entity = f"<!DOCTYPE svg [<!ENTITY e '{tmp_path}/secret.png'>]>".encode() + drawing(
        '<image href="&e;" width="20" height="20"/>'
    )
    for data, words in [
        (entity, "names another file"),
        (drawing(f'<image href="data:image/svg+xml;base64,{inner}"/>'), "A picture in The picture"),
        (drawing(f'<image href="data:text/plain;base64,{inner}"/>'), "A picture in The picture"),
        (b'<!DOCTYPE s [<!ENTITY e SYSTEM "/etc/hostname">]>' + drawing("&e;"), "undefined entity"),
    ]:
        with pytest.raises(ValueError, match=words):
            picture(data)


@pytest.mark.parametrize(
    "body",
    [
        '<style>rect {fill: url("other.svg#a")}</style><rect width="20" height="20"/>',
        '<style>@import "a.css";</style><rect width="20" height="20"/>',
        '<use href="other.svg#a"/>',
        '<use xlink:href="data:image/svg+xml;base64,AAAA#a"/>',
        '<linearGradient id="a" href="other.svg#b"/><rect width="9" height="9" fill="url(#a)"/>',
        '<rect width="9" height="9" fill="url(other.svg#a)"/>',
        """<rect width="9" height="9" style="fill: url( 'http://localhost/a#b')"/>""",
        '<?xml-stylesheet href="a.css"?><rect width="9" height="9"/>',
    ],
)
def test_a_part_of_another_file_is_refused_and_not_left_out(body: str) -> None:
    with pytest.raises(ValueError, match="^The picture names another file .*, and none is opened"):
        picture(drawing(body))


def test_html_is_refused_and_parts_of_the_drawing_itself_are_drawn() -> None:
    page = '<div xmlns="http://www.w3.org/1999/xhtml">{}</div>'
    for inside in ("Hello", page.format("Hello"), page.format('<img src="a.png"/>')):
        with pytest.raises(ValueError, match="holds HTML, which is not drawn"):
            picture(drawing(f'<foreignObject width="9" height="9">{inside}</foreignObject>'))

    own = (
        '<a href="http://localhost"><linearGradient id="g"><stop stop-color="#f00"/>'
        '</linearGradient><rect id="r" width="20" height="20" style="fill:url(#g)"/></a>'
        '<foreignObject/><use xlink:href="#r"/>'
    )
    assert picture(drawing(own)).pixels[:, 9, 9].tolist() == [255, 0, 0]


def test_pictures_inside_of_a_drawing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = b64encode(_png()).decode()
    data = drawing(f'<image href="data:image/png;base64,{inside}" width="20" height="20"/>')
    assert int(picture(data).pixels[1].max()) == 0, "green is missing in what is drawn"
    monkeypatch.setattr("mmemb.media.pictures.MAX_PIXELS", 3)
    with pytest.raises(ValueError, match="A picture in The picture cannot be decoded.*at most 3"):
        picture(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (drawing("<text>Hello</text>"), "holds letters, which need a font"),
        (b"<?xml version='1.0'?><html/>", "cannot be drawn: expected an SVG"),
        (b"<svg", "cannot be drawn: expected an SVG"),
        (drawing("<g>" * 5000 + "</g>" * 5000), "cannot be drawn"),
        (drawing('<circle r="1e9"/>', 'viewBox="0 0 20 30"'), "it takes too much time or memory"),
        (b"<svg" + bytes(5_000_000), "has 5000004 bytes: at most 4000000"),
    ],
    ids=["letters", "html", "cut", "deep", "large", "long"],
)
def test_what_cannot_be_drawn_says_why(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        picture(data)


def test_entities_that_multiply_are_refused_soon() -> None:
    names = "abcdefghi"
    lines = "".join(
        f'<!ENTITY {name} "{f"&{names[n - 1]};" * 20 if n else "x" * 20}">'
        for n, name in enumerate(names)
    )
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot be drawn"):
        picture(f"<!DOCTYPE svg [{lines}]>".encode() + drawing("<g>&i;</g>"))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", ["text", "foreignObject"])
def test_elements_in_each_other_are_refused_soon(kind: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot be drawn"):
        picture(drawing(f"<{kind}>" * 8000 + f"</{kind}>" * 8000))
    assert time.monotonic() - start < 5


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), [255, 0, 255], np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
