"""The low-rank updates of a run as a folder that peft puts on the whole base model."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from experiments.load import load_run
from experiments.runs.saved_backbone import SavedBackbone
from mmemb.llm.lora import CONFIG, WEIGHTS, lora_parameters
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json
from mmemb.storage.run_folder import RunFolder

_OURS = "base_model.model."


def write_adapter_folder(
    saved_backbone: SavedBackbone, out: Path, models: Collection[str] = ()
) -> None:
    """Writes the updates as they were before they were merged into the run's backbone.

    Args:
        saved_backbone: a VisionLanguageBackbone and its run.
        out: an empty folder, or a new one.
        models: what the run's configuration may name outside of it (`load_run`).

    Raises:
        ValueError: the run trained no updates, or has kept none apart.
    """
    lora = (saved_backbone.config.get("model", {}).get("init_args") or {}).get("lora")
    kept = (
        sorted(RunFolder(saved_backbone.run).checkpoints.glob("*.ckpt"))
        if saved_backbone.run
        else []
    )

    if not lora or not kept:
        why = (
            f"{saved_backbone.run} was trained without `lora`"
            if saved_backbone.run and not lora
            else "it has no checkpoint, and in a saved backbone they are part of the weights"
            if saved_backbone.run
            else f"{saved_backbone.folder} belongs to no run"
        )
        raise ValueError(
            f"There are no LoRA updates to write: {why}. Leave --adapter out to export the whole "
            "model."
        )

    assert saved_backbone.run is not None
    backbone = load_run(saved_backbone.run, models=models).backbone

    tuned, model = backbone.updates, backbone.model
    place = _place(model, tuned.model)

    # peft loads the updates into the whole model, so names get the place of the tuned part in
    # it.
    weights = {
        f"{_OURS}{place}.{name.removeprefix(_OURS)}": parameter.detach().contiguous().cpu()
        for name, parameter in lora_parameters(tuned).items()
    }

    layers = sorted({re.split(r"\.lora_", name)[0].removeprefix(_OURS) for name in weights})
    _write(out, weights, lora, layers, backbone.model_id)


def _is_id(base: str) -> bool:
    """Tells an id of a hub from a path, since no path of this machine is published."""
    return base.count("/") <= 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _place(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _write(
    out: Path, weights: dict[str, Any], lora: dict[str, Any], layers: list[str], base: str
) -> None:
    from safetensors.torch import save

    # Full names: a pattern of endings could match layers of the vision tower.
    data = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base if _is_id(base) else Path(base).name,
        "r": int(lora["rank"]),
        "lora_alpha": float(lora["alpha"]),
        "target_modules": layers,
    }

    write_atomically(out / WEIGHTS, save(weights))
    write_json(out / CONFIG, data)
