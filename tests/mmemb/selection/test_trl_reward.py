"""The selector's contrast as a reward of a trainer that samples rationales itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmemb.records.inputs import Side
from mmemb.records.pairs import Pair
from mmemb.selection import PairJudge, YesNoJudge
from mmemb.selection.contrasts import contrasts
from mmemb.selection.trl_reward import ContrastReward
from tests.fixtures.tiny_vlm import babbling, folder, note


def pair(n: int) -> Pair:
    return Pair(
        key=f"p{n}", task="t", split="train", concept=f"c{n}", fact=f"c{n}/f", source="g",
        gallery="g", query=Side(f"the flag of land {n}"), target=Side(f"flag {n}"),
        target_name=f"flag {n}",
    )  # fmt: skip


PAIRS = [pair(n) for n in range(3)]
CANDIDATES = [[p.target, *(q.target for q in PAIRS if q is not p)] for p in PAIRS]


class ByName(PairJudge):
    """A rationale that names a candidate brings it closer by 2 (in log-odds)."""

    kind = "log_odds"

    def identity(self) -> str:
        return "by name"

    def score(self, queries: Any, candidates: Any, rationales: Any, facts: Any) -> Tensor:
        most = max(map(len, rationales))
        found = torch.full((len(queries), len(candidates[0]), 1 + most), torch.nan)
        for row, (sides, notes) in enumerate(zip(candidates, rationales, strict=True)):
            for place, side in enumerate(sides):
                found[row, place, 0] = 0.0
                for column, said in enumerate(notes, 1):
                    found[row, place, column] = 2.0 * (side.text in said.plain)
        return found


def test_a_completion_is_worth_what_it_does_for_its_pair() -> None:
    reward = ContrastReward(ByName(), PAIRS, CANDIDATES, contrast="margin")
    said = [
        "<think>a</think><answer>flag 1</answer>",
        "<think>a</think><answer>flag 0</answer>",
        "thinking</think><answer>flag 2</answer>",
        "<think>never closed",
        [{"role": "assistant", "content": "<answer>flag 0 flag 1 flag 2</answer>"}],
    ]
    assert reward(prompts=[""] * 5, completions=said, pair=[1, 1, 2, 2, 0]) == pytest.approx(
        [2.0, -1.0, 2.0, -3.0, 0.0]
    )
    gain = ContrastReward(ByName(), PAIRS, CANDIDATES, contrast="gain", clip=1.5)
    assert gain([""] * 5, said, [1, 1, 2, 2, 0]) == pytest.approx([1.5, 0.0, 1.5, -1.5, 1.5])
    assert gain(["", ""], ["", "x"], [0, 1]) == [-1.5, -1.5]
    spaced = ["\n<think>a</think><answer>flag 1</answer>", " <answer>flag 1</answer> bye"]
    assert gain(["", ""], spaced, [1, 1]) == [1.5, 1.5]
    with pytest.raises(ValueError, match="by breaking the form"):
        ContrastReward(ByName(), PAIRS, CANDIDATES, broken=-1.0)
    with pytest.raises(ValueError, match="3 pairs but 1 lists"):
        ContrastReward(ByName(), PAIRS, CANDIDATES[:1])


def test_a_generative_judge_gives_rewards() -> None:
    judge = YesNoJudge(str(folder("qwen3_vl")))
    said = ["<answer>red</answer>", "<answer>a blue and white flag</answer>"]
    found = ContrastReward(judge, PAIRS, CANDIDATES)(["", ""], said, [0, 0])
    notes = [note(text) for text in said]
    scores = judge.score([PAIRS[0].query], CANDIDATES[:1], [notes], [PAIRS[0].fact])
    gain_BK = contrasts(scores, kind="log_odds", num_hard_negatives=10)["gain"]
    assert found == pytest.approx(gain_BK[0].clamp(-3, 3).tolist(), abs=1e-4)
    assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # trl's own words about the versions that it meets
def test_grpo_trainer_of_trl_takes_it(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs the extra `trl`")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    babbling("qwen3_vl").save_pretrained(tmp_path / "vlm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vlm/model")
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    data = datasets.Dataset.from_list(
        [{"prompt": p.query.text, "pair": n} for n, p in enumerate(PAIRS)]
    )
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, num_generations=4,
        max_completion_length=6, max_steps=2, report_to=[], use_cpu=True, logging_steps=1,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=policy,
        reward_funcs=ContrastReward(ByName(), PAIRS, CANDIDATES),
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    assert any("rewards/contrast_reward/mean" in row for row in trainer.state.log_history)
