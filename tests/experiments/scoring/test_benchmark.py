"""A benchmark of several roots: the same scores on any number of ranks, resumable or partial."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks import BenchmarkScores, RecallAtK
from datamodules import BenchmarkDataModule, EvaluationDataModule
from experiments.scoring.embeddings import read_embeddings
from experiments.scoring.score import main as score
from experiments.scoring.submission import submission
from lightning_modules import ContrastiveEmbedder
from mmemb.benchmarks.headline import complete_groups, headline_text
from mmemb.benchmarks.mmeb_v2 import TASKS
from mmemb.benchmarks.score_files import METRICS, read_scores, read_values
from mmemb.storage.shard_writer import Sample, encode_members, write_folder
from tests.fixtures.bare_process import run_without
from tests.fixtures.tiny_data import picture, write_broken
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_trainer import trainer_of

LOCAL = {
    "name": "VOC2007", "meta_task": "I-CLS", "gallery": "VOC2007", "metric": "hit@1",
    "origin": "R", "think": False, "seen_answer": False,
}  # fmt: skip


def write_local(root: Path) -> Path:
    """A task with a list of candidates for each query, one of them listed twice."""
    names = [f"capital-{n:02d}" for n in range(6)]
    queries, candidates = [], []
    for n, name in enumerate(names):
        data = {"name": name, "gallery": "VOC2007", "instruction": "", "text": name}
        meta = {"gallery": "VOC2007", "name": name}
        candidates.append(Sample(f"{n:08d}", encode_members({"json": data}), meta))
        labels = {"task": "VOC2007", "split": "test", "concept": f"c{n}", "fact": f"VOC2007/{n}"}
        body = {"instruction": "Name it.", "text": "", "relevance": {name: 1.0}, "answers": []}
        listed = np.array([n, (n + 1) % 6, (n + 1) % 6, (n + 3) % 6], dtype=np.int32)
        body["repeats"] = 1
        members = encode_members({"json": labels | body, "candidates.npy": listed})
        members["q0.webp"] = picture(n)
        queries.append(Sample(f"{n:08d}", members, labels | {"gallery": "VOC2007"}))
    for folder, samples in (("queries", queries), ("candidates", candidates)):
        write_folder(root / folder, samples, prefix="x", samples_per_shard=4, fingerprint="local")
    (root / "tasks.json").write_text(json.dumps([LOCAL]))
    return root


@pytest.fixture(scope="module")
def benchmark(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny").symlink_to(tiny_root)
    write_local(folder / "image/VOC2007")
    return folder


def evaluate(
    folder: Path, root: Path, world: int = 1, fingerprint: str = "run", **data: Any
) -> BenchmarkScores:
    folder.mkdir(exist_ok=True)
    callback = BenchmarkScores(str(folder / "scores"), embeddings=True)
    callback.fingerprint = fingerprint
    trainer_of(folder, world, callbacks=[callback]).test(
        ContrastiveEmbedder(clip(folder)),
        datamodule=BenchmarkDataModule(str(root), batch_size=5, **data),
        verbose=False,
    )
    return callback


@pytest.fixture(scope="module")
def scored(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    evaluate(folder, benchmark)
    return folder / "scores"


def test_every_task_has_its_files(scored: Path) -> None:
    found = read_scores(scored)
    assert set(found) == {"flag-name", "flag-capital-t2i", "flag-continent", "clip-name", "VOC2007"}
    file = found["VOC2007"]
    assert set(file.scores) == {*METRICS, "num_pred", "num_data"}
    assert file.scores["num_data"] == 6
    assert file.provenance["run"] == "run"
    assert file.provenance["queries"] == "local"
    lines = (scored / "image/VOC2007/VOC2007_pred.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["label"] == ["capital-00"]
    assert sorted(first["prediction"]) == ["capital-00", "capital-01", "capital-03"]


def test_scores_are_those_of_recall_at_k(scored: Path, tiny_root: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, callbacks=[RecallAtK()])
    data = EvaluationDataModule(str(tiny_root), batch_size=7, splits=["test"])
    trainer.test(ContrastiveEmbedder(clip(tmp_path)), datamodule=data, verbose=False)
    found = read_scores(scored)
    tiny = [f.scores["recall@5"] for name, f in found.items() if name != "VOC2007"]
    assert np.mean(tiny) == pytest.approx(float(trainer.callback_metrics["test/recall@5"]))


def test_two_ranks_write_what_one_does(benchmark: Path, scored: Path, tmp_path: Path) -> None:
    evaluate(tmp_path, benchmark, world=2)
    two = tmp_path / "scores"
    assert {n: f.scores for n, f in read_scores(two).items()} == {
        n: f.scores for n, f in read_scores(scored).items()
    }
    assert read_values(two) == read_values(scored)
    one_vectors, two_vectors = (
        read_embeddings(folder / "image/VOC2007", "VOC2007") for folder in (scored, two)
    )
    assert one_vectors[2] == two_vectors[2]
    np.testing.assert_allclose(one_vectors[0], two_vectors[0], atol=1e-5)


def test_what_is_scored_is_not_embedded_again(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tmp_path, benchmark, tasks=["VOC2007"])
    assert "0 roots scored, 1 to do" in capsys.readouterr().out
    evaluate(tmp_path, benchmark)
    assert "1 root scored, 1 to do" in capsys.readouterr().out
    evaluate(tmp_path, benchmark, fingerprint="another model")
    assert "0 roots scored, 2 to do" in capsys.readouterr().out


def test_saved_vectors_and_rankings_score_the_same(
    benchmark: Path, scored: Path, tmp_path: Path
) -> None:
    for kind in ("embeddings", "predictions"):
        out = tmp_path / kind
        score(["--data-root", str(benchmark), f"--{kind}", str(scored), "--out", str(out)])
        for name, file in read_scores(out).items():
            expected = read_scores(scored)[name].scores
            assert file.scores == pytest.approx(expected, abs=1e-6), (kind, name)


def test_the_scorer_needs_neither_lightning_nor_a_decoder(
    benchmark: Path, scored: Path, tmp_path: Path
) -> None:
    def score() -> str:
        from experiments.scoring.score import main

        printed = io.StringIO()
        with redirect_stdout(printed):
            main(
                ["--data-root", str(benchmark), "--embeddings", str(scored), "--out", str(tmp_path)]
            )
        return printed.getvalue()

    refused = ("lightning", "webdataset", "open_clip", "PIL", "transformers")
    assert "VOC2007" in run_without(refused, score)


def test_a_skipped_query_makes_a_score_partial(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    broken = write_broken(tiny_root, tmp_path / "broken")
    evaluate(tmp_path, broken, splits=["train", "val", "gate", "calibration", "test"],
             on_error="skip")  # fmt: skip
    found = read_scores(tmp_path / "scores")
    assert all(
        "1 skipped" in file.partial and "00000058" in file.partial for file in found.values()
    )
    assert complete_groups(found) == {}
    assert "partial, and in no mean" in capsys.readouterr().out


def test_no_headline_without_all_tasks(scored: Path) -> None:
    found = read_scores(scored / "image")
    text = headline_text(found)
    assert "there are 1 of 36 image, 0 of 18 video" in text
    assert "MMLongBench-doc" in text
    assert "all" not in complete_groups(found)
    modality_of = {task.name: task.modality for task in TASKS}
    with pytest.raises(ValueError, match="77 tasks are missing"):
        submission(found, modality_of, {})


def test_wrong_tasks_and_folders_are_named(benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no task\(s\) \['VOC2012'\]"):
        BenchmarkDataModule(str(benchmark), 4, tasks=["VOC2012"]).roots()
    with pytest.raises(FileNotFoundError, match=r"holds no tasks\.json"):
        BenchmarkDataModule(str(tmp_path), 4).roots()
    with pytest.raises(FileNotFoundError, match="holds no score file"):
        read_scores(tmp_path)


def test_a_score_below_0_is_refused(tmp_path: Path) -> None:
    scores = dict.fromkeys(METRICS, 0.5) | {"mrr@5": -0.5}
    (tmp_path / "VOC2007_score.json").write_text(json.dumps(scores))
    with pytest.raises(ValueError, match=r"VOC2007_score\.json is broken: .*>= 0.*'mrr@5'"):
        read_scores(tmp_path)


def test_saved_vectors_of_other_data_are_refused(
    benchmark: Path, scored: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "image/VOC2007"
    folder.mkdir(parents=True)
    for path in (scored / "image/VOC2007").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    np.save(folder / "VOC2007_qry.npy", np.full((5, 64), 1 / 8, dtype=np.float32))
    arguments = ["--data-root", str(benchmark), "--embeddings", str(tmp_path)]
    with pytest.raises(SystemExit, match="holds 5 vectors, the data 6 test queries"):
        score([*arguments, "--out", str(tmp_path / "out")])


def test_rows_that_prepare_left_out_make_a_score_partial_too(tmp_path: Path) -> None:
    root = write_local(tmp_path / "data/image/VOC2007")
    manifest = {"revision": "2025-11-03", "partial": True, "skipped": ["row 3: no picture"]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    evaluate(tmp_path, tmp_path / "data", world=2)
    score(["--data-root", str(tmp_path / "data"), "--embeddings", str(tmp_path / "scores"),
           "--out", str(tmp_path / "again")])  # fmt: skip
    for folder in ("scores", "again"):
        file = read_scores(tmp_path / folder)["VOC2007"]
        assert "1 row left out by prepare" in file.partial
        assert file.provenance["revision"] == "2025-11-03"


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("predictions", "VOC2007_pred.jsonl", "{", "VOC2007_pred.jsonl is broken"),
        (
            "predictions",
            "VOC2007_pred.jsonl",
            "[1]\n" * 6,
            "line 1: Expected `object`, got `array`",
        ),
        ("embeddings", "VOC2007_names.json", "{", "is no JSON list of names"),
        ("embeddings", "VOC2007_names.json", '["a"]', "1 names"),
        ("embeddings", "VOC2007_qry.npy", "junk", "is no plain array"),
    ],
)
def test_broken_saved_files_are_named(
    benchmark: Path, scored: Path, tmp_path: Path, kind: str, name: str, content: str, said: str
) -> None:
    folder = tmp_path / "image/VOC2007"
    folder.mkdir(parents=True)
    for path in (scored / "image/VOC2007").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_text(content)
    arguments = ["--data-root", str(benchmark), f"--{kind}", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        score([*arguments, "--out", str(tmp_path / "out")])
    assert said in str(caught.value)


def test_pickles_are_refused(benchmark: Path, scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "image/VOC2007"
    folder.mkdir(parents=True)
    for path in (scored / "image/VOC2007").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    np.save(folder / "VOC2007_qry.npy", np.array([{"run": "me"}] * 6, dtype=object))
    with pytest.raises(SystemExit, match="is no plain array"):
        score(["--data-root", str(benchmark), "--embeddings", str(tmp_path),
               "--out", str(tmp_path / "out")])  # fmt: skip
