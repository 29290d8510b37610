"""`report verify SCORES --expected FILE`: does a run reach what its configuration promises?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report.page import markdown_table
from experiments.report.scored import Model
from mmemb.lineage import read_json

_KEYS = {"data_revision", "mode", "source", "tolerance", "scores"}


def verify(scores: str, expected: Path) -> tuple[str, bool]:
    """A line for each expected task, and whether all are inside.

    Args:
        scores: folder of score files, or `NAME=FOLDER,FOLDER` for a mean over seeds.
        expected: JSON: `data_revision`, `mode`, `source` (where the numbers are from),
            `tolerance` (points) and `scores`: task -> points, or `{"score", "tolerance"}`.

    Raises:
        ValueError: the file is no such thing, or the run was scored on other data.
    """
    model, wanted = Model.read(scores), _expected(expected)
    if wanted["data_revision"] not in ("", model.revision):
        raise ValueError(
            f"{expected} is about data revision {wanted['data_revision']!r}, {model.name} was "
            f"scored on {model.revision!r}: prepare the data of that revision."
        )
    modes = {file.mode for file in model.files[0].values()}
    if wanted["mode"] and modes != {wanted["mode"]}:
        raise ValueError(
            f"{expected} holds scores of mode {wanted['mode']!r}, {model.name} those of "
            f"{sorted(modes)}: score it with `--mode {wanted['mode']}`."
        )
    lines, inside = [], 0
    for task, entry in wanted["scores"].items():
        target, tolerance = _entry(entry, wanted["tolerance"])
        found = model.scores.get(task)
        good = found is not None and abs(100 * found - target) <= tolerance
        inside += good
        shown = "-" if found is None else f"{100 * found:.2f}"
        off = "-" if found is None else f"{100 * found - target:+.2f}"
        verdict = "missing" if found is None else "inside" if good else "OUTSIDE"
        lines.append([task, f"{target:.2f}", f"{tolerance:.2f}", shown, off, verdict])
    headings = ("task", "expected", "tolerance", "found", "off by", "verdict")
    text = markdown_table(headings, lines)
    return f"{text}\n\n{inside} of {len(lines)} inside.", inside == len(lines)


def _expected(path: Path) -> Mapping[str, Any]:
    data = read_json(path, "expected scores")
    if unknown := sorted(set(data) - _KEYS):
        raise ValueError(f"{path}: unknown key(s) {unknown}; known are {sorted(_KEYS)}.")
    if not isinstance(data.get("scores"), dict) or not data["scores"]:
        raise ValueError(f"{path} lacks `scores`: expected task -> points.")
    found = {"data_revision": "", "mode": "", "tolerance": 1.0, **data}
    for task, entry in found["scores"].items():
        try:
            _entry(entry, found["tolerance"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f'{path}: scores of {task} are {entry!r}: expected points, or {{"score": points, '
                '"tolerance": points}}.'
            ) from None
    return found


def _entry(entry: Any, tolerance: float) -> tuple[float, float]:
    if isinstance(entry, dict):
        return float(entry["score"]), float(entry.get("tolerance", tolerance))
    return float(entry), float(tolerance)
