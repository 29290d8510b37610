"""Own data through every stage, with rationales that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from datamodules.prepare.__main__ import main as prepare
from experiments.pipeline import read_pipeline
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.own_table import flag_rows, write_csv, write_lines, write_media
from tests.fixtures.tiny_experiment import CONFIGS, run

SMALL = {
    "needs": {"memory_gib": 0.1, "disk_gib": 0.1},
    "trainer": {"log_every_n_steps": 1, "accelerator": "cpu"},
}
SMALL_FIT = {"max_steps": 2, "limit_train_batches": 2, "val_check_interval": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_own_data_goes_through_the_whole_pipeline(tmp_path: Path) -> None:
    media, data = write_media(tmp_path / "media"), tmp_path / "data"
    table = write_csv(tmp_path / "t.csv", flag_rows())
    given = [
        {
            "id": row["id"],
            "rationales": [{"thinking": f"bars {n}", "answer": f"country {n:02d}"}] * 2,
        }
        for n, row in enumerate(flag_rows())
    ]
    command = ["folder", "--table", str(table), "--media", str(media), "--out", str(data)]
    lines = write_lines(tmp_path / "r.jsonl", given)
    assert prepare([*command, "--rationales", str(lines), "--workers", "1"]) == 0
    small, small_fit = tmp_path / "small.yaml", tmp_path / "small_fit.yaml"
    small.write_text(yaml.safe_dump(SMALL))
    sizes = {"init_args": {"batch_size": 8, "group_size": 4}}
    small_fit.write_text(yaml.safe_dump({"trainer": SMALL_FIT, "data": sizes}))
    shared = ["--experiment", "own", "--data_root", str(data), "--runs", str(tmp_path / "runs")]
    for stage in read_pipeline(CONFIGS / "own/pipeline.yaml").stages:
        arguments = [a.replace("clip_vit_b32", "clip_tiny") for a in stage.arguments]
        more = ["--config", str(small)]
        trains = stage.name.startswith(("judge", "embedder"))
        more += ["--config", str(small_fit)] if trains else []
        run([stage.subcommand, "--config", stage.config, *arguments, *shared, *more])
    own = tmp_path / "runs/own"
    metrics = json.loads((own / "gate-test/summary.json").read_text())["metrics"]
    assert "test/recall@1" in metrics
    assert len(ShardIndex.open(own / "selected").entries) == 8
    assert json.loads((own / "embedder/fitted.json").read_text())["facts"]
