"""A writer that looks facts up in a table: an upper bound on what rationales can gain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from mmemb.rationales.writers.base import DrawingWriter
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale
from mmemb.records.schema import Excerpt, parse_json

WRITER = "table"


@final
class TableWriter(DrawingWriter):
    """Looks the answer up in a table.

    Its rationales have `writer="table"`, so that reports can tell them from those of a model. All
    draws are equal and cost no token. A text that is no question of the table gets no rationale.

    Args:
        facts: path of `facts.json`, as prepare writes it: `questions` maps a query text to the
            code of its answer, `countries` maps a code to a row with a `name`.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("facts",)

    name = WRITER

    def __init__(self, facts: str) -> None:
        self.path = str(facts)
        self._names, self._revision = _read_facts(Path(facts))

    def config(self) -> dict[str, Any]:
        return {"facts": self.path}

    def identity(self) -> str:
        return f"{stable_hash(WRITER, self._revision, bits=64):016x}"

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale | None]:
        return [self._rationale(side.text, seed) for side, seed in seeded_sides]

    def _rationale(self, text: str, seed: int) -> Rationale | None:
        name = self._names.get(text)
        if name is None:
            return None

        # No prompt and no tokens: a lookup costs nothing, and reports must see that.
        return Rationale(
            text=f"<think>{text} means {name}.</think><answer>{name}</answer>",
            writer=WRITER,
            model=WRITER,
            revision=self._revision,
            prompt="",
            decoding="greedy" if seed == GREEDY else "constant",
            seed=seed,
            num_tokens=0,
        )


@final
class _CountryJson(Excerpt):
    name: str


@final
class _FactsJson(Excerpt):
    """The fields of `facts.json` that the writer reads."""

    questions: dict[str, str]
    countries: dict[str, _CountryJson]


def _read_facts(path: Path) -> tuple[dict[str, str], str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no table of facts {path}. `python -m datamodules.prepare pocket` writes it "
            "as facts.json into its output folder."
        ) from None

    where = f"The table of facts {path} cannot be used"
    advice = (
        "Expected a JSON object with `questions` (query text -> code) and `countries` (code -> "
        "row with a name)."
    )
    facts = parse_json(content, _FactsJson, where, advice)

    if unknown := [code for code in facts.questions.values() if code not in facts.countries]:
        raise ValueError(f"{where}: it has no country {unknown[0]!r}. {advice}")

    names = {question: facts.countries[code].name for question, code in facts.questions.items()}
    return names, hashlib.sha256(content).hexdigest()[:12]
