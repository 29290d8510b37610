"""The emoji-* rows: training pairs of train concepts, queries and candidates of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datamodules.prepare.pocket.emoji import Emoji, EmojiSet
from datamodules.prepare.pocket.rows import CandidateRow, PairRow, QueryRow, Rows
from datamodules.prepare.pocket.splits import EVALUATED, capped
from datamodules.prepare.pocket.tasks import (
    EMOJI_GALLERY_SIZE,
    INSTRUCTIONS,
    TONE_TEMPLATE,
    TONES,
    TRAIN_EMOJI_GALLERY,
)

NUM_WORDS = 4
TONE_EDITS = (("", "light"), ("light", "dark"), ("dark", "medium"))
_QUERY_TASKS = ("emoji-t2i", "emoji-i2t", "emoji-style", "emoji-group")


def emoji_rows(emoji: EmojiSet) -> Rows:
    """All rows about emoji."""
    pairs = [*_pairs(emoji), *_tone_pairs(emoji)]
    queries = [*_queries(emoji), *_tone_queries(emoji)]
    return Rows(plain=pairs, queries=queries, candidates=list(_candidates(emoji, queries)))


def _pair(emoji: Emoji, task: str, key: str = "", **fields: Any) -> PairRow:
    instruction = INSTRUCTIONS.get(task, INSTRUCTIONS["emoji-text"])
    defaults = {"answers": (emoji.name,), "instruction": instruction, "source": task}
    defaults |= emoji.labels(task)
    return PairRow(key=f"{task}-{emoji.slug[:50]}{key}", **(defaults | fields))


def _drawing(emoji: EmojiSet, item: Emoji, style: str) -> dict[str, Any]:
    """The target fields of a pair that aims at a drawing: all drawings of the item are right."""
    # Both drawings are right, so that neither becomes the other's negative.
    return {
        "gallery": TRAIN_EMOJI_GALLERY,
        "target_name": f"{item.slug}-{style}",
        "positives": tuple(f"{item.slug}-{s}" for s in emoji.styles),
        "target_image": item.picture(style),
    }


def _pairs(emoji: EmojiSet) -> Iterator[PairRow]:
    """Names in every style; keywords, other styles and groups once for each item."""
    for turn, item in enumerate(emoji.of_split("train")):
        for style in emoji.styles:
            drawing = _drawing(emoji, item, style)
            yield _pair(
                item, "emoji-t2i", f"-{style}", source="emoji-text", text=item.name, **drawing
            )

        # The styles take turns, as do the directions between them.
        style = emoji.styles[turn % len(emoji.styles)]
        if item.words:
            words, drawing = ", ".join(item.words[:NUM_WORDS]), _drawing(emoji, item, style)
            yield _pair(item, "emoji-words", source="emoji-text", text=words, **drawing)
        if len(emoji.styles) > 1:
            one, other = emoji.styles if turn % 2 else emoji.styles[::-1]
            drawing = _drawing(emoji, item, other)
            yield _pair(item, "emoji-style", image=item.picture(one), **drawing)

        right = {"target_text": item.group, "target_name": item.group, "answers": (item.group,)}
        image = item.picture(style)
        yield _pair(item, "emoji-group", gallery="emoji-groups", image=image, **right)


def _tone_pairs(emoji: EmojiSet) -> Iterator[PairRow]:
    able = [item for item in emoji.of_split("train") if emoji.toned(item)]

    for item in capped(able, "emoji-tone", "train"):
        for before, after in TONE_EDITS:
            yield _pair(
                item,
                "emoji-tone",
                f"-{after}",
                gallery="emoji-tones",
                text=TONE_TEMPLATE.format(after),
                target_name=f"{item.slug}-{after}",
                image=item.picture(emoji.gallery_style, before),
                target_image=item.picture(emoji.gallery_style, after),
            )


def _queries(emoji: EmojiSet) -> Iterator[QueryRow]:
    for task in _QUERY_TASKS:
        # With one style the query would be its own answer.
        if task == "emoji-style" and len(emoji.styles) < 2:
            continue

        for split in EVALUATED:
            for item in capped(emoji.one_each(split), task, split):
                yield _query(emoji, task, split, item)


def _query(emoji: EmojiSet, task: str, split: str, item: Emoji) -> QueryRow:
    by_text, to_group = task == "emoji-t2i", task == "emoji-group"
    galleries = {"emoji-i2t": "emoji-names", "emoji-group": "emoji-groups"}
    # Image to name is text to image read backwards, so there the name carries the instruction.
    instruction = INSTRUCTIONS["emoji-text"] if by_text else INSTRUCTIONS.get(task, "")

    return QueryRow(
        **item.labels(task),
        split=split,
        gallery=galleries.get(task, "emoji"),
        instruction=instruction,
        relevance=(item.group if to_group else item.slug,),
        answers=(item.group if to_group else item.name,),
        text=item.name if by_text else "",
        image=None if by_text else item.picture(emoji.query_style),
    )


def _tone_queries(emoji: EmojiSet) -> Iterator[QueryRow]:
    for split in EVALUATED:
        able = [item for item in emoji.one_each(split) if emoji.toned(item)]
        for turn, item in enumerate(capped(able, "emoji-tone", split)):
            # The edits take turns, so that each is asked about equally often.
            before, after = TONE_EDITS[turn % len(TONE_EDITS)]
            yield QueryRow(
                **item.labels("emoji-tone"),
                split=split,
                gallery="emoji-tones",
                relevance=(f"{item.slug}-{after}",),
                instruction=INSTRUCTIONS["emoji-tone"],
                text=TONE_TEMPLATE.format(after),
                image=item.picture(emoji.gallery_style, before),
                answers=(item.name,),
            )


def _candidates(emoji: EmojiSet, queries: list[QueryRow]) -> Iterator[CandidateRow]:
    items = {item.slug: item for item in emoji.items}

    right = {name for q in queries if q.gallery in ("emoji", "emoji-names") for name in q.relevance}
    fill = [item.slug for item in emoji.one_each("train") if item.slug not in right]
    # Right answers are always in; train concepts fill the gallery up to its size.
    for slug in sorted(right) + sorted(fill[: max(0, EMOJI_GALLERY_SIZE - len(right))]):
        item = items[slug]
        yield CandidateRow("emoji", slug, image=item.picture(emoji.gallery_style))
        yield CandidateRow("emoji-names", slug, item.name, instruction=INSTRUCTIONS["emoji-text"])

    for group in sorted({item.group for item in emoji.items}):
        yield CandidateRow("emoji-groups", group, text=group)

    # Only items that are asked about: all their tones are candidates.
    slugs = {q.relevance[0].rsplit("-", 1)[0] for q in queries if q.task == "emoji-tone"}
    for slug in sorted(slugs):
        for tone in TONES:
            picture = items[slug].picture(emoji.gallery_style, tone)
            yield CandidateRow("emoji-tones", f"{slug}-{tone}", image=picture)
