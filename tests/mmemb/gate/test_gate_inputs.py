"""What a gate may see: the parts of a state, the shape of scores, and who computes them alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import GateInputs, check_parts, score_shape
from mmemb.records.inputs import Side
from mmemb.records.outputs import CandidateOutput
from mmemb.records.pairs import Query
from mmemb.retrieval.galleries import Galleries

INPUTS = GateInputs(torch.rand(3, 4), torch.rand(3, 3), torch.rand(3, 5).half())
SCORES = st.lists(st.floats(-30, 30), min_size=1, max_size=9)


def test_a_state_is_its_parts_side_by_side_in_the_order_asked() -> None:
    state_BS = INPUTS.state(["prompt_state", "embedding"])
    assert state_BS.dtype == torch.float32
    assert torch.equal(state_BS[:, :5], INPUTS.prompt_state_BH.float())
    assert torch.equal(state_BS[:, 5:], INPUTS.embedding_BD)
    assert torch.equal(INPUTS.state(["scores"]), INPUTS.scores_B3)


def test_a_batch_without_rows_keeps_the_width_of_its_state() -> None:
    empty = INPUTS.map(lambda x: x[:0])
    assert empty.state(["embedding", "scores", "prompt_state"]).shape == (0, 12)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("scores", r"asks for 'scores'.*no `gallery` was given to `encode`"),
        (
            "prompt_state",
            r"asks for 'prompt_state'.*set `prompt_state` of RationaleGenerator.*leave it out of",
        ),
    ],
)
def test_a_part_that_nobody_measured_says_what_to_do(part: str, words: str) -> None:
    inputs = GateInputs.of_embedding(torch.rand(2, 4))
    assert inputs.state(["embedding"]).shape == (2, 4)
    with pytest.raises(ValueError, match=words):
        inputs.state(["embedding", part])
    with pytest.raises(ValueError, match="depth values hold none: make them again"):
        GateInputs.of_embedding(torch.rand(2, 0)).state(["embedding"])


@pytest.mark.parametrize(
    "parts", [[], ["prompt_state", "prompt_state"], ["embeding"], ["scores", "all"]]
)
def test_a_state_names_known_parts_once(parts: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"expected some of \['embedding', 'scores', 'prompt_state'\]"
    ):
        check_parts(parts)


def test_inputs_move_with_their_batch() -> None:
    rows = (("a", "b", "c"), ({},) * 3, INPUTS, *torch.rand(2, 3, 2), torch.ones(3).bool())
    moved = DepthValueBatch(*rows).to(torch.float64)
    assert {x.dtype for x in moved.inputs} == {torch.float64}
    torch.testing.assert_close(
        moved.inputs.map(lambda x: x.to(INPUTS.embedding_BD.dtype)), INPUTS.map(lambda x: x.float())
    )


# ---- the shape of scores


def slow_shape(values: list[float]) -> tuple[float, float, float]:
    total = math.fsum(math.exp(v) for v in values)
    p = sorted((math.exp(v) / total for v in values), reverse=True)
    lead = math.log(p[0] / p[1]) if len(p) > 1 else 0.0
    return math.log(p[0]), lead, -math.fsum(x * math.log(x) for x in p if x > 0)


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_the_shape_is_that_of_a_softmax(values: list[float]) -> None:
    found = score_shape(torch.tensor([values], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(slow_shape(values), abs=1e-4, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(SCORES, st.floats(-20, 20), st.randoms())
def test_neither_order_nor_a_constant_matters(values: list[float], shift: float, random) -> None:
    other = [value + shift for value in values]
    random.shuffle(other)
    one, two = (score_shape(torch.tensor([v], dtype=torch.float64)) for v in (values, other))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_equal_scores_are_a_uniform_distribution(number: int) -> None:
    (found,) = score_shape(torch.full((1, number), 0.3)).tolist()
    assert found == pytest.approx([-math.log(number), 0, math.log(number)], abs=1e-6)


def test_extreme_scores_stay_finite() -> None:
    (found,) = score_shape(torch.tensor([[1e4, -1e4, 0.0]])).tolist()
    assert found == pytest.approx([0, 1e4, 0])


# ---- over galleries


def galleries() -> Galleries:
    """`g` of five candidates, one of them twice, and `h` of two."""
    vectors_ND = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    names, folders = (*"abcdea", *"xy"), (*"gggggg", *"hh")
    return Galleries([CandidateOutput(vectors_ND, names, folders, (0, 1, 2, 3, 4, 5, 0, 1))])


def query(gallery: str, right: str, candidates: tuple[int, ...] | None = None) -> Query:
    relevance = {right: 1.0}
    return Query(
        "k", "t", "test", "c", "c/f", Side("?"), relevance, gallery=gallery, candidates=candidates
    )


QUERIES = [query("g", "a"), query("h", "y"), query("g", "b", (3, 1, 0)), query("g", "e")]


def test_score_shapes_are_those_of_each_query_alone() -> None:
    found, vectors_BD = galleries(), torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    shapes_B3 = found.score_shapes(vectors_BD, QUERIES, tau=0.2)
    for asked, vector_D, shape_3 in zip(QUERIES, vectors_BD, shapes_B3, strict=True):
        expected = score_shape((found.of_query(asked) @ vector_D / 0.2)[None])[0]
        torch.testing.assert_close(shape_3, expected, atol=1e-5, rtol=1e-5)
    assert found.score_shapes(vectors_BD[:0], [], tau=0.2).shape == (0, 3)


def test_candidates_of_a_query_are_its_gallery_or_its_own_list() -> None:
    found = galleries()
    whole_ND, own_ND = found.of_query(QUERIES[0]), found.of_query(QUERIES[2])
    assert whole_ND.shape == (5, 4), "an equal name counts once"
    assert torch.equal(own_ND, whole_ND[[3, 1, 0]])


def test_no_target_is_looked_at() -> None:
    found, vectors_BD = galleries(), torch.randn(1, 4)
    one, two = (found.score_shapes(vectors_BD, [query("g", name)], 0.1) for name in "ac")
    assert torch.equal(one, two)


def test_a_temperature_divides_the_scores() -> None:
    found, vectors_BD = galleries(), torch.randn(4, 4)
    cold_B3, warm_B3 = (found.score_shapes(vectors_BD, QUERIES, tau) for tau in (0.1, 0.4))
    torch.testing.assert_close(cold_B3[:, 1], 4 * warm_B3[:, 1])
    assert (cold_B3[:, 2] < warm_B3[:, 2]).all(), "colder is surer"
