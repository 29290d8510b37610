"""Makes the plan of a stage from its configuration and data; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.plan.embedders import feature_extractor, running_embedder, trained_embedder
from experiments.plan.judges import selector
from experiments.plan.settings import Settings
from experiments.plan.stages import StagePlan
from experiments.plan.writers import tuned_writer, writer


def read_plan(config: Mapping[str, Any], subcommand: str, devices: int | None) -> StagePlan:
    """Returns the plan of one stage.

    Args:
        config: resolved, as plain data.
        subcommand: `fit`, `predict` or `test`.
        devices: in place of `trainer.devices`.

    Raises:
        ValueError: the stage runs no large model.
    """
    settings = Settings.of(config, subcommand, devices)

    # Stages that run the same models in the same way have one plan.
    match settings.kind, subcommand:
        case "ContrastiveEmbedder", "fit":
            return trained_embedder(settings)
        case "ContrastiveEmbedder" | "DepthValueExporter" | "QueryEmbedder", _:
            return running_embedder(settings)
        case "TeacherEmbedder" | "HardNegativeMiner", _:
            return running_embedder(settings)
        case "RationaleGenerator", "fit":
            return tuned_writer(settings)
        case "RationaleGenerator", "predict":
            return writer(settings)
        case "CounterfactualSelector", _:
            return selector(settings)
        case "FeatureExtractor", _:
            return feature_extractor(settings)

    raise ValueError(
        f"model.class_path {settings.kind} with {subcommand} runs no large model, so there is "
        "nothing to plan: name a stage of ContrastiveEmbedder, RationaleGenerator (fit, predict), "
        "CounterfactualSelector, DepthValueExporter, QueryEmbedder, TeacherEmbedder, "
        "HardNegativeMiner or FeatureExtractor."
    )
