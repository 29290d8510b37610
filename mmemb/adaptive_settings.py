"""The settings file of a saved AdaptiveEmbedder, checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmemb.lineage import read_json

SETTINGS = "adaptive.json"


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a saved embedder; an unfinished or foreign folder is one clear error."""
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is not a saved AdaptiveEmbedder, or writing it was "
            "interrupted. `experiments.run fit` with a gate config writes one to <run>/adaptive."
        )
    settings = read_json(path, "the settings of an AdaptiveEmbedder")
    if problem := _problem(settings):
        raise ValueError(
            f"{path}: {problem}: it is not what `save_pretrained` writes. Fit the gate again."
        )
    return settings


def _problem(settings: Mapping[str, Any]) -> str:
    """What is wrong with settings, in a few words; empty if nothing is."""
    if missing := {"state", "temperature", "thresholds", "workers"} - set(settings):
        return f"{sorted(missing)} are missing"
    workers, thresholds, parts = settings["workers"], settings["thresholds"], settings["state"]
    if not isinstance(workers, dict) or not all(isinstance(w, dict) for w in workers.values()):
        return "`workers` is no table of depth -> class_path and init_args"
    if not isinstance(parts, list) or not parts:
        return "`state` is no list of parts"
    if not isinstance(settings["temperature"], float | int) or not settings["temperature"] > 0:
        return "`temperature` is no positive number"
    lists = ("logits", "costs", "ties", "milliseconds")
    if not isinstance(thresholds, dict) or not all(
        isinstance(thresholds.get(name), list) for name in lists
    ):
        return f"`thresholds` lacks some of the lists {list(lists)}"
    if len({len(thresholds[name]) for name in lists[:3]}) > 1:
        return "`thresholds` tells of unequally many queries"
    return ""
