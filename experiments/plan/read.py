"""Makes the plan of a stage from its configuration and data; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.plan.embedders import feature_extractor, running_embedder, trained_embedder
from experiments.plan.judges import selector
from experiments.plan.settings import Settings
from experiments.plan.stages import StagePlan
from experiments.plan.writers import tuned_writer, writer


def read_plan(
    config: Mapping[str, Any], subcommand: str, devices: int | None, pairs: int | None = None
) -> StagePlan:
    """Returns the plan of one stage.

    Args:
        config: resolved, as plain data.
        subcommand: `fit`, `predict` or `test`.
        devices: in place of `trainer.devices`.
        pairs: to train on, in place of those that are there, which tell their lengths.

    Raises:
        ValueError: the stage runs no large model, or a number of pairs is given to a stage that
            does not train an embedder.
    """
    settings = Settings.of(config, subcommand, devices)
    if pairs is not None and (settings.kind, subcommand) != ("ContrastiveEmbedder", "fit"):
        raise ValueError(
            f"--pairs {pairs}: {subcommand} of {settings.kind} trains on no pairs. Leave it out, "
            "or plan the fit of a ContrastiveEmbedder."
        )

    # Stages that run the same models in the same way have one plan.
    match settings.kind, subcommand:
        case "ContrastiveEmbedder", "fit":
            return trained_embedder(settings, pairs)
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
