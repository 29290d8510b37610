"""A folder of pictures with their captions beside them (`a.jpg`, `a.txt` or `a.json`) as cells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from datamodules.prepare.cells import MAX_LETTERS, Broken, CellError, shown
from datamodules.prepare.folder.columns import GUIDE, Columns
from datamodules.prepare.media_paths import MediaPathError, find_media
from datamodules.prepare.row_files import Cells, json_row
from mmemb.media.clips import CLIPS
from mmemb.media.drawings import SUFFIX as DRAWING
from mmemb.media.pictures import PICTURES

CAPTIONS = (".txt", ".json")
_MEDIA = {DRAWING, *PICTURES, *CLIPS}

_KEYS = ("caption", "text", "title")
"""Keys of a `.json` that hold the caption; the first one that is there counts."""

_MAX_BYTES = 4 * MAX_LETTERS


def picture_cells(folder: Path, columns: Columns) -> Iterator[Cells | Broken | None]:
    """Yields the cells `id`, `picture`, `caption` of each picture below a folder, sorted by name.

    Other keys of a `.json` are cells as well.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: the mapping does not fit.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--pictures {folder} is no folder: expected one with pictures.")

    media, captions = _files(folder)
    if not media:
        raise FileNotFoundError(
            f"--pictures {folder} holds no picture: expected files that end in "
            f"{', '.join(sorted({DRAWING, *PICTURES}))} ({GUIDE})."
        )

    stems = sorted({*media, *captions})
    rows = (_row(folder, stem, media, captions) for stem in stems)
    yield from columns.matched(str(folder), with_ids(zip(stems, rows, strict=True), columns))


def with_ids(
    rows: Iterable[tuple[str, Cells | Broken]], columns: Columns
) -> Iterator[Cells | Broken]:
    """Yields rows with the ids that follow from their places, unless they say their own ids.

    Args:
        rows: each behind its id.
        columns: know whether one of the rows' own columns is mapped to `id`.
    """
    for own_id, cells in rows:
        if isinstance(cells, Broken) or columns.maps_to("id"):
            yield cells
        else:
            yield {"id": own_id} | cells


def caption_cells(text: bytes | None, json: bytes | None) -> Cells:
    """Returns the caption of a picture and what else its JSON says.

    Args:
        text: content of its `.txt`, which is the caption.
        json: content of its `.json`.

    Raises:
        CellError: it is no UTF-8, or no JSON object.
    """
    cells = json_row(json) if json is not None else {}
    if text is not None:
        try:
            # A text file ends with a line's end, and may begin with a mark.
            return cells | {"caption": text.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            raise CellError(
                f"the .txt is no UTF-8 (byte 0x{text[error.start]:02x} at {error.start})"
            ) from None

    found = [name for name in _KEYS if name in cells]
    return cells | ({"caption": cells[found[0]]} if found else {})


def _files(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of pictures, and of captions, by their path without the suffix."""
    media: dict[str, list[str]] = {}
    captions: dict[str, list[str]] = {}
    # Links to folders are not followed: they may lead in a circle.
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        below = Path(place).relative_to(folder).as_posix()

        for name in sorted(names):
            path = PurePosixPath(below, name)
            suffix = path.suffix.lower()
            if name.startswith("."):  # what macOS and editors add
                continue
            if suffix in (DRAWING, *PICTURES, *CLIPS):
                media.setdefault(str(path.with_suffix("")), []).append(str(path))
            elif suffix in CAPTIONS:
                captions.setdefault(str(path.with_suffix("")), []).append(str(path))

    return media, captions


def _row(
    folder: Path, stem: str, media: dict[str, list[str]], captions: dict[str, list[str]]
) -> Cells | Broken:
    pictures, texts = media.get(stem, []), captions.get(stem, [])
    expected = " or ".join(f"{PurePosixPath(stem).name}{suffix}" for suffix in CAPTIONS)

    if not pictures:
        return Broken(f"{shown(texts[0])} has no picture of its name beside it")
    if len(pictures) > 1:
        return Broken(
            f"{shown(pictures[0])} and {shown(pictures[1])} would share a caption: rename one"
        )
    if not texts:
        return Broken(f"{shown(pictures[0])} has no caption: expected {shown(expected)} beside it")

    content: dict[str, bytes] = {}
    for name in texts:
        try:
            path = find_media(folder, name)
            # A pipe would never end, and a folder has no content.
            if not path.is_file() or path.stat().st_size > _MAX_BYTES:
                return Broken(f"{shown(name)} is no file of at most {_MAX_BYTES:,} bytes")
            suffix = path.suffix.lower()
            if suffix in content:
                return Broken(f"{shown(texts[0])} and {shown(name)} are both captions: remove one")
            content[suffix] = path.read_bytes()
        except (MediaPathError, OSError) as error:
            return Broken(
                str(error) if isinstance(error, MediaPathError) else f"{shown(name)} is unreadable"
            )

    try:
        cells = caption_cells(content.get(".txt"), content.get(".json"))
    except CellError as error:
        return Broken(f"{shown(texts[0])}: {error}")

    # Last: a key of this name in the JSON would show another picture under this caption.
    return cells | {"picture": pictures}
