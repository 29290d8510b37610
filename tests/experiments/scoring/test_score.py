"""Scores from saved vectors and rankings of any model: what is missing or doubtful is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.data_roots import read_benchmark
from experiments.scoring.embeddings import read_embeddings
from experiments.scoring.score import main
from mmemb.benchmarks.score_files import (
    DATA,
    ScoreFile,
    read_scores,
    read_values,
    task_file,
    write_embeddings,
)
from tests.fixtures.benchmark_root import write_root

NAMES = tuple("abcdefghix")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Nine queries, each with one right candidate, and a tenth candidate."""
    return write_root(tmp_path / "data", NAMES, relevance=[{name: 1.0} for name in NAMES[:9]])


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight of nine queries are right; the last one is nearest to the tenth candidate."""
    query_QD, candidate_ND = torch.eye(10)[:9].clone(), torch.eye(10)
    query_QD[8] = torch.nn.functional.normalize(candidate_ND[8] + 2 * candidate_ND[9], dim=0)
    return query_QD, candidate_ND


def score(
    root: Path,
    query_QD: torch.Tensor,
    candidate_ND: torch.Tensor,
    names: Sequence[str],
    *options: str,
) -> ScoreFile:
    write_embeddings(root.parent / "vectors", "VOC2007", query_QD, candidate_ND, names)
    main([*score_command(root), *options])
    return read_scores(root.parent / "scores")["VOC2007"]


def score_command(root: Path) -> list[str]:
    folder, out = root.parent / "vectors", root.parent / "scores"
    return ["--data-root", str(root), "--embeddings", str(folder), "--out", str(out)]


def test_a_whole_gallery_is_scored(root: Path) -> None:
    found = score(root, *vectors(), NAMES)
    assert found.scores["hit@1"] == pytest.approx(8 / 9)
    assert found.partial == ""


def test_a_gallery_with_holes_is_refused_or_partial(root: Path) -> None:
    query_QD, candidate_ND = vectors()
    with pytest.raises(SystemExit, match=r"1 of 10 candidates have no vector \('x' is the first"):
        score(root, query_QD, candidate_ND[:9], NAMES[:9])
    found = score(root, query_QD, candidate_ND[:9], NAMES[:9], "--on-error", "skip")
    assert found.partial == "1 of 10 candidates have no vector ('x' is the first)"

    # A query whose right candidate has no vector cannot be ranked.
    found = score(root, query_QD, candidate_ND[1:], NAMES[1:], "--on-error", "skip")
    assert (found.scores["num_pred"], found.scores["hit@1"]) == (8, 7 / 8)


def test_vectors_of_other_names_are_refused_or_left_out(root: Path) -> None:
    query_QD, candidate_ND = vectors()
    names = (*NAMES[:9], "y")
    with pytest.raises(SystemExit, match="1 of 10 vectors are of names that the gallery lacks"):
        score(root, query_QD, candidate_ND, names)
    assert (
        "'y' is the first"
        in score(root, query_QD, candidate_ND, names, "--on-error", "skip").partial
    )


def test_lists_of_their_own_lose_what_has_no_vector(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data", lists=[[0, 2], [1, 0]])
    vectors = torch.eye(3)[:2], torch.eye(3)[:2]
    found = score(root, *vectors, ("a", "b"), "--on-error", "skip")
    assert "'c' is the first" in found.partial
    lines = (tmp_path / "scores/VOC2007_pred.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [["a"], ["b", "a"]]


@pytest.mark.parametrize("side", [0, 1])
def test_lengths_other_than_1_are_refused_unless_to_be_normalised(root: Path, side: int) -> None:
    given = vectors()
    given[side][8] *= 3  # as candidate it now wins the query that it should lose
    with pytest.raises(SystemExit, match=r"npy: 1 of \d+ do not have length 1 \(row 8 has 3"):
        score(root, *given, NAMES)
    found = score(root, *given, NAMES, "--normalise")
    assert found.scores["hit@1"] == pytest.approx(8 / 9)


def test_the_rounding_of_short_floats_is_no_other_length(root: Path) -> None:
    query_QD, candidate_ND = vectors()
    found = score(root, query_QD.bfloat16() * 1.003, candidate_ND, NAMES)
    assert found.scores["hit@1"] == pytest.approx(8 / 9)


@pytest.mark.parametrize("end", ["_qry.npy", "_tgt.npy", "_names.json"])
def test_a_part_of_the_files_of_a_task_is_a_mistake(root: Path, end: str) -> None:
    score(root, *vectors(), NAMES)
    (root.parent / f"vectors/VOC2007{end}").unlink()
    with pytest.raises(SystemExit, match=rf"VOC2007{end} is missing"):
        main(score_command(root))


def test_a_task_without_saved_vectors_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(root, *vectors(), NAMES)
    main([*score_command(root)[:2], "--embeddings", str(root), *score_command(root)[4:]])
    assert f"VOC2007 {'':<40} nothing saved in {root}" in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e100, 1e300])
def test_lengths_far_from_1_are_normalised_too(tmp_path: Path, scale: float) -> None:
    write_embeddings(tmp_path, "t", torch.eye(3), torch.eye(3), ["a", "b", "c"])
    np.save(tmp_path / "t_tgt.npy", scale * np.eye(3))
    assert torch.equal(read_embeddings(tmp_path, "t", normalise=True)[1], torch.eye(3))


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize("kind", ["qry", "tgt"])
def test_a_vector_that_is_none_is_refused(tmp_path: Path, kind: str, value: float) -> None:
    write_embeddings(tmp_path, "t", torch.eye(3), torch.eye(3), ["a", "b", "c"])
    broken = np.eye(3, dtype=np.float32)
    broken[1] = value
    np.save(tmp_path / f"t_{kind}.npy", broken)
    for normalise in (False, True):
        with pytest.raises(ValueError, match=rf"t_{kind}\.npy: .*(1 of 3 vectors are zero|1 of 3)"):
            read_embeddings(tmp_path, "t", normalise)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path, "t", torch.eye(3), torch.eye(3), ["a", "b", "a"])
    with pytest.raises(ValueError, match="names 'a' more than once"):
        read_embeddings(tmp_path, "t")


def test_rankings_name_candidates_of_the_query_only(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data", lists=[[0, 1], [1, 0]])
    saved, out = tmp_path / "saved", tmp_path / "scores"
    saved.mkdir()
    command = ["--data-root", str(root), "--predictions", str(saved), "--out", str(out)]
    path = saved / "VOC2007_pred.jsonl"
    lines = [{"prediction": ["a", "b"]}, {"prediction": ["b", "c"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(SystemExit, match="ranking of query 00000001 names 'c', which is not"):
        main(command)
    main([*command, "--on-error", "skip"])
    assert read_scores(out)["VOC2007"].partial.startswith("1 rankings name candidates")


def test_rankings_of_other_queries_are_refused(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data")
    lines = [{"prediction": ["b"], "label": ["b"]}, {"prediction": ["a"], "label": ["a"]}]
    (tmp_path / "VOC2007_pred.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["--data-root", str(root), "--predictions", str(tmp_path), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="query 00000000 has the label 'b', the data 'a'"):
        main(command)


@pytest.mark.parametrize("task", ["../../escape", "docs/x", "CON", "a\0b", "..", "caf\xe9"])
def test_a_task_of_any_name_is_scored_in_its_folder_and_read_back(
    tmp_path: Path, task: str
) -> None:
    root = write_root(
        tmp_path / "deep/er/data", NAMES, relevance=[{"a": 1.0}, {"b": 1.0}], task=task
    )
    folder, out = root.parent / "vectors", root.parent / "scores"
    write_embeddings(folder, task, torch.eye(10)[:2], torch.eye(10), NAMES, "content")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parent for path in before if path.name.endswith(".npy")} == {folder}
    (folder / task_file(folder, task, DATA).name).unlink()

    main(["--data-root", str(root), "--embeddings", str(folder), "--out", str(out)])
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.parent for path in made} == {out}
    assert [*read_scores(out)] == [*read_values(out)] == [task]
    assert read_embeddings(folder, task)[2] == list(NAMES)


def test_tasks_whose_files_would_be_one_are_refused(root: Path) -> None:
    tasks = json.loads((root / "tasks.json").read_text())
    (root / "tasks.json").write_text(json.dumps([*tasks, tasks[0] | {"name": "voc2007"}]))
    with pytest.raises(SystemExit, match="'VOC2007' and 'voc2007' differ in capital letters alone"):
        main(score_command(root))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_rankings_end_at_a_line_feed_alone(tmp_path: Path, end: str) -> None:
    """These letters stand unescaped in JSON, and `str.splitlines` splits at each of them."""
    names = ("a\u2028b", "c\x85d", "e\u2029f")
    root = write_root(tmp_path / "data", names, relevance=[{name: 1.0} for name in names])
    lines = [json.dumps({"prediction": [name]}, ensure_ascii=False) for name in names]
    (tmp_path / "VOC2007_pred.jsonl").write_bytes((end.join(lines) + end).encode())
    main(["--data-root", str(root), "--predictions", str(tmp_path), "--out", str(tmp_path / "out")])
    assert read_scores(tmp_path / "out")["VOC2007"].scores["hit@1"] == 1


def test_vectors_of_data_that_were_prepared_again_are_refused(root: Path) -> None:
    """Of equal names in equal numbers; what does not say of which data it is passes."""
    (data,) = read_benchmark(root)
    folder, out = root.parent / "vectors", root.parent / "scores"
    given = ["--data-root", str(root), "--embeddings", str(folder), "--out", str(out)]
    write_embeddings(folder, "VOC2007", *vectors(), NAMES, content=data.content)
    main(given)
    write_embeddings(folder, "VOC2007", *vectors(), NAMES, content="older")
    with pytest.raises(SystemExit, match=r"vectors of VOC2007 are of other data \(content older\)"):
        main(given)
