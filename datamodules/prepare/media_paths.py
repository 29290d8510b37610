"""Finds files that tables name below a folder; refuses paths out of it, and pipes and devices."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import final

from datamodules.prepare.cells import shown
from mmemb.media.frames import is_frame

_LONGEST = 3000  # bytes; a system takes 4,096 with the folder's own

_REASONS = {
    errno.ELOOP: "is a link that leads back to itself",
    errno.ENAMETOOLONG: "is too long for a path",
    errno.EACCES: "cannot be read: there is no permission",
}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@final
class MediaPathError(ValueError):
    """A path that leads to no file and no folder of its media folder; the message names it."""


def find_media(folder: Path, name: str) -> Path:
    """Returns the file or folder of that name below a folder.

    A name that is there in another Unicode form alone is found: macOS stores an accent behind its
    letter, most tables hold both as one.

    Raises:
        MediaPathError: it is missing, leads out of the folder, or is neither a file nor a folder
            that can be read. Nothing is opened.
    """
    # Before any system call: an absolute path or `..` must not even be looked at.
    _check_name(name)

    root = _resolved(folder, os.getcwd())
    path = root / name

    try:
        try:
            real, mode = _real(root, path)
        except (FileNotFoundError, NotADirectoryError):
            path = _other_form(root, name)
            real, mode = _real(root, path)
    except OSError as error:
        raise MediaPathError(f"{shown(name)} {_reason(root, name, error)}") from None

    # After links are resolved: a link may lead out of the folder.
    if not real.is_relative_to(root):
        raise MediaPathError(f"{shown(name)} is a link that leads out of {root.name}/")

    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise MediaPathError(f"{shown(name)} is {kind}: expected a file or a folder")

    if not os.access(real, os.R_OK):
        raise MediaPathError(f"{shown(name)} {_REASONS[errno.EACCES]}")
    return path


@lru_cache(maxsize=16)
def _resolved(folder: Path, _working: str) -> Path:
    """The folder without links, kept, since it is needed for each of a hundred thousand names.

    Args:
        folder: may be relative.
        _working: the working folder, on which the result depends.
    """
    return folder.resolve()


def _real(root: Path, path: Path) -> tuple[Path, int]:
    """The path without links, and the mode of what is there.

    Most paths hold no link: one `lstat` for each part is faster than `realpath`.
    """
    here = str(root)
    mode = os.lstat(here).st_mode
    for part in path.relative_to(root).parts:
        here = f"{here}/{part}"
        mode = os.lstat(here).st_mode
        if stat.S_ISLNK(mode):
            real = os.path.realpath(path, strict=True)
            return Path(real), os.stat(real).st_mode

    return path, mode


def find_frames(folder: Path, name: str, suffixes: Collection[str]) -> list[Path]:
    """Returns the frames in a folder of that name, in no order; none if it has none.

    What macOS adds to a file (`._f0.png`) is no frame.

    Raises:
        MediaPathError: there is no such folder, or a frame is no file inside.
    """
    path = find_media(folder, name)
    if not path.is_dir():
        raise MediaPathError(f"{shown(name)} is a file: expected a folder of frames")

    frames = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not is_frame(entry.name, suffixes):
                continue
            if not _is_unicode(entry.name):
                inside = f"{PurePosixPath(name)}/{entry.name}"
                raise MediaPathError(f"{shown(inside)} has a name that is no UTF-8: rename it")

            if not entry.is_file(follow_symlinks=False):  # most are, and need no second look
                inside = f"{PurePosixPath(name)}/{entry.name}"
                if find_media(folder, inside).is_dir():
                    raise MediaPathError(f"{shown(inside)} is a folder, and no frame")
            frames.append(path / entry.name)
    return frames


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_name(name: str) -> None:
    if not name.strip():
        raise MediaPathError("the path is empty")
    if "\0" in name:
        raise MediaPathError(f"{shown(name)} holds a NUL")
    if len(name.encode(errors="replace")) > _LONGEST:
        raise MediaPathError(f"{shown(name)} {_REASONS[errno.ENAMETOOLONG]}")

    path = PurePosixPath(name)
    if path.is_absolute():
        raise MediaPathError(f"{shown(name)} is absolute: expected a path below the folder")
    if ".." in path.parts:
        raise MediaPathError(f"{shown(name)} leads out of the folder")


def _reason(root: Path, name: str, error: OSError) -> str:
    """The reason of an error, in words."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        path = root / name
        ways = [path, *path.parents[: len(PurePosixPath(name).parts) - 1]]
        is_link = any(map(os.path.islink, ways))
        slashes = ": expected `/` between folders" if "\\" in name else ""
        return "is a link to something that is missing" if is_link else f"is missing{slashes}"

    return _REASONS.get(
        error.errno or 0, f"cannot be read ({errno.errorcode.get(error.errno or 0)})"
    )


def _other_form(root: Path, name: str) -> Path:
    """Returns the one path that differs from `name` in Unicode form only; else `root / name`."""
    here = root
    # An exact match always wins over another Unicode form.
    for part in PurePosixPath(name).parts:
        if os.path.lexists(here / part):
            here = here / part
            continue

        forms_of = _names(str(here), os.stat(here).st_mtime_ns) if here.is_dir() else {}
        forms = forms_of.get(unicodedata.normalize("NFC", part), [])
        if len(forms) > 1:
            problem = f"is missing, and {len(forms)} files are so named in other Unicode forms"
            raise MediaPathError(f"{shown(name)} {problem}")

        if not forms:
            return root / name

        here = here / forms[0]
    return here


@lru_cache(maxsize=256)
def _names(folder: str, _changed: int) -> dict[str, list[str]]:
    """Composed form of a name -> names in a folder.

    Args:
        folder: its path.
        _changed: when it was changed, so that a changed folder is read anew.
    """
    names_by_form = defaultdict(list)
    for name in os.listdir(folder):
        names_by_form[unicodedata.normalize("NFC", name)].append(name)
    return names_by_form
