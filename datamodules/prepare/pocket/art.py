"""Pictures of three drawing styles, fitted to one square format and encoded as WebP."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

from datamodules.prepare.pocket.full_tasks import NUM_FRAMES

SIZE = 128
QUALITY = 90
BACKGROUND = (128, 128, 128)
"""Grey: on white, the white stripes of a flag lose their edge. Nearest neighbour between raw
16x16 thumbnails of OpenMoji and flag-icons flags: 64 % right on grey, 47 % on white."""

ICONS, OPENMOJI, FLUENT, NOTO, CLIP = "icons", "openmoji", "3d", "noto", "clip"


@final
@dataclass(frozen=True, slots=True, order=True)
class Picture:
    """A drawing by style and name: a code point sequence, or a country code for `icons`.

    `frame` counts the frames of a clip.
    """

    style: str
    name: str
    frame: int = 0


def flag_sequence(code: str) -> str:
    """The emoji of a country's flag as code points.

    >>> flag_sequence("fr")
    '1f1eb-1f1f7'
    """
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in code.lower())


def sequence(emoji: Iterable[int]) -> str:
    """Code points as a name, without the variation selector (sources differ in writing it).

    >>> sequence(map(ord, "☠️"))
    '2620'
    """
    return "-".join(f"{point:x}" for point in emoji if point != 0xFE0F)


def normal_name(file_name: str) -> str:
    """A source's file name (`1F468-200D-2695-FE0F`) as a name of ours."""
    return file_name.lower().replace("-fe0f", "")


@final
class Art:
    """The drawings of all styles whose packages are available."""

    def __init__(self, sources: Mapping[str, Mapping[str, bytes]]) -> None:
        """Takes style -> name -> SVG, WebP or PNG bytes."""
        self.sources = sources
        self._drawn: dict[Picture, bytes] = {}

    def has(self, picture: Picture) -> bool:
        """Tells whether the picture can be drawn."""
        return picture.name in self.sources.get(picture.style, {})

    def render(self, picture: Picture) -> bytes:
        """The picture as WebP: cut to what is drawn, fitted to `SIZE`, on the background."""
        # Many rows show one drawing: it is drawn once.
        if picture not in self._drawn:
            if picture.style == CLIP:
                self._draw_clip(picture.name)
            else:
                data = self.sources[picture.style][picture.name]
                image = (
                    _open_svg(data) if picture.style in (ICONS, OPENMOJI) else _open_pixels(data)
                )
                self._drawn[picture] = encode(fit(image, visible(image)))

        return self._drawn[picture]

    def _draw_clip(self, name: str) -> None:
        frames = clip_frames(self.sources[CLIP][name], NUM_FRAMES)

        boxes = [box for box in map(visible, frames) if box]
        # One cut for all frames: one each would let whatever moves stand still.
        left, top, right, bottom = zip(*boxes, strict=True)
        box = (min(left), min(top), max(right), max(bottom))

        for number, frame in enumerate(frames):
            self._drawn[Picture(CLIP, name, number)] = encode(fit(frame, box))

    def render_all(self, pictures: Iterable[Picture]) -> dict[Picture, bytes]:
        """Renders every distinct picture once, with a progress bar."""
        from tqdm import tqdm

        # Sorted, so that progress and errors come in one order on every machine.
        wanted = sorted(set(pictures))
        # Resizing and encoding release the interpreter lock, so threads are enough.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # All frames of a clip are drawn together, so a clip is one job.
            clips = sorted({picture.name for picture in wanted if picture.style == CLIP})
            list(tqdm(pool.map(self._draw_clip, clips), "clips", len(clips), disable=not clips))

            drawn = pool.map(self.render, wanted)
            shown = tqdm(drawn, "pictures", len(wanted), mininterval=1)
            return dict(zip(wanted, shown, strict=True))


def visible(image: Any) -> tuple[int, int, int, int] | None:
    """The box around what an RGBA image shows; None if it is empty."""
    return image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()  # type: ignore[no-any-return]


def fit(image: Any, box: tuple[int, int, int, int] | None) -> Any:
    """Cuts an RGBA image to a box and centres it in the square.

    Styles leave different margins (a flag fills half of an OpenMoji); without the cut they do not
    match at all (6 % instead of 47 %, in the terms of `BACKGROUND`).
    """
    from PIL import Image

    # An empty drawing has no box and stays as it is.
    image = image.crop(box) if box else image

    scale = SIZE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS)

    square = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    square.paste(image, tuple((SIZE - side) // 2 for side in size), image)
    return square


def encode(image: Any) -> bytes:
    """Encodes an image as WebP; equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _open_svg(data: bytes) -> Any:
    import resvg_py
    from PIL import Image

    # Twice the size, so that the cut leaves enough pixels. System fonts differ between machines.
    png = resvg_py.svg_to_bytes(svg_string=data.decode(), width=2 * SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)), formats=["PNG"]).convert("RGBA")


def _open_pixels(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=["PNG", "WEBP"]).convert("RGBA")


def num_frames(data: bytes) -> int:
    """Number of frames of an animated WebP; 1 of a still one."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        return getattr(image, "n_frames", 1)


def clip_frames(data: bytes, num: int) -> list[Any]:
    """`num` RGBA frames of an animated WebP, evenly spaced, its ends among them."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        last = image.n_frames - 1  # type: ignore[attr-defined]

        wanted = [round(place * last / (num - 1)) for place in range(num)]
        # Frames build on the ones before, so they are read in order, each once.
        frames = {}
        for place in sorted(set(wanted)):
            image.seek(place)
            frames[place] = image.convert("RGBA")
    return [frames[place] for place in wanted]
