"""Documents in passages: no word is lost, and the first hit is that of the best passage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from datamodules.prepare.__main__ import main
from datamodules.prepare.folder.passages import in_passages, passages
from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.retrieval.ranking import pad_rows, rank_scores
from mmemb.retrieval.ranking_metrics import expected_metrics
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.own_table import write_lines


def test_no_word_is_lost_and_none_is_too_many() -> None:
    draw = random.Random(0)
    ends = ("", "", "", ".", "!", "?\n\n", ",")
    for most in (1, 2, 5, 50):
        text = " ".join(f"w{n}{draw.choice(ends)}" for n in range(draw.randrange(1, 300)))
        found = passages(text, most)
        assert " ".join(found).split() == text.split()
        assert all(len(part.split()) <= most for part in found)


@pytest.mark.parametrize(
    ("text", "most", "found"),
    [
        ("short", 4, ["short"]),
        # A paragraph in the second half comes before a later sentence.
        ("a b c.\n\nd. e f", 4, ["a b c.", "d. e f"]),
        # A sentence comes before the count, a number is no sentence.
        ("a b. c 3.5 e f g", 5, ["a b.", "c 3.5 e f g"]),
        ("a b c d e", 2, ["a b", "c d", "e"]),
        ("\u4ed6\u8bf4\u3002\u597d\u7684\u3002", 4, ["\u4ed6\u8bf4\u3002", "\u597d\u7684\u3002"]),
    ],
)
def test_a_text_is_cut_where_it_ends(text: str, most: int, found: list[str]) -> None:
    assert passages(text, most) == found


def test_each_passage_keeps_media_and_instruction_and_the_columns_follow() -> None:
    sides = (OwnSide("a b c", ("p.png",), "Title"), OwnSide("d"))
    columns = ("query.media", "positives[0].media", "positives[1].media", "negatives[0].media")
    row = OwnRow(
        1, "1", "t", "test", OwnSide("a b c"), sides, (OwnSide("e f g h"),), media_columns=columns
    )
    [split], note = in_passages([row], 2)
    assert split.query == row.query
    assert split.positives[:2] == (
        OwnSide("a b", ("p.png",), "Title"), OwnSide("c", ("p.png",), "Title")
    )  # fmt: skip
    assert [side.text for side in split.sides] == ["a b c", "a b", "c", "d", "e f", "g h"]
    kept = [columns[place] for place in (0, 1, 1, 2, 3, 3)]
    assert list(split.media_columns) == kept
    assert note == "2 of 3 documents split into 4 passages of at most 2 words"


def test_the_first_hit_is_that_of_documents_by_their_best_passage() -> None:
    """Against the plain definition: a document's score is the highest of its passages."""
    generator = torch.Generator().manual_seed(0)
    score_QC = torch.rand(200, 60, generator=generator)
    document_C = torch.randint(20, (60,), generator=generator)
    right_Q = document_C[torch.randint(60, (200,), generator=generator)]

    rows = [(document_C == right).nonzero().flatten().tolist() for right in right_Q]
    metrics = expected_metrics(rank_scores(score_QC, pad_rows(rows)))

    best_QD = torch.stack(
        [score_QC[:, document_C == d].amax(1) for d in document_C.unique()], dim=1
    )
    place_Q = torch.searchsorted(document_C.unique(), right_Q)
    own_Q = best_QD.gather(1, place_Q[:, None])
    rank_Q = (best_QD > own_Q).sum(1)
    assert torch.equal(metrics["hit@1"], (rank_Q < 1).double())
    # Behind the first place a wrong document may stand several times.
    assert bool((metrics["hit@5"] <= (rank_Q < 5).double()).all())
    assert metrics["hit@5"].sum() < (rank_Q < 5).sum()


def test_passages_of_a_right_document_are_right_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": f"{split}{n}", "task": "t", "split": split, "query_text": f"{split} {n}",
         "target_text": f"One {split} {n}. Two {split} {n}."}
        for split in ("train", "test") for n in range(2)
    ]  # fmt: skip
    table = write_lines(tmp_path / "t.jsonl", rows)
    words = ["folder", "--table", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--passages", "3"]) == 0
    assert "4 of 4 documents split into 8 passages of at most 3 words" in capsys.readouterr().out

    def first(folder: str) -> dict:
        index = ShardIndex.open(tmp_path / "out" / folder)
        return json.loads(index.read(index.entries[0])["json"])

    assert first("queries")["relevance"] == {"One test 0.": 1.0, "Two test 0.": 1.0}
    pair = first("pairs/plain")
    assert pair["target_text"] == "One train 0."
    assert pair["positives"] == ["One train 0.", "Two train 0."]
    assert len(ShardIndex.open(tmp_path / "out/candidates").entries) == 8
    assert main([*words, "--passages", "0"]) == 1
    assert "--passages 0: expected the most words" in capsys.readouterr().err
