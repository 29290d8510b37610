"""GatingPolicy: it opens where reasoning pays; its test runs through the one inference path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from callbacks import InvocationRatio, RecallAtK, SidecarWriter
from datamodules import UtilityDataModule
from lightning_modules import GatingPolicy
from mmemb.adaptive import AdaptiveEmbedder
from mmemb.backbones import OpenClipBackbone
from mmemb.batches import UtilityBatch
from mmemb.gate_inputs import GateInputs
from mmemb.gating import MlpDepthHead
from mmemb.lineage import write_json
from mmemb.rationales import RationaleWorker, TableWorker
from mmemb.rationales.base import drawn_seeds
from mmemb.records import Rationale, Side
from mmemb.shards import ShardIndex
from tests.tiny import write_tiny_rationales, write_tiny_utilities
from tests.tiny_trainer import Items, trainer_of

CLIP_TINY = Path(__file__).parents[1] / "experiments/configs/backbone/clip_tiny.json"
ROWS, WIDTH = 32, 64


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the embedder's run leaves."""
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes").save_pretrained(folder / "backbone")
    write_json(folder / "fitted.json", {"facts": []})
    return folder


@final
class Planted(LightningDataModule):
    """Reasoning is worth +1 where the first number of the state is positive, else -1; the rest of
    the state is noise. Every fourth query is not eligible, and lies about its utility."""

    fitted_facts: frozenset[str] = frozenset()

    depths = ("direct", "full")

    def check_embedder(self, run: Path) -> None:
        """Planted utilities belong to every embedder."""

    def gate_inputs(self) -> GateInputs:
        return planted("gate", range(4 * ROWS)).inputs

    def train_dataloader(self) -> Items:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        size = ROWS // world
        steps = range(300)
        return Items(
            [planted("gate", range(rank * size, (rank + 1) * size), step) for step in steps]
        )

    def val_dataloader(self) -> Items:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Items([planted("calibration", range(40)[rank::world])])


def planted(part: str, numbers: Sequence[int], step: int = 0) -> UtilityBatch:
    rows = [planted_row(part, 1000 * step + n) for n in numbers]
    state_BS, utility_BA, eligible_B = (torch.stack(column) for column in zip(*rows, strict=True))
    return UtilityBatch(
        keys=tuple(f"{part}-{step}-{n}" for n in numbers),
        metas=({},) * len(rows),
        inputs=GateInputs.of_embedding(state_BS),
        utility_BA=utility_BA,
        cost_BA=torch.tensor([[0.0, 20.0]]).expand(len(rows), 2),
        eligible_B=eligible_B,
    )


def planted_row(part: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n + (10**6 if part == "gate" else 0))
    state_S = torch.randn(WIDTH, generator=random)
    eligible = n % 4 > 0
    pays = (state_S[0] > 0).item() == eligible  # the wrong way round where nobody may learn from it
    return state_S, torch.tensor([-2.0, -1.0 if pays else -3.0]), torch.tensor(eligible)


def fit(
    folder: Path, embedder: Path, facts: Path, world: int = 1, steps: int = 100, **kwargs: Any
) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    module = GatingPolicy(
        str(embedder),
        str(folder),
        {"full": TableWorker(str(facts))},
        lambda width, depths: MlpDepthHead(width, depths, hidden_dim=0),
        lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        price=0.005,
        **kwargs,
    )
    trainer = trainer_of(
        folder,
        world,
        max_steps=steps,
        limit_train_batches=steps,
        limit_val_batches=1.0,
        callbacks=[InvocationRatio()],
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=Planted())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("estimator", ["exact", "reinforce", "grpo", "supervised"])
def test_the_gate_opens_where_it_pays_and_stays_shut_where_it_costs(
    tmp_path: Path, embedder: Path, tiny_root: Path, estimator: str
) -> None:
    found = fit(tmp_path, embedder, tiny_root / "facts.json", estimator=estimator)
    adaptive = AdaptiveEmbedder.from_pretrained(tmp_path / "adaptive")
    batch = planted("test", range(5000, 5200))
    with torch.inference_mode():
        logit_BA = adaptive.head(batch.inputs.embedding_BD)
    open_B = adaptive.thresholds.decide(logit_BA, batch.keys).bool()
    right_B = open_B == (batch.inputs.embedding_BD[:, 0] > 0)
    assert right_B.float().mean() > 0.85
    assert found["val/reward"] > 0.27  # all that can be had is half of (1 - 20 * price): 0.34
    assert 0.3 < found["val/invocation_ratio"] < 0.7
    assert len(adaptive.thresholds.logits) == 30, "the eligible ones of 40"


