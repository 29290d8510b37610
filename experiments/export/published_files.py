"""Copies the files of a model's folder that may be published, by a list of names."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from mmemb.storage.trust import walk

NAMES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Files that transformers reads of a model, its tokenizer and its processor: weights as plain
tensors, settings, texts."""

_TEMPLATES = "additional_chat_templates"


def copy_model(source: Path, out: Path) -> list[str]:
    """Copies the files of a model of transformers; `auto_map`, which names code, is left out.

    Args:
        source: folder of a model.
        out: a folder, which is made.

    Returns:
        Names of what was left out.

    Raises:
        ValueError: there is a link in the folder, or no weights as safetensors.
    """
    left_out, copied = [], []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()

        # A link could publish any file of this machine under a harmless name.
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link, and what it points to is not published unseen: put the file "
                "itself there, or delete the link."
            )

        if path.is_dir():
            continue

        if not _belongs(name) or not path.is_file():
            left_out.append(name)
            continue

        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(path, out / name)
        copied.append(name)

    if not any(name.endswith(".safetensors") for name in copied):
        raise ValueError(
            f"{source} holds no weights under a name that is published (model.safetensors): save "
            "the backbone again."
        )
    return left_out


def _belongs(name: str) -> bool:
    path = PurePosixPath(name)
    if path.parent.name == _TEMPLATES:
        return len(path.parts) == 2 and path.suffix == ".jinja"
    return len(path.parts) == 1 and any(fnmatch(name, pattern) for pattern in NAMES)


def _copy(source: Path, place: Path) -> None:
    if source.suffix == ".json":
        data = json.loads(source.read_bytes())
        # The key names code that was never seen here. A processor's settings hold those of its
        # parts.
        if any(key == "auto_map" for key, _ in walk(data)):
            text = json.dumps(_without(data, "auto_map"), indent=2)
            place.write_text(text + "\n", encoding="utf-8")
            return

    shutil.copyfile(source, place)


def _without(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return {key: _without(value, name) for key, value in node.items() if key != name}
    return [_without(value, name) for value in node] if isinstance(node, list) else node
