"""The embedding judge: who may judge, what the scores are, and how ragged input is padded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmemb.backbones import OpenClipBackbone
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.selection import EmbeddingJudge
from tests.fixtures.paths import CLIP_TINY as TINY

QUERIES = [Side("capital of paris"), Side("capital of rome")]
CANDIDATES = [[Side("france"), Side("italy"), Side("peru")], [Side("italy"), Side("france")]]


def rationale(text: str) -> Rationale:
    text = f"<answer>{text}</answer>"
    return Rationale(text, "table", "facts", "1", "none", "none", seed=0, num_tokens=2)


RATIONALES = [[rationale("france")], [rationale("italy"), rationale("peru")]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two judges, fitted on the facts `a` and `b`; both on `both`."""
    folders = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp(name)
        OpenClipBackbone(str(TINY), tokenizer="bytes").save_pretrained(folder / "backbone")
        (folder / "fitted.json").write_text(json.dumps({"facts": [name, "both"]}))
        folders[name] = str(folder)
    return folders


def score(runs: dict[str, str], facts: list[str], **kwargs: float) -> Tensor:
    judge = EmbeddingJudge(runs, **kwargs)
    return judge.score(QUERIES, CANDIDATES, RATIONALES, facts)


def test_scores_are_cosines_without_and_with_each_rationale(runs: dict[str, str]) -> None:
    found = score({"a": runs["a"]}, ["x", "x"], tau=0.5)
    assert found.shape == (2, 3, 3)
    assert found.dtype == torch.float32
    judge = EmbeddingJudge(runs).judges["a"].backbone
    with torch.no_grad():
        target = judge.encode(CANDIDATES[1])
        query = judge.encode([QUERIES[1]] * 3, [None, *RATIONALES[1]])
    torch.testing.assert_close(found[1, :2], target @ query.T / 0.5, atol=1e-5, rtol=1e-5)


def test_missing_candidates_are_minus_infinity_and_missing_rationales_nan(
    runs: dict[str, str],
) -> None:
    found = score(runs, ["x", "x"])
    assert found[0, :, 2].isnan().all()
    assert (found[1, 2] == -torch.inf).all()
    assert found[0, :, :2].isfinite().all()
    assert found[1, :2].isfinite().all()


def test_only_judges_that_did_not_see_the_fact_judge(runs: dict[str, str]) -> None:
    by_a, by_b = (score({name: runs[name]}, ["x", "x"]) for name in "ab")
    mixed = score(runs, ["a", "b"])
    torch.testing.assert_close(mixed[0], by_b[0], equal_nan=True)
    torch.testing.assert_close(mixed[1], by_a[1], equal_nan=True)
    torch.testing.assert_close(score(runs, ["x", "x"]), (by_a + by_b) / 2, equal_nan=True)


def test_weights_that_were_copied_into_a_judge_bring_their_facts(
    runs: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(runs["b"], folder)
    (folder / "backbone/fitted.json").write_text(json.dumps({"facts": ["a"]}))
    judge = EmbeddingJudge({"b": str(folder)})
    assert judge.judges["b"].facts == {"a", "b", "both"}


def test_a_fact_that_every_judge_was_fitted_on_is_refused(runs: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"every judge \(a, b\) was fitted on fact 'both'"):
        score(runs, ["x", "both"])
    audit = score(runs, ["both", "both"], allow_trained_facts=True)
    torch.testing.assert_close(audit, score(runs, ["x", "x"]), equal_nan=True)


def test_candidates_are_embedded_once(runs: dict[str, str]) -> None:
    judge = EmbeddingJudge(runs, batch_size=2)
    first = judge.score(QUERIES, CANDIDATES, RATIONALES, ["x", "x"])
    torch.testing.assert_close(first, score(runs, ["x", "x"]), equal_nan=True)
    first_judge = judge.judges["a"]
    assert len(first_judge.known) == 3
    before = dict(first_judge.known)
    judge.score(QUERIES, CANDIDATES, [[], []], ["x", "x"])
    assert all(first_judge.known[key] is value for key, value in before.items())


def test_no_rationales_and_no_pairs(runs: dict[str, str]) -> None:
    judge = EmbeddingJudge(runs)
    assert judge.score(QUERIES, CANDIDATES, [[], []], ["x", "x"]).shape == (2, 3, 1)
    assert judge.score([], [], [], []).shape == (0, 0, 1)


def test_bad_settings_are_named(runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"fitted\.json"):
        EmbeddingJudge({"a": str(tmp_path)})
    with pytest.raises(ValueError, match="at least one judge"):
        EmbeddingJudge({})
    with pytest.raises(ValueError, match="tau=0"):
        EmbeddingJudge(runs, tau=0.0)
