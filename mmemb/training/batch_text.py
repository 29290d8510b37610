"""A training batch in words: what the model reads of a row, and who repels whom."""

from __future__ import annotations

from collections.abc import Sequence

from mmemb.backbones.base import Backbone
from mmemb.losses.masks import target_masks
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Media


def describe_batch(batch: PairBatch, backbone: Backbone, rows: Sequence[int] = (0, 1)) -> str:
    """Markdown about some rows of a batch, as the model sees them.

    Args:
        batch: this rank's rows.
        backbone: says how it reads a side.
        rows: which of them; what the batch does not have is left out.
    """
    positive_BB, negative_BB = target_masks(batch.target_ids_B, batch.positive_ids_BP)
    parts = [f"Step {batch.step}, {len(batch.keys)} rows; groups: {_counted(batch.groups)}."]
    for row in [row for row in rows if row < len(batch.keys)]:
        query, target, note = batch.queries[row], batch.targets[row], batch.rationales[row]
        reasoned = f"with its rationale: {_code(backbone.describe(query, note))}"
        hard = batch.negatives[row] if batch.negatives else ()
        lines = [
            f"## row {row}: {batch.keys[row]}",
            f"query: {_code(backbone.describe(query))}",
            *(f"query {line}" for line in map(media_words, query.media)),
            reasoned if note else "no rationale",
            f"target: {_code(backbone.describe(target))}",
            *(f"target {line}" for line in map(media_words, target.media)),
            *(f"hard negative: {_code(backbone.describe(side))}" for side in hard),
            f"attracted by target(s) {_places(positive_BB[row].tolist())}, repelled by "
            f"{int(negative_BB[row].sum())} of {len(batch.keys) - 1} others in the batch",
        ]
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def media_words(media: Media) -> str:
    """`image 1a2b3c4d: pixels 3 x 160 x 120`, or its features, or that neither was read."""
    kinds = {"pixels": media.pixels, "features": media.features}
    found = [f"{n} {' x '.join(map(str, x.shape))}" for n, x in kinds.items() if x is not None]
    return f"{media.kind} {media.digest[:8]}: {', '.join(found) or 'not read'}"


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _places(marks: Sequence[bool]) -> str:
    return ", ".join(str(place) for place, mark in enumerate(marks) if mark)


def _counted(groups: Sequence[str]) -> str:
    names = dict.fromkeys(groups)
    return ", ".join(f"{name} {groups.count(name)}" for name in names) or "none"
