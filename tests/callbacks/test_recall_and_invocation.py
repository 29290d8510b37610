"""Callbacks against boring modules: right figures on any split over ranks, silence where due."""

from __future__ import annotations

from pathlib import Path
from typing import final

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import InvocationRatio, RecallAtK
from callbacks.recall import by_task, markdown_table
from mmemb.records.ranked_queries import RankedQueries
from mmemb.records.schema import read_json
from mmemb.storage.run_folder import RunFolder
from tests.fixtures.echo_module import (
    ONE,
    SPLITS,
    Boring,
    decisions,
    metrics_of_test,
    split,
)
from tests.fixtures.tiny_trainer import Stub, trainer_of

# ---- RecallAtK


def test_recall_is_what_the_ranks_say(tmp_path: Path) -> None:
    found = metrics_of_test(tmp_path, 1, ONE, RecallAtK(k=[1, 5]))
    # task0 = queries 0 1 2: two of three are first; task1 = 3 4: one of two. Mean over tasks.
    assert found["test/recall@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["test/hit@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["test/recall@5"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name",
    [
        "3/2, one batch more",
        "3/0 queries",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("3/2 queries", "all on one rank")
        ),
    ],
)
def test_ragged_ranks_give_the_figures_of_one_process(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path)
    run.mark.write_text("{}")  # as a run has it that is recorded
    callbacks = RecallAtK(k=[1, 5]), InvocationRatio()
    expected = metrics_of_test(tmp_path, 1, ONE, *callbacks)
    ranks = run.ranks.read_bytes()
    run.ranks.unlink()
    found = metrics_of_test(tmp_path, 2, SPLITS[name], *callbacks)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(expected) >= 8
    assert run.ranks.read_bytes() == ranks


def test_a_recorded_test_leaves_the_rank_of_every_query(tmp_path: Path) -> None:
    run, callback = RunFolder(tmp_path), RecallAtK(k=[1, 5])
    metrics_of_test(tmp_path, 1, ONE, callback)
    assert not run.ranks.exists(), "a trainer without a record keeps its folder clean"

    run.mark.write_text("{}")
    found = metrics_of_test(tmp_path, 1, ONE, callback)
    rows = read_json(run.ranks, RankedQueries).queries
    assert [(row.key, row.rank) for row in rows] == [
        ("q0", 1), ("q1", 2), ("q2", 1), ("q3", 2), ("q4", 1),
    ]  # fmt: skip
    assert rows[1].right == ("c1",)
    assert rows[1].found[:2] == ("c2", "c1")
    assert {row.candidates for row in rows} == {6}
    assert found["test/chance@1"] == pytest.approx(1 / 6)
    assert callback.products("test") == [run.ranks]


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
