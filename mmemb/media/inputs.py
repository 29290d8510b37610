"""Pictures, clips and sides from images, arrays, bytes, paths and data URLs.

A text is never opened as a file: files are `Path`. Nothing is fetched from a network.

Shapes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from mmemb.media.clips import ANIMATED, CLIPS, head_of, is_animated, read_clip
from mmemb.media.containers import is_moving_kind
from mmemb.media.data_urls import PREFIX, picture_of_url
from mmemb.media.drawings import SUFFIX as DRAWING
from mmemb.media.drawings import draw_pixels, is_drawing
from mmemb.media.frames import check_sizes, choose_frames, frame_files
from mmemb.media.libraries import require_library
from mmemb.media.pictures import (
    FILE_FORMATS,
    MAX_PIXELS,
    PICTURES,
    PictureError,
    check_length,
    image_pixels,
    picture_bytes,
    read_pixels,
)
from mmemb.records.counted_nouns import with_article
from mmemb.records.inputs import Media, Side
from mmemb.records.nearest_name import nearest
from mmemb.records.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Input: TypeAlias = (
    "str | Path | bytes | Picture | np.ndarray | Tensor | dict[str, Any] | Media | Side"
    " | tuple[Media, ...]"
)
"""Anything that `side` takes."""

NUM_FRAMES = 8
"""Frames of a clip, unless the caller says otherwise."""

KEYS = ("text", "image", "video", "instruction")
"""Keys of a dictionary that is a side; sentence-transformers has the first three as well."""

_SUFFIXES = (*sorted(PICTURES | CLIPS), DRAWING)
_URLS = ("http://", "https://")
_LONGEST_PATH = 4096

_SHAPES = "(H, W), (H, W, 1), (H, W, 3), (H, W, 4) or (3, H, W)"


def picture(value: Any) -> Media:
    """Makes a picture of a file, bytes, an image or an array, as 8-bit RGB on white, upright.

    Its digest is the SHA-256 of the file's bytes, or without a file a hash of shape and pixels.

    Args:
        value: one of

            * a `Path` of a PNG, JPEG, WebP, BMP, TIFF or SVG file;
            * the bytes of such a file, or a text `data:image/...;base64,...`;
            * an image of Pillow, in any mode that has a white;
            * an array of numpy or a tensor of torch, (H, W), (H, W, 1 | 3 | 4) or (3, H, W): uint8,
              or floats from 0 to 1, which are multiplied by 255 and rounded;
            * a `Media`, which is returned as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, moves, or cannot be read.
        ModuleNotFoundError: a library of the extra `media` is not installed.
    """
    if isinstance(value, Media):
        return value

    require_library("PIL", "Reading pictures")
    match value:
        case Path():
            return _picture_of_bytes(picture_bytes(_file(value)), str(value))
        case bytes() | bytearray() | memoryview():
            return _picture_of_bytes(bytes(value), "The picture")
        case str() if value.startswith(PREFIX):
            return _picture_of_bytes(picture_of_url(value, "The data URL"), "The data URL")
        case str():
            raise _no_file(value)
        case np.ndarray() | Tensor():
            return _picture_of_image(_image_of_array(value))

    return _picture_of_image(_checked_image(value))


def clip(value: Any, num_frames: int = NUM_FRAMES) -> tuple[Media, ...]:
    """Chooses frames of a clip; of a file those that `prepare folder` takes.

    Args:
        value: one of

            * a `Path` of a video, of a picture that moves, or of a folder of frames;
            * the bytes of such a file;
            * a sequence of pictures of one size, or an array (T, H, W, 3): see `picture`;
            * a sequence of `Media`, which are all taken.
        num_frames: evenly spaced, of a file by time, else by number; all if they are fewer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or cannot be read.
        ModuleNotFoundError: a library of the extra `media` is not installed.
    """
    if not isinstance(num_frames, Integral) or num_frames < 1:
        raise ValueError(f"num_frames is {_shown(num_frames)}: expected a whole number, 1 or more.")
    if are_media(value):
        return _frames(value, "The clip")

    require_library("PIL", "Reading clips")
    match value:
        case Path() if os.path.isdir(value):
            files = frame_files(value, num_frames)
            return _frames(files, str(value), [file.name for file in files])
        case Path():
            return _frames(read_clip(_file(value), num_frames, str(value)), str(value))
        case bytes() | bytearray() | memoryview():
            return _frames(read_clip(bytes(value), num_frames), "The clip")
        case str():
            raise _no_file(value)
        case list() | tuple() if value:
            return _frames(_chosen(value, num_frames), "The clip")
        case np.ndarray() | Tensor() if value.ndim == 4 and len(value):
            return _frames(_chosen(value, num_frames), "The clip")

    raise ValueError(
        f"{_shown(value)} is no clip: expected a Path, the bytes of a video, a list of pictures, "
        "or an array (T, H, W, 3)."
    )


def side(value: Any, instruction: str = "", num_frames: int = NUM_FRAMES) -> Side:
    """Makes the side of a pair (a query, a document) of a text, a picture, a clip or several.

    A text is always a text. One that names a picture or a clip that is there, or the URL of one, is
    an error: data of others, which may hold any text, come as `Side(text=...)`.

    Args:
        value: one of

            * a text;
            * a picture (see `picture`): a `Path`, bytes, an image of Pillow, an array, a `Media`;
            * a clip (see `clip`): a `Path`, bytes, an array (T, H, W, 3), a tuple of `Media`;
            * a dictionary with some of `text`, `image` (one or a list), `video`, `instruction`;
            * a `Side`.
        instruction: of an input that brings none of its own.
        num_frames: of a clip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or cannot be read.
        ModuleNotFoundError: a library of the extra `media` is not installed.
    """
    if not isinstance(instruction, str):
        raise ValueError(f"instruction is {_shown(instruction)}: expected a text.")

    match value:
        case Side():
            is_whole = value.instruction or not instruction
            return value if is_whole else replace(value, instruction=instruction)
        case str():
            _check_text(value)
            return Side(value, instruction)
        case dict():
            return _side_of_dict(value, instruction, num_frames)
        case list() | tuple() if not are_media(value):
            raise ValueError(
                f"{_shown(value)} is {with_article(type(value).__name__)}: expected one input. "
                'Give several pictures as {"image": [...]}, and frames as {"video": [...]}.'
            )

    media = clip(value, num_frames) if _is_clip(value) else (picture(value),)
    return Side("", instruction, media)


def sides(
    inputs: Iterable[Any],
    instruction: str = "",
    num_frames: int = NUM_FRAMES,
    places: Sequence[int] | None = None,
) -> list[Side]:
    """Makes sides of several inputs; see `side`.

    Args:
        inputs: a list of what `side` takes.
        instruction: of an input that brings none of its own.
        num_frames: of a clip.
        places: of the inputs in the caller's list, for errors; None = from 0 on.

    Raises:
        FileNotFoundError: a file is missing; names the place of the input.
        ValueError: an input is no side; names its place as well.
        ModuleNotFoundError: a library of the extra `media` is not installed.
    """
    # Rows of an array would pass for grey pictures, and letters of a text for texts.
    single = str | bytes | dict | np.ndarray | Tensor
    if isinstance(inputs, single) or not isinstance(inputs, Iterable):
        raise ValueError(f"{_shown(inputs)} is one input: expected a list of them.")

    result = []
    for place, value in enumerate(inputs) if places is None else zip(places, inputs, strict=True):
        try:
            result.append(side(value, instruction, num_frames))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"Input {place}: {error}") from None
        except ValueError as error:
            raise ValueError(f"Input {place}: {error}") from None
    return result


def _side_of_dict(parts: dict[Any, Any], instruction: str, num_frames: int) -> Side:
    if unknown := [key for key in parts if key not in KEYS]:
        hint, expected = nearest(str(unknown[0]), KEYS), ", ".join(KEYS)
        raise ValueError(f"{_shown(unknown[0])} is an unknown key: expected {expected}.{hint}")

    text, own_instruction = parts.get("text", ""), parts.get("instruction", instruction)
    for key, value in (("text", text), ("instruction", own_instruction)):
        if not isinstance(value, str):
            raise ValueError(f"{key} is {_shown(value)}: expected a text.")

    images = parts.get("image", ())
    images = images if isinstance(images, list | tuple) else (images,)
    media = [replace(picture(image), kind="image") for image in images]
    if "video" in parts:
        media += clip(parts["video"], num_frames)

    if not text and not media:
        raise ValueError(f"{_shown(parts)} holds nothing: expected a text, a picture or a clip.")
    return Side(text, own_instruction, tuple(media))


def _check_text(text: str) -> None:
    """Refuses a text that most likely means a file."""
    kind = ""
    if text.startswith(PREFIX):
        kind, remedy = "the data URL of a picture", 'give {"image": ...}'
    elif text.startswith(_URLS) and len(text.split()) == 1:
        # What stands behind the path is no part of the file's name.
        path = text.partition("?")[0].partition("#")[0]
        kind = "the URL of a file" if path.lower().endswith(_SUFFIXES) else ""
        remedy = "fetch it, and give its Path"
    elif is_file_name(text):
        kind, remedy = "a file that is there", "wrap it in Path(...)"

    if kind:
        raise ValueError(
            f"{_shown(text)} names {kind}, and a str is always a text: {remedy} if the file is "
            "meant, or give Side(text=...) if the text is."
        )


def is_file_name(text: str) -> bool:
    """Tells whether a text is the name of a picture or clip that is there."""
    may_be_one = len(text) <= _LONGEST_PATH and text.lower().endswith(_SUFFIXES)
    return may_be_one and os.path.isfile(text)


def _no_file(text: str) -> ValueError:
    """Returns the error for a text in place of a picture or a clip."""
    if text.startswith(_URLS):
        return ValueError(
            f"{_shown(text)} is a URL, and nothing is fetched here: give a Path or bytes."
        )
    return ValueError(f"{_shown(text)} is a text: wrap it in Path(...) if a file is meant.")


def _file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        FileNotFoundError: none is.
    """
    if not os.path.isfile(path):  # False also for a name that is too long
        what = "is no file" if os.path.exists(path) else "is missing"
        raise FileNotFoundError(f"{printable(str(path))} {what}: expected a picture or a clip.")
    return path


