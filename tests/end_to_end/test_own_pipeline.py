"""Own data through every stage, with rationales that a file, a model or a server gives."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from datamodules.prepare.__main__ import main as prepare
from experiments.pipeline import read_pipeline, with_shared
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.chat_server import GOOD, chat, serving
from tests.fixtures.own_table import flag_rows, write_csv, write_lines, write_media
from tests.fixtures.tiny_experiment import CONFIGS, run
from tests.fixtures.tiny_models import write_tiny_models

SMALL = {
    "needs": {"memory_gib": 0.1, "disk_gib": 0.1},
    "trainer": {"log_every_n_steps": 1, "accelerator": "cpu"},
}
SMALL_FIT = {"max_steps": 2, "limit_train_batches": 2, "val_check_interval": 2}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared table, with two rationales for each row."""
    media, root = write_media(tmp_path / "media"), tmp_path / "data"
    table = write_csv(tmp_path / "t.csv", flag_rows())
    given = [
        {
            "id": row["id"],
            "rationales": [{"thinking": f"bars {n}", "answer": f"country {n:02d}"}] * 2,
        }
        for n, row in enumerate(flag_rows())
    ]
    command = ["folder", "--table", str(table), "--media", str(media), "--out", str(root)]
    lines = write_lines(tmp_path / "r.jsonl", given)
    assert prepare([*command, "--rationales", str(lines), "--workers", "1"]) == 0
    return root


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server that always says the same."""
    with serving(lambda _, __: chat(GOOD)) as stub:
        yield stub.url


def small_model(stage: str, data: Path) -> list[str]:
    """What a tiny model that babbles needs: few tokens, and a second writer that can be read."""
    if not stage.startswith(("rationales", "gate", "decisions")):
        return []
    key = "smollm2" if stage == "rationales" else "full"
    flags = [f"--model.writers.{key}.prompt_state_layer", "0"]
    flags += [f"--model.writers.{key}.max_new_tokens", "3"]
    if stage != "rationales":
        return flags
    pool = {"rationales": str(data / "rationale_pool.json"), "on_unknown": "empty"}
    given = {"class_path": "mmemb.rationales.PrecomputedWriter", "init_args": pool}
    return [*flags, "--model.writers.given", json.dumps(given)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("writer", ["file", "model", "server"])
def test_own_data_goes_through_the_whole_pipeline(
    tmp_path: Path, data: Path, server: str, writer: str
) -> None:
    write_tiny_models(tmp_path)
    small, small_fit = tmp_path / "small.yaml", tmp_path / "small_fit.yaml"
    small.write_text(yaml.safe_dump(SMALL))
    sizes = {"init_args": {"batch_size": 8, "group_size": 4}}
    small_fit.write_text(yaml.safe_dump({"trainer": SMALL_FIT, "data": sizes}))

    shared = ["--experiment", "own", "--data_root", str(data), "--runs", str(tmp_path / "runs")]
    linked = {"models": str(tmp_path / "models")} if writer == "model" else {}
    linked |= {"server": server} if writer == "server" else {}
    pipeline = with_shared(
        read_pipeline(CONFIGS / "own/pipeline.yaml", writer),
        argparse.Namespace(encoder="clip_tiny", pretrained=None, linked=linked),
    )
    for stage in pipeline.stages:
        more = ["--config", str(small)]
        trains = stage.name.startswith(("train", "judge", "embedder")) and stage.subcommand == "fit"
        more += ["--config", str(small_fit)] if trains else []
        if writer == "model":
            more += small_model(stage.name, data)
        run([*stage.command_line(shared), *more])

    own = tmp_path / "runs/own"
    tests = [own / name / "summary.json" for name in ("untrained-test", "trained-test")]
    untrained, trained = (json.loads(path.read_text())["metrics"] for path in tests)
    assert untrained["test/chance@1"] == trained["test/chance@1"]

    metrics = json.loads((own / "gate-test/summary.json").read_text())["metrics"]
    assert "test/recall@1" in metrics
    assert len(ShardIndex.open(own / "selected").entries) == 8
    assert json.loads((own / "embedder/fitted.json").read_text())["facts"]
