"""A gate that sees scores or a prompt state: one decision in fit, `predict` and `test`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import SidecarWriter
from datamodules import DepthValueDataModule, EvaluationDataModule, SideDataModule
from lightning_modules import DepthValueExporter, GatingPolicy, RationaleGenerator
from mmemb.backbones import load_backbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.records.inputs import Side
from mmemb.records.outputs import step_output
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.spec import class_path
from tests.fixtures.tiny_knower import KNOWN, STATES, TAU, Knower, opinionated
from tests.fixtures.tiny_models import write_embedder
from tests.fixtures.tiny_sidecars import write_tiny_depth_values
from tests.fixtures.tiny_trainer import trainer_of


def generate(folder: Path, root: Path, **kwargs: Any) -> Path:
    """`rationales/` about the queries."""
    trainer = trainer_of(folder.parent, callbacks=[SidecarWriter(str(folder))])
    trainer.predict(
        RationaleGenerator({"knower": Knower(), "other": Knower("other")}, **kwargs),
        datamodule=SideDataModule(str(root), ["queries"], 5),
        return_predictions=False,
    )
    return folder


@pytest.fixture(scope="module")
def made(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Embedder, rationales with prompt states, and depth values, each made by its stage."""
    folder = tmp_path_factory.mktemp("made")
    write_embedder(folder)
    generate(folder / "rationales", tiny_root, prompt_state="knower")
    backbone = load_backbone(str(folder / "backbone"))
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "depth_values"))])
    trainer.predict(
        DepthValueExporter(backbone, gallery_temperature=TAU),
        datamodule=EvaluationDataModule(
            str(tiny_root), batch_size=7, rationales=str(folder / "rationales")
        ),
        return_predictions=False,
    )
    return {"root": tiny_root, "folder": folder}


def data_of(made: dict[str, Path]) -> DepthValueDataModule:
    folder = made["folder"]
    return DepthValueDataModule(
        str(made["root"]), str(folder / "depth_values"), 8, 0, str(folder / "rationales")
    )


def policy(made: dict[str, Path], run: Path, **kwargs: Any) -> GatingPolicy:
    writers = {"full": kwargs.pop("writer", Knower())}
    return GatingPolicy(
        str(made["folder"]),
        str(run),
        writers,
        opinionated,
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        gallery_temperature=TAU,
        **kwargs,
    )


@pytest.fixture(scope="module")
def runs(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fitted gate of each state."""
    found = {name: tmp_path_factory.mktemp(name) for name in STATES}
    for name, run in found.items():
        trainer = trainer_of(run, max_steps=3, limit_train_batches=3, limit_val_batches=1.0)
        with allowing_classes([class_path(Knower())]):
            trainer.fit(policy(made, run, state=STATES[name]), datamodule=data_of(made))
    return found


@final
class Depths(Callback):
    """Keeps what `test` decided, by key."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        output = step_output(outputs)
        if output.queries is not None:
            keys = [query.key for query in output.queries.queries]
            self.found |= dict(zip(keys, output.decisions.depths_B.tolist(), strict=True))


def of_test(folder: Path, made: dict[str, Path], run: Path, **kwargs: Any) -> dict[str, int]:
    depths = Depths()
    trainer = trainer_of(folder, callbacks=[depths])
    trainer.test(policy(made, run, **kwargs), datamodule=data_of(made), verbose=False)
    return depths.found


def of_predict(folder: Path, made: dict[str, Path], run: Path, **kwargs: Any) -> dict[str, int]:
    """Depths of split `test`."""
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "decisions"))])
    module = policy(made, run, **kwargs)
    trainer.predict(module, datamodule=data_of(made), return_predictions=False)
    index = ShardIndex.open(folder / "decisions")
    entries = [entry for entry in index.entries if entry.meta["split"] == "test"]
    return {entry.key: json.loads(index.read(entry)["json"])["depth"] for entry in entries}


