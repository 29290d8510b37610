"""The origin of results, and folders of results in an experiment, with a link to the newest."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.runs.folders import new_folder, publish
from mmemb.storage.files import whole_folder
from mmemb.storage.folder_kinds import FolderKind, check_kind
from mmemb.storage.provenance import git_state, package_versions


def made_now() -> dict[str, Any]:
    """Returns when something is made, by which commit, and with which versions of packages."""
    commit, diff = git_state(Path(__file__).parent)
    return {
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "git_commit": commit,
        "uncommitted_changes": bool(diff),
        "versions": package_versions(),
    }


@contextmanager
def newest_folder(
    experiment: Path, kind: str, origin: dict[str, Any], names: Collection[str]
) -> Iterator[Path]:
    """Gives a folder to write; it appears whole, and the experiment's links lead to it from then.

    Args:
        experiment: holds the folder.
        kind: name of the link, and part of the folder's name.
        origin: of `made_now`.
        names: files that are linked, too.
    """
    # A run has a link here; and a report of a run alone would stand among its files.
    check_kind(experiment, f"the {kind} of an experiment", FolderKind.EXPERIMENT)
    check_kind(experiment / kind, f"the link to a {kind}")

    stamp, commit = time.strftime("%Y%m%d-%H%M%S"), origin["git_commit"] or "nogit"
    folder = new_folder(experiment, f"{stamp}-{kind}-{commit}")

    # Nothing of it is seen before all of it is there.
    with whole_folder(folder) as fresh:
        yield fresh
    publish(folder, experiment / kind, names)
