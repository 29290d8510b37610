"""Rounds of EM: a run against itself, and against one whose drafts are right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.report.__main__ import main
from experiments.report.data.reasoned import read_reasoned
from experiments.report.policies.rounds import rounds
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, finish_manifest, write_shard
from tests.fixtures.tiny_experiment import Experiment
from tests.fixtures.tiny_sidecars import record_origins

SIDECARS = ("rationales", "depth_values", "decisions", "selected")


def copy_of(experiment: Experiment, folder: Path) -> Path:
    folder.mkdir()
    for name in SIDECARS:
        (folder / name).symlink_to((experiment.folder / name).resolve())
    return folder


def test_a_round_differs_from_the_first_query_by_query(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    root = clip_experiment.root
    one, two = (copy_of(clip_experiment, tmp_path / name) for name in ("one", "two"))
    teach(two / "rationales", {q.query.key: q.query.answers[0] for q in read_reasoned(one, root)})
    (two / "depth_values").unlink()
    shutil.copytree(one / "depth_values", two / "depth_values")
    record_origins(two / "depth_values", root / "queries", two / "rationales")
    text, data = rounds([one, two], root)
    rows, minus = data["two"]["rows"], data["two"]["minus_first"]
    assert data["one"]["rows"]["right"]["mean"] == 0, "a random model babbles"
    assert rows["right"]["mean"] == 1
    assert minus["right"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "clusters": 6}
    for name in ("never", "always", "gated"):
        assert rows[name] == data["one"]["rows"][name], "the depth values are the same"
        assert minus[name]["mean"] == minus[name]["low"] == minus[name]["high"] == 0
    assert "| two" in text
    assert "100.0 [100.0, 100.0]" in text


def teach(folder: Path, answers: dict[str, str]) -> None:
    """Makes `folder` a copy in which every rationale about a query says its answer."""
    source = ShardIndex.open(folder.resolve())
    folder.unlink()
    for shard in source.shard_names:
        rows = []
        for entry in source.of_shard(shard):
            members = dict(source.read(entry))
            drafts = json.loads(members["json"])
            for draft in drafts if shard.startswith("queries") else ():
                answer = answers.get(entry.key, "")
                draft["text"] = f"<think>It is {answer}.</think><answer>{answer}</answer>"
            rows.append(
                Sample(entry.key, members | {"json": json.dumps(drafts).encode()}, entry.meta)
            )
        origins = source.records[shard].made_from
        write_shard(folder, shard, rows, fingerprint="f", made_from=origins)
    finish_manifest(folder, "f", source.shard_names)


def test_the_command_writes_what_it_prints(
    clip_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (copy_of(clip_experiment, tmp_path / name) for name in ("one", "two"))
    main(["rounds", str(one), str(two), "--data-root", str(clip_experiment.root)])
    text = (two / "rounds.md").read_text()
    assert text in capsys.readouterr().out
    assert json.loads((two / "rounds.json").read_text())["two"]["selection"]["drafts"] == 32


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_run_is_no_comparison(clip_experiment: Experiment, count: int) -> None:
    with pytest.raises(SystemExit, match="give two runs or more"):
        main(["rounds", *[str(clip_experiment.folder)] * count])


def test_runs_about_other_queries_are_refused(clip_experiment: Experiment, tmp_path: Path) -> None:
    one, two = (copy_of(clip_experiment, tmp_path / name) for name in ("one", "two"))
    for name in ("depth_values", "decisions"):
        (two / name).unlink()
        shutil.copytree(one / name, two / name)
        source = ShardIndex.open(two / name)
        finish_manifest(two / name, source.manifest.fingerprint, source.shard_names[:1])
    with pytest.raises(ValueError, match="two and .*one are about different queries"):
        rounds([one, two], clip_experiment.root)
