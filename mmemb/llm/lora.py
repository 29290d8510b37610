"""LoRA updates of transformers' models: made, saved in peft's form, merged into the weights again.

A saved adapter is a JSON file of plain settings and a safetensors file; whatever else a folder
from elsewhere asks for is refused, so that nothing in it decides what code runs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
import torch
from torch import nn

from mmemb.records.schema import Excerpt, convert, read_json
from mmemb.records.text import quote
from mmemb.storage.files import file_sha256, whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.run_folder import MARK

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "lora_dropout", "peft_version", "revision", "task_type", "runtime_config",
}  # fmt: skip
"""Settings of peft that change nothing about a trained adapter that is merged."""


@dataclass(frozen=True)  # no slots: jsonargparse reads a default's fields by `vars`
class LoraSettings:
    """Settings of low-rank updates: W + alpha / rank * B A.

    Attributes:
        rank: of the updates.
        alpha: their scale is `alpha / rank`.
        targets: name endings of the linear layers that get one; `all-linear` = all but the head.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"{self}: expected a rank of at least 1 and an alpha above 0.")


def attach_lora(model: nn.Module, settings: LoraSettings, seed: int = 0) -> nn.Module:
    """Puts fresh updates (B = 0) into a model's layers, in place, and freezes all else.

    Args:
        model: of transformers.
        settings: rank, scale, layers.
        seed: of the updates' A; the global generator is left alone.

    Returns:
        peft's view of `model`, which itself computes with the updates from now on.
    """
    from peft import LoraConfig, LoraModel

    targets = settings.targets
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )

    # Matrix A is drawn at random; the run's own sequence of random numbers must not move.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            tuned = LoraModel(model, {"default": config}, "default")
        except ValueError as error:
            raise ValueError(
                f"LoRA targets {targets!r} do not fit this model: {quote(error)} Expected "
                "`all-linear` or name endings of its linear layers, such as [q_proj, v_proj]."
            ) from None

    for parameter in lora_parameters(tuned).values():
        parameter.data = parameter.data.float()  # in every model: steps are too small for bfloat16
    return tuned


def merged_copy(tuned: Any) -> Any:
    """The plain model with its updates added to the weights; `tuned` stays as it is."""
    return copy.deepcopy(tuned).merge_and_unload()


def lora_parameters(tuned: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by the names that peft saves."""
    updates = {name: p for name, p in tuned.named_parameters() if ".lora_" in name}
    return {f"base_model.{name.replace('.default.', '.')}": p for name, p in updates.items()}


def save_adapter(tuned: Any, settings: LoraSettings, folder: Path, base: str) -> None:
    """Writes an adapter that `merge_adapter` and peft itself can read.

    Args:
        tuned: what `attach_lora` returned.
        settings: those that it was made with.
        folder: a new folder, or one to write over.
        base: name of the base model, for a reader.
    """
    from safetensors.torch import save

    layers = sorted(tuned.peft_config["default"].target_modules)
    data = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    data |= {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": layers}
    weights = {name: p.detach().contiguous().cpu() for name, p in lora_parameters(tuned).items()}

    with whole_folder(folder, keep_others=True) as fresh:
        (fresh / WEIGHTS).write_bytes(save(weights))
        write_json(fresh / CONFIG, data)

        # The folder's own mark: a configuration that names the folder counts with its content.
        write_json(fresh / MARK, {"fingerprint": adapter_identity(fresh)})


def adapter_identity(folder: Path) -> str:
    """Hash (12 hex digits) of an adapter's content."""
    _check_is_adapter(folder)
    content = [file_sha256(folder / name) for name in (CONFIG, WEIGHTS)]
    return hashlib.sha256("".join(content).encode()).hexdigest()[:12]


def merge_adapter(model: nn.Module, folder: Path) -> Any:
    """A model with a saved adapter added to its weights: no slower than the model was.

    Args:
        model: the base model; changed in place.
        folder: as `save_adapter` or peft wrote it.

    Raises:
        FileNotFoundError: it is no folder of an adapter.
        ValueError: it is broken, made for another model, or more than plain LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_is_adapter(folder)
    tuned = attach_lora(model, _read_settings(folder))
    expected = lora_parameters(tuned)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is no whole safetensors file: {error}.") from None

    # Compared before any weight changes, so that no model is left with a part of an adapter.
    shapes = [{name: x.shape for name, x in tensors.items()} for tensors in (expected, weights)]
    if wrong := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        raise ValueError(
            f"{folder / WEIGHTS} was made for another model: {wrong[0]} ({len(wrong)} in all) is "
            "missing, unknown, or has another shape. Give the base model that it was fitted from."
        )

    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(weights[name])
    return tuned.merge_and_unload()


@final
class _AdapterJson(Excerpt):
    """The fields of an `adapter_config.json`, which peft writes, that are read."""

    r: Annotated[int, msgspec.Meta(ge=1)]
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)]
    target_modules: str | tuple[str, ...]


def _read_settings(folder: Path) -> LoraSettings:
    from peft import LoraConfig

    path = folder / CONFIG
    data = read_json(path, dict[str, Any], "Fit it again with RationaleGenerator.")

    # A setting that has its usual value changes nothing; all others could change what is computed.
    usual = LoraConfig().to_dict() | dict.fromkeys(_NEUTRAL)
    plain_keys = {"peft_type", "r", "lora_alpha", "target_modules"} | _NEUTRAL
    odd = sorted(k for k, v in data.items() if k not in plain_keys and v and v != usual.get(k))
    if data.get("peft_type") != "LORA" or odd:
        raise ValueError(
            f"{path} asks for {', '.join(odd) or data.get('peft_type')}: expected plain LoRA, "
            "which can be added to the weights. Fit it again with RationaleGenerator."
        )

    settings = convert(
        data, _AdapterJson, f"{path} is broken", "Fit it again with RationaleGenerator."
    )
    return LoraSettings(settings.r, settings.lora_alpha, settings.target_modules)


def _check_is_adapter(folder: Path) -> None:
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"The adapter {folder} has no {missing[0]}. Give the folder `generator` of a run of "
            "RationaleGenerator fit, or null for the model as it is."
        )
