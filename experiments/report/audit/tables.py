"""The head of `audit.html`: its figures as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.report.audit.figures import AuditFigures, CandidateGroup, GainGroup
from experiments.report.pages.markup import Markup, bullets, element, join, table
from mmemb.retrieval.bootstrap import Interval

CANDIDATE_HEADINGS = (
    "", "candidates", "draws", "kept", "name the target", "of the kept", "false-helpful",
    "of the kept", "gain (nats)",
)  # fmt: skip
GAIN_HEADINGS = ("", "rows", "direct", "gain (nats)", "helped", "first before", "first after")


def summary(figures: AuditFigures) -> Markup:
    """The figures in sum."""
    workers = [figures.all_candidates, *figures.workers] if figures.workers else []
    return join(
        element("h2", "Swap test"),
        swap_sentence(figures.swap_test),
        element("h2", "Candidates of train pairs, by worker"),
        candidate_table(workers),
        element("h2", "Candidates of train pairs, by task"),
        candidate_table(figures.tasks),
        element("p", CANDIDATE_NOTE, class_="note"),
        element("h2", "Gain by difficulty"),
        element(
            "div",
            box("Train candidates, by a judge", figures.train_difficulty),
            box("Test queries, by the embedder", figures.test_difficulty),
            class_="boxes",
        ),
        element("p", DIFFICULTY_NOTE, class_="note"),
        element("h2", "Gain on fitted and on other facts"),
        fit_section(figures.fit),
    )


CANDIDATE_NOTE = (
    "Rates count distinct candidates (report.html counts draws). False-helpful: the rationale "
    "brings the target closer (positive > 0), but its hard negatives closer still (margin < 0). "
    "Intervals: 95 %, by bootstrap over concepts."
)
DIFFICULTY_NOTE = (
    "Thirds by the target's log-probability without a rationale. The gain is measured against "
    "that same figure, so a part of any fall from hardest to easiest is regression to the mean."
)
NO_SWAP = (
    "Cannot be shown: there is no selection-test/summary.json. Run the stage `selection-test` of "
    "the pipeline."
)
NO_FIT = (
    "Cannot be computed from these sidecars: train candidates are judged crosswise, so nothing "
    "fitted is among them, and no task has test queries on facts of both kinds in the embedder's "
    "fitted.json (the pocket's flag-capital-mixed would)."
)
FIT_NOTE = (
    "Test queries of tasks that have both kinds, by the embedder. Train candidates are judged "
    "crosswise: nothing fitted is among them."
)


def swap_sentence(swap: Mapping[str, float]) -> Markup:
    """Log-probability of the target with own, foreign and no rationale."""
    found = [swap.get(f"swap_{name}") for name in ("own", "foreign", "none")]
    if None in found:
        return element("p", NO_SWAP)
    own, foreign, none = (float(value or 0) for value in found)
    return bullets(
        [
            f"mean log-probability of the target: {own:.2f} with the own rationale, {foreign:.2f} "
            f"with a foreign one, {none:.2f} with none",
            f"own less foreign: {own - foreign:+.2f} nats (about 0 would mean that the judge does "
            "not read what the rationale says)",
            f"own less none: {own - none:+.2f} nats, over all candidates, kept or not",
        ]
    )


def candidate_table(groups: Sequence[CandidateGroup]) -> Markup:
    """One line a group."""
    lines = [
        [
            group.name,
            group.candidates,
            group.draws,
            percent(group.kept),
            percent(group.names_target),
            percent(group.names_target_kept),
            percent(group.false_helpful),
            percent(group.false_helpful_kept),
            nats(group.gain),
        ]
        for group in groups
    ]
    return table(CANDIDATE_HEADINGS, lines)


def box(title: str, groups: Sequence[GainGroup]) -> Markup:
    """A small table with its title."""
    return element("section", element("h3", title), gain_table(groups))


def gain_table(groups: Sequence[GainGroup]) -> Markup:
    """One line a group; ranks only where there are some."""
    ranked = any(group.first_before is not None for group in groups)
    lines = [
        [group.name, group.rows, f"{group.direct:.2f}", nats(group.gain), percent(group.helped)]
        + ([percent(group.first_before), percent(group.first_after)] if ranked else [])
        for group in groups
    ]
    return table(GAIN_HEADINGS if ranked else GAIN_HEADINGS[:5], lines)


def fit_section(groups: Sequence[GainGroup]) -> Markup:
    """Fitted against unfitted, or why not."""
    if not groups:
        return element("p", NO_FIT)
    return join(gain_table(groups), element("p", FIT_NOTE, class_="note"))


def percent(share: float | None) -> str:
    """`12.3 %`, or a dash for the share of nothing."""
    return "–" if share is None else f"{100 * share:.1f} %"


def nats(interval: Interval | None) -> str:
    """`+0.12 [-0.05, 0.30]`."""
    if interval is None:
        return "–"
    return interval.text(digits=2, sign="+")
