"""The card of a published embedder: what it is, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmemb.backbones import Backbone
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.rationales import DIRECT
from mmemb.storage.hub import is_hub_id
from mmemb.storage.spec import class_path
from mmemb.storage.trust import is_in_folder, walk

_CARD = """\
---
library_name: mmemb-r1
pipeline_tag: feature-extraction
tags:
- multimodal
- embeddings
---

# {name}

Unit vectors of {width} numbers, of {modalities}. {gate}

    import mmemb

    embedder = mmemb.load("{name}"{models})
    queries = embedder.encode_query(["a text"]{budget})
    scores = embedder.similarity(queries, embedder.encode_document(["another text"]))

Embedder: `{backbone}`. {needs}Nothing in this repository is executed when it is loaded.
"""

MODEL_ARGUMENTS = frozenset({"model", "adapter", "embedder"})
"""Arguments of writers that name a model, which stays outside of a release."""


def release_card(name: str, backbone: Backbone, writers: Mapping[str, RationaleSource]) -> str:
    """Returns the text of README.md.

    Args:
        name: `org/name` on the hub.
        backbone: of the embedder.
        writers: of its gate; empty without a gate.
    """
    outside = outside_models(writers)
    hub_ids = [model for model in outside if is_hub_id(model)]
    gate = "It has no gate: every input is embedded directly."
    if writers:
        gate = (
            f"A gate decides for each query whether it is worth a rationale (depths: "
            f"{', '.join([DIRECT, *writers])}), under a budget if one is given."
        )

    # A folder is named without its place, which says something about the publisher's machine only.
    names = [model if model in hub_ids else Path(model).name for model in outside]
    needs = ""
    if outside:
        listed = ", ".join(f"`{name}`" for name in names)
        needs = f"Its writers run models that are not part of it: {listed}. "
    if len(hub_ids) < len(outside):
        needs += (
            "Those without a `/` are folders of the publisher: hand over writers of your own "
            "(`writers={...}`). "
        )
    return _CARD.format(
        name=name,
        width=backbone.embedding_dim,
        modalities=", ".join(sorted(backbone.modalities)),
        gate=gate,
        models=f", models={hub_ids}" if hub_ids else "",
        budget=", budget=0.5" if writers else "",
        backbone=class_path(backbone),
        needs=needs,
    )


def outside_models(writers: Mapping[str, RationaleSource]) -> list[str]:
    """Returns the models that the writers run, and that a saved folder does not hold."""
    named = [
        str(value)
        for writer in writers.values()
        for key, value in walk(writer.spec())
        if key in MODEL_ARGUMENTS.union(writer.model_arguments)
        and value is not None
        and not is_in_folder(value)
    ]
    return list(dict.fromkeys(named))
