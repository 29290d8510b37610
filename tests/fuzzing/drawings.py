"""Drawings: SVG with shapes, styles, references, entities and pictures inside."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from random import Random
from typing import ClassVar, final

from PIL import Image

from mmemb.media.drawings import LONGEST_SIDE, draw_pixels
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes

_BODIES = (
    '<rect width="10" height="5" rx="2" fill="#f00" stroke="blue" stroke-dasharray="1 2"/>',
    '<path d="M0 0 L9 9 A3 3 0 0 1 5 5 Z" transform="rotate(20) scale(2)"/>',
    '<defs><g id="a"><circle r="3"/></g></defs><use href="#a" x="5"/><use xlink:href="#a" y="5"/>',
    '<linearGradient id="b"><stop offset="0.5" stop-color="red"/></linearGradient>'
    '<rect width="20" height="20" fill="url(#b)" mask="url(#c)"/>',
    '<filter id="d"><feGaussianBlur stdDeviation="2"/><feTurbulence baseFrequency="0.1"/></filter>'
    '<ellipse rx="9" ry="5" filter="url(#d)"/>',
    '<style>.e {fill: green} rect {opacity: 0.5}</style><rect class="e" width="5" height="5"/>',
    '<pattern id="g" width="2" height="2"><rect width="1" height="1"/></pattern>'
    '<rect width="20" height="20" fill="url(#g)" clip-path="url(#h)"/>'
    '<clipPath id="h"><circle r="9"/></clipPath>',
)
_HEAD = '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY e "1">]>'
_NUMBERS = (b"0", b"-1", b"1e9", b"1e-9", b"NaN", b"1e400", b"99999999999", b"100%")


@final
class Drawings(Kind):
    """A file of one drawing."""

    name: ClassVar[str] = "drawings"
    cpu_s: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 1000

    def make_seeds(self) -> Sequence[bytes]:
        buffer = io.BytesIO()
        Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
        link = "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
        bodies = (*_BODIES, f'<image href="{link}" width="9" height="9"/>')
        return [
            f'{head}<svg xmlns="http://www.w3.org/2000/svg" {size} '
            f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}</svg>'.encode()
            for head, size in (("", 'width="20" height="10"'), (_HEAD, 'viewBox="0 0 20 30"'))
            for body in bodies
        ]

    def mutate(self, data: bytes, random: Random) -> bytes:
        """Changes a byte, or a number where the drawing stays one more often."""
        digits = [at for at, byte in enumerate(data) if byte in b"0123456789"]
        if digits and random.random() < 0.6:
            at = random.choice(digits)
            return data[:at] + random.choice(_NUMBERS) + data[at + 1 :]
        return mutate_bytes(data, random, self.seeds)

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the_drawing.svg",)

    def read(self, data: bytes) -> None:
        pixels_CHW = draw_pixels(data, "the_drawing.svg")
        assert pixels_CHW.shape[0] == 3
        assert 0 < max(pixels_CHW.shape[1:]) <= LONGEST_SIDE
