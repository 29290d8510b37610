"""Products: the files that a run leaves for later ones, recorded so that a loss is noticed.

A record is plain JSON data: a file counts by its size, and a small one by its bytes too; a folder
of shards counts by its own manifest. Paths are relative to the run's folder, so that both can be
moved.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, final

from mmemb.records.schema import Count, Schema, Sha256
from mmemb.storage.files import file_sha256, is_temporary, sync
from mmemb.storage.manifests import MANIFEST, existing_shards, read_manifest

HASHED_BYTES = 64 * 2**20
"""Files up to this size are recorded, and compared, with their hash."""


class Producer(Protocol):
    """A module or callback that leaves files without which its run does not count as finished."""

    def products(self, stage: str) -> Sequence[Path]:
        """Files, folders of files and folders of shards that exist after `stage`."""


@final
class Product(Schema):
    """A record of one: of a folder of shards, or of a file.

    Attributes:
        shards: the folder.
        file: the file.
        bytes: its size.
        sha256: of its bytes, where they are few.
    """

    shards: str = ""
    file: str = ""
    bytes: Count = 0
    sha256: Sha256 | None = None


def record_products(run: Path, products: Sequence[Path]) -> list[dict[str, Any]]:
    """Brings products to disk and describes them.

    Args:
        run: the run's folder.
        products: files and folders, in the run's folder or elsewhere.

    Raises:
        ValueError: a product is not there, or is an empty folder.
    """
    records: list[dict[str, Any]] = []
    for product in products:
        # Shards are on disk before their manifest is written, and it holds their sizes and hashes.
        if (product / MANIFEST).is_file():
            records.append({"shards": os.path.relpath(product, run)})
            continue

        files = [product] if product.is_file() else sorted(product.rglob("*"))
        files = [path for path in files if path.is_file() and not is_temporary(path)]
        if not files:
            raise ValueError(
                f"{product} is missing or empty, although the run has come to its end: it is not "
                "recorded as finished. Run the same command again."
            )
        records += [_record(run, path) for path in files]
    return records


def lost_product(run: Path, recorded: Sequence[Product], fingerprint: str) -> str | None:
    """The first recorded product that is gone, cut or changed, in words; None if all are there.

    Args:
        run: the run's folder.
        recorded: what `record_products` gave.
        fingerprint: of the run, which its shards must carry.
    """
    for product in recorded:
        if product.shards:
            fault = _fault_of_shards(run / product.shards, fingerprint)
        else:
            fault = _fault_of_file(run / product.file, product)
        if fault:
            return fault
    return None


def _record(run: Path, path: Path) -> dict[str, Any]:
    # A record of a file that a crash could still empty would be wrong.
    sync(path)
    sync(path.parent)

    size = path.stat().st_size
    sha256 = file_sha256(path) if size <= HASHED_BYTES else None
    return {"file": os.path.relpath(path, run), "bytes": size, "sha256": sha256}


def _fault_of_file(path: Path, recorded: Product) -> str | None:
    if not path.is_file():
        return f"{path} is gone"

    if (size := path.stat().st_size) != recorded.bytes:
        return f"{path} has {size} bytes instead of {recorded.bytes}"

    if recorded.sha256 and file_sha256(path) != recorded.sha256:
        return f"{path} holds other bytes than were written"
    return None


def _fault_of_shards(folder: Path, fingerprint: str) -> str | None:
    try:
        names = [shard.name for shard in read_manifest(folder).shards]
    except (FileNotFoundError, ValueError):
        return f"{folder} has no manifest that can be read"

    whole = existing_shards(folder, fingerprint)
    lost = [name for name in names if name not in whole]
    return f"{folder / lost[0]} is gone, cut or of another run" if lost else None
