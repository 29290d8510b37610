"""The one inference path: what a budget buys, what is saved, and that the test runs through it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor

from mmemb.backbones import OpenClipBackbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration, Unit
from mmemb.gate.encoded import Encoded
from mmemb.gate.heads import MlpDepthHead
from mmemb.gate.latency import measure_latency
from mmemb.gate.reasoners import Written
from mmemb.rationales import RationaleWriter, TableWriter
from mmemb.rationales.writers.base import check_seeds, drawn_seeds
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from tests.fixtures.paths import CLIP_TINY

PICTURE = Media("image", "p", pixels=torch.zeros(3, 8, 8, dtype=torch.uint8))
TEXTS = [Side(f"the capital of country {n}") for n in range(12)]
PICTURES = [Side(media=(PICTURE,)), Side("with words", media=(PICTURE,))]


@final
class EchoWriter(RationaleWriter):
    """Says something about the text of a side; nothing about what starts with `silent`."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def config(self) -> dict[str, Any]:
        return {}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        check_seeds(sides, seeds_BK)
        self.asked += [side.text for side in sides]
        return [
            [] if side.text.startswith("silent") else [echo(side, s) for s in drawn_seeds(seeds)]
            for side, seeds in zip(sides, seeds_BK, strict=True)
        ]


def echo(side: Side, seed: int) -> Rationale:
    text = f"<think>It asks: {side.text}.</think><answer>{side.text[-2:]}</answer>"
    return Rationale(text, "echo", "m", "1", "p", "d", seed, num_tokens=len(side.text))


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    torch.manual_seed(0)
    return OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes")


def head_of(bias: float = 0.0, spread: float = 1.0) -> MlpDepthHead:
    """A gate with an opinion: linear in the state, plus `bias` for reasoning."""
    head = MlpDepthHead(64, hidden_dim=0)
    with torch.no_grad():
        noise = torch.randn(64, generator=torch.Generator().manual_seed(1))
        head.output.weight[1] = spread * noise
        head.output.bias[1] = bias
    return head


def embedder_of(
    backbone: OpenClipBackbone, head: MlpDepthHead, writer: RationaleWriter | None = None
) -> AdaptiveEmbedder:
    with torch.inference_mode():
        logit_BA = head.eval()(backbone.eval().encode(TEXTS))
    cost_BA = torch.tensor([[0.0, len(side.text)] for side in TEXTS])
    calibration = BudgetCalibration.calibrate(logit_BA, cost_BA, [side.digest for side in TEXTS])
    return AdaptiveEmbedder(backbone, head, calibration, {"full": writer or EchoWriter()})


def torn_head(backbone: OpenClipBackbone) -> MlpDepthHead:
    """Wants to reason about some of the texts and not about others."""
    head = head_of()
    with torch.inference_mode():
        head.standardise(backbone.eval().encode(TEXTS))
    return head


def lead_of(logit_B2: torch.Tensor) -> torch.Tensor:
    return logit_B2[:, 1] - logit_B2[:, 0]


def reasons_about(found: Encoded) -> list[int]:
    return torch.nonzero(found.depths_B).flatten().tolist()


def test_budget_0_is_the_direct_embedding_bit_for_bit(backbone: OpenClipBackbone) -> None:
    embedder = embedder_of(backbone, head_of(bias=50.0))
    found = embedder.encode([*TEXTS, *PICTURES], budget=0.0)
    with torch.inference_mode():
        direct_BD = backbone.encode([*TEXTS, *PICTURES])
    assert torch.equal(found.vectors_BD, direct_BD)
    assert not found.depths_B.any()
    assert not found.tokens_B.any()
    assert embedder.writers["full"].asked == [], "a writer that is not needed is not asked"


def test_budget_1_and_a_willing_gate_reason_about_all_that_is_eligible(
    backbone: OpenClipBackbone,
) -> None:
    sides = [PICTURES[0], *TEXTS, PICTURES[1]]
    found = embedder_of(backbone, head_of(bias=50.0)).encode(sides, budget=1.0)
    assert found.depths_B.tolist() == [0, *[1] * len(TEXTS), 0]
    assert found.tokens_B.tolist() == [0, *(len(side.text) for side in TEXTS), 0]
    with torch.inference_mode():
        reasoned_BD = backbone.encode(TEXTS, [echo(side, -1) for side in TEXTS])
        direct_BD = backbone.encode(PICTURES)
    torch.testing.assert_close(found.vectors_BD[1:-1], reasoned_BD)
    torch.testing.assert_close(found.vectors_BD[[0, -1]], direct_BD)


@pytest.mark.parametrize(("budget", "number"), [(0.25, 3), (0.5, 6), (0.99, 11), (1.0, 12)])
def test_a_budget_is_spent_on_the_highest_scores(
    backbone: OpenClipBackbone, budget: float, number: int
) -> None:
    head = head_of(bias=50.0)
    embedder = embedder_of(backbone, head)
    found = embedder.encode(TEXTS, budget=budget)
    with torch.inference_mode():
        score_B = lead_of(head(backbone.encode(TEXTS)))
    assert set(reasons_about(found)) == set(score_B.topk(number).indices.tolist())


