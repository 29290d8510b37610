"""RunRecord: what a run leaves behind, and the link to the newest finished one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback
from typing_extensions import override

from callbacks import RecallAtK, RunRecord
from callbacks.run_record import is_finished, is_unfinished
from mmemb.storage.files import link_atomically
from mmemb.storage.trained_facts import TrainedFacts, read_fitted
from tests.fixtures.echo_module import (
    ONE,
    Boring,
    split,
)
from tests.fixtures.tiny_trainer import Stub, trainer_of


def record(run: Path, **kwargs: Any) -> RunRecord:
    return RunRecord(str(run), "gate", config="seed: 1\n", fingerprint="abc", **kwargs)


def fit(run: Path, record: RunRecord, *more: Callback, facts: Sequence[str] = ()) -> None:
    data = Stub(facts=facts, train=lambda rank, world: [torch.zeros(1)])
    trainer_of(run, callbacks=[record, *more], max_steps=1).fit(Boring(), datamodule=data)


def facts_of(*trained: str) -> TrainedFacts:
    return TrainedFacts(frozenset(trained))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_finished_fit_leaves_all_that_it_takes_to_repeat_it(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-x"
    fit(run, record(run, inherited_facts=facts_of("old/fact")), facts=["new/fact"])
    assert (run / "config.yaml").read_text() == "seed: 1\n"
    assert read_fitted(run / "fitted.json") == facts_of("new/fact", "old/fact")
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
        fit(new, record(new), PowerCut(), facts=["f"])
    assert (tmp_path / "gate").resolve() == old.resolve()
    assert is_unfinished(new, "abc")
    assert not is_finished(new, "abc")
    assert read_fitted(new / "fitted.json") == facts_of("f"), "its checkpoints hand them down"
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


def test_a_validation_run_is_finished_and_has_a_link_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-validate-x"
    trainer = trainer_of(run, callbacks=[record(run), RecallAtK(k=[1])], limit_val_batches=1.0)
    trainer.validate(Boring(), datamodule=split({1: ONE}), verbose=False)
    assert is_finished(tmp_path / "gate", "abc")
    assert "val/recall@1" in read(run / "summary.json")["metrics"]


def test_two_ranks_write_one_record(tmp_path: Path) -> None:
    run = tmp_path / "1-gate-x"
    data = Stub(facts=["f"], train=lambda rank, world: [torch.zeros(1)])
    trainer_of(run, 2, callbacks=[record(run)], max_steps=1).fit(Boring(), datamodule=data)
    assert is_finished(tmp_path / "gate", "abc")
    assert read_fitted(run / "fitted.json") == facts_of("f")


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("1-x", "2-x"):
        (tmp_path / name).mkdir()
        link_atomically(tmp_path / "x", tmp_path / name)
        assert (tmp_path / "x").resolve() == (tmp_path / name).resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-x", "2-x", "x"]


def test_a_folder_without_a_record_is_neither(tmp_path: Path) -> None:
    assert not is_finished(tmp_path, "abc")
    assert not is_unfinished(tmp_path, "abc")
