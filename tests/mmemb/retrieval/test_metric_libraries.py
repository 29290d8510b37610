"""Our metrics against pytrec_eval and ranx, on random runs without ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.retrieval.ranking_metrics import CUTOFFS, score_prediction

Run = tuple[list[str], dict[str, int]]
"""Documents, best first; right ones with their grades, of which some may not be retrieved."""


@st.composite
def runs(draw: st.DrawFn) -> Run:
    order = draw(st.permutations(range(15)))
    right = draw(st.lists(st.integers(0, 18), min_size=1, max_size=6, unique=True))
    return [f"d{n:02d}" for n in order], {f"d{n:02d}": draw(st.integers(1, 3)) for n in right}


def ours(run: Run) -> dict[str, float]:
    ranked, graded = run
    return score_prediction(ranked, list(graded), [float(g) for g in graded.values()])


def scores(ranked: Sequence[str]) -> dict[str, float]:
    """Falling scores without ties, exact in fp32."""
    return {name: float(len(ranked) - place) for place, name in enumerate(ranked)}


@settings(max_examples=150, deadline=None)
@given(run=runs())
def test_equals_pytrec_eval(run: Run) -> None:
    import pytrec_eval

    ranked, graded = run
    cuts = ",".join(map(str, CUTOFFS))
    measures = {f"{name}.{cuts}" for name in ("ndcg_cut", "recall", "P", "success")}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": graded}, measures)
    theirs = evaluator.evaluate({"q": scores(ranked)})["q"]
    found = ours(run)
    for k in CUTOFFS:
        assert found[f"ndcg_linear@{k}"] == pytest.approx(theirs[f"ndcg_cut_{k}"], abs=1e-9)
        assert found[f"recall@{k}"] == pytest.approx(theirs[f"recall_{k}"], abs=1e-9)
        assert found[f"precision@{k}"] == pytest.approx(theirs[f"P_{k}"], abs=1e-9)
        assert found[f"hit@{k}"] == pytest.approx(theirs[f"success_{k}"], abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(run=runs())
def test_map_divides_by_what_fits(run: Run) -> None:
    """Others divide by all right ones, MMEB-V2 by as many as the cutoff has room for."""
    import pytrec_eval

    ranked, graded = run
    evaluator = pytrec_eval.RelevanceEvaluator({"q": graded}, {"map_cut.1,5,10"})
    theirs = evaluator.evaluate({"q": scores(ranked)})["q"]
    for k in CUTOFFS:
        scaled = theirs[f"map_cut_{k}"] * len(graded) / min(len(graded), k)
        assert ours(run)[f"map@{k}"] == pytest.approx(scaled, abs=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numba's, while it compiles
@settings(max_examples=100, deadline=None)
@given(run=runs())
def test_equals_ranx(run: Run) -> None:
    names = {
        "ndcg_linear": "ndcg", "ndcg_exponential": "ndcg_burges", "recall": "recall",
        "precision": "precision", "f1": "f1", "hit": "hit_rate", "mrr": "mrr",
    }  # fmt: skip
    theirs = _ranx(run, [f"{name}@{k}" for name in names.values() for k in CUTOFFS])
    found = ours(run)
    for mine, name in names.items():
        for k in CUTOFFS:
            assert found[f"{mine}@{k}"] == pytest.approx(theirs[f"{name}@{k}"], abs=1e-9), name


def _ranx(run: Run, metrics: Sequence[str]) -> Mapping[str, Any]:
    from ranx import Qrels, Run, evaluate

    ranked, graded = run
    return evaluate(Qrels({"q": graded}), Run({"q": scores(ranked)}), list(metrics))
