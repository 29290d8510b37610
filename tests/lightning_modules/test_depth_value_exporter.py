"""DepthValueExporter, with its guard against trained facts, and QueryEmbedder."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import LightningModule

from callbacks import SidecarWriter
from datamodules import EvaluationDataModule
from lightning_modules import DepthValueExporter, QueryEmbedder
from mmemb.backbones import load_backbone
from mmemb.storage.json_files import write_json
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_embedder import clip, evaluate
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of


@pytest.fixture(scope="module")
def rationales(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_rationales(tiny_root, tmp_path_factory.mktemp("rationales"))


def predict(
    folder: Path, root: Path, rationales: Path, facts: Sequence[str] = (), **kwargs: Any
) -> ShardIndex:
    write_json(folder / "fitted.json", {"facts": list(facts)})
    module = DepthValueExporter(clip(folder), trained_facts=str(folder / "fitted.json"), **kwargs)
    return export(folder, root, rationales, module)


def export(folder: Path, root: Path, rationales: Path, module: LightningModule) -> ShardIndex:
    data = EvaluationDataModule(str(root), batch_size=7, rationales=str(rationales))
    writer = SidecarWriter(str(folder / "depth_values"))
    trainer = trainer_of(folder, callbacks=[writer])
    trainer.predict(module, datamodule=data, return_predictions=False)
    return ShardIndex.open(folder / "depth_values")


def test_depth_values_hold_a_row_for_every_query_and_what_each_depth_is_worth(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    index = predict(tmp_path, tiny_root, rationales)
    source = ShardIndex.open(tiny_root / "queries")
    assert [entry.key for entry in index.entries] == [entry.key for entry in source.entries]
    for entry in index.entries:
        data = json.loads(index.read(entry)["json"])
        think = data["task"] == "flag-capital-t2i"
        assert data["eligible"] is think
        assert [len(draws) for draws in data["depth_value"]] == [1, 3 if think else 1]
        assert data["cost"] == [[0], [8, 8, 8] if think else [0]]
        assert all(u <= 0 for draws in data["depth_value"] for u in draws), "log-probabilities"
        assert len(data["swap"]) == 2 * (think and data["split"] == "test")
        assert all(-1 <= cosine < 0.999 for cosine in data["swap"]), "it reads what is said"
        if not think:
            assert data["depth_value"][0] == data["depth_value"][1]
            assert data["metrics"][0] == data["metrics"][1]


@pytest.mark.slow
def test_fewer_drafts_can_be_read(tmp_path: Path, tiny_root: Path, rationales: Path) -> None:
    index = predict(tmp_path, tiny_root, rationales, num_draws=2)
    rows = [json.loads(index.read(entry)["json"]) for entry in index.entries]
    assert {len(row["depth_value"][1]) for row in rows if row["eligible"]} == {2}
    with pytest.raises(ValueError, match="num_draws 0"):
        DepthValueExporter(clip(tmp_path), num_draws=0)


def test_the_metrics_of_the_depth_values_are_those_of_the_test(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    index = predict(tmp_path, tiny_root, rationales)
    rows = [json.loads(index.read(entry)["json"]) for entry in index.entries]
    rows = [row for row in rows if row["split"] == "test"]
    for depth in (0, 1):
        found = evaluate(
            tmp_path, tiny_root, 1, clip(tmp_path), bool(depth), rationales=str(rationales)
        )
        for metric in ("recall@1", "recall@5", "ndcg_linear@5"):
            mean = sum(row["metrics"][depth][metric] for row in rows) / len(rows)
            assert found[f"test/{metric}"] == pytest.approx(mean, abs=1e-6), "tasks are equal"


def test_a_fitted_fact_is_refused(tmp_path: Path, tiny_root: Path, rationales: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for country:20/capital, on which this model was"):
        predict(tmp_path, tiny_root, rationales, ["country:20/capital"])
    assert not list((tmp_path / "depth_values").glob("manifest.json"))


def test_a_saved_backbone_brings_the_facts_that_it_was_fitted_on(tmp_path: Path) -> None:
    clip(tmp_path).save_pretrained(tmp_path / "copy")
    write_json(tmp_path / "copy/fitted.json", {"facts": ["country:20/capital"]})
    module = DepthValueExporter(load_backbone(str(tmp_path / "copy")))
    assert module.trained_facts == {"country:20/capital"}
    assert DepthValueExporter(clip(tmp_path)).trained_facts == frozenset()


@pytest.mark.slow
def test_a_fitted_fact_passes_where_it_was_declared_or_for_an_audit(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    predict(tmp_path / "seen", tiny_root, rationales, ["country:20/name"])  # seen_answer: true
    facts = ["country:20/capital"]
    predict(tmp_path / "audit", tiny_root, rationales, facts, allow_trained_facts=True)


def test_embeddings_are_exported(tmp_path, tiny_root, rationales):
    index = export(tmp_path, tiny_root, rationales, QueryEmbedder(clip(tmp_path)))
    assert index.entries
    for entry in index.entries:
        vectors = {k: np.load(io.BytesIO(v)) for k, v in index.read(entry).items()}
        assert all(abs(np.linalg.norm(v) - 1) < 1e-5 for v in vectors.values())
    both = [entry for entry in index.entries if "reasoned.npy" in entry.members]
    assert both
    members = index.read(both[0])
    assert members["direct.npy"] != members["reasoned.npy"]
