"""Writes folders of shards: plain WebDataset tars, whole or not at all, equal content equal bytes.

Order of a write: the tar under a temporary name, `NAME.index.json` (atomically, with the tar's
hash), fsync and rename to `NAME.tar`, and `manifest.json` last. Interrupted anywhere, no reader
trusts what is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import to_builtins

from mmemb.storage.files import file_sha256, whole_file, write_atomically
from mmemb.storage.manifests import (
    FORMAT_VERSION,
    MANIFEST,
    MEDIA_SUFFIXES,
    SHARD_NAME,
    Manifest,
    Origin,
    ShardEntry,
    Source,
    existing_shards,
    index_path,
    read_manifest,
)

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample to write.

    Attributes:
        key: letters, digits, `_`, `-`: WebDataset cuts keys at the first dot.
        members: extension (`json`, `q0.webp`, `state.npy`) -> bytes.
        meta: goes into the index, so that a reader can filter without reading the sample.
    """

    key: str
    members: Mapping[str, bytes]
    meta: Mapping[str, str] = field(default_factory=dict)


def write_folder(
    folder: Path | str,
    samples: Iterable[Sample],
    *,
    prefix: str,
    samples_per_shard: int,
    fingerprint: str,
    sources: Iterable[Source] = (),
) -> Manifest:
    """Writes `prefix-000000.tar`, ... and the manifest.

    A folder that `fingerprint` already covers is left alone and `samples` is not touched; in an
    unfinished one only the holes are written.
    """
    if manifest := _covered(folder, fingerprint):
        return manifest

    # Numbers count chunks, not holes, so each chunk has the same name in every rerun.
    whole, names, rest = existing_shards(folder, fingerprint), [], iter(samples)
    while chunk := list(islice(rest, samples_per_shard)):
        names.append(f"{prefix}-{len(names):06d}.tar")
        if names[-1] not in whole:
            write_shard(folder, names[-1], chunk, fingerprint=fingerprint)

    return finish_manifest(folder, fingerprint, names, sources)


def write_shard(
    folder: Path | str,
    name: str,
    samples: Iterable[Sample],
    *,
    fingerprint: str = "",
    made_from: Iterable[Origin] = (),
    command: str = "",
) -> ShardEntry:
    """Writes one shard and its index.

    Args:
        folder: made if it does not exist.
        name: like `questions-000000.tar`.
        samples: keys must differ.
        fingerprint: of what made the shard; `existing_shards` asks for it.
        made_from: of a sidecar, the shards and folders that it was made from; `check_join` compares
            them with what it is joined with.
        command: makes a sidecar again; errors name it.
    """
    if not SHARD_NAME.fullmatch(name):
        raise ValueError(f"Shard name {name!r}: expected letters, digits, `_`, `-`, then `.tar`.")

    with whole_file(Path(folder) / name) as temporary:
        rows = _write_tar(temporary, samples)
        entry = ShardEntry(name, file_sha256(temporary), temporary.stat().st_size, len(rows))

        index: dict[str, Any] = {"shard": to_builtins(entry), "fingerprint": fingerprint}
        index |= {"entries": rows}
        if origins := [_origin_row(origin, Path(folder)) for origin in made_from]:
            index |= {"made_from": origins, "command": command}

        # Before the tar itself: an index without its tar is a hole, never a wrong answer.
        write_atomically(index_path(folder, name), _to_json(index))
    return entry


