"""Pools of rationales by `Side.digest`, and their file form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmemb.records.hashing import stable_hash
from mmemb.records.rationales import Rationale
from mmemb.records.schema import parse_json, to_json
from mmemb.storage.files import write_atomically

Pool = dict[str, tuple[Rationale, ...]]


def pool_identity(pool: Mapping[str, Sequence[Rationale]]) -> str:
    """Hash of a pool's content."""
    rows = ((digest, tuple(pool[digest])) for digest in sorted(pool))
    return f"{stable_hash(*rows, bits=64):016x}"


def write_pool(path: str | Path, pool: Mapping[str, Sequence[Rationale]]) -> None:
    """Writes a pool as JSON: digest -> list of rationales."""
    # Sorted, so that equal pools give equal bytes.
    rows = {digest: [to_json(r) for r in pool[digest]] for digest in sorted(pool)}
    text = json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomically(path, f"{text}\n".encode())


def read_pool(path: str | Path) -> Pool:
    """Reads what `write_pool` wrote."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file of rationales {path}. Write one with mmemb.rationales.write_pool."
        ) from None
    return parse_json(
        data,
        Pool,
        f"The file of rationales {path} cannot be read",
        "Expected a JSON object that maps the digest of a side to a list of rationales, as "
        "write_pool makes it.",
    )
