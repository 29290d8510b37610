"""Plans of the stages that train an embedder, or embed with one."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.samples import Row
from experiments.plan.data import (
    measured,
    num_pictures,
    query_rows,
    rationale_lengths,
    rows_below,
    sidecar_bytes,
    sides_of,
    spread,
    trained_rows,
)
from experiments.plan.layers import PRECISIONS
from experiments.plan.memory import Contrast, ModelShape, Training
from experiments.plan.model_sizes import efficient_net_parameters
from experiments.plan.models import PlannedModel, planned_backbone
from experiments.plan.settings import Settings, precision_of
from experiments.plan.stages import Role, StagePlan
from experiments.plan.work import NO_TOKENS
from mmemb.benchmarks.data_roots import CANDIDATES
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, FULL


def trained_embedder(settings: Settings) -> StagePlan:
    """`ContrastiveEmbedder fit`."""
    data = settings.data
    planned = planned_backbone(
        settings.model["backbone"], settings.model.get("lora"), data.get("features")
    )
    rows = trained_rows(settings.root, data)
    queries, targets = (sides_of(rows, planned.lengths, which) for which in ("query", "target"))
    training = settings.training(planned.dtype, planned.padded)
    return StagePlan(
        name=settings.title,
        samples=len(rows),
        steps=settings.training_steps(len(rows)),
        rows=settings.rows,
        micro_rows=micro_rows(settings, [*queries, *targets]),
        model=planned.shape,
        training=training,
        trains=True,
        roles=_pair_roles(settings, planned, spread(rows), queries, targets),
        contrast=_contrast(settings, planned.width),
        disk=settings.saved(planned.shape, training, "backbone/"),
        host=_kept_pictures(planned, [*queries, *targets], training.precision),
        tuned=planned.tuned,
        media_share=media_share([*queries, *targets], planned),
    )


def _losses(settings: Settings) -> dict[str, float]:
    """Returns the weights that are set; the others are the defaults of `PathLosses`."""
    return settings.model.get("losses") or {}


def _reasons(settings: Settings) -> bool:
    return bool(_losses(settings).get("reasoning", 1.0))


def _num_negatives(settings: Settings) -> int:
    data = settings.data
    return int(data.get("num_negatives") or 1) if data.get("negatives") else 0


def _contrast(settings: Settings, width: int) -> Contrast:
    """Which terms there are depends on the weights alone (`PathLosses`)."""
    model, reasons = settings.model, _reasons(settings)
    terms = 1 + reasons + 2 * (reasons and bool(_losses(settings).get("cross")))
    return Contrast(
        columns=settings.batch * (1 + _num_negatives(settings)),
        width=width,
        terms=terms + bool(model.get("distillation_weight")),
        both=bool(_losses(settings).get("symmetric", True)),
    )


def _pair_roles(
    settings: Settings,
    planned: PlannedModel,
    rows: Sequence[Row],
    queries: Sequence[Side],
    targets: Sequence[Side],
) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for name, sides, key in (
        ("targets", targets, "target_sidecar"),
        ("queries", queries, "sidecar"),
    ):
        sidecar = settings.data.get(key) if _reasons(settings) else None
        roles |= _side_roles(settings, planned, name, rows, sides, sidecar)
    if negatives := _num_negatives(settings):
        alone = measured([planned.lengths.of(side) for side in targets])
        roles["negatives"] = Role(per_row=negatives, tokens=alone)
    return roles


def _side_roles(
    settings: Settings,
    planned: PlannedModel,
    name: str,
    rows: Sequence[Row],
    sides: Sequence[Side],
    sidecar: str | None,
) -> dict[str, Role]:
    """How a side is read: where it reasons, in one sequence for both vectors, or in two calls."""
    lengths = planned.lengths
    alone = [lengths.of(side) for side in sides]
    if sidecar is None:
        return {name: Role(per_row=1, tokens=measured(alone))}
    notes = rationale_lengths(rows, sidecar, lengths.longest_rationale)
    read = [lengths.of(side, note) for side, note in zip(sides, notes, strict=True)]
    if not lengths.one_sequence:
        both = {name: alone, f"{name}, reasoned": read}
        return {key: Role(per_row=1, tokens=measured(found)) for key, found in both.items()}
    replies, model = NO_TOKENS, settings.model
    # The head alone would be trained, and beside LoRA it is frozen: no graph is made.
    idle = model.get("detach") and planned.shape.rank
    if _losses(settings).get("writing") and not idle:
        said = [whole["text"] - direct["text"] for whole, direct in zip(read, alone, strict=True)]
        replies = measured([{"text": num} for num in said])["text"]
    return {name: Role(per_row=1, tokens=measured(read), replies=replies)}


def micro_rows(settings: Settings, sides: Sequence[Side]) -> int:
    """Rows of a micro-batch; a bound on tokens is one on the estimates of `Side.num_tokens`."""
    if (cache := settings.cache) is None:
        return settings.rows
    found = min(settings.rows, cache.micro_batch_size or settings.rows)
    if cache.micro_batch_tokens:
        cost = 2 * sum(side.num_tokens for side in sides) / max(1, len(sides))
        found = min(found, max(1, int(cache.micro_batch_tokens // cost)))
    return found


def media_share(sides: Sequence[Side], planned: PlannedModel) -> float:
    """Share of pictures in the text tower's tokens; 0 where they have a fixed size."""
    if not planned.lengths.reads_pixels:
        return 0.0
    whole = sum(planned.lengths.of(side)["text"] for side in sides)
    texts = [Side(side.text or "-", side.instruction) for side in sides]
    words = sum(planned.lengths.of(side)["text"] for side in texts)
    return max(0.0, 1 - words / whole)


