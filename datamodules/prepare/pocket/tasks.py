"""The pocket benchmark as data: tasks, wordings, splits and caps, without files and pictures.

`datamodules.prepare pocket` builds what is listed here; docs/method.md sections 3 and 8
give the reasons for its cuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from mmemb.records.pairs import EvaluationTask

SPLIT_SHARES = {"train": 0.35, "gate": 0.15, "calibration": 0.10, "test": 0.40}
"""Share of each split in the concepts of one kind, cut exactly."""

VAL_SHARE = 0.1
"""Share of the train concepts that is monitored and never trained on."""

MIXED_SHARES = {"gate": 0.30, "calibration": 0.20, "test": 0.50}
"""Second cut of the train countries: who of them appears in which split of a mixed row."""

SPLIT = "cut-2"
"""Names the cut of the concepts. The first one was spent on development: learning rates, shares and
the gate's state were chosen while its test figures were seen. Change it only together with that
sentence, and before the new cut's figures are known."""

PROMPT_CONCEPTS = ("country:cl", "country:cn", "country:dk", "country:ir", "emoji:bread")
"""Concepts of the few-shot prompt: in `train` under every cut, and in no mixed row of the test."""

FLAG_GALLERY = "flags"
"""The evaluation gallery: flag-icons, a style that no training pair shows."""

TRAIN_FLAG_GALLERY = "flags-train"
"""Gallery of the training pairs: each flag in each training style (`fr-openmoji`, `fr-3d`); both
drawings of a flag are right wherever one is, so neither is the other's negative."""

TRAIN_EMOJI_GALLERY = "emoji-train"
"""The same for emoji. Plain pairs are not ranked, so this gallery is not in the table."""


@final
@dataclass(frozen=True, slots=True)
class Question:
    """One question type; `template` holds `{}` where the clue goes, if it has one."""

    task: str
    fact: str
    template: str

    def text(self, clue: str = "") -> str:
        """The query text.

        >>> Question("t", "capital", "whose capital is {}?").text("Paris")
        'whose capital is Paris?'
        """
        return self.template.format(clue)


TEXT_QUESTIONS = (
    Question("flag-capital-t2i", "capital", "the flag of the country whose capital is {}"),
    Question(
        "flag-capital2-t2i", "capital", "which country has {} as its capital city? find its flag"
    ),
    Question(
        "flag-language-t2i",
        "language",
        "the flag of the only country where {} is an official language",
    ),
    Question("flag-code-t2i", "code", "the flag of the country with the three-letter code {}"),
    Question("flag-currency-t2i", "currency", "the flag of the country whose currency is the {}"),
    Question("flag-native-t2i", "native", "the flag of the country that calls itself {}"),
    Question("flag-calling-t2i", "calling", "the flag of the country with the calling code +{}"),
)
"""Text to flag; these wordings are trained, on train countries only."""

MIXED_QUESTIONS = (
    Question(
        "flag-capital-mixed",
        "capital",
        "national flag flown at the seat of government in {}, a capital city",
    ),
    Question("flag-capital2-mixed", "capital", "the banner of the state that is governed from {}"),
    Question("flag-code-mixed", "code", "national flag of the state that forms abbreviate as {}"),
)
"""Wordings that are never trained; half of the countries were trained under another one."""

IMAGE_QUESTIONS = (
    Question("flag-capital", "capital", "what is the capital of the country with this flag?"),
    Question("flag-currency", "currency", "what is the currency of the country with this flag?"),
)
"""Flag and question to text."""

NAME_TEMPLATE = "the flag of {}"
NAME_VARIANTS = ("{}", "the flag of {}")
"""Wordings of flag names in training, in every style; tests ask with `NAME_TEMPLATE`."""

TONES = {"light": 0x1F3FB, "medium": 0x1F3FD, "dark": 0x1F3FF}
TONE_TEMPLATE = "the same with {} skin"

INSTRUCTIONS = {
    "text-flag": "Find the flag.",
    "flag-answer": "Answer the question about the flag.",
    "flag-continent": "Name the continent of the country with this flag.",
    "flag-style": "Find this flag in another drawing style.",
    "emoji-text": "Find the picture.",
    "emoji-style": "Find the same thing in another drawing style.",
    "emoji-group": "Name the group that this emoji belongs to.",
    "emoji-tone": "Find the picture after this edit.",
}

GROUPS = (
    "flags",
    "questions",
    "answers",
    "continent",
    "emoji-text",
    "emoji-style",
    "emoji-group",
    "emoji-tone",
)
"""Candidate spaces of the training pairs; a homogeneous group of a batch comes from one."""

_LESS_ASKED = {"train": 40, "gate": 25, "calibration": 20, "test": 50}
_FEW_PICTURES = {"val": 20, "gate": 30, "calibration": 30, "test": 100}
CAPS: Mapping[str, Mapping[str, int]] = {
    "flag-currency-t2i": _LESS_ASKED,
    "flag-native-t2i": _LESS_ASKED,
    "flag-calling-t2i": _LESS_ASKED,
    "emoji-t2i": {"val": 60, "gate": 100, "calibration": 100, "test": 200},
    "emoji-i2t": _FEW_PICTURES,
    "emoji-style": _FEW_PICTURES,
    "emoji-group": _FEW_PICTURES,
    "emoji-tone": {"train": 80} | _FEW_PICTURES,
}
"""At most so many rows per split, the first by hash; tasks and splits not listed are whole."""

EMOJI_GALLERY_SIZE = 700
"""Candidates of `emoji`: the right answers of all splits, filled up with train concepts."""


TASKS = (
    EvaluationTask("emoji-group", "I-CLS", "emoji-groups"),
    EvaluationTask("flag-continent", "I-CLS", "continents"),
    # The reasoner of `mini` reads text only: I-QA is "think" in
    # `datamodules.prepare.pocket.full_tasks`.
    EvaluationTask("flag-capital", "I-QA", "capitals"),
    EvaluationTask("flag-currency", "I-QA", "currencies"),
    EvaluationTask("emoji-t2i", "I-RET", "emoji"),
    EvaluationTask("emoji-i2t", "I-RET", "emoji-names"),
    EvaluationTask("emoji-style", "I-RET", "emoji"),
    EvaluationTask("emoji-tone", "I-RET", "emoji-tones"),
    EvaluationTask("flag-name", "I-RET", FLAG_GALLERY, seen_answer=True),
    EvaluationTask("flag-capital-t2i", "I-RET", FLAG_GALLERY, think=True),
    EvaluationTask("flag-capital2-t2i", "I-RET", FLAG_GALLERY, think=True),
    EvaluationTask("flag-language-t2i", "I-RET", FLAG_GALLERY, think=True),
    EvaluationTask("flag-code-t2i", "I-RET", FLAG_GALLERY, think=True),
    EvaluationTask("flag-currency-t2i", "I-RET", FLAG_GALLERY),
    EvaluationTask("flag-native-t2i", "I-RET", FLAG_GALLERY),
    EvaluationTask("flag-calling-t2i", "I-RET", FLAG_GALLERY),
    EvaluationTask("flag-capital-mixed", "I-RET", FLAG_GALLERY, think=True, seen_answer=True),
    EvaluationTask("flag-capital2-mixed", "I-RET", FLAG_GALLERY, think=True, seen_answer=True),
    EvaluationTask("flag-code-mixed", "I-RET", FLAG_GALLERY, think=True, seen_answer=True),
)
"""All tasks of profile `mini`: real as shipped (templated questions, templated tone edit)."""
