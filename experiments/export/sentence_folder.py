"""A backbone's direct path as a folder for sentence-transformers, out of its stock modules alone.

Nothing in the folder is code. What was written is loaded again and compared with the backbone; a
folder whose vectors differ is refused. Shapes: D embedding width, H encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.export.published_files import copy_model
from experiments.export.sentence_check import compare, embed_probes, require_package
from experiments.export.sentence_template import sentence_template
from experiments.export.transformers_clip import write_transformers_clip
from mmemb.backbones import JointEncoder, OpenClipBackbone, VisionLanguageBackbone, load_backbone
from mmemb.llm.prompts.special_tokens import special_tokens
from mmemb.storage.json_files import write_json
from mmemb.storage.tensor_files import read_weights

_MARGIN = 16.0
"""exp(-16) = 1e-7: how far a sigmoid may be from the exponential that it stands for."""

_WIDEST = 20.0
"""Scores beyond it, and float32 loses the small weights beside the large ones."""


_APART = "Texts and pictures are embedded in calls of their own."


class Written(NamedTuple):
    """Abilities of a written folder.

    Attributes:
        longest: tokens that are read of a text.
        cuts: whether the backbone cuts a longer one; else it refuses it.
        separator: what a prompt ends with, behind the instruction.
        pictures: whether it reads pictures.
        side: of the pictures that it takes as they are and without a text; 0: it takes any, and
            texts beside them.
        notes: sentences about it.
        left_out: files of the source that are no part of a model.
    """

    longest: int
    cuts: bool
    separator: str
    pictures: bool
    left_out: list[str]
    side: int = 0
    notes: Sequence[str] = ()


def write_sentence_folder(
    source: Path, out: Path, prompts: Mapping[str, str]
) -> tuple[float, Written]:
    """Writes the folder and compares it with the backbone.

    Args:
        source: a saved backbone.
        out: an empty folder, or a new one.
        prompts: name -> instruction.

    Returns:
        The largest difference between the folder's vectors and the backbone's, and what the folder
        can do.

    Raises:
        ValueError: stock modules cannot express this backbone, or the vectors differ.
        FileNotFoundError: sentence-transformers is not installed.
    """
    require_package()
    backbone = load_backbone(str(source)).float()
    write = _WRITERS.get(type(backbone).__name__)
    if write is None:
        raise ValueError(
            f"{source} holds a {type(backbone).__name__}, which no stock modules of "
            "sentence-transformers compute, and modules of our own would need trust_remote_code. "
            f"Exported are {' and '.join(sorted(_WRITERS))}; load yours with "
            "`mmemb.backbones.load_backbone`."
        )

    written = write(backbone, source, out)

    spaced = {name: text + written.separator for name, text in prompts.items() if text}
    settings = {"prompts": spaced, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(out / "config_sentence_transformers.json", settings)

    # Beyond what is cut where the backbone cuts, well below its limit where it refuses.
    longest = written.longest + 8 if written.cuts else written.longest // 2
    probes = embed_probes(backbone, longest, written.pictures, written.side)
    del backbone  # two large models at once may be too many

    return compare(out, probes, written.separator), written


def gate_weights(score_H: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Builds a linear layer (2H, H); behind it `torch.nn.GLU` gives exp(s) h, s = score_H . h.

    A mean of h weighted by softmax(s) has the direction of the plain mean of exp(s) h, and only
    the direction is kept. GLU multiplies by a sigmoid, which far to the left is an exponential:
    e^m sigmoid(s - m) = e^s / (1 + e^(s - m)).

    Args:
        score_H: gives the scores.
        bound: |s| never exceeds it.

    Returns:
        Weight and bias.

    >>> weight, bias = gate_weights(torch.tensor([0.5, -1.0]), 2.0)
    >>> h = torch.tensor([2.0, 1.0])  # its s is 0
    >>> torch.nn.functional.glu(weight @ h + bias, dim=0).tolist()
    [2.0, 1.0]
    """
    width, shift = len(score_H), bound + _MARGIN
    keep = math.exp(shift) * torch.eye(width)
    weight = torch.cat([keep, score_H.repeat(width, 1)])
    return weight, torch.cat([torch.zeros(width), torch.full((width,), -shift)])


@torch.no_grad()
def score_bound(text: nn.Module, score_H: Tensor) -> float:
    """Returns the largest |score_H . h| that the last LayerNorm of a BERT-like encoder allows."""
    last = [module for module in text.modules() if isinstance(module, nn.LayerNorm)][-1]

    # A normalised vector has the length sqrt(H), so Cauchy-Schwarz bounds its product with the
    # scores.
    spread = (score_H * last.weight).norm() * len(score_H) ** 0.5
    return float(spread + (score_H @ last.bias).abs())


