"""The one place where models, tokenizers and processors of transformers are read.

transformers asks on the terminal whether code that comes with a model may run, unless it is told.
Here it is always told: by the caller, and never by the model. A folder is read without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from mmemb.records.schema import convert
from mmemb.records.text import quote
from mmemb.storage.hub import HubError, hub_answers, missing_model_message
from mmemb.storage.trust import walk

ADAPTER = "adapter_config.json"

_SETTINGS = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "audio_tokenizer_config.json", "generation_config.json",
)  # fmt: skip

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_KERNELS = ("attn_implementation", "experts_implementation")

_Token = int | list[int] | None
_TYPES = {
    "model_max_length": int | float | None, "bos_token_id": _Token, "eos_token_id": _Token,
    "pad_token_id": _Token,
}  # fmt: skip
"""Types of settings that transformers does not check, and that make it fail on the first text."""

_PLACES = ("backbone", "architecture", "audio_tokenizer_name_or_path", "fast_tokenizer_files")
"""Settings that name another model or a file: a part of timm or transformers, a tokenizer of
sounds. A name without a folder is no place, but a kind of model."""


def load_pretrained(
    kind: Any, source: str | Path, *, trust_remote_code: bool = False, **settings: Any
) -> Any:
    """Calls `kind.from_pretrained(source)`; code beside a model runs only if the caller allows it.

    Args:
        kind: an Auto class of transformers.
        source: folder, or hub id.
        trust_remote_code: whether code that comes with the model may run. The caller decides,
            never a file beside the model.
        **settings: of `from_pretrained`.

    Raises:
        ValueError: see `check_model`.
        FileNotFoundError: `source` is a path, and nothing lies there.
        HubError: the hub does not have the model, or does not answer, and its cache lacks it.
        OSError: transformers cannot read the folder or id.
    """
    with reading(source) as local:
        return kind.from_pretrained(
            str(source), trust_remote_code=trust_remote_code, **local, **settings
        )


@contextmanager
def reading(source: str | Path) -> Iterator[dict[str, Any]]:
    """Guards the reading of a model: transformers asks nothing, and a folder needs no network.

    Nor does a model of a hub that does not answer, if it is in the cache.

    Args:
        source: folder, or hub id.

    Yields:
        Further arguments of `from_pretrained`.
    """
    is_folder = Path(source).is_dir()
    if is_folder:
        check_model(Path(source))
    elif _is_path(str(source)):
        raise FileNotFoundError(f"there is no folder {source}")  # and no hub is asked for it

    from huggingface_hub import constants

    # Without a network transformers would ask for half a minute before it looks into its cache.
    is_local = is_folder or not hub_answers(str(source))
    # Before the block below goes offline: the message says whether the user did.
    missing = missing_model_message(str(source))

    with ExitStack() as stack:
        stack.enter_context(unasked())
        if is_local:
            stack.enter_context(_set(constants, "HF_HUB_OFFLINE", True))
        try:
            yield {"local_files_only": True} if is_local else {}
        except OSError:
            if is_folder or not is_local:
                raise
            raise HubError(missing) from None


@contextmanager
def unasked() -> Iterator[None]:
    """Makes transformers refuse code instead of asking, while other libraries read models."""
    from transformers import dynamic_module_utils

    # Without time to answer, transformers raises its error at once.
    with _set(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
        yield


def check_model(folder: Path) -> None:
    """Refuses a model's folder that sends its reader elsewhere: to another model, or for code.

    Raises:
        ValueError: it holds an adapter, names a kernel of a hub, another model or a file outside of
            it, asks for pretrained parts, or holds a number that is none.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder} holds {ADAPTER}, which names another model to be loaded: give the folder of "
            "a whole model, and this one as `adapter` of a writer."
        )

    for name in _SETTINGS:
        path = folder / name
        for key, value in walk(_json(path)):
            _check_setting(path, key, value)
    for name in _INDEXES:
        if (folder / name).is_file():
            _check_index(folder / name)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {quote(error, 100)}") from None


def _check_setting(path: Path, key: str, value: Any) -> None:
    if key.endswith(_KERNELS) and "/" in str(value):
        raise ValueError(
            f"{path}: {key} names {value!r}, code of a hub, which no folder may ask for: "
            "remove the key, or name the implementation in your own configuration "
            "(`attention`)."
        )

    if key in _TYPES:
        convert({key: value}, dict[str, _TYPES[key]], f"{path} is broken", "Fetch the model again.")

    if key == "use_pretrained_backbone" and value:
        raise ValueError(
            f"{path}: {key} asks for the weights of another model, which no folder may: set it "
            "to false."
        )

    # Most of these keys name one place, `fast_tokenizer_files` names several.
    places = [value] if isinstance(value, str) else value if isinstance(value, list) else []

    if key in _PLACES and any(re.search("[:/\\\\]", str(name)) for name in places):
        raise ValueError(
            f"{path}: {key} names {value!r}, which lies outside of the folder: a model's "
            "folder needs nothing but its own files. Remove the key, or fetch the model again."
        )


def _check_index(path: Path) -> None:
    """Refuses an index that sends its reader to weights outside of its folder."""
    # transformers joins these names to the folder and opens the result.
    index = _json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict):
        raise ValueError(
            f"{path} is broken: expected a key `weight_map` with the file of each weight."
        )

    for weight, name in files.items():
        # Written under Windows, a name may have backslashes.
        place = PurePath(str(name).replace("\\", "/"))
        if not isinstance(name, str) or place.is_absolute() or ".." in place.parts:
            raise ValueError(
                f"{path}: weight_map names {name!r} for {weight}, which lies outside of the "
                "folder: a model's folder needs nothing but its own files. Fetch the model again."
            )


@contextmanager
def _set(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _is_path(source: str) -> bool:
    """Tells a path from a hub id, which has at most one `/` and no leading dot."""
    return source.count("/") > 1 or source.startswith(("/", ".", "~"))
