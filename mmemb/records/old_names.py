"""Names that have changed, for YAML files, runs, shards and saved models of older versions.

A YAML file with an old name is refused and told the new one (`experiments/cli/config_check.py`).
What a run saved is read with the new names, and one warning. So are shards, without a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

CLASS_PATHS = {
    "mmemb.backbones.mllm.VisionLanguageBackbone": (
        "mmemb.backbones.vision_language.VisionLanguageBackbone"
    ),
    "mmemb.backbones.PromptStyle": "mmemb.llm.PromptStyle",
    "mmemb.first_token.FirstTokenHead": "mmemb.gate.FirstTokenHead",
    "mmemb.gating.MlpDepthHead": "mmemb.gate.MlpDepthHead",
    "datamodules.UtilityDataModule": "datamodules.DepthValueDataModule",
    "mmemb.evaluators.EmbeddingEvaluator": "mmemb.selection.EmbeddingJudge",
    "mmemb.evaluators.YesNoEvaluator": "mmemb.selection.YesNoJudge",
    "mmemb.selection.EmbeddingEvaluator": "mmemb.selection.EmbeddingJudge",
    "mmemb.selection.YesNoEvaluator": "mmemb.selection.YesNoJudge",
    "mmemb.rationales.ForeignWorker": "mmemb.rationales.PlaceboWriter",
    "mmemb.rationales.LabelBridgeWorker": "mmemb.rationales.LabelBridgeWriter",
    "mmemb.rationales.LanguageModelWorker": "mmemb.rationales.LanguageModelWriter",
    "mmemb.rationales.PrecomputedWorker": "mmemb.rationales.PrecomputedWriter",
    "mmemb.rationales.SelfWorker": "mmemb.rationales.SelfWriter",
    "mmemb.rationales.ServerWorker": "mmemb.rationales.ServerWriter",
    "mmemb.rationales.TableWorker": "mmemb.rationales.TableWriter",
    "mmemb.rationales.VisionLanguageWorker": "mmemb.rationales.VisionLanguageWriter",
    "mmemb.rationales.VllmWorker": "mmemb.rationales.VllmWriter",
}
"""Old path of a class -> its path now."""

_EXPORTED = (
    "an argument of lightning_modules.DepthValueExporter, the model of the stage `depth_values`"
)
_WRITERS = {"probe_layer": "prompt_state_layer"}
_TRAINED = {"fitted": "trained_facts", "allow_fitted": "allow_trained_facts"}
_BACKBONE = {"num_warmup": "num_warmup_steps", "new_lr_scale": "new_parameters_lr_scale"}

ARGUMENTS = {
    "lightning_modules.ContrastiveEmbedder": {
        **_BACKBONE,
        "temperature": "loss_temperature",
        "reason": "eval_with_rationales",
        "detach": "detach_next_token",
        "reasoning_weight": "losses.reasoned",
        "direct_weight": "losses.direct",
        "cross_weight": "losses.cross",
        "writing_weight": "losses.next_token",
        "losses.reasoning": "losses.reasoned",
        "losses.writing": "losses.next_token",
        "symmetric": "losses.symmetric",
        "matryoshka_dims": "losses.dims",
        "false_negative_margin": "losses.false_negative_margin",
        "export": "a class of its own: lightning_modules.DepthValueExporter or QueryEmbedder",
        "utility_temperature": _EXPORTED,
        "depths": _EXPORTED,
        "num_draws": _EXPORTED,
        "fitted": _EXPORTED,
        "allow_fitted": _EXPORTED,
        "cutoffs": _EXPORTED,
    },
    "lightning_modules.DepthValueExporter": {
        **_TRAINED,
        "utility_temperature": "gallery_temperature",
    },
    "lightning_modules.RationaleGenerator": {
        "workers": "writers",
        "num_candidates": "num_drafts",
        "test_worker": "test_writer",
        "probe": "prompt_state",
        "num_warmup": "num_warmup_steps",
        "allow_fitted": "allow_trained_facts",
    },
    "lightning_modules.CounterfactualSelector": {
        "evaluator": "judge",
        "num_donors": "num_placebos",
        "num_hard": "num_hard_negatives",
        "selection": "selector_run",
    },
    "lightning_modules.GatingPolicy": {
        "workers": "writers",
        "run": "gate_run",
        "price": "token_cost",
        "num_samples": "num_actions",
        "measure": "measure_latency",
        "live": "write_during_test",
        "temperature": "gallery_temperature",
    },
    "datamodules.PairDataModule": {
        "half": "fold",
        "soft": "sample_by_weight",
        "group_weights": "source_weights",
        "prior_fraction": "unselected_fraction",
        "foreign_fraction": "placebo_fraction",
    },
    "datamodules.SideDataModule": {"half": "fold", "parts": "splits"},
    "datamodules.EvaluationDataModule": {"parts": "splits"},
    "datamodules.BenchmarkDataModule": {"parts": "splits"},
    "datamodules.DepthValueDataModule": {"utilities": "depth_values"},
    "mmemb.rationales.LabelBridgeWriter": {"worker": "writer"},
    "mmemb.rationales.LanguageModelWriter": _WRITERS,
    "mmemb.rationales.VisionLanguageWriter": _WRITERS,
    "mmemb.selection.EmbeddingJudge": {"allow_fitted": "allow_trained_facts"},
    "mmemb.selection.YesNoJudge": _TRAINED,
}
"""Class -> an old argument of it -> where it is now."""

FIELDS = {
    "part": "split",
    "half": "fold",
    "group": "source",
    "worker": "writer",
    "workers": "writers",
    "probe": "prompt_state",
    "utility": "depth_value",
    "temperature": "gallery_temperature",
    "num_hard": "num_hard_negatives",
    "thresholds": "calibration",
}
"""Old field of a JSON that this project wrote -> its name now."""

FIRST_FIELDS = {new: old for old, new in FIELDS.items()}
"""The name of a field in the first version, for hashes that must not change with a name."""

MEMBERS = {"state.npy": "direct.npy", "probe.npy": "prompt_state.npy"}
"""Old member of a shard -> its name now."""


def with_new_fields(data: Any) -> Any:
    """Returns JSON data in which every old field has its new name.

    >>> with_new_fields([{"part": "train", "text": "part"}])
    [{'split': 'train', 'text': 'part'}]
    """
    if isinstance(data, list):
        return [with_new_fields(value) for value in data]
    if not isinstance(data, Mapping):
        return data

    # Arguments of a class have names of their own (`ARGUMENTS`).
    return {
        FIELDS.get(key, key): value if key == "init_args" else with_new_fields(value)
        for key, value in data.items()
    }


def with_new_names(settings: Any, where: str) -> Any:
    """Returns saved settings in which old class paths and arguments have their new names.

    Args:
        settings: parsed JSON or YAML.
        where: names the file in the warning.

    >>> with_new_names({"class_path": "mmemb.backbones.OpenClipBackbone"}, "F")
    {'class_path': 'mmemb.backbones.OpenClipBackbone'}
    """
    old: set[str] = set()
    renamed = _renamed(settings, old)
    if old:
        warnings.warn(
            f"{where} was saved by an older version: {', '.join(sorted(old))}. Save it again to "
            "silence this.",
            stacklevel=2,
        )
    return renamed


def _renamed(node: Any, old: set[str]) -> Any:
    if isinstance(node, Mapping):
        # Inner objects first; the saved settings themselves stay as they are.
        node = {key: _renamed(value, old) for key, value in node.items()}
        path = node.get("class_path")
        if isinstance(path, str) and path in CLASS_PATHS:
            old.add(f"{path} is now {CLASS_PATHS[path]}")
            path = node["class_path"] = CLASS_PATHS[path]

        # An argument that moved into another object is its reader's to refuse.
        places = ARGUMENTS.get(path, {}) if isinstance(path, str) else {}
        if isinstance(arguments := node.get("init_args"), Mapping):
            renamed = {key: places[key] for key in arguments if places.get(key, "").isidentifier()}
            old.update(f"{key} of {path} is now {place}" for key, place in renamed.items())
            node["init_args"] = {renamed.get(key, key): v for key, v in arguments.items()}

        return node

    if isinstance(node, list):
        return [_renamed(value, old) for value in node]
    return node
