"""Rows of profile `full` about emoji: animated clips, and queries drawn in an untrained style."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from datamodules.prepare.pocket.art import CLIP, NOTO, Picture
from datamodules.prepare.pocket.emoji import Emoji, EmojiSet
from datamodules.prepare.pocket.full_tasks import (
    CLIP_GALLERY,
    CLIP_INSTRUCTIONS,
    NUM_FRAMES,
    TRAIN_CLIP_GALLERY,
)
from datamodules.prepare.pocket.rows import CandidateRow, PairRow, QueryRow, Rows
from datamodules.prepare.pocket.splits import EVALUATED, capped
from datamodules.prepare.pocket.tasks import INSTRUCTIONS


def noto_queries(emoji: EmojiSet) -> list[QueryRow]:
    """Drawings in a style that no emoji is trained in, to be found in the gallery's style."""
    return [
        QueryRow(
            **item.labels("emoji-noto"),
            split=split,
            gallery="emoji",
            relevance=(item.slug,),
            instruction=INSTRUCTIONS["emoji-style"],
            answers=(item.name,),
            image=item.picture(NOTO),
        )
        for split in EVALUATED
        # The first of a split are those of emoji-t2i, so that the gallery holds them.
        for item in capped(emoji.one_each(split), "emoji-noto", split)
        if emoji.art.has(item.picture(NOTO))
    ]


def clip_rows(emoji: EmojiSet) -> Rows:
    """Clip to group and name to clip: pairs of train concepts, queries of the others."""
    pairs = [pair for item in emoji.one_each("train", CLIP) for pair in _pairs(item)]
    queries = [
        query
        for split in EVALUATED
        for item in emoji.one_each(split, CLIP)
        for query in _queries(item, split)
    ]

    # Training clips are candidates as well, so that the gallery is not only right answers.
    splits = ("train", *EVALUATED)
    everyone = sorted({item.slug: item for p in splits for item in emoji.one_each(p, CLIP)}.items())

    candidates = [CandidateRow(CLIP_GALLERY, slug, clip=_clip(item)) for slug, item in everyone]
    return Rows(plain=pairs, queries=queries, candidates=candidates)


def _clip(item: Emoji) -> tuple[Picture, ...]:
    still = item.picture(CLIP)
    return tuple(replace(still, frame=number) for number in range(NUM_FRAMES))


def _pairs(item: Emoji) -> Iterator[PairRow]:
    def pair(task: str, **fields: Any) -> PairRow:
        return PairRow(
            key=f"{task}-{item.slug[:50]}",
            **item.labels(task),
            instruction=CLIP_INSTRUCTIONS[task],
            **fields,
        )

    yield pair(
        "anim-t2v",
        source="clips",
        gallery=TRAIN_CLIP_GALLERY,
        text=item.name,
        target_name=item.slug,
        target_clip=_clip(item),
        answers=(item.name,),
    )
    yield pair(
        "anim-group",
        source="emoji-group",
        gallery="emoji-groups",
        clip=_clip(item),
        target_name=item.group,
        target_text=item.group,
        answers=(item.group,),
    )


def _queries(item: Emoji, split: str) -> Iterator[QueryRow]:
    def query(task: str, gallery: str, right: str, **fields: Any) -> QueryRow:
        return QueryRow(
            **item.labels(task),
            split=split,
            gallery=gallery,
            relevance=(right,),
            instruction=CLIP_INSTRUCTIONS[task],
            **fields,
        )

    yield query("anim-t2v", CLIP_GALLERY, item.slug, text=item.name, answers=(item.name,))
    yield query("anim-group", "emoji-groups", item.group, clip=_clip(item), answers=(item.group,))
