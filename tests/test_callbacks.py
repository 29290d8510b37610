"""Callbacks against boring modules: right figures on any split over ranks, silence where due."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from callbacks import InvocationRatio, RecallAtK, RunRecord, SidecarWriter
from callbacks.recall import by_task, markdown_table
from callbacks.run_record import is_finished, is_unfinished
from mmemb.batches import CandidateOutput, DecisionOutput, QueryOutput, SidecarOutput, SidecarRow
from mmemb.files import link_atomically
from mmemb.records import Query, Side
from mmemb.shards import ShardIndex, read_manifest
from tests.tiny_trainer import Stub, trainer_of

NAMES = [f"c{n}" for n in range(6)]


@final
class Boring(LightningModule):
    """Returns the batch that it was given; trains one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.layer(torch.ones(1)).sum(), "decisions": batch}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def candidates(rows: Sequence[int]) -> CandidateOutput:
    """Unit vectors along the axes, so that ranks are known."""
    return CandidateOutput(
        torch.eye(6)[list(rows)], tuple(NAMES[r] for r in rows), ("g",) * len(rows), tuple(rows)
    )


def queries(rows: Sequence[int]) -> QueryOutput:
    """Query n asks for c(n); it is closest to it if n is even, else only second."""
    vectors = torch.stack(
        [torch.eye(6)[n] + (2.0 if n % 2 else 0.1) * torch.eye(6)[(n + 1) % 6] for n in rows]
    )
    found = tuple(
        Query(f"q{n}", f"task{n // 3}", "test", f"k{n}", f"k{n}/f", Side("x"), {NAMES[n]: 1.0}, (),
              None, "g")
        for n in rows
    )  # fmt: skip
    depths_B = torch.tensor([n % 2 for n in rows])
    eligible_B = torch.tensor([n != 0 for n in rows])
    return QueryOutput(vectors, found, depths_B, 10 * depths_B, eligible_B)


def split(shares: Mapping[int, Sequence[tuple[Sequence[int], ...]]]) -> Stub:
    """Ranks' rows: world -> per rank (batches of candidates, batches of queries)."""

    def load(rank: int, world: int) -> tuple[list[CandidateOutput], list[QueryOutput]]:
        candidate_rows, query_rows = shares[world][rank]
        return [candidates(r) for r in candidate_rows], [queries(r) for r in query_rows]

    return Stub(test=load, val=load, train=lambda rank, world: [decisions([0])] * 4)


ALL = range(6)
ONE = [([ALL], [[0, 1, 2], [3, 4]])]
SPLITS = {
    "3/2 queries": [([[0, 2, 4]], [[0, 2, 4]]), ([[1, 3, 5]], [[1, 3]])],
    "3/2, one batch more": [([[0], [2, 4]], [[0], [2], [4]]), ([[1, 3, 5]], [[1, 3]])],
    "3/0 queries": [([[0, 1]], [[0, 1, 2], [3, 4]]), ([[2, 3], [4, 5]], [])],
    "all on one rank": [(ONE[0][0], ONE[0][1]), ([], [])],
}