def _is_clip(value: Any) -> bool:
    """Tells whether a value moves; GIF counts as a clip, as in `prepare folder`."""
    match value:
        case list() | tuple():
            return True
        case np.ndarray() | Tensor():
            return value.ndim == 4

        # By the name where it decides, else by the bytes, since many names are wrong.
        case Path() if os.path.isdir(value):
            return True
        case Path() if value.suffix.lower() in CLIPS:
            return True
        case Path() | bytes() | bytearray() | memoryview():
            require_library("PIL", "Reading pictures")
            source = _file(value) if isinstance(value, Path) else bytes(value)
            return is_moving_kind(head_of(source)) or is_animated(source)
    return False


def are_media(value: Any) -> bool:
    """Tells whether a value is a list or tuple of `Media`, such as the frames of one clip."""
    several = isinstance(value, list | tuple) and len(value) > 0
    return several and all(isinstance(item, Media) for item in value)


def _chosen(frames: Sequence[Any], num: int) -> list[Any]:
    return [frames[place] for place in choose_frames(len(frames), num)]


def _frames(pictures: Sequence[Any], where: str, names: Sequence[str] = ()) -> tuple[Media, ...]:
    """Pictures as the frames of one clip."""
    media = [replace(picture(frame), kind="frame") for frame in pictures]

    # Frames of which only features were loaded have no size.
    sizes = [(m.pixels.shape[2], m.pixels.shape[1]) for m in media if m.pixels is not None]
    names = names or [f"frame {number}" for number in range(len(sizes))]
    check_sizes(printable(where), names, sizes)
    return tuple(media)