def test_a_high_price_keeps_the_gate_shut(tmp_path: Path, embedder: Path, tiny_root: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    module = GatingPolicy(
        str(embedder), str(folder), {"full": TableWorker(str(tiny_root / "facts.json"))}, price=0.2
    )
    trainer = trainer_of(
        folder, max_steps=30, limit_train_batches=30, limit_val_batches=1.0,
        callbacks=[InvocationRatio()],
    )  # fmt: skip
    trainer.fit(module, datamodule=Planted())
    assert trainer.callback_metrics["val/invocation_ratio"] == 0
    assert trainer.callback_metrics["val/reward"] == 0


@pytest.mark.parametrize("estimator", ["exact", "reinforce"])
def test_two_ranks_learn_what_one_learns(
    tmp_path: Path, embedder: Path, tiny_root: Path, estimator: str
) -> None:
    """Noise is seeded by key, so even the sampled actions are the same."""
    found, heads = [], []
    for world in (1, 2):
        folder = tmp_path / str(world)
        facts = tiny_root / "facts.json"
        metrics = fit(folder, embedder, facts, world, steps=30, estimator=estimator)
        found.append({n: v for n, v in metrics.items() if n.startswith(("val", "train/inv"))})
        heads.append(AdaptiveEmbedder.from_pretrained(folder / "adaptive"))
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    for one, two in zip(heads[0].head.parameters(), heads[1].head.parameters(), strict=True):
        torch.testing.assert_close(two, one, atol=1e-3, rtol=1e-3)
    one, two = (torch.tensor(found.thresholds.logits) for found in heads)
    torch.testing.assert_close(two, one, atol=2e-3, rtol=1e-3)


# ---- predict and test, on the tiny data set


@final
class TenTokens(RationaleWorker):
    """Says the same about every text, in ten tokens."""

    name = "ten"

    def settings(self) -> dict[str, Any]:
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
    """A gate fitted on utilities in which thinking helps the think task, and its inputs."""
    folder = tmp_path_factory.mktemp("gate")
    found = {
        "utilities": write_tiny_utilities(tiny_root, folder / "utilities", width=WIDTH),
        "rationales": write_tiny_rationales(tiny_root, folder / "rationales"),
        "run": folder / "run",
    }
    found["run"].mkdir()
    trainer = trainer_of(found["run"], max_steps=20, limit_train_batches=20, limit_val_batches=1.0)
    trainer.fit(policy(embedder, found), datamodule=data_of(tiny_root, found))
    return found


def policy(embedder: Path, paths: dict[str, Path], **kwargs: Any) -> GatingPolicy:
    return GatingPolicy(
        str(embedder),
        str(paths["run"]),
        kwargs.pop("workers", {"full": TenTokens()}),
        lambda width, depths: MlpDepthHead(width, depths, hidden_dim=0),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        **kwargs,
    )


def data_of(root: Path, paths: dict[str, Path]) -> UtilityDataModule:
    return UtilityDataModule(
        str(root), str(paths["utilities"]), 8, seed=0, rationales=str(paths["rationales"])
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
    assert sum(opened) > len(opened) / 2, "it pays there"


@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_a_budget_bounds_the_decisions(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path], budget: float
) -> None:
    rows = predict(tmp_path, embedder, tiny_root, gate_run, budget=budget)
    think = [r for r in rows if r["task"] == "flag-capital-t2i" and r["part"] == "calibration"]
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


@pytest.mark.parametrize("budget", [None, 0.5])
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
    assert len(keys[0]) == 6, "every eligible query of part test"


def test_milliseconds_are_measured_with_the_live_worker_or_not_at_all(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    run_test(tmp_path / "live", 1, embedder, tiny_root, gate_run)
    rows = json.loads((tmp_path / "live/latency.json").read_text())["queries"]
    assert {tuple(row["tokens"]) for row in rows} == {(0, 10)}, "the live worker's, not the shards'"
    assert all(min(row["decided_ms"], *row["depth_ms"]) > 0 for row in rows)
    run_test(tmp_path / "off", 1, embedder, tiny_root, gate_run, measure=False)
    assert not (tmp_path / "off/latency.json").exists()


def test_a_gate_that_was_never_fitted_is_one_clear_error(
    tmp_path: Path, embedder: Path, tiny_root: Path, gate_run: dict[str, Path]
) -> None:
    paths = gate_run | {"run": tmp_path / "nowhere"}
    with pytest.raises(FileNotFoundError, match=r"adaptive\.json is missing.*gate config"):
        predict(tmp_path, embedder, tiny_root, paths)