def test_a_wrong_budget_is_refused_though_no_side_can_reason(backbone: OpenClipBackbone) -> None:
    with pytest.raises(ValueError, match=r"budget is 1\.5: expected a share from 0 to 1"):
        embedder_of(backbone, head_of(bias=0.0)).encode(PICTURES, budget=1.5)


def test_a_budget_never_makes_an_unwilling_gate_reason(backbone: OpenClipBackbone) -> None:
    embedder = embedder_of(backbone, head_of(bias=-50.0))
    assert reasons_about(embedder.encode(TEXTS, budget=1.0)) == []
    assert reasons_about(embedder.encode(TEXTS)) == []


def test_equal_scores_are_parted_by_key_not_by_place(backbone: OpenClipBackbone) -> None:
    head = head_of(bias=5.0, spread=0.0)  # the same score for every side
    embedder = embedder_of(backbone, head)
    found = embedder.encode(TEXTS, budget=0.5)
    turned = embedder.encode(TEXTS[::-1], budget=0.5)
    assert len(reasons_about(found)) == 6
    assert torch.equal(found.depths_B, turned.depths_B.flip(0))
    named = embedder.encode(TEXTS, budget=0.5, keys=[f"q{n}" for n in range(12)])
    assert not torch.equal(found.depths_B, named.depths_B), "other keys, other ties"


def test_without_a_budget_the_sign_of_the_score_decides(backbone: OpenClipBackbone) -> None:
    head = torn_head(backbone)
    with torch.inference_mode():
        score_B = lead_of(head.eval()(backbone.encode(TEXTS)))
    found = embedder_of(backbone, head).encode(TEXTS)
    assert torch.equal(found.depths_B.bool(), score_B > 0)
    assert 0 < found.depths_B.sum() < len(TEXTS), "or this test shows nothing"


@pytest.mark.parametrize("depth", ["direct", "full"])
def test_a_forced_depth_asks_no_gate(backbone: OpenClipBackbone, depth: int) -> None:
    number = ["direct", "full"].index(depth)
    head = head_of(bias=50.0 - 100 * number)  # wants the contrary
    found = embedder_of(backbone, head).encode([*TEXTS, *PICTURES], depth=depth)
    assert found.depths_B.tolist() == [number] * len(TEXTS) + [0, 0]


def test_a_writer_with_nothing_to_say_leaves_the_direct_embedding(
    backbone: OpenClipBackbone,
) -> None:
    sides = [Side("silent about this"), *TEXTS[:2]]
    found = embedder_of(backbone, head_of(bias=50.0)).encode(sides)
    assert found.depths_B.tolist() == [0, 1, 1]
    assert found.tokens_B[0] == 0
    with torch.inference_mode():
        torch.testing.assert_close(found.vectors_BD[:1], backbone.encode(sides[:1]))


def test_nothing_in_nothing_out(backbone: OpenClipBackbone) -> None:
    found = embedder_of(backbone, head_of()).encode([])
    assert found.vectors_BD.shape == (0, 64)
    assert len(found.depths_B) == len(found.tokens_B) == 0


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    questions = {side.text: f"{n}" for n, side in enumerate(TEXTS[:7])}
    countries = {f"{n}": {"name": f"country {n}"} for n in range(7)}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"questions": questions, "countries": countries}))
    return path


def assert_equal(one: Encoded, other: Encoded) -> None:
    assert torch.equal(one.vectors_BD, other.vectors_BD)
    assert torch.equal(one.depths_B, other.depths_B)
    assert torch.equal(one.tokens_B, other.tokens_B)
    assert one.rationales == other.rationales
    assert [r is not None for r in one.rationales] == (one.depths_B > 0).tolist()


def test_what_is_saved_embeds_the_same_after_loading(
    backbone: OpenClipBackbone, facts: Path, tmp_path: Path
) -> None:
    saved = embedder_of(backbone, torn_head(backbone), TableWriter(str(facts)))
    saved.save_pretrained(tmp_path / "adaptive")
    loaded = AdaptiveEmbedder.from_pretrained(tmp_path / "adaptive")
    for budget in (None, 0.0, 0.3, 1.0):
        assert_equal(
            saved.encode([*TEXTS, *PICTURES], budget), loaded.encode([*TEXTS, *PICTURES], budget)
        )
    assert isinstance(loaded.writers["full"], TableWriter)
    assert not loaded.backbone.training
    assert not loaded.head.training
    other = AdaptiveEmbedder.from_pretrained(tmp_path / "adaptive", {"full": EchoWriter()})
    assert isinstance(other.writers["full"], EchoWriter)