def _kept_pictures(planned: PlannedModel, sides: Sequence[Side], precision: str) -> dict[str, int]:
    """Bytes of what a frozen tower says of the pictures that `cached_pictures` keeps."""
    tokens = [planned.lengths.picture(m) for s in sides for m in s.media if m.kind == "image"]
    if not (planned.cached_pictures and tokens):
        return {}
    number = PRECISIONS[precision].compute * planned.shape.picture_states * planned.shape.hidden
    each = round(number * sum(tokens) / len(tokens))
    return {f"{planned.cached_pictures} kept pictures": planned.cached_pictures * each}


def running_embedder(settings: Settings) -> StagePlan:
    """A backbone that embeds queries and candidates, or pairs, without a backward pass."""
    model, data = settings.model, settings.data
    if model.get("backbone") is None:
        raise ValueError("model.backbone is not set: name the backbone that embeds.")
    planned = planned_backbone(model["backbone"], None, data.get("features"))
    pairs = data.get("pairs")
    parts = data.get("parts") or (["test"] if settings.subcommand == "test" else None)
    rows = rows_below(settings.root, pairs) if pairs else query_rows(settings.root, parts)
    others = rows if pairs else rows_below(settings.root, [CANDIDATES])
    queries = sides_of(rows, planned.lengths, "query")
    found = sides_of(others, planned.lengths, "target" if pairs else "candidate")
    roles = _read_roles(settings, planned, rows, queries)
    tokens = measured([planned.lengths.of(side) for side in found])
    roles["others"] = Role(per_row=len(others) / max(1, len(rows)), tokens=tokens)
    content = 8 * planned.width + 2048
    writes = settings.subcommand == "predict"
    precision = precision_of(planned.dtype, settings.trainer.get("precision"))
    return StagePlan(
        name=settings.title,
        samples=len(rows),
        steps=settings.reading_steps(len(rows)),
        rows=settings.batch,
        micro_rows=settings.batch,
        model=planned.shape,
        training=Training(precision=precision, devices=settings.ranks),
        trains=False,
        roles=roles,
        disk={"sidecar": sidecar_bytes(len(rows), content)} if writes else {},
        host=_kept_pictures(planned, [*queries, *found], precision),
        media_share=media_share(queries, planned),
    )


def _read_roles(
    settings: Settings, planned: PlannedModel, rows: Sequence[Row], queries: Sequence[Side]
) -> dict[str, Role]:
    """Queries, and as often again as they are read with a draft."""
    model, lengths = settings.model, planned.lengths
    roles = {"queries": Role(per_row=1, tokens=measured([lengths.of(s) for s in queries]))}
    reasons = settings.subcommand == "predict" or model.get("reason")
    if reasons and (sidecar := settings.data.get("rationales")):
        notes = rationale_lengths(spread(rows), sidecar, lengths.longest_rationale)
        read = [lengths.of(side, note) for side, note in zip(queries, notes, strict=True)]
        depths = model.get("depths") or (DIRECT, FULL)  # the direct one needs no draft
        draws = int(model.get("num_draws") or 1) * (len(depths) - 1)
        roles["reasoned"] = Role(per_row=draws, tokens=measured(read))
    return roles


def feature_extractor(settings: Settings) -> StagePlan:
    """Pictures through a frozen tower of a few million weights: what counts is the disk."""
    pictures = num_pictures(settings.root, settings.data["folders"])
    return StagePlan(
        name=settings.title,
        samples=pictures,
        steps=settings.reading_steps(pictures),
        rows=settings.batch,
        micro_rows=settings.batch,
        model=ModelShape(total=efficient_net_parameters(), trainable=0, towers={}),
        training=Training(devices=settings.ranks),
        trains=False,
        disk={"sidecar": sidecar_bytes(pictures, 2 * 6 * 1280 + 128)},
    )
