"""What TrainingHealth measures and logs, and how it stops a run that broke."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from callbacks import TrainingHealth
from callbacks.training_health import Stopwatch
from lightning_modules import ContrastiveEmbedder
from mmemb.backbones.base import Paths
from mmemb.losses.ids import PairIds
from mmemb.training.batch_health import batch_health, effective_rank
from tests.datamodules.test_negatives import data
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_trainer import trainer_of


def test_health_by_hand() -> None:
    query = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ids = torch.tensor([5, 5, 6])  # the first two share a target
    found = batch_health(query, target, PairIds(ids, ids, ids[:, None]), temperature=0.5)
    assert found.accuracy_B.tolist() == [1, 0, 1], "row 1 is nearer to the third target"
    torch.testing.assert_close(found.gap_B, torch.tensor([1.0, -0.2, 1.0]))
    assert found.loss_B[0].item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    assert found.masked == pytest.approx(2 / 6), "0 and 1 do not repel each other"
    scalars = found.scalars(["a", "b", "a"])
    assert scalars["loss/b"] == pytest.approx(float(found.loss_B[1]))
    assert scalars["in_batch_accuracy"] == pytest.approx(2 / 3)


def test_a_batch_of_one_has_no_negatives() -> None:
    ids = PairIds(torch.tensor([1]), torch.tensor([1]), torch.tensor([[1]]))
    found = batch_health(torch.eye(1), torch.eye(1), ids, temperature=1.0)
    assert found.masked == 0
    assert found.loss_B.item() == 0
    assert "positive_negative_gap" not in found.scalars(), "a mean over none is not logged"


def test_the_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(3, 2)) == pytest.approx(1, abs=1e-3)


def test_the_stopwatch_reads_what_happened_since(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 3.0, 4.0, 7.0, 8.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    watch.start(), watch.stop(8, 80), watch.start(), watch.stop(8, 80)
    assert watch.read() == pytest.approx(
        {"data_wait_share": 1 / 7, "samples_per_second": 16 / 7, "tokens_per_second": 160 / 7}
    )
    watch.start(), watch.stop(8, 80)
    assert watch.read()["samples_per_second"] == pytest.approx(4)


# ---- in a run


def fit(folder: Path, root: Path, module: ContrastiveEmbedder, **kwargs: Any) -> list[dict]:
    logger = CSVLogger(folder, name="", version="")
    trainer = trainer_of(
        folder, max_steps=6, limit_train_batches=6, callbacks=[TrainingHealth()],
        **{"logger": logger, "log_every_n_steps": 2, **kwargs},
    )  # fmt: skip
    trainer.fit(module.train(), datamodule=data(root))
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


def test_nothing_is_logged_every_0_steps(tiny_root: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = trainer_of(
        tmp_path, max_steps=1, callbacks=[TrainingHealth()], logger=logger, log_every_n_steps=0
    )
    trainer.fit(embedder(tmp_path).train(), datamodule=data(tiny_root))
    assert "train/temperature" not in trainer.callback_metrics
    assert trainer.global_step == 1


def embedder(folder: Path) -> ContrastiveEmbedder:
    return ContrastiveEmbedder(clip(folder), num_warmup_steps=1, learn_temperature=True)


def test_a_run_logs_its_health_every_few_steps(tiny_root: Path, tmp_path: Path) -> None:
    rows = fit(tmp_path, tiny_root, embedder(tmp_path))
    names = {name for name in rows[0] if name.startswith("train/")}
    expected = {
        "in_batch_accuracy", "positive_negative_gap", "effective_rank", "masked_share",
        "temperature", "grad_norm/old", "data_wait_share", "samples_per_second",
        "tokens_per_second", "direct_loss", "reasoned_loss", "loss",
    }  # fmt: skip
    assert {f"train/{name}" for name in expected} <= names
    groups = {name.removeprefix("train/loss/") for name in names if name.startswith("train/loss/")}
    assert groups
    assert groups <= {"flags", "clips", "continent", "questions"}
    filled = [row for row in rows if row["train/effective_rank"]]
    assert len(filled) == 3, "every second of six steps"
    for row in filled:
        assert float(row["train/effective_rank"]) > 1
        assert float(row["train/grad_norm/old"]) > 0
        assert 0 <= float(row["train/data_wait_share"]) < 1


def test_a_loss_that_is_not_finite_stops_before_a_weight_changes(
    tiny_root: Path, tmp_path: Path
) -> None:
    module = embedder(tmp_path)
    broken: list[Any] = []

    def break_third(_: nn.Module, sides: Sequence[Any], out: Any) -> Any:
        broken.append(len(sides))
        if len(broken) <= 4:  # a call for targets and one for queries, in every step
            return out
        return Paths(*(x * torch.nan for x in out)) if isinstance(out, Paths) else out * torch.nan

    module.backbone.register_forward_hook(break_third)
    with pytest.raises(ValueError, match=r"loss of step 2 is nan.*show batch --config"):
        fit(tmp_path, tiny_root, module)
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert found["step"] == 2
    assert len(found["keys"]) == 8
    assert all(parameter.isfinite().all() for parameter in module.parameters())
