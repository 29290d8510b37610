"""Vectors of a folder of candidates, embedded once per model and kept shard by shard.

Shapes: N candidates, n of a shard, D embedding width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.samples import FeatureTable, Row, SampleReader
from mmemb.backbones import Backbone
from mmemb.records.hashing import stable_hash
from mmemb.storage.files import file_sha256, write_atomically
from mmemb.storage.json_files import canonical_json
from mmemb.storage.manifests import read_manifest
from mmemb.storage.shard_index import ShardIndex

_BATCH = 64
_CANDIDATES = "candidates"


@final
@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates that are searched.

    Attributes:
        vectors_ND: float32 unit vectors.
        names: N pairs of gallery and name, each once.
    """

    vectors_ND: Tensor
    names: tuple[tuple[str, str], ...]

    def of_gallery(self, gallery: str | None) -> Candidates:
        """Returns the candidates of one gallery; None = all.

        Raises:
            ValueError: there is no such gallery.
        """
        if gallery is None:
            return self

        # A benchmark's galleries are searched one at a time; a name may stand in several.
        rows = [row for row, (home, _) in enumerate(self.names) if home == gallery]
        if not rows:
            galleries = sorted({home for home, _ in self.names})
            raise ValueError(f"There is no gallery {gallery!r}; there are {galleries}.")

        return Candidates(self.vectors_ND[rows], tuple(self.names[row] for row in rows))


def load_candidates(
    backbone: Backbone, identity: str, shards: Path, cache: Path | None, features: Path | None
) -> Candidates:
    """Embeds what the cache does not hold yet, with a bar; an interrupted call goes on.

    Args:
        backbone: embeds directly.
        identity: hash of its content, see `model_identity`.
        shards: a data root, or `candidates/` in it.
        cache: where vectors are kept, by default `search/` beside the shards.
        features: folder of cached features, for a backbone without a tower.

    Raises:
        FileNotFoundError: the shards are missing or unfinished.
        ValueError: a sample is no candidate, or a shard is broken.
    """
    # A data root holds them in a folder of this name.
    if (shards / _CANDIDATES).is_dir():
        shards = shards / _CANDIDATES
    index = _open(shards)

    # Everything that decides a vector names the folder: model, shards and cached features.
    manifest = index.manifest
    made_of = [identity, manifest.fingerprint, [shard.sha256 for shard in manifest.shards]]
    made_of.append(read_manifest(features).fingerprint if features else "")
    mark = f"{stable_hash(canonical_json(made_of), bits=64):016x}"

    folder = (cache or shards.resolve().parent / "search") / mark
    reader = SampleReader(FeatureTable(features) if features else None)

    parts, missing = {}, []
    for shard in index.shard_names:
        kept = _read(folder / f"{shard}.npy", len(index.of_shard(shard)), backbone.embedding_dim)
        parts[shard] = kept
        missing += [shard] if kept is None else []

    # Each shard is written when it is done, so an interrupted call goes on behind it.
    for shard, vectors_nD in _embed(backbone, reader, index, missing):
        _write(folder / f"{shard}.npy", vectors_nD)
        parts[shard] = vectors_nD

    return _once(index, [part for part in parts.values() if part is not None])


def model_identity(folder: Path) -> str:
    """Returns a hash of every file of a saved model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = [[str(path.relative_to(folder)), file_sha256(path)] for path in files]
    return f"{stable_hash(canonical_json(content), bits=64):016x}"


def _open(shards: Path) -> ShardIndex:
    index = ShardIndex.open(shards)
    if not index.entries or not {"gallery", "name"} <= set(index.entries[0].meta):
        raise ValueError(
            f"{shards} holds no candidates: expected the folder `candidates` of a data root, such "
            "as data/pocket/candidates."
        )
    return index


def _embed(
    backbone: Backbone, reader: SampleReader, index: ShardIndex, shards: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    total = sum(len(index.of_shard(shard)) for shard in shards)
    with tqdm(total=total, desc="candidates", disable=None if total else True) as bar:
        for shard in shards:
            rows = [Row(index, entry) for entry in index.of_shard(shard)]
            parts = []
            for start in range(0, len(rows), _BATCH):
                sides = [reader.candidate(row).side for row in rows[start : start + _BATCH]]
                with torch.inference_mode():
                    parts.append(backbone.encode(sides).cpu())
                bar.update(len(sides))

            # A broken model shall end here: NaN kept in the cache would outlive its repair.
            vectors_nD = torch.cat(parts).clone()
            if not vectors_nD.isfinite().all():
                raise ValueError(
                    f"{shard}: vectors are not finite: the model's weights are broken."
                )

            yield shard, vectors_nD


def _read(path: Path, num: int, width: int) -> Tensor | None:
    """Reads the vectors that an earlier call kept; None where a file does not fit."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None

    # A cut or foreign file is embedded again: the cache is a copy, never the source.
    if array.shape != (num, width) or array.dtype != np.float32:
        return None

    is_unit = np.abs(np.linalg.norm(array, axis=1) - 1) < 1e-3
    return torch.from_numpy(array) if is_unit.all() else None


def _write(path: Path, vectors_nD: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors_nD.numpy(), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _once(index: ShardIndex, parts: Sequence[Tensor]) -> Candidates:
    """Keeps the first of candidates of one gallery and name, as in evaluation."""
    names = [(entry.meta["gallery"], entry.meta["name"]) for entry in index.entries]

    # From the end, so that the first of equal names stays.
    first = {name: row for row, name in reversed(list(enumerate(names)))}
    rows = sorted(first.values())
    return Candidates(torch.cat(list(parts))[rows], tuple(names[row] for row in rows))