@torch.no_grad()
def _write_joint(backbone: JointEncoder, source: Path, out: Path) -> Written:
    from tokenizers.processors import TemplateProcessing

    score_H = read_weights(source / "weights.pt")["pool_score.weight"][0].float()
    if (bound := score_bound(backbone.text, score_H)) > _WIDEST:
        raise ValueError(
            f"{source}: the scores of its pooling may reach {bound:.0f}, more than {_WIDEST:.0f}, "
            "where float32 loses the small weights. Use `mmemb.backbones.load_backbone`."
        )

    left_out = copy_model(source / "text_model", out)

    sequences, tokenizer = backbone.sequences, backbone.sequences.tokenizer
    start, end = tokenizer.cls_token, tokenizer.sep_token
    marks = {name: tokenizer.convert_tokens_to_ids(name) for name in (start, end)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0", special_tokens=list(marks.items())
    )
    # So that special tokens stay text for users of the folder, too.
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    tokenizer.save_pretrained(out)

    longest = min(sequences.max_text_tokens + len(marks), sequences.max_length)
    _write_reader(out, ["text"], longest, model_kwargs={"add_pooling_layer": False})
    _write_steps(out, backbone.embedding_dim, "mean", gate_weights(score_H, bound))

    cuts = sequences.max_text_tokens + len(marks) <= sequences.max_length
    return Written(longest - len(marks), cuts, " ", False, left_out)


def _write_chat(backbone: VisionLanguageBackbone, source: Path, out: Path) -> Written:
    left_out = copy_model(source / "model", out)
    prompts, style = backbone.prompts, backbone.style

    template = getattr(prompts.processor, "chat_template", None) or prompts.tokenizer.chat_template
    prompts.tokenizer.padding_side = "right"  # what stands behind a causal row cannot change it
    prompts.tokenizer.pad_token = prompts.tokenizer.pad_token or prompts.tokenizer.eos_token

    template_arguments = {
        "add_generation_prompt": style.add_generation_prompt,
        **style.template_arguments,
    }
    processing: dict[str, Any] = {"chat_template": template_arguments}
    pictures = "image" in backbone.modalities
    if pictures and (size := prompts.image_bounds(style.max_pixels)):
        processing["image"] = size

    kinds = ["text", "message", *(["image", "image+text"] if pictures else [])]
    _write_reader(out, kinds, style.max_length, processing_kwargs=processing)
    _write_steps(out, backbone.embedding_dim, "lasttoken")

    # The folder's template must write texts as the backbone does, so special tokens stay text in
    # it.
    special = special_tokens(prompts.tokenizer, prompts.marks)
    prompts.processor.chat_template = sentence_template(template, style, special)
    prompts.processor.save_pretrained(out)
    prompts.processor.chat_template = template  # the backbone goes on with its own

    return Written(style.max_length, style.long_text == "truncate", "", pictures, left_out)


def _write_clip(backbone: OpenClipBackbone, source: Path, out: Path) -> Written:
    # What it compares holds here, too: the same model and processor read texts and pictures.
    notes = write_transformers_clip(backbone, source, out)

    read = {"method_output_name": "pooler_output"}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", **read},
            "image": {"method": "get_image_features", **read},
        },
        "module_output_name": "sentence_embedding",
    }
    write_json(out / "sentence_bert_config.json", settings)
    _write_steps(out, backbone.embedding_dim, None)

    side = int(backbone.spec["model_cfg"]["vision_cfg"]["image_size"])
    length = backbone.tokenizer.context_length
    return Written(length, True, " ", True, [], side, [_APART, *notes])


def _write_reader(out: Path, kinds: Sequence[str], longest: int, **more: Any) -> None:
    read = {"method": "forward", "method_output_name": "last_hidden_state"}

    turns = {"message": {"format": "structured"}}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {kind: read | turns.get(kind, {}) for kind in kinds},
        "module_output_name": "token_embeddings",
        "max_seq_length": longest,
    }
    write_json(out / "sentence_bert_config.json", settings | more)


def _write_steps(
    out: Path, width: int, pooling: str | None, gate: tuple[Tensor, Tensor] | None = None
) -> None:
    from sentence_transformers.sentence_transformer import modules

    configs: dict[str, Any] = {
        "Transformer": None,  # beside the others, see `_write_reader`
        "Dense": None if gate is None else _gate_config(gate),
        "Pooling": pooling
        and {"embedding_dimension": width, "pooling_mode": pooling, "include_prompt": True},
        "Normalize": dict.fromkeys(_NAMES, "sentence_embedding"),
    }

    steps = [name for name, config in configs.items() if config or name == "Transformer"]
    listed = []
    for place, name in enumerate(steps):
        kind, folder = getattr(modules, name), f"{place}_{name}" if place else ""
        path = f"{kind.__module__}.{kind.__name__}"
        listed.append({"idx": place, "name": str(place), "path": folder, "type": path})
        if place:
            write_json(out / folder / "config.json", configs[name])
        if name == "Dense" and gate is not None:
            _save_gate(out / folder, gate)

    write_json(out / "modules.json", listed)


_NAMES = ("module_input_name", "module_output_name")


def _gate_config(gate: tuple[Tensor, Tensor]) -> dict[str, Any]:
    sizes = {"in_features": gate[0].shape[1], "out_features": gate[0].shape[0], "bias": True}
    names = dict.fromkeys(_NAMES, "token_embeddings")
    return sizes | names | {"activation_function": "torch.nn.modules.activation.GLU"}


def _save_gate(folder: Path, gate: tuple[Tensor, Tensor]) -> None:
    from safetensors.torch import save_file

    weights = dict(zip(("linear.weight", "linear.bias"), gate, strict=True))
    save_file(weights, folder / "model.safetensors")


_WRITERS: Mapping[str, Callable[[Any, Path, Path], Written]] = {
    "JointEncoder": _write_joint,
    "OpenClipBackbone": _write_clip,
    "VisionLanguageBackbone": _write_chat,
}
