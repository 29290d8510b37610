"""Finds pictures on disk: images of an archive, folders of frames, and which frames are taken."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import final

from datamodules.prepare.cells import shown
from datamodules.prepare.media_paths import MediaPathError, find_frames, find_media
from datamodules.prepare.mmeb.plan import Media, Picture
from mmemb.media.frames import choose_frames

_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def natural_key(name: str) -> list[str | int]:
    """Sorts numbers in names by value, letters without case.

    >>> sorted(["f10.jpg", "f9.jpg", "F1.jpg"], key=natural_key)
    ['F1.jpg', 'f9.jpg', 'f10.jpg']
    """
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if n % 2 else part.lower() for n, part in enumerate(parts)]


def first_folder(source: Path, places: tuple[str, ...], task: str, archive: str) -> Path:
    """The first of several places below the source that is there.

    Raises:
        FileNotFoundError: none is.
    """
    for place in places:
        if (source / place).is_dir():
            return source / place
    raise FileNotFoundError(
        f"{task}: {source / places[0]} is missing: unpack {archive} so that this folder is there "
        "(docs/mmeb_v2.md has the commands)."
    )


@final
class PictureFolder:
    """Images and folders of frames below one folder of the source.

    Args:
        source: folder of the local copies; pictures are named by their path below it.
        root: where the names of the annotations start.
        wanted: frames of a clip; None = all that were saved.
    """

    def __init__(self, source: Path, root: Path, wanted: int | None = None) -> None:
        self._source, self._root, self._wanted = source, root, wanted
        self._known: dict[str, Media] = {}

    def image(self, name: str) -> Media:
        """One image."""
        # A name that leads elsewhere raises here; a missing file is only a problem of its row.
        self.path(name)
        try:
            path = self._below_root(find_media(self._root, name))
            if path.is_dir():
                raise MediaPathError(f"{shown(name)} is a folder")
            return Media((self._picture(path, path.stat().st_size),))
        except MediaPathError as error:
            problem = f"{self._root}: {error}: expected the picture that the annotations name."
            return Media(problem=f"{problem} Was the archive unpacked whole?")

    def frames(self, name: str) -> Media:
        """The chosen frames of a clip."""
        # Many rows of a task ask about one clip, and listing a folder is slow.
        if name not in self._known:
            self._known[name] = self._read_folder(name)
        return self._known[name]

    def name_of(self, path: Path) -> str:
        """A path below the source, equal on every machine."""
        return path.relative_to(self._source).as_posix()

    def path(self, name: str) -> Path:
        """Path of a name of the annotations; never out of the folder."""
        parts = PurePosixPath(name).parts
        # Names come from a downloaded table; file systems take at most 255 bytes for one part.
        if (
            not name
            or "\0" in name
            or name[0] == "/"
            or ".." in parts
            or max(map(len, parts)) > 255
        ):
            raise ValueError(f"{self._root}: {shown(name)} names no file or folder below it.")
        return self._root / name

    def _read_folder(self, name: str) -> Media:
        path = self.path(name)
        try:
            frames, reason = find_frames(self._root, name, _FRAME_SUFFIXES), ""
        except MediaPathError as error:
            frames, reason = [], f" ({error})"

        if not frames:
            expected = "/".join(_FRAME_SUFFIXES)
            problem = f"{path} holds no frames: expected a folder of {expected}{reason}"
            return Media(problem=f"{problem}. Was the archive unpacked whole?")

        # A file system lists names in any order.
        frames.sort(key=lambda frame: natural_key(frame.name))
        chosen = [frames[n] for n in choose_frames(len(frames), self._wanted)]

        pictures = (self._picture(self._below_root(p), p.stat().st_size) for p in chosen)
        return Media(tuple(pictures), moving=True)

    def _below_root(self, path: Path) -> Path:
        """A path that was found, as the source names it: its root may be a link."""
        return self._root / path.relative_to(self._root.resolve())

    def _picture(self, path: Path, size: int) -> Picture:
        return Picture(self.name_of(path), size)
