"""Emoji items, grouped into concepts that never lie in two splits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from datamodules.prepare.pocket.art import FLUENT, OPENMOJI, Art, Picture, sequence
from datamodules.prepare.pocket.splits import Split, by_hash
from datamodules.prepare.pocket.tasks import TONES
from mmemb.records.schema import Excerpt, parse_json

NAMES_MEMBER = "data-by-emoji.json"
WORDS_MEMBER = "dist/emoji-en-US.json"
_WHO = re.compile(r"^(man|woman|person|men|women|people)( with | in | |: )")
_COUPLES = re.compile(r"^(family|kiss|couple with heart)\b.*")
_FACING = re.compile(r" facing right$")


@final
@dataclass(frozen=True)
class Emoji:
    """One emoji without its skin tones.

    Attributes:
        slug: its name in galleries.
        concept: what splits are cut by: `man cook` and `woman cook` are drawn alike, so they are
            one concept, as are all styles and skin tones.
        words: keywords, if their source is there.
    """

    slug: str
    concept: str
    name: str
    group: str
    points: tuple[int, ...]
    words: tuple[str, ...]
    has_tones: bool

    def labels(self, task: str) -> dict[str, str]:
        """Fields that name task, concept and fact in every row about it."""
        fact = f"emoji:{self.slug}/{task.removeprefix('emoji-')}"
        return {"task": task, "concept": self.concept, "fact": fact}

    def picture(self, style: str, tone: str = "") -> Picture:
        """The drawing in a style; the tone follows the first code point, as Unicode has it."""
        toned = (TONES[tone],) if tone else ()
        points = [point for point in self.points if point != 0xFE0F]
        return Picture(style, sequence([points[0], *toned, *points[1:]]))


@final
@dataclass(frozen=True)
class EmojiSet:
    """Emoji that can be drawn in every available style, and how they are cut.

    Attributes:
        gallery_style: style of the evaluation candidates.
        query_style: style of query pictures; the same one if there is no other.
    """

    items: list[Emoji]
    split: Split
    art: Art
    gallery_style: str
    query_style: str

    @classmethod
    def of(cls, items: list[Emoji], art: Art) -> EmojiSet:
        """Keeps what every available style can draw, and cuts its concepts."""
        styles = [style for style in (FLUENT, OPENMOJI) if art.sources.get(style)]
        # Every style must show the emoji, or the style tasks would compare it with nothing.
        shown = [e for e in items if all(art.has(e.picture(style)) for style in styles)]

        split = Split.of((e.concept for e in shown), "emoji")
        return cls(shown, split, art, styles[0], styles[-1])

    @property
    def styles(self) -> list[str]:
        """The styles that training pairs show."""
        return sorted({self.gallery_style, self.query_style})

    def of_split(self, split: str) -> list[Emoji]:
        """The emoji of a split, in hash order."""
        members = {e.slug: e for e in self.items if self.split.split_of[e.concept] == split}
        return [members[slug] for slug in by_hash(members, f"emoji/{split}")]

    def one_each(self, split: str, style: str | None = None) -> list[Emoji]:
        """One emoji per concept of a split: evaluation is not filled with near duplicates.

        Args:
            split: of the concepts.
            style: only emoji that are drawn in it; None = all.
        """
        # The first by hash order stands for its concept.
        first: dict[str, Emoji] = {}
        for emoji in self.of_split(split):
            if style is None or self.art.has(emoji.picture(style)):
                first.setdefault(emoji.concept, emoji)
        return list(first.values())

    def toned(self, emoji: Emoji) -> bool:
        """Tells whether every tone that is asked for can be drawn."""
        pictures = [emoji.picture(self.gallery_style, tone) for tone in TONES]
        return emoji.has_tones and all(map(self.art.has, pictures))


@final
class _EmojiJson(Excerpt):
    """An emoji in the package of names."""

    name: str
    slug: str
    group: str
    skin_tone_support: bool


def read_emoji(names: Mapping[str, bytes], words: Mapping[str, bytes]) -> list[Emoji]:
    """All emoji but flags, which belong to the flag-* tasks only."""
    rows = parse_json(names[NAMES_MEMBER], dict[str, _EmojiJson], NAMES_MEMBER)

    keywords: dict[str, list[str]] = {}
    if words:
        keywords = parse_json(words[WORDS_MEMBER], dict[str, list[str]], WORDS_MEMBER)

    return [
        _emoji(character, row, keywords.get(character, []))
        for character, row in rows.items()
        if row.group != "Flags"
    ]


def family(name: str) -> str:
    """Concept of a name, without the person who acts and the direction that it faces.

    >>> family("woman in steamy room"), family("family man, boy"), family("red apple")
    ('steamy room', 'family', 'red apple')
    """
    shorter = _FACING.sub("", _COUPLES.sub(r"\1", name))
    return _WHO.sub("", shorter).strip() or name


def _emoji(character: str, row: _EmojiJson, words: list[str]) -> Emoji:
    slug = row.slug.replace("_", "-")
    concept = "emoji:" + "-".join(family(row.name).split())
    # The first keyword is the name again.
    keywords = tuple(word.replace("_", " ") for word in words[1:] if word.isascii())
    return Emoji(
        slug=slug,
        concept=concept,
        name=row.name,
        group=row.group,
        points=tuple(map(ord, character)),
        words=keywords,
        has_tones=row.skin_tone_support,
    )
