"""Plans of the stage that judges rationales, by a yes/no judge or by an embedder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.data_roots import CANDIDATES
from datamodules.samples import Row
from experiments.plan.backbones import planned_backbone
from experiments.plan.data import rows_below, sidecar_bytes, sides_of, spread
from experiments.plan.lengths import PromptLengths, Tokens, measured, processor_of
from experiments.plan.models import language_model_shape
from experiments.plan.settings import Settings, class_of, precision_of, record
from experiments.plan.stages import JudgeTokens, Role, StagePlan
from experiments.plan.writers import BYTES_PER_TOKEN, RATIONALE_JSON
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.style import PromptStyle
from mmemb.records.rationales import ScoredJson
from mmemb.selection.judge_prompt import JudgePrompts, JudgeStyle
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

_RATIONALE_TOKENS = 48
"""Tokens of a rationale, in a prompt or a sidecar."""


def selector(settings: Settings) -> StagePlan:
    """Returns the plan of `CounterfactualSelector`."""
    rows = rows_below(settings.root, settings.data.get("pairs") or ["pairs/questions"])
    rationales = _pool_size(settings.data.get("rationales"))
    # Donors of placebos are judged like the rationales themselves.
    rationales += int(settings.model.get("num_placebos", 3))

    generative = class_of(settings.model["judge"]) == "YesNoJudge"
    plan = (_yes_no if generative else _embedding)(settings, rows, rationales)
    if settings.subcommand != "predict":
        return plan

    content = rationales * (_RATIONALE_TOKENS * BYTES_PER_TOKEN + RATIONALE_JSON + 200)
    return replace(plan, disk={"sidecar": sidecar_bytes(len(rows), content)})


def _embedding(settings: Settings, rows: Sequence[Row], rationales: int) -> StagePlan:
    """An embedder reads a query by itself and with every rationale; of several the first."""
    first = next(iter(settings.model["judge"]["init_args"]["judges"].values()))
    # The judges have the same size, and run one after the other.
    folder = {"class_path": "load_backbone", "init_args": {"folder": f"{first}/backbone"}}
    planned = planned_backbone(folder, None, settings.data.get("features"))

    sides = sides_of(rows, planned.lengths, "query")
    tokens = measured([planned.lengths.of(side, _RATIONALE_TOKENS) for side in sides])
    roles = {"queries": Role(per_row=1 + rationales, tokens=tokens)}
    precision = precision_of(planned.dtype, None)
    return settings.reading(len(rows), planned.shape, precision, roles=roles)


def _yes_no(settings: Settings, rows: Sequence[Row], rationales: int) -> StagePlan:
    judge = settings.model["judge"]["init_args"]
    query, candidate, ending = _pieces(settings, rows)
    negatives = _num_negatives(settings, rows)
    tokens = JudgeTokens.of_pieces(query.mean, candidate.mean, ending.mean, negatives, rationales)

    # So many rows are read together, of one pair after the other.
    together = int(judge.get("max_rows", 64)) / settings.batch
    longest = query.longest + candidate.longest + ending.longest
    read = {"text": Tokens(tokens.shared / together, longest)}
    code = bool(judge.get("trust_remote_code"))
    shape = language_model_shape(str(judge["model"]), trained=False, trust_remote_code=code)
    return settings.reading(
        len(rows),
        shape,
        precision_of(judge.get("dtype", "float32"), None),
        roles={"judged": Role(per_row=together, tokens=read)},
        judge=tokens,
    )


def _num_negatives(settings: Settings, rows: Sequence[Row]) -> int:
    """N, whatever the contrast: all candidates of a pair are scored."""
    # Pairs without a gallery of their own are judged against the largest.
    candidates = rows_below(settings.root, [CANDIDATES])
    galleries = Counter(row.meta["gallery"] for row in candidates)
    sizes = [galleries[row.meta["gallery"]] for row in rows if "gallery" in row.meta]
    whole = (round(sum(sizes) / len(sizes)) if sizes else max(galleries.values())) - 1
    return min(whole, int(settings.data.get("num_negatives") or whole))


def _pieces(settings: Settings, rows: Sequence[Row]) -> tuple[Tokens, Tokens, Tokens]:
    """Tokens of the pieces of a query, a candidate and a rationale, by the prompts of the judge."""
    judge: Mapping[str, Any] = settings.model["judge"]["init_args"]
    processor = processor_of(str(judge["model"]), bool(judge.get("trust_remote_code")))
    prompt = record(PromptStyle, judge.get("prompt")) or PromptStyle()
    style = record(JudgeStyle, judge.get("style")) or JudgeStyle()
    prompts = JudgePrompts(PromptBuilder(processor, prompt), style)

    # A judge's prompt is put together of pieces, so a few of each are enough.
    lengths = PromptLengths(processor, prompt, 0)
    queries = sides_of(spread(rows, 16), lengths, "query")
    gallery = rows_below(settings.root, [CANDIDATES])
    candidates = sides_of(spread(gallery, 16), lengths, "candidate")

    def measure(counts: Sequence[int]) -> Tokens:
        return measured([{"text": count} for count in counts])["text"]

    return (
        measure([len(prompts.query(side)) for side in queries]),
        measure([len(prompts.candidate(queries[0], side)) for side in candidates]),
        measure([_RATIONALE_TOKENS + len(prompts.ending(side, None)) for side in queries]),
    )


def _pool_size(folder: str | None) -> int:
    """Rationales of a pair: those that were written, else four."""
    if folder is None or not (Path(folder) / MANIFEST).is_file():
        return 4

    # The first rows stand for all.
    index = ShardIndex.open(folder, verify=False)
    few = [e for e in index.entries if e.meta.get("split", "train") == "train"][:32]
    sizes = [len(index.read_json(entry, tuple[ScoredJson, ...])) for entry in few]
    return round(sum(sizes) / len(sizes)) if sizes else 4