def write_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Writes `manifest.json`; from then on readers open the folder."""
    write_atomically(Path(folder) / MANIFEST, _to_json(to_builtins(manifest), indent=1))


def finish_manifest(
    folder: Path | str,
    fingerprint: str,
    shard_names: Iterable[str],
    sources: Iterable[Source] = (),
    made_from: Mapping[str, Collection[Origin]] | None = None,
) -> Manifest:
    """Collects the entries of shards that all exist by now, and writes the manifest.

    Args:
        folder: where they lie.
        fingerprint: that all of them have.
        shard_names: in order.
        sources: packages that the content comes from.
        made_from: see `existing_shards`.

    Raises:
        ValueError: some shard is missing, broken or of another fingerprint.
    """
    whole, names = existing_shards(folder, fingerprint, made_from), list(shard_names)

    if missing := [name for name in names if name not in whole]:
        raise ValueError(
            f"{folder} is not complete: shard(s) {', '.join(missing)} are missing, broken or made "
            f"with other settings or from other data. Run the step that makes this folder again; "
            "it fills the holes."
        )

    _report_strangers(Path(folder), names)
    shards = tuple(whole[name] for name in names)
    total = sum(shard.num_samples for shard in shards)
    manifest = Manifest(FORMAT_VERSION, fingerprint, total, shards, tuple(sources))
    write_manifest(folder, manifest)
    return manifest


def drop_other_shards(folder: Path | str, fingerprint: str) -> None:
    """Removes what was made with other settings, so that no later reader meets it."""
    if not Path(folder).is_dir():
        return

    shards = existing_shards(folder, fingerprint)
    for shard in Path(folder).glob("*.tar"):
        if shard.name not in shards:
            # The manifest goes first: without it no reader opens a folder that is losing shards.
            (Path(folder) / MANIFEST).unlink(missing_ok=True)
            shard.unlink()
            index_path(folder, shard.name).unlink(missing_ok=True)


def encode_members(members: Mapping[str, Any]) -> dict[str, bytes]:
    """JSON data under `json`, arrays and tensors under `npy` or `NAME.npy`, as bytes.

    >>> encode_members({"json": {"depth": 1}})
    {'json': b'{"depth": 1}'}
    """
    return {
        name: _to_npy(value) if name.split(".")[-1] == "npy" else _to_json(value)
        for name, value in members.items()
    }


def _write_tar(path: Path, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _check_sample(sample, rows)
            rows[sample.key] = _add_sample(tar, sample)
    return list(rows.values())


def _add_sample(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    # In the order of the names, so that equal content gives equal bytes.
    offsets, media = {}, {}
    for extension, data in sorted(sample.members.items()):
        info = tarfile.TarInfo(f"{sample.key}.{extension}")  # times and owners are 0 by default
        info.size, info.mode = len(data), 0o644
        offsets[extension] = (tar.offset + tarfile.BLOCKSIZE, len(data))
        tar.addfile(info, io.BytesIO(data))
        if f".{extension}".endswith(MEDIA_SUFFIXES):
            media[extension] = hashlib.sha256(data).hexdigest()

    meta = {str(k): str(v) for k, v in sorted(sample.meta.items())}
    return {"key": sample.key, "members": offsets, "meta": meta, "media": media}


def _origin_row(origin: Origin, folder: Path) -> dict[str, str]:
    """An origin as seen from the sidecar's folder, so that an index names no machine."""
    way = os.path.relpath(origin.folder.resolve(), folder.resolve())
    return {"folder": way, "shard": origin.shard, "sha256": origin.sha256}


def _check_sample(sample: Sample, keys: Collection[str]) -> None:
    if not _KEY.fullmatch(sample.key):
        raise ValueError(
            f"Sample key {sample.key!r}: expected 1 to 80 letters, digits, `_` or `-` (WebDataset "
            f"cuts keys at the first dot); put names and paths into the json member."
        )

    if sample.key in keys:
        raise ValueError(f"Sample key {sample.key!r} occurs twice; expected different keys.")

    # 80 letters of a key, a dot and 19 letters are the 100 that a name in a USTAR header has.
    for extension in sample.members:
        if not _EXTENSION.fullmatch(extension) or len(extension) > 19:
            raise ValueError(
                f"Sample {sample.key!r}: member {extension!r}; expected lower-case words with "
                f"dots between them, like `json`, `q0.webp`, `t0.000.webp` (at most 19 letters)."
            )


def _covered(folder: Path | str, fingerprint: str) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError):
        return None

    # Shards may have been lost or changed since the manifest was written.
    whole = existing_shards(folder, fingerprint)
    same = manifest.fingerprint == fingerprint
    return manifest if same and all(whole.get(s.name) == s for s in manifest.shards) else None


def _report_strangers(folder: Path, names: Collection[str]) -> None:
    strangers = sorted({path.name for path in folder.glob("*.tar")} - set(names))
    if strangers:
        _LOG.warning(
            "%s holds shards that are no longer part of it and that no reader opens: %s",
            folder,
            ", ".join(strangers),
        )


def _to_json(data: Any, indent: int | None = None) -> bytes:
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=indent)
    except ValueError as error:
        raise ValueError(
            f"{data!r:.200} cannot be written as JSON ({error}). Look at what computes these "
            "numbers: no reader takes NaN or infinity."
        ) from None
    return text.encode()


def _to_npy(value: Any) -> bytes:
    array = value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)

    # Without pickle: an array of objects would run code where it is read.
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