def metrics_of_test(
    folder: Path, world: int, shares: Any, *callbacks: Callback
) -> dict[str, float]:
    trainer = trainer_of(folder, world, callbacks=list(callbacks))
    trainer.test(Boring(), datamodule=split({world: shares}), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# ---- RecallAtK


def test_recall_is_what_the_ranks_say(tmp_path: Path) -> None:
    found = metrics_of_test(tmp_path, 1, ONE, RecallAtK(k=[1, 5]))
    # task0 = queries 0 1 2: two of three are first; task1 = 3 4: one of two. Mean over tasks.
    assert found["test/recall@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["test/hit@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["test/recall@5"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", SPLITS)
def test_ragged_ranks_give_the_figures_of_one_process(tmp_path: Path, name: str) -> None:
    callbacks = RecallAtK(k=[1, 5]), InvocationRatio()
    expected = metrics_of_test(tmp_path, 1, ONE, *callbacks)
    found = metrics_of_test(tmp_path, 2, SPLITS[name], *callbacks)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(expected) >= 6


def test_a_query_seen_twice_would_show(tmp_path: Path) -> None:
    """The splits above would not notice a rank that is counted twice, unless this holds."""
    twice = [(ONE[0][0], [[0, 1, 2], [3, 4], [4]])]
    found = metrics_of_test(tmp_path, 1, twice, RecallAtK(k=[1]))
    assert found["test/recall@1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


@final
class Listener(Callback):
    """Notes what is known after the sanity check, and after each validation."""

    def __init__(self) -> None:
        self.after_sanity: list[str] | None = None
        self.after_validation: list[dict[str, float]] = []

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_sanity = list(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            self.after_validation.append({name: float(value) for name, value in metrics})


def test_callbacks_are_silent_in_the_sanity_check_and_start_afresh(tmp_path: Path) -> None:
    listener = Listener()
    trainer = trainer_of(
        tmp_path,
        callbacks=[RecallAtK(k=[1, 5]), InvocationRatio(), listener],
        num_sanity_val_steps=2,
        limit_val_batches=1.0,
        max_steps=4,
        limit_train_batches=2,
    )
    trainer.fit(Boring(), datamodule=split({1: ONE}))
    assert listener.after_sanity == []
    assert len(listener.after_validation) == 2
    for found in listener.after_validation:
        assert found["val/recall@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
        assert found["val/invocation_ratio"] == pytest.approx(2 / 4)


def test_recall_can_be_monitored(tmp_path: Path) -> None:
    """It is there when ModelCheckpoint looks."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    best = ModelCheckpoint(tmp_path, monitor="val/recall@1", mode="max", filename="best")
    trainer = trainer_of(
        tmp_path,
        callbacks=[best, RecallAtK(k=[1])],
        max_steps=1,
        limit_train_batches=1,
        limit_val_batches=1.0,
        enable_checkpointing=True,
    )
    trainer.fit(Boring(), datamodule=split({1: ONE}))
    assert best.best_model_score == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_module_without_retrieval_is_left_alone(tmp_path: Path) -> None:
    """The gate validates on decisions: RecallAtK has nothing to say there, and says nothing."""
    data = Stub(test=lambda rank, world: [decisions([1, 0])])
    trainer = trainer_of(tmp_path, callbacks=[RecallAtK()])
    trainer.test(Boring(), datamodule=data, verbose=False)
    assert trainer.callback_metrics == {}


def test_tasks_and_their_mean_become_a_table() -> None:
    means = {"a/recall@1": 0.5, "a/mrr@10": 0.1, "deep/b/recall@1": 1.0, "deep/b/mrr@10": 0.3}
    table = by_task(means, ["a", "deep/b"])
    assert table["mean"] == pytest.approx({"recall@1": 0.75, "mrr@10": 0.2})
    lines = markdown_table(table).splitlines()
    assert lines[0] == "| task | recall@1 |"
    assert lines[-1] == "| mean | 75.0 |"
    assert by_task({}, []) == {}


# ---- InvocationRatio


def decisions(depths: Sequence[int], eligible: Sequence[bool] | None = None) -> DecisionOutput:
    depths_B = torch.tensor(depths)
    eligible_B = torch.ones(len(depths), dtype=torch.bool) if eligible is None else eligible
    return DecisionOutput(depths_B, 5 * depths_B, torch.as_tensor(eligible_B))


TRAIN = {
    1: [[decisions([1, 0, 1, 0], [True, True, True, False])]],
    2: [
        [decisions([1, 0], [True, True])],
        [decisions([1, 0], [True, False])],
    ],
}


@pytest.mark.parametrize("world", [1, 2])
def test_invocation_is_counted_in_training(tmp_path: Path, world: int) -> None:
    data = Stub(train=lambda rank, world: TRAIN[world][rank])
    trainer = trainer_of(tmp_path, world, callbacks=[InvocationRatio()], max_steps=1)
    trainer.fit(Boring(), datamodule=data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found == pytest.approx(
        {
            "train/invocation_ratio": 2 / 3,
            "train/invocation_ratio_all": 2 / 4,
            "train/reasoning_tokens": 10 / 4,
        }
    )


def test_a_module_that_decides_nothing_has_no_ratio(tmp_path: Path) -> None:
    """0 % would be a lie about a module that trains on rationales without deciding."""
    data = Stub(train=lambda rank, world: [torch.zeros(1)])
    trainer = trainer_of(tmp_path, callbacks=[InvocationRatio()], max_steps=1)
    trainer.fit(Boring(), datamodule=data)
    assert trainer.callback_metrics == {}


# ---- SidecarWriter


@final
class ShardStub(LightningDataModule):
    """Three shards of two batches; batches of no shard in front, as candidates are."""

    SHARDS = ("a-000000.tar", "b-000000.tar", "c-000000.tar")

    def __init__(self, fail_at: str = "") -> None:
        super().__init__()
        self.pending_shards: Any = None
        self.read: list[str] = []
        self.fail_at = fail_at

    def predict_shards(self) -> tuple[str, ...]:
        return self.SHARDS

    def predict_dataloader(self) -> Any:
        return _Batches(self)


@final
class _Batches:
    def __init__(self, data: ShardStub) -> None:
        self._data = data

    def __iter__(self) -> Any:
        data, trainer = self._data, self._data.trainer
        pending = [name for name in data.SHARDS if name in data.pending_shards]
        yield SidecarOutput("", ())
        for name in pending[trainer.global_rank :: trainer.world_size]:
            for half in range(2):
                data.read.append(name)
                if half and name == data.fail_at:
                    raise RuntimeError("the power went out")
                keys = [f"{name[0]}{2 * half + i}" for i in range(2)]
                rows = [SidecarRow(key, {"json": {"key": key}}, {"part": "test"}) for key in keys]
                yield SidecarOutput(name, tuple(rows))


def write(folder: Path, data: ShardStub, world: int = 1, fingerprint: str = "f") -> None:
    writer = SidecarWriter(str(folder))
    writer.fingerprint = fingerprint
    trainer = trainer_of(folder.parent, world, callbacks=[writer])
    trainer.predict(Boring(), datamodule=data, return_predictions=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("world", [1, 2])
def test_every_row_comes_into_its_shard(tmp_path: Path, world: int) -> None:
    write(tmp_path / "out", ShardStub(), world)
    index = ShardIndex.open(tmp_path / "out")
    assert index.shard_names == ShardStub.SHARDS
    assert [e.key for e in index.entries] == [f"{s}{i}" for s in "abc" for i in range(4)]
    entry = index.by_key["b3"]
    assert json.loads(index.read(entry)["json"]) == {"key": "b3"}
    assert entry.meta == {"part": "test"}
    assert read_manifest(tmp_path / "out").fingerprint == "f"


def test_a_second_run_predicts_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    again = ShardStub()
    write(tmp_path / "out", again)
    assert again.read == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("world", [1, 2])
def test_only_the_hole_is_filled_with_the_same_bytes(tmp_path: Path, world: int) -> None:
    write(tmp_path / "out", ShardStub())
    before = contents(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    (tmp_path / "out" / ShardStub.SHARDS[1]).unlink()
    again = ShardStub()
    write(tmp_path / "out", again, world)
    assert contents(tmp_path / "out") == before
    if world == 1:
        assert set(again.read) == {ShardStub.SHARDS[1]}
    for name in (ShardStub.SHARDS[0], ShardStub.SHARDS[2]):
        assert (tmp_path / "out" / name).stat().st_mtime_ns == times[name]


def test_other_settings_make_every_shard_again(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    again = ShardStub()
    write(tmp_path / "out", again, fingerprint="g")
    assert set(again.read) == set(ShardStub.SHARDS)


def test_an_interrupted_run_leaves_whole_shards_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        write(tmp_path / "out", ShardStub(fail_at=ShardStub.SHARDS[2]))
    assert list(contents(tmp_path / "out")) == [ShardStub.SHARDS[0]]
    with pytest.raises((FileNotFoundError, ValueError)):
        ShardIndex.open(tmp_path / "out")
    again = ShardStub()
    write(tmp_path / "out", again)
    assert set(again.read) == set(ShardStub.SHARDS[1:])
    assert len(ShardIndex.open(tmp_path / "out").entries) == 12


def test_a_writer_is_asleep_outside_predict(tmp_path: Path) -> None:
    writer = SidecarWriter(str(tmp_path / "out"))
    trainer = trainer_of(tmp_path, callbacks=[writer])
    trainer.test(Boring(), datamodule=split({1: ONE}), verbose=False)
    assert not (tmp_path / "out").exists()


# ---- RunRecord


def record(run: Path, **kwargs: Any) -> RunRecord:
    return RunRecord(str(run), "gate", config="seed: 1\n", fingerprint="abc", **kwargs)


def fit(run: Path, record: RunRecord, *more: Callback, facts: Sequence[str] = ()) -> None:
    data = Stub(facts=facts, train=lambda rank, world: [torch.zeros(1)])
    trainer_of(run, callbacks=[record, *more], max_steps=1).fit(Boring(), datamodule=data)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_finished_fit_leaves_all_that_it_takes_to_repeat_it(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-x"
    fit(run, record(run, inherited_facts=frozenset({"old/fact"})), facts=["new/fact"])
    assert (run / "config.yaml").read_text() == "seed: 1\n"
    assert read(run / "fitted.json") == {"facts": ["new/fact", "old/fact"]}
    assert set(read(run / "environment.json")["versions"]) >= {"python", "torch", "lightning"}
    assert (run / "uncommitted.diff").exists()
    assert read(run / "summary.json")["seconds"] >= 0
    assert is_finished(run, "abc")
    assert not is_finished(run, "abd")
    assert not is_unfinished(run, "abc")
    assert (tmp_path / "gate").resolve() == run.resolve()


@final
class PowerCut(Callback):
    @override
    def on_train_batch_end(self, *args: Any) -> None:
        raise RuntimeError("the power went out")


def test_an_interrupted_fit_is_not_linked_and_can_be_continued(tmp_path: Path) -> None:
    old, new = tmp_path / "1-gate-x", tmp_path / "2-gate-x"
    fit(old, record(old))
    with pytest.raises(RuntimeError, match="power"):
        fit(new, record(new), PowerCut())
    assert (tmp_path / "gate").resolve() == old.resolve()
    assert is_unfinished(new, "abc")
    assert not is_finished(new, "abc")
    assert not (new / "fitted.json").exists()
    fit(new, record(new))
    assert (tmp_path / "gate").resolve() == new.resolve()


def test_a_started_rerun_of_a_run_folder_is_unfinished_again(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-x"
    fit(run, record(run))
    with pytest.raises(RuntimeError, match="power"):
        fit(run, record(run), PowerCut())
    assert is_unfinished(run, "abc")


def test_a_test_run_keeps_its_metrics(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-test-x"
    callbacks = [record(run), RecallAtK(k=[1])]
    trainer = trainer_of(run, callbacks=callbacks)
    trainer.test(Boring(), datamodule=split({1: ONE}), verbose=False)
    metrics = read(run / "summary.json")["metrics"]
    assert metrics["test/recall@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert is_finished(tmp_path / "gate", "abc")


def test_two_ranks_write_one_record(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-x"
    data = Stub(facts=["f"], train=lambda rank, world: [torch.zeros(1)])
    trainer_of(run, 2, callbacks=[record(run)], max_steps=1).fit(Boring(), datamodule=data)
    assert is_finished(tmp_path / "gate", "abc")
    assert read(run / "fitted.json") == {"facts": ["f"]}


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("1-x", "2-x"):
        (tmp_path / name).mkdir()
        link_atomically(tmp_path / "x", tmp_path / name)
        assert (tmp_path / "x").resolve() == (tmp_path / name).resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-x", "2-x", "x"]


def test_a_folder_without_a_record_is_neither(tmp_path: Path) -> None:
    assert not is_finished(tmp_path, "abc")
    assert not is_unfinished(tmp_path, "abc")
