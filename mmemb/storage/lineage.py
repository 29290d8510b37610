"""Where a result comes from: fingerprints of inputs and settings, and facts of fitted models.

A folder with a `manifest.json` (shards) or a `fingerprint.json` (a run) is an *input*: whatever
configuration names one inherits its fingerprint, so a changed input changes everything after it. A
file, and a folder without such a mark (a model from elsewhere), counts by its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, final

from mmemb.records.schema import Excerpt, Schema, read_json
from mmemb.storage.file_hashes import file_content
from mmemb.storage.files import file_identity, write_atomically
from mmemb.storage.products import Product
from mmemb.storage.shards import MANIFEST, read_manifest, read_record

FORMAT_VERSION = 1
"""Raised when the meaning of a stage's output changes, so that old outputs are made again."""

MOST_FILES = 10_000
"""A folder without a mark counts by its files' bytes if it holds no more files."""

_MARKS = ("manifest.json", "fingerprint.json")


def canonical_json(data: Any) -> str:
    """JSON text that is equal for equal data.

    >>> canonical_json({"b": 1, "a": (2,)})
    '{"a":[2],"b":1}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def write_json(path: Path, data: Any) -> None:
    """Writes pretty JSON whole or not at all; a number that is not finite becomes null."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_atomically(path, f"{text}\n".encode())


def finite(data: Any) -> Any:
    """JSON data with null for every NaN and infinity, which JSON cannot hold.

    >>> finite({"a": [1.0, float("nan")], "b": (float("inf"),)})
    {'a': [1.0, None], 'b': [None]}
    """
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def fingerprint(settings: Any, outputs: Collection[Path] = ()) -> str:
    """A hash (16 hex digits) of settings and of every input that they name.

    Strings that are paths count with the content behind them: shards and runs with their own
    fingerprint, ordinary files (a prompt, a table of facts) with their bytes.

    Args:
        settings: plain data.
        outputs: what the run itself will write: it counts by name alone, or a finished run would
            never again have the fingerprint that it started with.
    """
    inputs = {path: _identity(Path(path)) for path in sorted(set(_paths(settings, outputs)))}
    return _hash([FORMAT_VERSION, settings, inputs])


def input_identities(settings: Any, outputs: Collection[Path] = ()) -> dict[str, str]:
    """Path -> a hash of what lies there, for every input that settings name; see `fingerprint`."""
    paths = sorted(set(_paths(settings, outputs)))
    return {path: _hash(_identity(Path(path))) for path in paths}


FACTS = "fitted.json"
"""File with the facts of a run, of a sidecar, or of the weights beside it."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@final
@dataclass(frozen=True, slots=True)
class FittedFacts:
    """Facts behind a model, or behind what a model wrote.

    Attributes:
        trained: facts that weights were trained on: the model may not judge them (METHOD 3).
        calibrated: facts that only chose, validated or set a number (tau, eta, a threshold): they
            bar nothing.
        unknown: weights and sidecars that came without a list, so that their facts cannot be told.
    """

    trained: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: FittedFacts) -> FittedFacts:
        return FittedFacts(
            self.trained | other.trained,
            self.calibrated | other.calibrated,
            self.unknown | other.unknown,
        )

    def as_calibrated(self) -> FittedFacts:
        """The facts of a model that only chooses data, and on whose output no weight is trained."""
        return FittedFacts(calibrated=self.trained | self.calibrated)


@final
class _FittedJson(Schema):
    """See `FittedFacts`."""

    facts: tuple[str, ...]
    calibrated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def write_facts(path: Path, facts: FittedFacts) -> None:
    """Writes a `fitted.json`."""
    data = {
        "facts": sorted(facts.trained),
        "calibrated": sorted(facts.calibrated),
        "unknown": sorted(facts.unknown),
    }
    write_json(path, data)


def write_run_facts(run: Path, facts: FittedFacts) -> None:
    """Writes `fitted.json` into a run and beside all weights in it, so that copies have it, too."""
    weights = (path for path in run.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    for folder in sorted({path.parent for path in weights} - {run}):
        write_facts(folder / FACTS, facts)
    write_facts(run / FACTS, facts)


def read_fitted(path: Path) -> FittedFacts:
    """Reads a `fitted.json`; older ones hold the list `facts` alone."""
    data = read_json(path, _FittedJson, "Train the model again to write it.")
    return FittedFacts(*map(frozenset, (data.facts, data.calibrated, data.unknown)))


def read_facts(path: Path) -> frozenset[str]:
    """The facts that a model may not judge, by its `fitted.json`.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: the list is broken, or is marked as not whole.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: without the list of facts that this model was fitted on it is not "
            "known which pairs it may judge. Train the model with `experiments.run fit`, which "
            "writes the list."
        )
    return _known(read_fitted(path), str(path))


def trained_facts(model: str, adapter: str | None = None) -> frozenset[str]:
    """The facts that a model may not judge, by its folder; none for the id of a hub.

    Args:
        model: folder or id.
        adapter: folder of low-rank updates on it; they need a list, in it or in their run.

    Raises:
        FileNotFoundError: the adapter has no list.
        ValueError: the model is a backbone of ours without a list.
    """
    facts = _known(inherited_facts(model), model)
    if adapter is None:
        return facts
    beside = Path(adapter) / FACTS
    return facts | read_facts(beside if beside.is_file() else Path(adapter).parent / FACTS)


