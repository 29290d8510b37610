"""A saved embedder with another calibration: a copy of its folder, or the folder itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.saved_settings import replace_calibration
from mmemb.storage.files import is_temporary, whole_folder, write_atomically
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.trust import check_links

_HEADING = "## Budgets"
_SECTION = re.compile(rf"^{_HEADING}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def check_place(folder: Path, out: Path | None) -> None:
    """Refuses a place before anything is computed for it; None is the folder itself.

    Raises:
        ValueError: the place is taken, or belongs to a finished run.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} is there already: name a new folder, or delete it first.")
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}, which is copied: name another folder.")
        return

    # A run records its files, and would count as lost with another one.
    if RunFolder(folder.resolve().parent).mark.is_file():
        raise ValueError(
            f"{folder} belongs to a finished run, whose files stay as they were recorded: give "
            "--out in place of --in-place."
        )


def write_calibrated(
    folder: Path, out: Path | None, calibration: BudgetCalibration, table: str
) -> str:
    """Writes the calibration and a section of README.md; the former calibration is kept.

    Args:
        folder: a saved AdaptiveEmbedder.
        out: a new folder; None = the folder itself.
        calibration: the new one.
        table: Markdown for the section.

    Returns:
        The name in the folder under which the former calibration is kept.
    """
    if out is None:
        return _replace(folder, calibration, table, folder.resolve().name)

    check_links(folder)
    with whole_folder(out) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True, ignore=_temporary)
        return _replace(fresh, calibration, table, out.name)


def _replace(folder: Path, calibration: BudgetCalibration, table: str, name: str) -> str:
    former = replace_calibration(folder, calibration)
    section = f"{_HEADING}\n\n{table}\n\nThe former calibration is kept in `{former}`.\n"

    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
    text = _SECTION.sub("", text).rstrip("\n")
    write_atomically(card, f"{text}\n\n{section}".encode())
    return former


def _temporary(place: str, names: list[str]) -> list[str]:
    return [name for name in names if is_temporary(Path(place, name))]
