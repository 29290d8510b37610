"""`mmemb.load`: opens the embedder of any run or release."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from mmemb.backbones import load_backbone
from mmemb.backbones.base import is_saved_backbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.rationales.writers.base import RationaleSource
from mmemb.storage.hub import model_folder
from mmemb.storage.run_folder import AdaptiveFolder, RunFolder
from mmemb.storage.trust import Models


def load(
    name: str | Path,
    writers: Mapping[str, RationaleSource] | None = None,
    servers: Mapping[str, str | None] | Collection[str] = (),
    models: Models = (),
    allow_classes: Collection[str] = (),
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> AdaptiveEmbedder:
    """Loads the embedder of a run or of a release, with its gate if it has one.

    Without a gate its only depth is `direct`, and a budget is an error.

    Args:
        name: folder of a run (`runs/pocket/gate`, `runs/pocket/embedder`), of a saved
            AdaptiveEmbedder or of a saved backbone; or `org/name` on the hub.
        writers: replace the saved ones: depth -> writer.
        servers: see `AdaptiveEmbedder.from_pretrained`, as all that follow.
        models: folders and hub ids of models that saved writers may run: a list, or name -> place.
        allow_classes: classes of other packages that the folder may name.
        device: the embedder is moved there; None = the CPU.
        revision: of a model of the hub.
        token: of an account of the hub.
        cache_dir: of huggingface_hub.
        local_files_only: True if the network may not be asked.

    Raises:
        FileNotFoundError: nothing that was trained lies there.
        ValueError: what lies there is broken, or names what is not allowed (docs/trust.md).
    """
    folder = model_folder(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )

    # A backbone alone is an embedder without a gate.
    adaptive, backbone = find_model(folder)
    if adaptive is not None:
        embedder = AdaptiveEmbedder.from_pretrained(
            adaptive.path, writers, servers, models, allow_classes
        )
    elif writers:
        raise ValueError(
            f"{backbone} has no gate that could choose among the writers {list(writers)}: name a "
            "run of stage 4, such as runs/pocket/gate."
        )
    else:
        embedder = AdaptiveEmbedder(load_backbone(str(backbone), allow_classes))

    return embedder if device is None else embedder.to(device)


def find_model(folder: Path) -> tuple[AdaptiveFolder | None, Path]:
    """Returns the saved AdaptiveEmbedder of a folder, if there is one, and its backbone.

    Args:
        folder: a run, a saved AdaptiveEmbedder, or a saved backbone.

    Raises:
        FileNotFoundError: nothing that was trained lies there, or its writing was interrupted.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"There is no folder {folder}: name a run (runs/pocket/gate), a saved embedder, or "
            "org/name on the hub."
        )

    if folder.is_file():
        raise FileNotFoundError(
            f"{folder} is a file, such as a checkpoint: name the folder of its run, in which the "
            "trained embedder lies."
        )

    run = RunFolder(folder)
    places = (AdaptiveFolder(folder), run.adaptive)
    for place in places:
        if place.settings.is_file():
            return place, place.backbone

    # Its backbone alone would load, but without the gate that the caller expects.
    if any(place.gate.is_dir() for place in places):
        raise FileNotFoundError(
            f"{folder} holds a gate, but no adaptive.json: writing it was interrupted. Fit the "
            "gate again, or name its folder `backbone` to embed directly."
        )

    for place in (folder, run.backbone):
        if is_saved_backbone(place):
            return None, place
    raise FileNotFoundError(
        f"{folder} holds no trained embedder: expected the run of a stage that trains one "
        "(runs/pocket/gate, runs/pocket/embedder) and has ended, a saved AdaptiveEmbedder, or a "
        "saved backbone."
    )