@pytest.mark.parametrize(
    ("name", "budget"),
    [("prompt_state", None), pytest.param("scores", 0.4, marks=pytest.mark.slow)],
)
def test_predict_and_test_decide_alike_and_a_decision_is_timed(
    tmp_path: Path,
    made: dict[str, Path],
    runs: dict[str, Path],
    name: str,
    budget: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmemb.gate.latency.NUM_TIMED", 2)
    one = of_predict(tmp_path, made, runs[name], budget=budget)
    two = of_test(tmp_path, made, runs[name], budget=budget)
    assert one == two
    assert 0 < sum(one.values()) < 18, "18 of 24 are eligible; or this test shows nothing"
    rows = json.loads((tmp_path / "latency.json").read_text())["queries"]
    assert len(rows) == 2
    assert min(row["decided_ms"] for row in rows) > 0


@pytest.mark.parametrize("name", STATES)
def test_the_state_is_saved_with_the_gate(
    made: dict[str, Path], runs: dict[str, Path], name: str
) -> None:
    loaded = AdaptiveEmbedder.from_pretrained(runs[name] / "adaptive", {"full": Knower()})
    assert (loaded.state, loaded.gallery_temperature) == (tuple(STATES[name]), TAU)
    states_NS = data_of(made).gate_inputs().state(loaded.state)
    torch.testing.assert_close(loaded.head.mean_S, states_NS.mean(0))


def test_a_writer_that_knows_something_else_is_found_out(
    tmp_path: Path, made: dict[str, Path], runs: dict[str, Path]
) -> None:
    words = (
        r"'knower' has another hidden state.*give the gate the model, prompt and prompt_state_layer"
    )
    with pytest.raises(ValueError, match=words):
        of_test(tmp_path, made, runs["prompt_state"], writer=Knower("other"))


def test_depth_values_hold_what_a_gate_may_see(made: dict[str, Path]) -> None:
    batch = next(iter(data_of(made).predict_dataloader()))
    rows = ShardIndex.open(made["root"] / "queries")
    assert batch.inputs.scores_B3.shape == (8, 3)
    assert batch.inputs.prompt_state_BH.shape == (8, KNOWN)
    for key, eligible, prompt_state_H in zip(
        batch.keys, batch.eligible_B, batch.inputs.prompt_state_BH, strict=True
    ):
        data = json.loads(rows.read(rows.by_key[key])["json"])
        expected_H = Knower().state_of(Side(data["text"], data["instruction"])) * eligible
        torch.testing.assert_close(prompt_state_H, expected_H, atol=2e-3, rtol=2e-3)


# ---- the generator


def test_a_prompt_state_is_written_where_the_named_writer_can_read(made: dict[str, Path]) -> None:
    index = ShardIndex.open(made["folder"] / "rationales")
    with_prompt_state = {
        entry.key for entry in index.entries if "prompt_state.npy" in entry.members
    }
    assert with_prompt_state == {e.key for e in index.entries if e.meta["task"] != "flag-continent"}


def test_no_prompt_state_is_written_unless_asked_for(tmp_path: Path, tiny_root: Path) -> None:
    index = ShardIndex.open(generate(tmp_path / "rationales", tiny_root))
    assert not any("prompt_state.npy" in entry.members for entry in index.entries)
    with pytest.raises(
        ValueError, match=r"prompt_state 'knowr' names no writer; they are \['knower'"
    ):
        RationaleGenerator({"knower": Knower()}, prompt_state="knowr")


def test_a_gate_that_asks_for_what_nobody_read(
    tmp_path: Path, made: dict[str, Path], tiny_root: Path
) -> None:
    write_tiny_depth_values(tiny_root, tmp_path / "depth_values", width=64)
    data = DepthValueDataModule(str(tiny_root), str(tmp_path / "depth_values"), 8, 0)
    with pytest.raises(
        ValueError, match=r"asks for 'prompt_state'.*set `prompt_state` of RationaleGenerator"
    ):
        trainer_of(tmp_path, max_steps=1).fit(
            policy(made, tmp_path, state=["prompt_state"]), None, None, data
        )
