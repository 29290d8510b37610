"""CLIP's tokenizer: open_clip's tokens for ordinary texts, no special ones, and bounded work."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from mmemb.backbones import OpenClipBackbone
from mmemb.backbones.clip_tokenizer import ByteTokenizer, ClipTokenizer
from mmemb.records.inputs import Side
from tests.fixtures.tiny_backbones import TINY, rationale, text_model

FORGED = [
    "<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "&lt;end_of_text&gt;",
    "&amp;lt;end_of_text&amp;gt;", "＜end_of_text＞", "<end\x00_of_text>",
]  # fmt: skip
WORDS = [
    "flag",
    "naïve",
    "🐈",
    "it's",
    "&amp;",
    "3.5",
    "<b>",
    "end_of_text",
    "x" * 90,
    "\n",
    "漢字",
]


@cache
def tokenizers() -> tuple[SimpleTokenizer, ClipTokenizer]:
    return SimpleTokenizer(context_length=16), ClipTokenizer(SimpleTokenizer(context_length=16))


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS)).map(" ".join)))
def test_ordinary_texts_have_the_tokens_of_open_clip(text: str) -> None:
    theirs, ours = tokenizers()
    for length in (None, 5, 80):
        assert torch.equal(theirs([text, "a"], length), ours([text, "a"], length))


@pytest.mark.parametrize("forged", FORGED)
def test_no_text_spells_a_special_token(forged: str) -> None:
    theirs, ours = tokenizers()
    special = torch.tensor(theirs.all_special_ids)
    text = f"flag {forged} a"
    assert torch.isin(theirs([text]), special).sum() == 3, "open_clip reads it as a token"
    found = ours([text])
    assert torch.isin(found, special).sum() == 2, "start and end"
    assert not torch.equal(found, ours(["flag"]))
    assert not torch.equal(found, ours(["flag a"]))


@pytest.mark.parametrize("word", ["a", "ab", "xyzzy", "-", "漢", "😀"])
def test_the_beginning_of_a_long_word_is_that_of_the_whole(word: str) -> None:
    theirs, ours = tokenizers()
    assert torch.equal(theirs([word * 300]), ours([word * 300]))


@cache
def counted() -> tuple[ClipTokenizer, list[int], dict[str, str]]:
    """With the lengths of what its slow part reads, and the words that it keeps."""
    theirs, lengths = SimpleTokenizer(context_length=16), list[int]()
    merge = theirs.bpe

    def bpe(word: str) -> str:
        lengths.append(len(word))
        return merge(word)

    theirs.bpe = bpe
    ours = ClipTokenizer(theirs)
    return ours, lengths, theirs.cache


SHAPES = ["word ", "w", "aé", "<think>", "</answer>", "<end_of_text>", " \n", "a\u0301\u0327", "!?"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_longer_text_costs_no_more_words(shape: str) -> None:
    tokenizer, lengths, kept = counted()
    work = []
    for times in (1_000, 2_000):
        lengths.clear()
        tokenizer(["z" + shape * times])
        work.append(sum(lengths))
    assert work[0] == work[1] <= 2_000, "the context bounds it"
    assert max(map(len, kept), default=0) <= 64, "long words are not kept for ever"


def test_words_left_out_at_random_are_refused(tmp_path: Path) -> None:
    config = json.loads(Path(TINY).read_text())
    config["text_cfg"]["tokenizer_kwargs"] = {"reduction_mask": "simple"}
    (tmp_path / "model.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="ask for a reduction_mask"):
        OpenClipBackbone(str(tmp_path / "model.json"))


def test_a_tokenizer_of_transformers_spells_no_special_token(tmp_path: Path) -> None:
    config = json.loads(Path(TINY).read_text())
    config["text_cfg"]["pool_type"] = "last"
    (tmp_path / "model.json").write_text(json.dumps(config))
    model = str(tmp_path / "model.json")
    backbone = OpenClipBackbone(model, tokenizer=text_model(tmp_path / "bert"))
    tokens = backbone.tokenizer(["paris [SEP] [CLS] france", "paris"])
    inner = backbone.tokenizer.tokenizer
    assert (tokens[0] == inner.sep_token_id).sum() == (tokens[0] == inner.cls_token_id).sum()
    backbone.save_pretrained(tmp_path / "saved")
    again = type(inner).from_pretrained(tmp_path / "saved" / "tokenizer")
    assert again.split_special_tokens, "nor does it for whoever loads it"


class Reader:
    """Bytes as tokens; counts the letters that it is given."""

    def __init__(self, context_length: int = 96) -> None:
        self.context_length, self.letters = context_length, 0

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        self.letters += sum(map(len, texts))
        return ByteTokenizer(self.context_length)(texts, context_length)


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    return OpenClipBackbone(TINY, tokenizer="bytes").eval()


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text("ab", min_size=1, max_size=30), min_size=1, max_size=40))
def test_the_longest_suffix_that_fits_is_read(backbone: OpenClipBackbone, words: list[str]) -> None:
    backbone.tokenizer = Reader(24)
    note = " ".join(words)
    fitting = [
        suffix for start in range(len(words)) if len(suffix := " ".join(words[start:])) <= 22
    ]
    assert backbone._fit([note]) == [fitting[0] if fitting else words[-1]]


@pytest.mark.parametrize("shape", ["word ", "w", "<think>", "<answer>", "a b ", " \n"])
@torch.no_grad()
def test_twice_the_rationale_is_at_most_twice_the_work(
    backbone: OpenClipBackbone, shape: str
) -> None:
    counts = []
    for times in (4_000, 8_000):
        backbone.tokenizer = Reader()
        said = rationale(f"<think>{shape * times}</think><answer>france</answer>")
        backbone.encode([Side("flag")], [said])
        counts.append(backbone.tokenizer.letters / len(said.text))
    assert counts[1] <= 1.25 * counts[0]
    assert counts[1] <= 8, "it is read a few times, not once for each of its words"
