"""Plans of the stage that judges rationales: with a yes/no judge its tokens, else backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from datamodules.samples import Row
from experiments.plan.data import (
    gallery_sizes,
    measured,
    rows_below,
    sidecar_bytes,
    sides_of,
    spread,
)
from experiments.plan.lengths import PromptLengths, processor_of
from experiments.plan.memory import ModelShape, Training
from experiments.plan.model_sizes import language_model_shape
from experiments.plan.models import planned_backbone
from experiments.plan.settings import Settings, class_of, precision_of, record
from experiments.plan.stages import Role, StagePlan
from experiments.plan.work import JudgeTokens, Tokens, judge_tokens
from experiments.plan.writers import BYTES_PER_TOKEN, RATIONALE_JSON
from mmemb.benchmarks.data_roots import CANDIDATES
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.style import PromptStyle
from mmemb.records.rationales import ScoredJson
from mmemb.selection.judge_prompt import JudgePrompts, JudgeStyle
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

_SAID = 48
"""Tokens of a rationale, in a prompt or a sidecar."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """An evaluator.

    Attributes:
        shape: of its model.
        dtype: of its weights.
        roles: what is read.
        tokens: of one pair; None where prompts are not shared.
    """

    shape: ModelShape
    dtype: str
    roles: Mapping[str, Role]
    tokens: JudgeTokens | None = None


def selector(settings: Settings) -> StagePlan:
    """`CounterfactualSelector`."""
    rows = rows_below(settings.root, settings.data.get("pairs") or ["pairs/questions"])
    rationales = _pool_size(settings.data.get("rationales"))
    rationales += int(settings.model.get("num_donors", 3))
    generative = class_of(settings.model["evaluator"]) == "YesNoEvaluator"
    judge = (_yes_no if generative else _embedding)(settings, rows, rationales)
    content = rationales * (_SAID * BYTES_PER_TOKEN + RATIONALE_JSON + 200)
    writes = settings.subcommand == "predict"
    return StagePlan(
        name=settings.title,
        samples=len(rows),
        steps=settings.reading_steps(len(rows)),
        rows=settings.batch,
        micro_rows=settings.batch,
        model=judge.shape,
        training=Training(precision=precision_of(judge.dtype, None), devices=settings.ranks),
        trains=False,
        roles=judge.roles,
        judge=judge.tokens,
        disk={"sidecar": sidecar_bytes(len(rows), content)} if writes else {},
    )


def _embedding(settings: Settings, rows: Sequence[Row], rationales: int) -> _Judge:
    """Embedders: a query by itself and with every rationale; of several the first."""
    first = next(iter(settings.model["evaluator"]["init_args"]["judges"].values()))
    folder = {"class_path": "load_backbone", "init_args": {"folder": f"{first}/backbone"}}
    planned = planned_backbone(folder, None, settings.data.get("features"))
    sides = sides_of(rows, planned.lengths, "query")
    tokens = measured([planned.lengths.of(side, _SAID) for side in sides])
    roles = {"queries": Role(per_row=1 + rationales, tokens=tokens)}
    return _Judge(shape=planned.shape, dtype=planned.dtype, roles=roles)


def _yes_no(settings: Settings, rows: Sequence[Row], rationales: int) -> _Judge:
    judge = settings.model["evaluator"]["init_args"]
    query, shown, ending = _pieces(settings, rows)
    negatives = _num_negatives(settings, rows)
    tokens = judge_tokens(query.mean, shown.mean, ending.mean, negatives, rationales)
    # So many rows are read together, of one pair after the other.
    together = int(judge.get("max_rows", 64)) / settings.batch
    longest = query.longest + shown.longest + ending.longest
    read = {"text": Tokens(tokens.shared / together, longest)}
    return _Judge(
        shape=language_model_shape(
            str(judge["model"]),
            trained=False,
            trust_remote_code=bool(judge.get("trust_remote_code")),
        ),
        dtype=judge.get("dtype", "float32"),
        roles={"judged": Role(per_row=together, tokens=read)},
        tokens=tokens,
    )


def _num_negatives(settings: Settings, rows: Sequence[Row]) -> int:
    """N, whatever the contrast: all candidates of a pair are scored."""
    galleries = gallery_sizes(settings.root)
    seen = [galleries[row.meta["gallery"]] for row in rows if "gallery" in row.meta]
    whole = (round(sum(seen) / len(seen)) if seen else max(galleries.values())) - 1
    return min(whole, int(settings.data.get("num_negatives") or whole))


def _pieces(settings: Settings, rows: Sequence[Row]) -> tuple[Tokens, Tokens, Tokens]:
    """Tokens of a query's, a candidate's and a rationale's piece, by the judge's own prompts."""
    judge: Mapping[str, Any] = settings.model["evaluator"]["init_args"]
    processor = processor_of(str(judge["model"]), bool(judge.get("trust_remote_code")))
    prompt = record(PromptStyle, judge.get("prompt")) or PromptStyle()
    style = record(JudgeStyle, judge.get("style")) or JudgeStyle()
    made = JudgePrompts(PromptBuilder(processor, prompt), style)
    lengths, candidates = (
        PromptLengths(processor, prompt, 0),
        rows_below(settings.root, [CANDIDATES]),
    )
    queries = sides_of(spread(rows, 16), lengths, "query")
    shown = sides_of(spread(candidates, 16), lengths, "candidate")
    counts = (
        [len(made.query(side)) for side in queries],
        [len(made.candidate(queries[0], side)) for side in shown],
        [_SAID + len(made.ending(side, None)) for side in queries],
    )
    found = [measured([{"text": num} for num in count])["text"] for count in counts]
    return found[0], found[1], found[2]


def _pool_size(folder: str | None) -> int:
    """Rationales of a pair: as they were written, else four."""
    if folder is None or not (Path(folder) / MANIFEST).is_file():
        return 4
    index = ShardIndex.open(folder, verify=False)
    few = [e for e in index.entries if e.meta.get("part", "train") == "train"][:32]
    sizes = [len(index.read_json(entry, tuple[ScoredJson, ...])) for entry in few]
    return round(sum(sizes) / len(sizes)) if sizes else 4
