"""Pictures of a repository: unpacked below it, or still in its zip archives; frames of clips."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import final

from datamodules.archives import ArchiveError, ArchiveLimits, open_zip, read_zip_member
from datamodules.prepare.cells import shown
from datamodules.prepare.media_paths import MediaPathError, find_frames, find_media
from datamodules.prepare.mmeb.frames import natural_key
from datamodules.prepare.mmeb.pictures import UnreadableError, check_picture, picture_file
from datamodules.prepare.mmeb_train.rows import TrainSide
from datamodules.prepare.mmeb_train.sources import FRAMES
from mmemb.media.frames import choose_frames

_LIMITS = ArchiveLimits()
_FRAMES = "train_300k"
_SUFFIXES = (".jpg", ".jpeg", ".png")


@final
class MediaStore:
    """Finds media by the names that annotations give them.

    Args:
        folder: local copy of a repository.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives: dict[str, list[zipfile.ZipFile]] | None = None
        self._broken = ""

    def members(self, side: TrainSide, prefix: str) -> dict[str, bytes]:
        """The side's media as members of a sample.

        Raises:
            UnreadableError: one is missing or cannot be decoded; names it.
        """
        if side.clip:
            return self._clip(side.clip, prefix)
        if side.content:
            where = f"{self._folder}, the picture of {side.text[:40]!r}"
            return {f"{prefix}0.{check_picture(side.content, where)}": side.content}
        # A side without media is a text.
        if not side.picture:
            return {}

        data = self._read(side.picture)
        return {f"{prefix}0.{check_picture(data, f'{self._folder}/{side.picture}')}": data}

    def _read(self, name: str) -> bytes:
        # An unpacked file wins over archives, which must be listed first.
        try:
            path = find_media(self._folder, name)
            if path.is_file():
                return picture_file(path)
            reason = f"{shown(name)} is a folder"
        except MediaPathError as error:
            reason = str(error)

        archives = self._by_member().get(name, [])
        # Archives may repeat a member, and only equal copies leave no doubt about which is meant.
        try:
            if len({archive.getinfo(name).CRC for archive in archives}) > 1:
                raise ArchiveError(f"{name!r} is another picture in each of {_names(archives)}.")
            if archives:
                return read_zip_member(archives[0], name, _LIMITS)
        except ArchiveError as error:
            raise UnreadableError(f"{error} Or leave it out with `--on-error skip`.") from None

        raise UnreadableError(
            f"{self._folder}: {reason}, and no archive below it holds {shown(name)}: unpack or "
            f"fetch it again, or leave such rows out with `--on-error skip`. {self._broken}".strip()
        )

    def _by_member(self) -> dict[str, list[zipfile.ZipFile]]:
        """Name -> the archives that hold it; a broken archive counts as absent, until something is
        looked for in vain."""
        # Listing all archives takes long, and sources that were unpacked never need it.
        if self._archives is None:
            self._archives = {}

            for path in sorted(self._folder.rglob("*.zip")):
                try:
                    archive = open_zip(path)
                except ArchiveError as error:
                    self._broken += f"{error} "
                    continue

                for name in dict.fromkeys(archive.namelist()):
                    self._archives.setdefault(name, []).append(archive)
        return self._archives

    def _clip(self, name: str, prefix: str) -> dict[str, bytes]:
        try:
            paths = find_frames(self._folder, f"{_FRAMES}/{name}", _SUFFIXES)
        except MediaPathError as error:
            raise UnreadableError(f"{self._folder}: {error}: unpack {_FRAMES} whole.") from None
        if not paths:
            raise UnreadableError(
                f"{self._folder / _FRAMES}: {shown(name)} holds no frames: unpack {_FRAMES} whole."
            )

        frames = sorted(paths, key=lambda path: natural_key(path.name))
        # The same frames as in evaluation, so that training and test show clips alike.
        members = {}
        for place, number in enumerate(choose_frames(len(frames), FRAMES)):
            data = picture_file(frames[number])
            suffix = check_picture(data, str(frames[number]))
            members[f"{prefix}0.{place:03d}.{suffix}"] = data
        return members


def _names(archives: Sequence[zipfile.ZipFile]) -> str:
    return ", ".join(str(archive.filename) for archive in archives)
