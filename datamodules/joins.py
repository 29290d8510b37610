"""Checks that a sidecar was made from the shards that it is joined with."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path

from mmemb.storage.manifests import Origin, read_manifest, sha256_of_all
from mmemb.storage.shard_index import ShardIndex


def check_join(source: ShardIndex, sidecar: ShardIndex) -> set[str]:
    """Checks that a sidecar was made from its source: shard names, keys, order and bytes.

    What else a covered shard was made from, such as the candidates beside the queries, is compared
    where it lies as seen from the source.

    Returns:
        Names of the source's shards that the sidecar covers; it need not cover all.

    Raises:
        ValueError: a covered shard has other keys, was made from other bytes, or has no record of
            them; the error names both folders and the command that makes the sidecar again.
    """
    ours, theirs = _keys_by_shard(source), _keys_by_shard(sidecar)
    covered = set(ours) & set(theirs)
    compared: set[tuple[Path, str]] = set()

    for shard in sorted(covered):
        left, right = ours[shard], theirs[shard]

        if left != right:
            pairs = enumerate(zip_longest(left, right))
            at = next(i for i, (a, b) in pairs if a != b)
            a, b = (repr(keys[at]) if at < len(keys) else "no sample" for keys in (left, right))
            raise ValueError(
                f"Sidecar shard {sidecar.folder / shard} does not belong to "
                f"{source.folder / shard}: expected key {a} at row {at}, found {b}. It was made "
                f"from other data. {_again(sidecar, shard, source)}"
            )

        origin = _check_made_from(source, sidecar, shard)
        compared |= _check_folders(source, sidecar, shard, origin, compared)
    return covered


def _check_made_from(source: ShardIndex, sidecar: ShardIndex, shard: str) -> Origin:
    """The origin of a sidecar's shard that is the source's shard of this name."""
    wanted = source.origin(shard)
    origins = [origin for origin in sidecar.records[shard].made_from if origin.shard == shard]
    for origin in origins:
        if origin.sha256 == wanted.sha256:
            return origin

    if not origins:
        raise ValueError(
            f"Sidecar shard {sidecar.folder / shard} has no record of what it was made from, so it "
            f"cannot be joined with {source.folder / shard}: it is older than this check, or of "
            f"another tool. {_again(sidecar, shard, source)}"
        )

    was = ", ".join(f"{origin.folder / shard} (hash {origin.sha256:.12})" for origin in origins)
    raise ValueError(
        f"Sidecar shard {sidecar.folder / shard} was not made from {source.folder / shard} "
        f"(hash {wanted.sha256:.12}), but from {was}. The keys are equal, the content is not. "
        f"{_again(sidecar, shard, source)}"
    )


def _check_folders(
    source: ShardIndex,
    sidecar: ShardIndex,
    shard: str,
    source_origin: Origin,
    compared: Collection[tuple[Path, str]],
) -> set[tuple[Path, str]]:
    """Compares the whole folders that a sidecar's shard was made from; returns them with hashes.

    Args:
        source: of the join.
        sidecar: of the join.
        shard: name of the shard in both.
        source_origin: the source's shard, as the sidecar's shard records it.
        compared: folders that need no second look.
    """
    folders: set[tuple[Path, str]] = set()
    for origin in sidecar.records[shard].made_from:
        if origin.shard:
            continue

        # A data root may have been moved: what lay beside the source then lies beside it now.
        way = os.path.relpath(origin.folder, source_origin.folder)
        present = Path(os.path.normpath(source.folder.absolute() / way))
        if (present, origin.sha256) in compared or not present.is_dir():
            continue

        if (sha256 := sha256_of_all(read_manifest(present))) != origin.sha256:
            raise ValueError(
                f"Sidecar shard {sidecar.folder / shard} was also made from {origin.folder} (hash "
                f"{origin.sha256:.12}), but {present} holds other data now (hash {sha256:.12}). "
                f"{_again(sidecar, shard, source)}"
            )
        folders.add((present, origin.sha256))
    return folders


def _again(sidecar: ShardIndex, shard: str, source: ShardIndex) -> str:
    """The advice that ends an error about a join."""
    command = sidecar.records[shard].command
    how = f" with `{command}`" if command else f" from {source.folder}"
    return f"Make {sidecar.folder} again{how}."


def _keys_by_shard(index: ShardIndex) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {name: [] for name in index.shard_names}
    for entry in index.entries:
        keys[entry.shard].append(entry.key)
    return keys
