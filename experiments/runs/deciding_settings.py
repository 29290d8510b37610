"""Deciding settings: the part of a trainer's configuration by which two runs are different runs.

The rule is that every key and every callback counts. What does not is listed here, each with the
reason why it changes no result; so a new option of Lightning's counts until it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pydoc import locate
from typing import Any

from lightning.pytorch import callbacks as lightning_callbacks

from mmemb.storage.json_files import canonical_json

FREE_KEYS = {
    "accelerator": "the same numbers but for rounding",
    "strategy": "how the same global batch is computed",
    "devices": "global batches are shared out among ranks, whose number changes no sample",
    "num_nodes": "as devices",
    "logger": "where metrics are written",
    "max_time": "interrupts a run, and the same command goes on",
    "num_sanity_val_steps": "a look at batches before the first step, with a generator apart",
    "log_every_n_steps": "how often metrics are written",
    "enable_checkpointing": "saves states, changes none",
    "enable_progress_bar": "shows how far a run is",
    "enable_model_summary": "prints the layers",
    "deterministic": "chooses kernels: the same numbers but for rounding",
    "benchmark": "as deterministic",
    "inference_mode": "how gradients are left out of an evaluation",
    "profiler": "measures times",
    "detect_anomaly": "looks for NaN in the backward pass",
    "default_root_dir": "the run's folder, which a run chooses itself",
    "enable_autolog_hparams": "what is written to loggers",
    "model_registry": "where a model is uploaded to",
}
"""Arguments of the Trainer that change no result, and why."""

FREE_CALLBACKS = {
    lightning_callbacks.ProgressBar: "shows how far a run is",
    lightning_callbacks.RichProgressBar: "as ProgressBar",
    lightning_callbacks.TQDMProgressBar: "as ProgressBar",
    lightning_callbacks.ModelSummary: "prints the layers",
    lightning_callbacks.RichModelSummary: "prints the layers",
    lightning_callbacks.ModelCheckpoint: "saves states, changes none (but see `select`)",
    lightning_callbacks.OnExceptionCheckpoint: "as ModelCheckpoint",
    lightning_callbacks.Timer: "as max_time",
    lightning_callbacks.LearningRateMonitor: "logs",
    lightning_callbacks.DeviceStatsMonitor: "logs",
    lightning_callbacks.ThroughputMonitor: "logs",
}
"""Callbacks that change no result, and why; a class derived from one counts."""

_LIGHTNING = "lightning.pytorch."


def deciding_trainer(trainer: Mapping[str, Any], select: str = "last") -> dict[str, Any]:
    """Returns the settings of a trainer that decide results.

    Args:
        trainer: block `trainer` of a configuration, as plain data.
        select: weights that a fit leaves; with `best` a checkpoint that monitors decides, too.

    Returns:
        Key -> value. Callbacks are one text: a folder that one of them names is written by the run,
        so that its content must not count as an input.
    """
    kept = {key: value for key, value in trainer.items() if key not in FREE_KEYS}

    # YAML has one callback as a table, several as a list: both count alike.
    callbacks = kept.pop("callbacks", None) or []
    blocks = callbacks if isinstance(callbacks, list) else [callbacks]

    counted = [
        block
        for block in blocks
        if _class_of(block) not in FREE_CALLBACKS or (select == "best" and _monitors(block))
    ]
    return kept | {"callbacks": canonical_json(counted)}


def _monitors(block: Any) -> bool:
    return _class_of(block) is lightning_callbacks.ModelCheckpoint and bool(
        (block.get("init_args") or {}).get("monitor")
    )


def _class_of(block: Any) -> object:
    # All free callbacks are Lightning's. Nothing else is imported to find that out: the settings of
    # an earlier run, which may come from anywhere, are compared, too.
    path = block.get("class_path") if isinstance(block, Mapping) else None
    return locate(path) if isinstance(path, str) and path.startswith(_LIGHTNING) else None
