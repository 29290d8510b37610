"""Random models of a few kilobytes under the names that the pocket's YAML files ask for.

`models/minilm` (a BERT), `models/lite0` (the tower), `models/smollm2` (a chat model that babbles).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mmemb.backbones import OpenClipBackbone
from mmemb.lineage import write_json
from tests.tiny import NUM_COUNTRIES, PART_OF

CLIP_TINY = Path(__file__).parents[1] / "experiments/configs/backbone/clip_tiny.json"
WORDS = ["the", "flag", "of", "country", "capital", "is", "its", "moving", "continent", "find", "-"]
NUMBERS = [f"{n:02d}" for n in range(NUM_COUNTRIES)]


def write_tiny_models(root: Path) -> Path:
    """Writes the three models below `root / "models"`, and `facts.json` for a TableWorker."""
    models = root / "models"
    write_text_encoder(models / "minilm")
    write_tower(models / "lite0")
    write_chat_model(models / "smollm2")
    write_facts(root / "facts.json")
    return root


def write_text_encoder(
    folder: Path, words: Sequence[str] = (*WORDS, *NUMBERS), **changed: Any
) -> Path:
    """A BERT, by default one whose vocabulary covers the tiny data set; `changed` is its config."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", **special
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
            "hidden_dropout_prob": 0.0,  # so that one process and two ranks compute the same
            "attention_probs_dropout_prob": 0.0,
        }
        model = BertModel(BertConfig(vocab_size=len(names), **(settings | changed)))
    model.save_pretrained(folder)
    return folder


def write_embedder(folder: Path) -> Path:
    """What an embedder's run leaves: a tiny CLIP that was fitted on no fact."""
    torch.manual_seed(0)
    OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes").save_pretrained(folder / "backbone")
    write_json(folder / "fitted.json", {"facts": []})
    return folder


def write_tower(folder: Path) -> Path:
    """Random weights of EfficientNet-Lite0."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lite0.pth").write_bytes(_tower_weights())
    return folder


@cache
def _tower_weights() -> bytes:
    """Made once per process."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), file := io.BytesIO())
    return file.getvalue()


def write_chat_model(folder: Path) -> Path:
    """A Llama of one layer over bytes, long enough for the pocket's few-shot prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny_language_model import byte_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=258,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=4096,
                initializer_range=0.4,
                eos_token_id=1,
                bos_token_id=0,
                pad_token_id=1,
            )
        )
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_facts(path: Path) -> Path:
    """What a TableWorker knows: the questions about train countries, and no others."""
    train = [n for n in range(NUM_COUNTRIES) if PART_OF[n] == "train"]
    wordings = ("the flag of the country of capital-{:02d}", "capital-{:02d} is its capital")
    questions = {text.format(n): f"{n:02d}" for n in train for text in wordings}
    countries = {f"{n:02d}": {"name": f"country-{n:02d}"} for n in train}
    path.write_text(json.dumps({"questions": questions, "countries": countries}))
    return path
