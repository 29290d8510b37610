"""Reads models and files of tensors; runs no code from them, and names the file if it is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmemb.records.text import quote
from mmemb.storage.pretrained import load_pretrained


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from printing bars and advice; the settings are put back afterwards."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def load_whole(kind: Any, model: str, **settings: Any) -> Any:
    """Loads a model of transformers without bars and advice, all weights from the files.

    transformers initialises at random what a file lacks, and only logs it.
    Args:
        kind: an Auto class of models.
        model: folder or hub id.
        **settings: of `load_pretrained`.

    Raises:
        ValueError: weights are missing, or of other shapes.
    """
    with quiet_loading():
        loaded, info = load_pretrained(kind, model, output_loading_info=True, **settings)

    broken = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if broken or info["error_msgs"]:
        raise ValueError(
            f"{len(broken)} weight(s) of {model} are not in its files, such as "
            f"{(broken or info['error_msgs'])[0]}: the files belong to another model, or some are "
            "missing."
        )

    return loaded


def save_quietly(folder: Path, *parts: Any) -> None:
    """Writes a model of transformers and what belongs to it into one folder, without bars."""
    with quiet_loading():
        for part in parts:
            part.save_pretrained(folder)


def read_weights(path: Path, *, mmap: bool = False) -> Any:
    """Reads what `torch.save` wrote, onto the CPU: tensors and plain data, nothing that executes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no file of torch, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the step that writes it was interrupted.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch's reader raises whatever the bytes make it raise
        raise ValueError(
            f"{path} cannot be read: expected a whole file of plain tensors, found "
            f"{type(error).__name__} {quote(error, 120)}. It is truncated or holds code, which "
            "is refused: delete it and run the step that makes it again."
        ) from None