def test_an_interrupted_save_leaves_what_was_there(
    backbone: OpenClipBackbone, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = embedder_of(backbone, head_of(), TableWriter(str(facts)))
    saved.save_pretrained(tmp_path / "old")
    monkeypatch.setattr("mmemb.gate.adaptive_embedder.save_head", lambda head, folder: 1 / 0)
    for name in ("old", "new"):
        with pytest.raises(ZeroDivisionError):
            saved.save_pretrained(tmp_path / name)
    AdaptiveEmbedder.from_pretrained(tmp_path / "old")
    with pytest.raises(FileNotFoundError, match=r"adaptive\.json is missing.*interrupted"):
        AdaptiveEmbedder.from_pretrained(tmp_path / "new")


def test_written_rationales_take_the_place_of_live_ones(backbone: OpenClipBackbone) -> None:
    """The test path (rationales of stage 1) equals the live path, for every budget."""
    live = embedder_of(backbone, torn_head(backbone))
    sides = [*TEXTS, PICTURES[0]]
    drafts = (*(echo(side, -1) for side in TEXTS), None)
    direct = live.embed(sides)
    for budget in (None, 0.0, 0.4, 1.0):
        depths_B = live.decide(direct, budget)
        taken = zip(drafts, depths_B.tolist(), strict=True)
        written = Written(depths_B, tuple(draft if depth else None for draft, depth in taken))
        assert_equal(live.encode(sides, budget), live.read(direct, written))


def test_each_step_stands_alone(backbone: OpenClipBackbone) -> None:
    writer = EchoWriter()
    embedder = embedder_of(backbone, torn_head(backbone), writer)
    sides = [Side("silent about this"), *TEXTS, *PICTURES]
    direct = embedder.embed(sides)
    with torch.inference_mode():
        assert torch.equal(direct.vectors_BD, backbone.encode(sides))
    assert writer.asked == [], "neither embedding nor deciding writes"

    # A decision of the caller's own; a side that the writer is silent about stays direct.
    depths_B = torch.tensor([1, 1, *[0] * 13])
    written = embedder.write(direct, depths_B)
    assert [note is not None for note in written.rationales] == [False, True, *[False] * 13]
    assert writer.asked == [side.text for side in sides[:2]]

    found = embedder.read(direct, written)
    assert found.depths_B.tolist() == [0, 1, *[0] * 13]
    with torch.inference_mode():
        reasoned_1D = backbone.encode(TEXTS[:1], [echo(TEXTS[0], -1)])
    torch.testing.assert_close(found.vectors_BD[1:2], reasoned_1D)
    torch.testing.assert_close(found.vectors_BD[:1], direct.vectors_BD[:1])
    assert torch.equal(found.vectors_BD[2:], direct.vectors_BD[2:])

    # Steps leave their arguments as they are, so each may be taken again.
    assert_equal(found, embedder.read(direct, embedder.write(direct, depths_B)))


def test_each_row_has_its_own_budget_and_unit(backbone: OpenClipBackbone) -> None:
    """As if every row of a budget were in a batch with rows of the same budget."""
    embedder = embedder_of(backbone, head_of(bias=5.0))
    budgets = [(None, 0.0, 0.3, 9.0)[row % 4] for row in range(len(TEXTS))]
    units: list[Unit] = ["tokens" if budget == 9.0 else "invocation" for budget in budgets]
    direct = embedder.embed(TEXTS)
    depths_B = embedder.decide(direct, budgets, units)

    for budget, unit in dict.fromkeys(zip(budgets, units, strict=True)):
        same_B = embedder.decide(direct, budget, unit)
        rows = [row for row, other in enumerate(budgets) if other == budget]
        assert torch.equal(depths_B[rows], same_B[rows])
    assert torch.equal(embedder.encode(TEXTS, budgets, units).depths_B, depths_B)
    assert not depths_B[1::4].any()
    assert depths_B[::4].all()


def test_a_depth_that_no_writer_has_is_refused(backbone: OpenClipBackbone) -> None:
    for depth in ("deep", 1, -1, 5):
        with pytest.raises(
            ValueError, match=rf"depth '?{depth}'? is none of.*\['direct', 'full'\]"
        ):
            embedder_of(backbone, head_of()).encode(TEXTS, depth=depth)  # type: ignore[arg-type]


def test_latency_measures_both_paths_of_every_query(backbone: OpenClipBackbone) -> None:
    writer = EchoWriter()
    embedder = embedder_of(backbone, head_of(bias=-50.0), writer)
    measured = measure_latency(embedder, ["a", "b"], TEXTS[:2])
    assert [latency.key for latency in measured] == ["a", "b"]
    assert [latency.tokens for latency in measured] == [(0, len(s.text)) for s in TEXTS[:2]]
    assert all(min(latency.decided_ms, *latency.depth_ms) > 0 for latency in measured)
    assert writer.asked == [TEXTS[1].text, TEXTS[0].text, TEXTS[1].text], "warm-up, then one each"
