"""A training batch in words: the text of a row as the model reads it, and its negatives."""

from __future__ import annotations

from collections.abc import Sequence

from mmemb.backbones.base import Backbone
from mmemb.losses.ids import PairIds
from mmemb.losses.masks import target_masks
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Media


def describe_batch(batch: PairBatch, backbone: Backbone, rows: Sequence[int] = (0, 1)) -> str:
    """Returns Markdown about some rows of a batch, as the model sees them.

    Args:
        batch: this rank's rows.
        backbone: describes how it reads a side.
        rows: their numbers; those that the batch does not have are left out.
    """
    B = len(batch.keys)

    # Hard negatives have lines of their own: only the rows' targets are counted.
    masks = target_masks(PairIds.from_batch(batch), slice(0, B))
    positive_BB, negative_BB = (mask_BN[:, :B] for mask_BN in masks)

    parts = [f"Step {batch.step}, {B} rows; groups: {_counted(batch.sources)}."]
    for row in [row for row in rows if row < B]:
        query, target, rationale = batch.queries[row], batch.targets[row], batch.rationales[row]

        reasoned = f"with its rationale: {_code(backbone.describe(query, rationale))}"
        hard = batch.negatives[row] if batch.negatives else ()
        lines = [
            f"## row {row}: {batch.keys[row]}",
            f"query: {_code(backbone.describe(query))}",
            *(f"query {line}" for line in map(media_words, query.media)),
            reasoned if rationale else "no rationale",
            f"target: {_code(backbone.describe(target))}",
            *(f"target {line}" for line in map(media_words, target.media)),
            *(f"hard negative: {_code(backbone.describe(side))}" for side in hard),
            f"attracted by target(s) {_places(positive_BB[row].tolist())}, repelled by "
            f"{int(negative_BB[row].sum())} of {B - 1} others in the batch",
        ]
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def media_words(media: Media) -> str:
    """Returns `image 1a2b3c4d: pixels 3 x 160 x 120`, or its features, or `not read`."""
    kinds = {"pixels": media.pixels, "features": media.features}
    shapes = [f"{n} {' x '.join(map(str, x.shape))}" for n, x in kinds.items() if x is not None]
    return f"{media.kind} {media.digest[:8]}: {', '.join(shapes) or 'not read'}"


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _places(marks: Sequence[bool]) -> str:
    return ", ".join(str(place) for place, mark in enumerate(marks) if mark)


def _counted(groups: Sequence[str]) -> str:
    names = dict.fromkeys(groups)
    return ", ".join(f"{name} {groups.count(name)}" for name in names) or "none"
