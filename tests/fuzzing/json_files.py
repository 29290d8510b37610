"""JSON files of data, sidecars, scores and prompts. An input's first line names the reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, final

from datamodules.data_roots import read_benchmark
from datamodules.prepare.folder.rationales import read_rationales
from datamodules.samples import Members, SampleReader, rows_of
from mmemb.benchmarks.score_files import METRICS, read_scores, read_values
from mmemb.llm import FewShotPrompt
from mmemb.rationales.writers.pool import read_pool
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.records.schema import to_json
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.trained_facts import read_facts
from tests.fixtures.tiny_data import write_tiny
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_json
from tests.fuzzing.texts import check_texts


@final
class JsonFiles(Kind):
    """The name of a reader, a line feed, and the file that it reads."""

    name: ClassVar[str] = "json"

    def make_seeds(self) -> Sequence[bytes]:
        root = write_tiny(self.folder / "data")
        pairs = root / "pairs/plain"
        row = rows_of(ShardIndex.open(pairs))[0]
        rationale = Rationale("<think>a</think><answer>b</answer>", "w", "m", "r", "p", "d", 0, 4)
        prompt = {"system": "s", "examples": [{"query": "q", "think": "t", "answer": "a"}]}
        written: dict[str, Any] = {
            "pair": json.loads(row.index.read(row.entry)["json"]),
            "manifest": json.loads((pairs / "manifest.json").read_bytes()),
            "index": json.loads(next(pairs.glob("*0.index.json")).read_bytes()),
            "tasks": json.loads((root / "tasks.json").read_bytes()),
            "facts": {"facts": ["a"], "calibrated": [], "unknown": []},
            "prompt": prompt | {"concepts": ["c"], "query": "{instruction} {text}"},
            "scores": dict.fromkeys(METRICS, 0.5) | {"num_pred": 2, "mode": "correct"},
            "values": {"metric": "hit@1", "keys": ["a"], "clusters": ["b"], "values": [0.5]},
            "pool": {"0" * 32: [to_json(rationale)]},
            "rationales": {"id": "a", "rationales": ["b", {"thinking": "c", "answer": "d"}]},
        }  # fmt: skip
        self._kept = {
            name: path.read_bytes()
            for name, path in self._paths().items()
            if name in ("manifest", "index", "tasks")
        }
        return [f"{name}\n{json.dumps(data)}".encode() for name, data in written.items()]

    def mutate(self, data: bytes, random: Random) -> bytes:
        reader, _, body = data.partition(b"\n")
        others = [seed.partition(b"\n")[2] for seed in self.seeds]
        return reader + b"\n" + mutate_json(body, random, others)

    def marks(self, data: bytes) -> Sequence[str]:
        name = data.partition(b"\n")[0].decode()
        return (self._paths()[name].name, "sample k", ".index.json", ".tar")

    def read(self, data: bytes) -> None:
        name, _, body = data.partition(b"\n")
        path = self._paths()[name.decode()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        try:
            self._readers()[name.decode()](path, body)
        finally:
            if (kept := self._kept.get(name.decode())) is not None:
                path.write_bytes(kept)

    def _paths(self) -> Mapping[str, Path]:
        pairs = self.folder / "data/pairs/plain"
        return {
            "pair": self.folder / "sample k",
            "manifest": pairs / "manifest.json",
            "index": next(pairs.glob("*0.index.json")),
            "tasks": self.folder / "data/tasks.json",
            "facts": self.folder / "fitted.json",
            "prompt": self.folder / "few_shot.json",
            "scores": self.folder / "scores/flags_score.json",
            "values": self.folder / "values/flags_values.json",
            "pool": self.folder / "pool.json",
            "rationales": self.folder / "rationales.jsonl",
        }

    def _readers(self) -> Mapping[str, Callable[[Path, bytes], None]]:
        return {
            "pair": _read_pair,
            "manifest": _read_shards,
            "index": _read_shards,
            "tasks": _read_tasks,
            "facts": lambda path, body: check_texts(read_facts(path)),
            "prompt": _read_prompt,
            "scores": lambda path, body: _finite(read_scores(path.parent)["flags"].scores),
            "values": lambda path, body: check_texts(read_values(path.parent)["flags"].keys),
            "pool": _read_pool,
            "rationales": _read_rationales,
        }


def _read_pair(path: Path, body: bytes) -> None:
    members = Members.of_bytes("k", f"Shard s.tar, {path.name}", {"json": body, "t0.webp": b""})
    pair = SampleReader(pixels=False).pair_of(members)
    check_texts((pair.query.text, pair.target.text, pair.query.instruction, pair.target_name))
    check_texts((pair.task, pair.split, pair.concept, pair.fact, pair.source, pair.gallery))
    check_texts((*pair.positives, *pair.answers))


def _read_shards(path: Path, body: bytes) -> None:
    index, reader = ShardIndex.open(path.parent), SampleReader(pixels=False)
    assert len(index.entries) == index.manifest.num_samples, "silently fewer rows"
    for row in rows_of(index):
        check_texts((row.entry.key, *row.meta, *row.meta.values()))
        assert reader.pair(row).key == row.entry.key


def _read_tasks(path: Path, body: bytes) -> None:
    (root,) = read_benchmark(path.parent)
    assert len(root.tasks) == len(json.loads(body)), "silently fewer rows"
    check_texts(task.name for task in root.tasks)


def _read_prompt(path: Path, body: bytes) -> None:
    prompt = FewShotPrompt.load(path)
    said = prompt.messages(prompt.question(Side(text="{0}", instruction="b")))
    check_texts(part for message in said for part in message.values())
    check_texts((*prompt.concepts, prompt.rationale_text("a", True)))
    assert "<class" not in said[-1]["content"], "a field of a field"
    assert len(said[-1]["content"]) <= len(body) + 1000, "a text of any length from a short file"


def _finite(scores: Mapping[str, float]) -> None:
    for name, value in scores.items():
        assert isinstance(value, int | float), (name, value)
        assert 0 <= value < float("inf"), (name, value)


def _read_pool(path: Path, body: bytes) -> None:
    for pool in read_pool(path).values():
        for rationale in pool:
            check_texts((rationale.text, rationale.writer, rationale.plain, rationale.answer))
            assert type(rationale.seed) is type(rationale.num_tokens) is int


def _read_rationales(path: Path, body: bytes) -> None:
    given = read_rationales(path, {"a"})
    num = sum(1 for line in body.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    assert len(given.by_id) + len(given.faults) == num, "silently fewer rows"
    check_texts((*given.faults, *(r.plain for rs in given.by_id.values() for r in rs)))
