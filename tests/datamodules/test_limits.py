"""`limit_*_batches` of the trainer: queries are cut, candidates never, shards only as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from callbacks import RecallAtK, SidecarWriter
from datamodules import BenchmarkDataModule, EvaluationDataModule
from datamodules.limits import num_batches
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.outputs import (
    CandidateOutput,
    QueryOutput,
    SidecarOutput,
    SidecarRow,
    StepOutput,
)
from mmemb.retrieval.galleries import Galleries, embed_candidates, gather_candidates
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.unfinished import Unfinished
from tests.fixtures.echo_module import candidates
from tests.fixtures.tiny_trainer import rank_of, trainer_of


def vectors_of(sides: Sequence[Side], notes: object = None) -> Tensor:
    """Unit vectors that depend on the text alone."""
    seeds = [stable_hash(side.text) % 2**31 for side in sides]
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return nn.functional.normalize(torch.stack(rows), dim=1)


@final
class TextHash(LightningModule):
    """Embeds by `vectors_of`; counts what it embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.num_queries, self.num_candidates = 0, 0

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch.candidates is not None:
            self.num_candidates += len(batch.candidates.candidates)
            return StepOutput(candidates=embed_candidates(vectors_of, batch.candidates))
        queries = batch.queries.queries
        self.num_queries += len(queries)
        vectors_BD = vectors_of([query.side for query in queries])
        return StepOutput(queries=QueryOutput(vectors_BD, queries))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(torch.ones(1)).sum()

    def train_dataloader(self) -> Any:
        return [0] * 4

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch.candidates is not None:
            self.num_candidates += len(batch.candidates.candidates)
            return StepOutput()
        rows = [SidecarRow(query.key, {"json": {}}) for query in batch.queries.queries]
        return StepOutput(sidecar=SidecarOutput(batch.queries.shard, tuple(rows)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@final
class Noted(Callback):
    """Writes the metrics of a test or validation to a file, since ranks are forked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found = {"queries": pl_module.num_queries, "candidates": pl_module.num_candidates}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(metrics | found))


def data_of(root: Path, batch_size: int = 4, **changes: Any) -> EvaluationDataModule:
    arguments = {"root": str(root), "batch_size": batch_size, "splits": ["test"]}
    return EvaluationDataModule(**(arguments | {"tasks": ["flag-name"]} | changes))


def measured(folder: Path, root: Path, world: int = 1, **options: Any) -> list[dict[str, float]]:
    """What each rank found out about the queries that a limit leaves."""
    folder.mkdir()
    noted = Noted(folder / "metrics.json")
    trainer = trainer_of(folder, world, callbacks=[RecallAtK(), noted], **options)
    trainer.test(TextHash(), datamodule=data_of(root), verbose=False)
    return [json.loads(noted.path.with_suffix(f".{rank}").read_text()) for rank in range(world)]


def expected_recall(root: Path, world: int, num_queries: int) -> float:
    """Recall@5 of the first queries of every rank, in the whole gallery."""
    loaders = data_of(root).test_dataloader()
    batches = [embed_candidates(vectors_of, batch.candidates) for batch in loaders[0]]
    queries = [query for batch in loaders[1] for query in batch.queries.queries]
    asked = [q for rank in range(world) for q in queries[rank::world][:num_queries]]
    metrics = Galleries(batches).metrics(vectors_of([q.side for q in asked]), asked, (5,))
    return sum(row["recall@5"] for row in metrics) / len(asked)


@pytest.mark.parametrize(("world", "limit"), [(1, 1), (2, 0.67)])
def test_a_limit_cuts_queries_and_no_candidate(
    tiny_root: Path, tmp_path: Path, world: int, limit: float
) -> None:
    found = measured(tmp_path / "limited", tiny_root, world, limit_test_batches=limit)
    sizes = [len(batch.queries.queries) for batch in data_of(tiny_root).test_dataloader()[1]]
    assert len(sizes) > 1, "or this test shows nothing"
    assert sum(rank["candidates"] for rank in found) == 24
    assert sum(rank["queries"] for rank in found) < sum(sizes)
    expected = expected_recall(tiny_root, world, int(found[0]["queries"]))
    assert [rank["test/recall@5"] for rank in found] == [pytest.approx(expected)] * world


def test_a_development_run_ranks_one_batch_in_the_whole_gallery(
    tiny_root: Path, tmp_path: Path
) -> None:
    (found,) = measured(tmp_path / "limited", tiny_root, fast_dev_run=True)
    assert (found["candidates"], found["queries"]) == (24, 2)


def test_a_limit_is_given_back_and_taken_again(tiny_root: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, limit_test_batches=1, callbacks=[RecallAtK()])
    data, counts = data_of(tiny_root), []
    for _ in range(2):
        module = TextHash()
        trainer.test(module, datamodule=data, verbose=False)
        counts.append((module.num_queries, trainer.limit_test_batches))
    assert len(set(counts)) == 1
    assert counts[0][1] == 1


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (0, 2),
        (1, 1),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(1, -1, marks=pytest.mark.slow),
    ],
)
def test_validation_and_its_sanity_check(
    tiny_root: Path, tmp_path: Path, limit: int, steps: int
) -> None:
    module = TextHash()
    trainer = trainer_of(
        tmp_path,
        limit_val_batches=limit,
        num_sanity_val_steps=steps,
        max_epochs=2,
        limit_train_batches=1,
        callbacks=[RecallAtK()],
    )
    data = data_of(tiny_root)
    data.train_dataloader = module.train_dataloader
    trainer.fit(module, datamodule=data)
    # A sanity check of one step embeds one batch of candidates and one of queries, ranks nothing.
    looked_at = {0: 0, 1: 4, -1: 24}[steps if limit else 0]
    assert module.num_candidates == limit * 2 * 24 + looked_at
    assert ("val/recall@5" in trainer.callback_metrics) == bool(limit)


def predicted(folder: Path, root: Path, limit: float, **changes: Any) -> TextHash:
    module, writer = TextHash(), SidecarWriter(str(folder / "out"))
    writer.fingerprint = "f"
    trainer = trainer_of(folder, limit_predict_batches=limit, callbacks=[writer])
    trainer.predict(module, datamodule=data_of(root, tasks=None, splits=None, **changes),
                    return_predictions=False)  # fmt: skip
    return module


@pytest.mark.parametrize("limit", [pytest.param(5, marks=pytest.mark.slow), 0.5])
def test_predict_writes_whole_shards_of_a_limit(
    tiny_root: Path, tmp_path: Path, limit: float
) -> None:
    sizes = [shard.num_samples for shard in ShardIndex.open(tiny_root / "queries").manifest.shards]
    with pytest.raises(Unfinished, match=r"of \d+ shards were not written.*limit_predict_batches"):
        predicted(tmp_path, tiny_root, limit, batch_size=8)
    written = sorted((tmp_path / "out").glob("*.tar"))
    assert 0 < len(written) < len(sizes)
    assert not (tmp_path / "out/manifest.json").exists()
    module = predicted(tmp_path, tiny_root, 1.0, batch_size=8)
    assert module.num_candidates == 51, "a limit of batches never cut these"
    assert len(ShardIndex.open(tmp_path / "out").entries) == sum(sizes)


def test_a_limit_below_the_first_shard_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"limit_predict_batches is 1, but only whole shards"):
        predicted(tmp_path, tiny_root, 1)


def test_a_benchmark_under_a_limit_is_partial(tiny_root: Path) -> None:
    data = BenchmarkDataModule(str(tiny_root), batch_size=8)
    data.trainer = rank_of(0, 1, limit_test_batches=1)
    batches = list(data.test_dataloader())
    (queries,) = (len(batch.queries.queries) for batch in batches if batch.queries)
    assert batches[-1].end.skipped == (f"limit_test_batches left {queries} of 24 queries",)
    data.setup("test")
    data.trainer = rank_of(0, 1)
    assert list(data.test_dataloader())[-1].end.skipped == ()


def test_a_share_below_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"less than one of 5 batches: set it to at least 0\.2"):
        num_batches(5, 0.1, "limit_val_batches")
    assert [num_batches(0, limit, "x") for limit in (3, 0.1, 1.0)] == [0, 0, 0]


def with_sizes(rows: Sequence[int], size: int = 6) -> CandidateOutput:
    output = candidates(rows)
    return CandidateOutput(output.vectors_ND, output.names, output.galleries, output.rows,
                           {"g": size})  # fmt: skip


def test_a_part_of_a_gallery_is_refused() -> None:
    Galleries([with_sizes([0, 1, 2]), with_sizes([3, 4, 5])])
    with pytest.raises(ValueError, match="'g': 5 of its 6 candidates were embedded"):
        Galleries([with_sizes([0, 1, 2]), with_sizes([3, 4])])
    with pytest.raises(ValueError, match="row 2 of the candidate table was embedded 2 times"):
        Galleries([with_sizes([0, 1, 2]), with_sizes([2, 3, 4, 5])])
    with pytest.raises(ValueError, match="5 of its 6"):
        Galleries([gather_candidates([with_sizes([0, 1]), with_sizes([2, 3, 4])], 6)])
