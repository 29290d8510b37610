"""The settings file of a saved AdaptiveEmbedder, checked before anything is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, final

import msgspec
from msgspec.structs import replace

from mmemb.gate.budget import BudgetCalibration, CalibrationJson
from mmemb.records.old_names import FIELDS
from mmemb.records.schema import Schema, read_json, to_json
from mmemb.storage.json_files import write_json

SETTINGS = "adaptive.json"
FORMER = "former_calibrations"
"""Folder with the calibrations that others have replaced, numbered from 1 on."""


@final
class AdaptiveJson(Schema):
    """The settings.

    Attributes:
        state: parts of what the gate sees.
        gallery_temperature: of the embedder's scores.
        calibration: logits and costs, by which a budget is kept; None = there is no gate.
        writers: depth -> `class_path` and `init_args` of what writes at it.
    """

    state: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    gallery_temperature: Annotated[float, msgspec.Meta(gt=0)]
    calibration: CalibrationJson | None
    writers: dict[str, dict[str, Any]]


def read_settings(folder: Path) -> AdaptiveJson:
    """Reads the settings of a saved embedder.

    Raises:
        FileNotFoundError: the folder is unfinished, or no embedder was saved there.
        ValueError: the settings are broken.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is not a saved AdaptiveEmbedder, or writing it was "
            "interrupted. `experiments.run fit` with a gate config writes one to <run>/adaptive."
        )
    advice = "It is not what `save_pretrained` writes: fit the gate again."
    settings = read_json(path, AdaptiveJson, advice)
    return replace(settings, state=tuple(FIELDS.get(name, name) for name in settings.state))


def replace_calibration(folder: Path, calibration: BudgetCalibration) -> str:
    """Replaces the calibration of a saved embedder; the former one is kept in the folder.

    A process that is killed meanwhile leaves the former calibration in force, and the next call
    repairs what it left.

    Returns:
        The name in the folder under which the former one is kept.
    """
    settings = read_settings(folder)
    assert settings.calibration is not None, "the embedder has a gate"

    # The last one may be that of a killed call, which is still in force.
    number = sum(1 for _ in (folder / FORMER).glob("*.json"))
    former = folder / FORMER / f"{number}.json"
    if not number or read_json(former, CalibrationJson) != settings.calibration:
        former = folder / FORMER / f"{number + 1}.json"
    write_json(former, to_json(settings.calibration))

    # One file, whole or not at all.
    write_json(folder / SETTINGS, to_json(settings) | {"calibration": calibration.to_json()})
    return former.relative_to(folder).as_posix()
