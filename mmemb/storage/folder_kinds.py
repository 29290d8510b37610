"""What a folder holds, told by the files that its writer left, and a refusal to write over others.

A command that writes a folder names the kinds that it may write over: its own. What is no kind of
this project, such as a user's own files, is nobody's product, and each writer has its rule for it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import final

from mmemb.records.schema import Excerpt, read_json
from mmemb.storage.manifests import INDEX_SUFFIX, MANIFEST
from mmemb.storage.run_folder import MARK, AdaptiveFolder, RunFolder
from mmemb.storage.run_marks import MarkJson

_INDEX = re.compile(r"[0-9a-f]{16}")


@final
class FolderKind(StrEnum):
    """What a folder holds, in words."""

    RUN = "a run"
    ADOPTED = "an adopted embedder"
    EXPERIMENT = "the runs of an experiment"
    DATA = "prepared data"
    SHARDS = "shards"
    RELEASE = "a saved AdaptiveEmbedder"
    BACKBONE = "a saved backbone"
    MODEL = "a model for other libraries"
    SCORES = "score files"
    INDEX = "candidates that `search` has embedded"


@final
class _ClassJson(Excerpt):
    class_path: str | None = None


def kind_of(folder: Path) -> FolderKind | None:
    """Returns what a folder holds; None for one that is not there, and for other files."""
    if not folder.is_dir():
        return None

    run = RunFolder(folder)
    if run.mark.is_file():
        # The adapter of a writer has a mark of its own.
        if (folder / "adapter_config.json").is_file():
            return FolderKind.MODEL
        is_adopted = run.backbone.is_dir() and not run.config.is_file()
        return FolderKind.ADOPTED if is_adopted else FolderKind.RUN

    if AdaptiveFolder(folder).settings.is_file():
        return FolderKind.RELEASE
    if any((folder / name).is_file() for name in ("modules.json", "open_clip_config.json")):
        return FolderKind.MODEL
    if (folder / "config.json").is_file():
        named = read_json(folder / "config.json", _ClassJson).class_path
        return FolderKind.BACKBONE if named else FolderKind.MODEL

    return _kind_of_data(folder)


def _kind_of_data(folder: Path) -> FolderKind | None:
    """Returns the kind of a folder that is no run and no model."""
    if (folder / MANIFEST).is_file():
        has_shards = read_json(folder / MANIFEST, MarkJson).shards is not None
        return FolderKind.SHARDS if has_shards else FolderKind.DATA
    if any(folder.glob(f"*{INDEX_SUFFIX}")):  # not all of them are there yet
        return FolderKind.SHARDS
    if (folder / "tasks.json").is_file():
        return FolderKind.DATA

    if any(folder.glob(f"*/{MARK}")):
        return FolderKind.EXPERIMENT
    if any(folder.glob("*_score.json")) or any(folder.glob("*/*_score.json")):
        return FolderKind.SCORES
    if any(_INDEX.fullmatch(path.parent.name) for path in folder.glob("*/*.npy")):
        return FolderKind.INDEX
    return None


def check_kind(folder: Path, what: str, *kinds: FolderKind) -> None:
    """Refuses a folder that holds something else than what is about to be written.

    Args:
        folder: to be written.
        what: is written, in words.
        kinds: that it may hold.

    Raises:
        ValueError: it holds another kind.
    """
    found = kind_of(folder)
    if found is not None and found not in kinds:
        raise ValueError(
            f"{folder} holds {found}, over which {what} must not be written: name another folder, "
            "or move that one away."
        )
