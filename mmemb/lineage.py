"""Where a result comes from: fingerprints of inputs and settings, and facts of fitted models.

A folder with a `manifest.json` (shards) or a `fingerprint.json` (a run) is an *input*: whatever
configuration names one inherits its fingerprint, so a changed input changes everything after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmemb.files import write_atomically

FORMAT_VERSION = 1
"""Raised when the meaning of a stage's output changes, so that old outputs are made again."""

_MARKS = ("manifest.json", "fingerprint.json")


def canonical_json(data: Any) -> str:
    """JSON text that is equal for equal data.

    >>> canonical_json({"b": 1, "a": (2,)})
    '{"a":[2],"b":1}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def write_json(path: Path, data: Any) -> None:
    """Writes pretty JSON whole or not at all."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    write_atomically(path, f"{text}\n".encode())


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Reads a JSON object; whatever else is there is a ValueError that names the file."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        found = str(error)
    else:
        if isinstance(data, dict):
            return data
        found = f"{data!r:.60}"
    raise ValueError(
        f"{path} is broken: expected {expected}; found {found}. Delete it and run the step that "
        "makes it again."
    )


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


def inherited_facts(settings: Any, outputs: Collection[Path] = ()) -> frozenset[str]:
    """The facts that the runs named in `settings` were fitted on (their `fitted.json`); `outputs`,
    which may lie there from an earlier time, hand nothing down."""
    facts: set[str] = set()
    for path in _paths(settings, outputs):
        record = _marked_parent(Path(path), ("fitted.json",))
        if record is not None:
            facts |= set(read_facts(record))
    return frozenset(facts)


def run_mark(folder: Path) -> str | None:
    """The fingerprint of the run whose folder this is; None if it is no run."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        return None
    return read_json(path, "the fingerprint of a run").get("fingerprint")


def note_run(folder: Path, run: Path) -> None:
    """Writes into a folder whose copy it holds."""
    write_json(folder / "copied.json", {"fingerprint": run_mark(run)})


def check_copied(folder: Path, run: Path) -> None:
    """Raises ValueError if a folder holds a copy of another run's model than that of `run`."""
    path = folder / "copied.json"
    copied = read_json(path, "whose copy this is").get("fingerprint") if path.is_file() else None
    found = run_mark(run)
    if copied and copied != found:
        raise ValueError(
            f"{folder} holds a copy of the model of run {copied}, but {run} is "
            f"{f'run {found}' if found else 'no finished run'}. Fit the gate again on this model, "
            "or name the run that it was fitted on."
        )


def read_facts(path: Path) -> frozenset[str]:
    """Reads a `fitted.json`; raises FileNotFoundError in plain words if there is none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: without the list of facts that this model was fitted on nobody "
            "can tell which pairs it may judge. Train the model with `experiments.run fit`, which "
            "writes the list."
        )
    facts = read_json(path, "an object with the list `facts`").get("facts")
    if not isinstance(facts, list):
        raise ValueError(f"{path} has no list `facts`; train the model again to write it.")
    return frozenset(facts)


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
    """What a path stands for: a mark in it or in a folder of shards below, or a file's bytes."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    mark = _marked_parent(path.resolve(), _MARKS)
    if mark is not None:
        return _mark_identity(mark)
    below = sorted(path.glob("*/manifest.json")) + sorted(path.glob("*/*/manifest.json"))
    return canonical_json([_mark_identity(mark) for mark in below])


def _mark_identity(mark: Path) -> str:
    data = read_json(mark, "a manifest or fingerprint")
    return canonical_json([data.get("fingerprint"), data.get("shards")])


def _marked_parent(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` in the folder or up to three folders above it."""
    for folder in [path, *path.parents][:4]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
