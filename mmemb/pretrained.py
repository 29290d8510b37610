"""The one place where models, tokenizers and processors of transformers are read.

transformers asks on the terminal whether code that comes with a model may run, unless it is told.
Here it is always told: by the caller, and never by the model. A folder is read without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mmemb.trust import walk

ADAPTER = "adapter_config.json"
_KERNELS = ("attn_implementation", "experts_implementation")


def load_pretrained(
    kind: Any, source: str | Path, *, trust_remote_code: bool = False, **settings: Any
) -> Any:
    """`kind.from_pretrained(source)`; code that comes with a model runs only if the caller says so.

    Args:
        kind: an Auto class of transformers.
        source: folder, or hub id.
        trust_remote_code: whether code that comes with the model may run. It must be the caller's
            word, never that of a file beside the model.
        **settings: of `from_pretrained`.

    Raises:
        ValueError: see `check_model`.
        FileNotFoundError: `source` is a path, and nothing lies there.
        OSError: what transformers says of a folder or id that it cannot read.
    """
    with reading(source) as local:
        return kind.from_pretrained(
            str(source), trust_remote_code=trust_remote_code, **local, **settings
        )


@contextmanager
def reading(source: str | Path) -> Iterator[dict[str, Any]]:
    """While something of transformers is read: nobody is asked, and a folder needs no network.

    Args:
        source: folder, or hub id.

    Yields:
        What `from_pretrained` is to be given beside its own arguments.
    """
    is_folder = Path(source).is_dir()
    if is_folder:
        check_model(Path(source))
    elif _is_path(str(source)):
        raise FileNotFoundError(f"there is no folder {source}")  # and nobody is asked for it

    from huggingface_hub import constants

    with ExitStack() as stack:
        stack.enter_context(unasked())
        if is_folder:
            stack.enter_context(_set(constants, "HF_HUB_OFFLINE", True))
        yield {"local_files_only": True} if is_folder else {}


@contextmanager
def unasked() -> Iterator[None]:
    """While other libraries read models, transformers refuses code instead of asking for it."""
    from transformers import dynamic_module_utils

    with _set(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
        yield


def check_model(folder: Path) -> None:
    """Refuses a model's folder that sends its reader elsewhere: to another model, or for code.

    Raises:
        ValueError: it holds an adapter, names a kernel of a hub, or asks for pretrained parts.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder} holds {ADAPTER}, which names another model to be loaded: give the folder of "
            "a whole model, and this one as `adapter` of a worker."
        )

    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error!s:.100}") from None

    for key, value in walk(config):
        if key.endswith(_KERNELS) and "/" in str(value):
            raise ValueError(
                f"{path}: {key} names {value!r}, code of a hub, which no folder may ask for: "
                "remove the key, or name the implementation in your own configuration "
                "(`attention`)."
            )
        if key == "use_pretrained_backbone" and value:
            raise ValueError(
                f"{path}: {key} asks for the weights of another model, which no folder may: set it "
                "to false."
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
    """Whether it can be no hub id, which has at most one `/` and no leading dot."""
    return source.count("/") > 1 or source.startswith(("/", ".", "~"))
