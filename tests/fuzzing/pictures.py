"""Pictures in every format that is read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import ClassVar, final

from PIL import Image

from mmemb.media.pictures import MAX_PIXELS, PictureError, check_picture, read_picture, read_pixels
from tests.fuzzing.kind import Kind

FORMATS = ("WEBP", "PNG", "JPEG", "GIF", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F")


@final
class Pictures(Kind):
    """A file of one picture."""

    name: ClassVar[str] = "pictures"
    cpu_s: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 1800  # of 64 million pixels: some copies

    def make_seeds(self) -> Sequence[bytes]:
        return list(_files())

    def marks(self, data: bytes) -> Sequence[str]:
        return ("Sample k, member q0.png",)

    def read(self, data: bytes) -> None:
        where = self.marks(data)[0]
        check_picture(data, FORMATS, where)
        try:
            image = read_picture(data, FORMATS, where)
            small_3HW = read_pixels(data, FORMATS, where, longest_side=8)
        except PictureError as error:
            raise AssertionError(f"checked, and then refused: {error}") from None
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= MAX_PIXELS
        assert small_3HW.shape[0] == 3
        assert 0 < max(small_3HW.shape[1:]) <= max(8, *small_3HW.shape[1:])


def _files() -> Iterator[bytes]:
    for mode in _MODES:
        image = Image.linear_gradient("L").resize((9, 7))
        if mode == "LAB":
            image = Image.merge("LAB", [image] * 3)
        elif mode in ("I;16", "I", "F"):
            image = image.convert("F").point(lambda value: value / 255).convert(mode)
        else:
            image = image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")
        for kind in FORMATS:
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue  # not every format has every mode
            if mode != "I":  # refused, as it has no white
                yield buffer.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "JPEG", exif=exif, progressive=True)
    yield buffer.getvalue()
