"""GatingPolicy, predict and test: both decide alike, through the one inference path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor

from callbacks import InvocationRatio, RecallAtK, SidecarWriter
from datamodules import DepthValueDataModule
from lightning_modules import GatingPolicy
from mmemb.gate.heads import MlpDepthHead
from mmemb.rationales import RationaleWriter
from mmemb.rationales.writers.base import drawn_seeds
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.spec import class_path
from tests.fixtures.tiny_models import write_embedder
from tests.fixtures.tiny_sidecars import write_tiny_depth_values, write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of

WIDTH = 64


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("embedder"))


@final
class TenTokens(RationaleWriter):
    """Says the same about every text, in ten tokens."""

    name = "ten"

    def config(self) -> dict[str, Any]:
        return {}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        text = "<think>Thinking.</think><answer>It is country-21.</answer>"
        return [
            [Rationale(text, "ten", "m", "1", "p", "d", s, 10) for s in drawn_seeds(seeds_K)]
            if self.can_read(side)
            else []
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]


@pytest.fixture(scope="module")
def gate_run(
    embedder: Path, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A gate fitted on depth values in which thinking helps the think task, and its inputs."""
    folder = tmp_path_factory.mktemp("gate")
    found = {
        "depth_values": write_tiny_depth_values(tiny_root, folder / "depth_values", width=WIDTH),
        "rationales": write_tiny_rationales(tiny_root, folder / "rationales"),
        "gate_run": folder / "run",
    }
    found["gate_run"].mkdir()
    limits = {"max_steps": 20, "limit_train_batches": 20, "limit_val_batches": 1.0}
    trainer = trainer_of(found["gate_run"], **limits)
    with allowing_classes([class_path(TenTokens())]):
        trainer.fit(policy(embedder, found), datamodule=data_of(tiny_root, found))
    return found


def policy(embedder: Path, paths: dict[str, Path], **kwargs: Any) -> GatingPolicy:
    return GatingPolicy(
        str(embedder),
        str(paths["gate_run"]),
        kwargs.pop("writers", {"full": TenTokens()}),
        lambda width, depths: MlpDepthHead(width, depths, hidden_dim=0),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        **kwargs,
    )


def data_of(root: Path, paths: dict[str, Path]) -> DepthValueDataModule:
    return DepthValueDataModule(
        str(root), str(paths["depth_values"]), 8, seed=0, rationales=str(paths["rationales"])
    )


def decisions(folder: Path) -> list[dict[str, Any]]:
    index = ShardIndex.open(folder)
    return [json.loads(index.read(e)["json"]) | dict(e.meta) for e in index.entries]


def predict(
    folder: Path, embedder: Path, root: Path, paths: dict[str, Path], **kwargs: Any
) -> list[dict[str, Any]]:
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "decisions"))])
    trainer.predict(
        policy(embedder, paths, **kwargs),
        datamodule=data_of(root, paths),
        return_predictions=False,
    )
    return decisions(folder / "decisions")


def test_a_gate_whose_writer_no_folder_may_name_is_refused_at_once(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    trainer = trainer_of(tmp_path, max_steps=20, limit_train_batches=20, limit_val_batches=1.0)
    with pytest.raises(ValueError, match=r"'tests\..*TenTokens'.*--allow-class tests\..*TenTokens"):
        trainer.fit(policy(embedder, gate_run), datamodule=data_of(tiny_root, gate_run))
    assert trainer.global_step == 0


def test_decisions_cover_every_query_and_open_for_eligible_ones_only(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    rows = predict(tmp_path, embedder, tiny_root, gate_run)
    assert len(rows) == len(ShardIndex.open(tiny_root / "queries").entries)
    for row in rows:
        think = row["task"] == "flag-capital-t2i"
        assert row["cost"] == (20 if row["depth"] else 0)
        assert think or row["depth"] == 0
        assert 0 <= row["probability"] <= 1
    opened = [row["depth"] for row in rows if row["task"] == "flag-capital-t2i"]
    # How many is a matter of the seed: 20 steps, 64 numbers of a state, and all but one are noise.
    assert sum(opened) >= len(opened) / 4, "it pays there"


def test_a_fitted_gate_can_be_validated(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    trainer = trainer_of(tmp_path, limit_val_batches=1.0)
    (found,) = trainer.validate(
        policy(embedder, gate_run), datamodule=data_of(tiny_root, gate_run), verbose=False
    )
    assert found["val/reward"] > 0, "thinking pays there"


@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_a_budget_bounds_the_decisions(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path], budget: float
) -> None:
    rows = predict(tmp_path, embedder, tiny_root, gate_run, budget=budget)
    think = [r for r in rows if r["task"] == "flag-capital-t2i" and r["split"] == "calibration"]
    assert sum(row["depth"] for row in think) <= budget * len(think)
    if budget == 0:
        assert not any(row["depth"] for row in rows)


def run_test(
    folder: Path, world: int, embedder: Path, root: Path, paths: dict[str, Path], **kwargs: Any
) -> dict[str, float]:
    folder.mkdir()
    trainer = trainer_of(folder, world, callbacks=[RecallAtK(), InvocationRatio()])
    module = policy(embedder, paths, **kwargs)
    trainer.test(module, datamodule=data_of(root, paths), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("budget", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_the_test_is_the_same_on_two_ranks(
    tmp_path: Path,
    embedder: Path,
    tiny_root: Path,
    gate_run: dict[str, Path],
    budget: float | None,
) -> None:
    one, two = (
        run_test(tmp_path / str(world), world, embedder, tiny_root, gate_run, budget=budget)
        for world in (1, 2)
    )
    assert two == pytest.approx(one, abs=1e-6)
    keys = [
        [row["key"] for row in json.loads((tmp_path / w / "latency.json").read_text())["queries"]]
        for w in ("1", "2")
    ]
    assert keys[0] == keys[1], "the same queries are timed"
    assert len(keys[0]) == 6, "every eligible query of split test"


def test_milliseconds_are_measured_with_the_live_writer_or_not_at_all(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    run_test(tmp_path / "live", 1, embedder, tiny_root, gate_run)
    rows = json.loads((tmp_path / "live/latency.json").read_text())["queries"]
    assert {tuple(row["tokens"]) for row in rows} == {(0, 10)}, "the live writer's, not the shards'"
    assert all(min(row["decided_ms"], *row["depth_ms"]) > 0 for row in rows)
    run_test(tmp_path / "off", 1, embedder, tiny_root, gate_run, measure_latency=False)
    assert not (tmp_path / "off/latency.json").exists()


def test_a_gate_that_was_never_fitted_is_one_clear_error(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    paths = gate_run | {"gate_run": tmp_path / "nowhere"}
    with pytest.raises(FileNotFoundError, match=r"adaptive\.json is missing.*gate config"):
        predict(tmp_path, embedder, tiny_root, paths)