def inherited_facts(settings: Any, outputs: Collection[Path] = ()) -> FittedFacts:
    """The facts behind the runs, sidecars and weights that `settings` name.

    Args:
        settings: plain data.
        outputs: may lie there from an earlier time, and hand nothing down.
    """
    facts = FittedFacts()
    for path in map(Path, _paths(settings, outputs)):
        # A link to a model elsewhere may lie in no run although the model does.
        record = _marked_parent(path, (FACTS,)) or _marked_parent(path.resolve(), (FACTS,))
        if record is not None:
            facts |= read_fitted(record)
        elif _was_trained_here(path) or _was_predicted_here(path):
            facts |= FittedFacts(unknown=frozenset([str(path)]))
    return facts


def _known(facts: FittedFacts, source: str) -> frozenset[str]:
    if facts.unknown:
        raise ValueError(
            f"{source}: the facts that {min(facts.unknown)} goes back to are unknown, so it cannot "
            f"be told which pairs this model may judge. Copy {FACTS} of the run that trained those "
            "weights, or of the folder that this sidecar was copied from, into it "
            '(`{"facts": []}` if they go back to none of this data) and make what depends on them '
            "again."
        )
    return facts.trained


def _was_trained_here(path: Path) -> bool:
    """True for weights that this project wrote: a model of the hub saw none of our facts."""
    if path.suffix == ".ckpt":
        return True
    if (path / "adapter_config.json").is_file():
        return (path / "fingerprint.json").is_file()
    config = path / "config.json"
    return config.is_file() and b'"class_path"' in config.read_bytes()


def _was_predicted_here(path: Path) -> bool:
    """True for a sidecar that a run of this project wrote, always with its list of facts.

    Sidecars that `prepare` writes name no command: no model is behind them.
    """
    # A data root has a manifest, too; its shards lie in folders below it.
    if not (path / MANIFEST).is_file() or read_json(path / MANIFEST, _MarkJson).shards is None:
        return False
    shards = read_manifest(path).shards
    return bool(shards and read_record(path, shards[0].name).command)


@final
class RunMark(Schema):
    """A `fingerprint.json`: whose run it is, and what the run left.

    Attributes:
        fingerprint: of settings and inputs.
        finished: whether it came to its end.
        inputs: path -> hash of what lay there.
        products: see `mmemb.storage.products`; None where they were not recorded.
    """

    fingerprint: str
    finished: bool = False
    inputs: dict[str, str] = {}
    products: tuple[Product, ...] | None = None


@final
class _MarkJson(Excerpt):
    """The identity in a manifest (of shards or a data root), or in a run's `fingerprint.json`."""

    fingerprint: str | None = None
    shards: list[dict[str, Any]] | None = None


@final
class _CopyJson(Schema):
    """A `copied.json`: the run whose model was copied."""

    fingerprint: str | None


def run_mark(folder: Path) -> str | None:
    """The fingerprint of the run whose folder this is; None if it is no run."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        return None
    return read_json(path, RunMark).fingerprint


def note_run(folder: Path, run: Path) -> None:
    """Writes into a folder whose copy it holds."""
    write_json(folder / "copied.json", {"fingerprint": run_mark(run)})


def check_copied(folder: Path, run: Path) -> None:
    """Raises ValueError if a folder holds a copy of another run's model than that of `run`."""
    path = folder / "copied.json"
    copied = read_json(path, _CopyJson).fingerprint if path.is_file() else None
    found = run_mark(run)
    if copied and copied != found:
        raise ValueError(
            f"{folder} holds a copy of the model of run {copied}, but {run} is "
            f"{f'run {found}' if found else 'no finished run'}. Fit the gate again on this model, "
            "or name the run that it was fitted on."
        )


def _hash(data: Any) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]


def _paths(settings: Any, outputs: Collection[Path]) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from _paths(value, outputs)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _paths(value, outputs)
    elif (
        isinstance(settings, str) and settings and len(settings) < 4096 and Path(settings).exists()
    ):
        path = Path(settings).absolute()
        if not any(path.is_relative_to(output.absolute()) for output in outputs):
            yield settings


def _identity(path: Path) -> str:
    """The content of a path: a mark in it or in folders of shards below, or the bytes of files."""
    if path.is_file():
        return file_content(path)
    mark = _marked_parent(path.resolve(), _MARKS)
    if mark is not None:
        return _mark_identity(mark)

    below = sorted(path.glob("*/manifest.json")) + sorted(path.glob("*/*/manifest.json"))
    if below or any(path.glob("*/fingerprint.json")) or any(path.glob("*/*/fingerprint.json")):
        return canonical_json([_mark_identity(mark) for mark in below])
    return _folder_content(path)


def _folder_content(folder: Path) -> str:
    """The bytes of all files in a folder that no run or stage has marked, such as a model's.

    Hidden names do not count. A folder of more than `MOST_FILES` files, which no model is, counts
    by their names, sizes and times.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if len(files) > MOST_FILES:
        return canonical_json([[str(path), *file_identity(path)] for path in files])
    return canonical_json([[str(path.relative_to(folder)), file_content(path)] for path in files])


def _mark_identity(mark: Path) -> str:
    data = read_json(mark, _MarkJson)
    return canonical_json([data.fingerprint, data.shards])


def _marked_parent(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` in the folder or up to three folders above it."""
    for folder in [path, *path.parents][:4]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
