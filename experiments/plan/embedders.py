"""Plans of the stages that train an embedder, or embed with one."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.data_roots import CANDIDATES, QUERIES
from datamodules.samples import Row
from experiments.plan.backbones import PlannedBackbone, planned_backbone
from experiments.plan.data import (
    rationale_lengths,
    rows_below,
    sidecar_bytes,
    sides_of,
    spread,
    trained_rows,
)
from experiments.plan.lengths import NO_TOKENS, measured
from experiments.plan.memory import Contrast, ModelShape
from experiments.plan.models import efficient_net_parameters
from experiments.plan.precisions import PRECISIONS
from experiments.plan.settings import Settings, precision_of
from experiments.plan.stages import Role, StagePlan
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, FULL


def trained_embedder(settings: Settings, pairs: int | None = None) -> StagePlan:
    """Returns the plan of `ContrastiveEmbedder fit`.

    Args:
        settings: of the stage.
        pairs: to train on, in place of those that are there.
    """
    data = settings.data
    planned = planned_backbone(
        settings.model["backbone"], settings.model.get("lora"), data.get("features")
    )

    rows = trained_rows(settings.root, data)
    queries, targets = (sides_of(rows, planned.lengths, which) for which in ("query", "target"))
    training = settings.training(planned.dtype, planned.padded)

    # The few sides that are measured stand for all rows of the data.
    return StagePlan(
        name=settings.title,
        samples=pairs or len(rows),
        steps=settings.training_steps(pairs or len(rows)),
        rows=settings.rows,
        micro_rows=micro_rows(settings, [*queries, *targets]),
        model=planned.shape,
        training=training,
        trains=True,
        roles=_pair_roles(settings, planned, spread(rows), queries, targets),
        contrast=_contrast(settings, planned.shape.hidden),
        disk=settings.saved(planned.shape, training, "backbone/"),
        host=_kept_pictures(planned, [*queries, *targets], training.precision),
        tuned=planned.tuned,
        media_share=media_share([*queries, *targets], planned),
    )


def _losses(settings: Settings) -> dict[str, float]:
    """Returns the weights that are set; the others are the defaults of `PathLosses`."""
    return settings.model.get("losses") or {}


def _reasons(settings: Settings) -> bool:
    return bool(_losses(settings).get("reasoned", 1.0))


def _num_negatives(settings: Settings) -> int:
    data = settings.data
    return int(data.get("num_negatives") or 1) if data.get("negatives") else 0


def _contrast(settings: Settings, width: int) -> Contrast:
    """The comparisons of the losses; the weights decide which terms there are (`PathLosses`)."""
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
    planned: PlannedBackbone,
    rows: Sequence[Row],
    queries: Sequence[Side],
    targets: Sequence[Side],
) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for name, sides, key in (
        ("targets", targets, "target_sidecar"),
        ("queries", queries, "sidecar"),
    ):
        # Without a reasoning loss no rationale is read, whatever the data offers.
        sidecar = settings.data.get(key) if _reasons(settings) else None
        roles |= _side_roles(settings, planned, name, rows, sides, sidecar)

    # Hard negatives are as long as targets, and are never read with a rationale.
    if negatives := _num_negatives(settings):
        alone = measured([planned.lengths.of(side) for side in targets])
        roles["negatives"] = Role(per_row=negatives, tokens=alone)
    return roles


def _side_roles(
    settings: Settings,
    planned: PlannedBackbone,
    name: str,
    rows: Sequence[Row],
    sides: Sequence[Side],
    sidecar: str | None,
) -> dict[str, Role]:
    """The roles of a side: where it reasons, one sequence for both vectors, or two calls."""
    lengths = planned.lengths
    alone = [lengths.of(side) for side in sides]
    if sidecar is None:
        return {name: Role(per_row=1, tokens=measured(alone))}

    rationales = rationale_lengths(rows, sidecar, lengths.longest_rationale)
    read = [lengths.of(side, rationale) for side, rationale in zip(sides, rationales, strict=True)]
    if not lengths.one_sequence:
        both = {name: alone, f"{name}, reasoned": read}
        return {key: Role(per_row=1, tokens=measured(each)) for key, each in both.items()}

    replies, model = NO_TOKENS, settings.model
    # The head alone would be trained, and beside LoRA it is frozen: no graph is made.
    idle = model.get("detach_next_token") and planned.shape.rank
    if _losses(settings).get("next_token") and not idle:
        ends = [whole["text"] - direct["text"] for whole, direct in zip(read, alone, strict=True)]
        replies = measured([{"text": num} for num in ends])["text"]
    return {name: Role(per_row=1, tokens=measured(read), replies=replies)}


def micro_rows(settings: Settings, sides: Sequence[Side]) -> int:
    """Returns the rows of a micro-batch; a bound on tokens is one on the estimates of
    `Side.num_tokens`."""
    if (cache := settings.cache) is None:
        return settings.rows

    # Both bounds hold, so the smaller micro-batch is the one that runs.
    rows = min(settings.rows, cache.micro_batch_size or settings.rows)
    if cache.micro_batch_tokens:
        cost = 2 * sum(side.num_tokens for side in sides) / max(1, len(sides))
        rows = min(rows, max(1, int(cache.micro_batch_tokens // cost)))
    return rows


def media_share(sides: Sequence[Side], planned: PlannedBackbone) -> float:
    """Returns the share of pictures in the tokens of the text tower; 0 if their size is fixed."""
    whole = sum(planned.lengths.of(side)["text"] for side in sides)
    return sum(planned.lengths.media_tokens(side) for side in sides) / max(1, whole)


def _kept_pictures(
    planned: PlannedBackbone, sides: Sequence[Side], precision: str
) -> dict[str, int]:
    """Bytes of the tokens of a frozen tower that `cached_pictures` keeps."""
    pictures = [Side("-", media=(m,)) for s in sides for m in s.media if m.kind == "image"]
    if not (planned.cached_pictures and pictures):
        return {}
    tokens = [planned.lengths.media_tokens(side) for side in pictures]

    # A tower that feeds deeper layers, too, gives a token several vectors.
    number = PRECISIONS[precision].compute * planned.shape.picture_states * planned.shape.hidden
    each = round(number * sum(tokens) / len(tokens))
    return {f"{planned.cached_pictures} kept pictures": planned.cached_pictures * each}


def running_embedder(settings: Settings) -> StagePlan:
    """Returns the plan of a backbone that embeds queries and candidates, or pairs, without a
    backward pass.

    Raises:
        ValueError: no backbone is named.
    """
    model, data = settings.model, settings.data
    if model.get("backbone") is None:
        raise ValueError("model.backbone is not set. Name the backbone that embeds.")
    planned = planned_backbone(model["backbone"], None, data.get("features"))

    # Without pairs the benchmark is embedded: its queries, and all candidates.
    pairs = data.get("pairs")
    splits = data.get("splits") or (["test"] if settings.subcommand == "test" else None)
    rows = rows_below(settings.root, pairs or [QUERIES])
    if splits and not pairs:
        rows = tuple(row for row in rows if row.meta["split"] in splits)
    others = rows if pairs else rows_below(settings.root, [CANDIDATES])
    queries = sides_of(rows, planned.lengths, "query")
    targets = sides_of(others, planned.lengths, "target" if pairs else "candidate")

    # Each of the others is read once, but steps are counted by queries.
    roles = _read_roles(settings, planned, rows, queries)
    tokens = measured([planned.lengths.of(side) for side in targets])
    roles["others"] = Role(per_row=len(others) / max(1, len(rows)), tokens=tokens)

    content = 8 * planned.shape.hidden + 2048
    writes = settings.subcommand == "predict"
    precision = precision_of(planned.dtype, settings.trainer.get("precision"))
    return settings.reading(
        len(rows),
        planned.shape,
        precision,
        roles=roles,
        disk={"sidecar": sidecar_bytes(len(rows), content)} if writes else {},
        host=_kept_pictures(planned, [*queries, *targets], precision),
        media_share=media_share(queries, planned),
    )


def _read_roles(
    settings: Settings, planned: PlannedBackbone, rows: Sequence[Row], queries: Sequence[Side]
) -> dict[str, Role]:
    """The queries, and the same once more for every draft that is read with them."""
    model, lengths = settings.model, planned.lengths
    roles = {"queries": Role(per_row=1, tokens=measured([lengths.of(s) for s in queries]))}
    reasons = settings.subcommand == "predict" or model.get("eval_with_rationales")
    if reasons and (sidecar := settings.data.get("rationales")):
        rationales = rationale_lengths(spread(rows), sidecar, lengths.longest_rationale)
        read = [
            lengths.of(side, rationale) for side, rationale in zip(queries, rationales, strict=True)
        ]

        # The direct depth needs no draft.
        depths = model.get("depths") or (DIRECT, FULL)
        draws = int(model.get("num_draws") or 1) * (len(depths) - 1)
        roles["reasoned"] = Role(per_row=draws, tokens=measured(read))
    return roles


def feature_extractor(settings: Settings) -> StagePlan:
    """Returns the plan of the stage that passes pictures through a frozen tower of a few million
    weights; only its disk is large."""
    # A picture that many samples share is stored and read once.
    rows = rows_below(settings.root, settings.data["folders"])
    pictures = len({digest for row in rows for digest in row.entry.media.values()})
    shape = ModelShape(total=efficient_net_parameters(), trainable=0, towers={})
    disk = {"sidecar": sidecar_bytes(pictures, 2 * 6 * 1280 + 128)}
    return settings.reading(pictures, shape, "float32", disk=disk)
