"""The mark of a finished run, and the run that a copied result comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from mmemb.records.schema import Excerpt, Schema, read_json
from mmemb.storage.json_files import write_json
from mmemb.storage.products import Product
from mmemb.storage.run_folder import AdaptiveFolder, RunFolder


@final
class RunMark(Schema):
    """A `fingerprint.json`: the identity of a run, and the files that it left.

    Attributes:
        fingerprint: of settings and inputs.
        finished: whether it came to its end.
        reason: why it ended before, one line that begins with `failed:` or `unfinished:`; empty
            while it runs, and after `kill -9`.
        inputs: path -> hash of what lay there.
        products: see `mmemb.storage.products`; None where they were not recorded.
    """

    fingerprint: str
    finished: bool = False
    reason: str = ""
    inputs: dict[str, str] = {}
    products: tuple[Product, ...] | None = None


@final
class MarkJson(Excerpt):
    """The identity in a manifest (of shards or a data root), or in a run's `fingerprint.json`."""

    fingerprint: str | None = None
    shards: list[dict[str, Any]] | None = None


@final
class _CopyJson(Schema):
    """A `copied.json`: the run whose model was copied."""

    fingerprint: str | None


def run_mark(folder: Path) -> str | None:
    """The fingerprint of the run whose folder this is; None if it is no run."""
    path = RunFolder(folder).mark
    if not path.is_file():
        return None
    return read_json(path, RunMark).fingerprint


def note_run(folder: Path, run: Path) -> None:
    """Records in a folder the run whose model was copied into it."""
    write_json(AdaptiveFolder(folder).copied, {"fingerprint": run_mark(run)})


def check_copied(folder: Path, run: Path) -> None:
    """Raises ValueError if a folder holds a copy of another run's model than that of `run`."""
    path = AdaptiveFolder(folder).copied
    copied = read_json(path, _CopyJson).fingerprint if path.is_file() else None
    mark = run_mark(run)
    if copied and copied != mark:
        raise ValueError(
            f"{folder} holds a copy of the model of run {copied}, but {run} is "
            f"{f'run {mark}' if mark else 'no finished run'}. Fit the gate again on this model, "
            "or name the run that it was fitted on."
        )