def _picture_of_bytes(data: bytes, where: str) -> Media:
    check_length(len(data), where)
    if is_drawing(data):
        pixels_CHW = draw_pixels(data, where)
    elif is_animated(data):
        raise PictureError(f"{printable(where)} moves: give it as a clip, or one of its frames.")
    else:
        pixels_CHW = read_pixels(data, FILE_FORMATS, where)
    return Media("image", hashlib.sha256(data).hexdigest(), pixels_CHW)


def _picture_of_image(image: Picture) -> Media:
    pixels_CHW = image_pixels(image, "The picture")
    return Media("image", _pixel_digest(pixels_CHW), pixels_CHW)


def _pixel_digest(pixels_CHW: Tensor) -> str:
    digest = hashlib.sha256("x".join(map(str, pixels_CHW.shape)).encode())
    digest.update(pixels_CHW.numpy().tobytes())
    return digest.hexdigest()


def _checked_image(value: Any) -> Picture:
    """An image of Pillow that does not move."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        raise ValueError(
            f"{_shown(value)} is {with_article(type(value).__name__)}: expected a text, a Path, "
            "bytes, an image of Pillow, an array, a dictionary, Media or Side."
        )
    if value.format in ANIMATED and getattr(value, "is_animated", False):
        raise PictureError(
            "The picture moves: give its Path or bytes as a clip, or image.copy() of one frame."
        )
    return value


def _image_of_array(values: np.ndarray | Tensor) -> Picture:
    """An array as an image of Pillow; its range and its shape are checked."""
    from PIL import Image

    if isinstance(values, Tensor):
        values = _array_of_tensor(values)
    # What is masked has a value nobody meant.
    if isinstance(values, np.ma.MaskedArray):
        raise PictureError("The array is masked: fill what is masked (`array.filled`) first.")

    pixel_HWC = _channels_last(values)
    if not pixel_HWC.size or pixel_HWC.shape[0] * pixel_HWC.shape[1] > MAX_PIXELS:
        raise PictureError(f"{_shape(values)}: expected 1 to {MAX_PIXELS} pixels.")

    if pixel_HWC.dtype.kind == "f":
        if not (pixel_HWC.min() >= 0 and pixel_HWC.max() <= 1):  # also if one is not a number
            raise PictureError(
                f"{_shape(values)} goes from {pixel_HWC.min():g} to {pixel_HWC.max():g}: expected "
                "floats from 0 (black) to 1 (white), or uint8."
            )
        pixel_HWC = (pixel_HWC * 255).round().astype(np.uint8)
    if pixel_HWC.dtype != np.uint8:
        raise PictureError(f"{_shape(values)}: expected uint8, or floats from 0 to 1.")
    return Image.fromarray(np.ascontiguousarray(pixel_HWC))


def _array_of_tensor(values: Tensor) -> np.ndarray:
    """The array of a tensor, wherever it is; numpy has no bfloat16."""
    try:
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy(force=True)
    except (RuntimeError, TypeError) as error:  # sparse, quantised, nested, without values
        reason = printable(str(error).partition("\n")[0]).rstrip(".")
        raise PictureError(f"The tensor is no plain array of numbers: {reason:.200}.") from None


def _channels_last(values: np.ndarray) -> np.ndarray:
    """The array as (H, W) or (H, W, C)."""
    match values.shape:
        case (3, _, 1 | 3 | 4):
            raise PictureError(
                f"{_shape(values)} may be (3, H, W) or (H, W, C): give an image of Pillow."
            )
        case (_, _) | (_, _, 3 | 4):
            return values
        case (_, _, 1):
            return values[..., 0]
        case (3, _, _):
            return values.transpose(1, 2, 0)
    raise PictureError(f"{_shape(values)} is no picture: expected {_SHAPES}.")


def _shape(values: np.ndarray) -> str:
    return f"The array of {values.dtype} and shape {values.shape}"


def _shown(value: Any) -> str:
    """Returns a value as it stands in an error: short, and on one line."""
    return printable(reprlib.repr(value))
