"""What the stages would say about the tiny data set: rationales, utilities, features."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmemb.records import Rationale, ScoredRationale, scored_to_json, stable_hash
from mmemb.shard_writer import Sample, encode_members, finish_manifest, write_shard
from mmemb.shards import IndexEntry, ShardIndex
from tests.tiny import FINGERPRINT


def write_tiny_rationales(root: Path, folder: Path, scored: bool = False) -> Path:
    """Three rationales for each think question and query; scored ones keep the right one."""

    def members(entry: IndexEntry, data: dict[str, Any]) -> dict[str, Any]:
        think = entry.meta["task"] == "flag-capital-t2i"
        return {"json": _rationales(data, scored) if think else []}

    return write_sidecar([root / "pairs/questions", root / "queries"], folder, members)


def write_tiny_utilities(root: Path, folder: Path, width: int = 4) -> Path:
    """Utilities in which thinking helps the think task and nothing else."""

    def members(entry: IndexEntry, data: dict[str, Any]) -> dict[str, Any]:
        think = entry.meta["task"] == "flag-capital-t2i"
        state = np.random.default_rng(int(entry.key)).standard_normal(width).astype(np.float32)
        state[0] = float(think)
        hit = {"recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "hit@1": 1.0}
        row = {
            **{name: data[name] for name in ("task", "part", "concept")},
            "eligible": think,
            "depths": ["direct", "full"],
            "utility": [[-2.0], [-1.0 if think else -2.0]],
            "cost": [[0], [20 if think else 0]],
            "confidence": [[], [-0.5] if think else []],
            "scores": [-1.0, 0.5, 1.5],
            "metrics": [dict.fromkeys(hit, float(not think)), hit],
        }
        return {"json": row, "state.npy": state}

    return write_sidecar([root / "queries"], folder, members)


def write_tiny_features(root: Path, folder: Path, shape: tuple[int, int] = (2, 8)) -> Path:
    """Random tokens for every picture of the data set."""
    seen: set[str] = set()

    def samples(index: ShardIndex) -> Iterator[Sample]:
        for digest in (d for entry in index.entries for d in entry.media.values()):
            if digest not in seen:
                seen.add(digest)
                random = np.random.default_rng(stable_hash(digest))
                tokens = random.standard_normal(shape).astype(np.float16)
                yield Sample(digest, encode_members({"npy": tokens}))

    names = []
    for part in ("pairs/plain", "pairs/questions", "queries", "candidates"):
        names.append(f"{Path(part).name}-000000.tar")
        index = ShardIndex.open(root / part)
        origins = [index.origin(names[-1])]
        write_shard(folder, names[-1], samples(index), fingerprint=FINGERPRINT, made_from=origins)
    finish_manifest(folder, FINGERPRINT, names)
    return folder


def _rationales(data: dict[str, Any], scored: bool) -> list[dict[str, Any]]:
    country = data["answers"][0]
    found = []
    for k, name in enumerate((country, "country-xx", "country-yy")):
        text = f"<think>The country is {name}.</think><answer>{name}</answer>"
        rationale = Rationale(text, "table", "tiny", "0", "none", "greedy", -1, 8, count=k + 1)
        gain = {"gain": 1.0 - 2 * (k > 0), "raw": -1.0}
        judged = ScoredRationale(rationale, gain, k == 0, k == 0, float(k == 0))
        found.append(scored_to_json(judged if scored else ScoredRationale(rationale)))
    return found


def write_sidecar(
    sources: list[Path],
    folder: Path,
    members: Callable[[IndexEntry, dict[str, Any]], dict[str, Any]],
    whole: Sequence[Path] = (),
) -> Path:
    """Made from its sources shard by shard, and from all of the folders `whole`."""
    names, company = [], [ShardIndex.open(path).origin() for path in whole]
    for source in map(ShardIndex.open, sources):
        for shard in source.shard_names:
            names.append(shard)
            samples = [
                Sample(e.key, encode_members(members(e, json.loads(source.read(e)["json"]))))
                for e in source.of_shard(shard)
            ]
            origins = [source.origin(shard), *company]
            write_shard(folder, shard, samples, fingerprint=FINGERPRINT, made_from=origins)
    finish_manifest(folder, FINGERPRINT, names)
    return folder


def record_origins(folder: Path, *sources: Path) -> None:
    """Makes a sidecar tell that it was made from the shards that the sources have now."""
    index, opened = ShardIndex.open(folder), [ShardIndex.open(source) for source in sources]
    for shard in index.shard_names:
        samples = [Sample(e.key, index.read(e), e.meta) for e in index.of_shard(shard)]
        origins = [source.origin(shard) for source in opened if shard in source.shard_names]
        fingerprint = index.manifest.fingerprint
        write_shard(folder, shard, samples, fingerprint=fingerprint, made_from=origins)
