"""The report as text: `report.md`, and the table that a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.policies.swap import swap_line
from mmemb.retrieval.bootstrap import FEW_CLUSTERS, MIN_CLUSTERS, Interval

HEADINGS = (
    "row",
    "Recall@1",
    "Recall@5",
    "Recall@10",
    "hit@1",
    "inv. eligible",
    "inv. all",
    "tokens/query",
    "ms/query",
)


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """One line of a table, formatted."""
    quality = [interval(row[metric]) for metric in ("recall@1", "recall@5", "recall@10", "hit@1")]
    milliseconds = f"{row['latency_ms']:.0f}" if "latency_ms" in row else "-"
    ratios = [f"{100 * row[key]:.0f} %" for key in ("invocation", "invocation_all")]
    return [name, *quality, *ratios, f"{row['reasoning_tokens']:.1f}", milliseconds]


def interval(data: Mapping[str, Any]) -> str:
    """`21.6 [18.0, 25.1]`, in points."""
    return Interval.from_row(data).text(100, 1)


def effect_points(effect: float | None) -> str:
    """A minimal detectable effect in points, or a dash where too few clusters were drawn from."""
    return "-" if effect is None else f"{100 * effect:.1f}"


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads as plain text too."""
    widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
    rows = [headings, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def mix_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the mix, one line a policy."""
    return markdown_table(HEADINGS, [cells(name, row) for name, row in rows.items()])


def page(report: Mapping[str, Any], study: str = "") -> str:
    """The whole of `report.md`; `study` is what was found out about gates."""
    parts = [
        f"# {report['experiment']}: does reasoning pay?",
        introduction(report),
        "## All tasks with eligible queries (part test)",
        mix_table(report["mix"]),
        "![quality against cost](report.png)",
        frontier_words(report),
        "## Comparisons in Recall@1",
        comparisons(report["comparisons"]),
        verdict(report["comparisons"]),
        *(("## What a gate can see", study) if study else ()),
        "## Last hop and selection",
        bars(report),
        *([table] if (table := workers_table(report["selection"])) else []),
        "## Per task",
        *(
            f"### {name}{marks(task)}\n\n{mix_table(task['rows'])}"
            for name, task in report["tasks"].items()
        ),
        "## Provenance",
        provenance(report),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(report: Mapping[str, Any]) -> str:
    """What the reader must know before reading a figure."""
    eligible, told = report["eligible_queries"], report["told_queries"]
    pictures = "so image queries are always embedded directly"
    if told:
        pictures = (
            f"and for {told} of the queries it was told what a picture or clip shows, in the words "
            "that an embedder trained on names found nearest; never the truth"
        )
    return (
        f"{report['queries']} test queries of {report['concepts']} concepts, {eligible} of them "
        f"eligible (the worker can read them). The reasoner is text-only: it never sees a picture, "
        f"{pictures}. Intervals are 95 %, by bootstrap over "
        f"concepts, whose number stands beside one if they are fewer than {FEW_CLUSTERS} (below "
        f"{MIN_CLUSTERS} there is no interval); every mean over tasks weighs tasks equally. Tokens "
        "and milliseconds are per query of the table's mix; milliseconds come from "
        f"{report['latency']['queries']} queries measured live, one at a time, worker included: "
        + latency_words(report["depths"], report["latency"])
    )


def frontier_words(report: Mapping[str, Any]) -> str:
    """The area under the frontier, and whether there is overthinking."""
    best = report["overthinking"]
    gain = best["minus_all"]
    is_better = Interval.from_row(gain).is_above(0)
    verdict = "there is overthinking" if is_better else "overthinking is not shown"
    return (
        f"Area under the frontier: {interval(report['frontier_area'])} points of Recall@1. The "
        f"budget that is best on calibration lets {100 * best['invocation']:.0f} % of the eligible "
        f"test queries reason ({best['tokens']:.1f} tokens a query) and gains {interval(gain)} "
        f"points over spending everything: {verdict}. Where it costs as much as the per-task rule, "
        f"the frontier is {interval(report['at_rules_cost'])} points from it."
        + graded_words(report.get("graded"))
    )


def graded_words(graded: Mapping[str, Any] | None) -> str:
    """Whether more than two depths pay."""
    if graded is None:
        return ""
    return (
        f"\n\nGraded depth: area {interval(graded['graded']['area'])}, a binary gate fitted alike "
        f"{interval(graded['binary']['area'])}; graded minus binary, mean of "
        f"{len(graded['seeds'])} seeds, {interval(graded['graded_minus_binary'])} points."
    )


def latency_words(depths: Sequence[str], latency: Mapping[str, Any]) -> str:
    """Milliseconds of every depth, and of a decision."""
    words = [f"{ms:.0f} ms {name}" for name, ms in zip(depths, latency["depth_ms"], strict=True)]
    return f"{', '.join(words)}; {latency['decided_ms']:.0f} ms direct with the gate's decision."


def marks(task: Mapping[str, Any]) -> str:
    """` (I-RET, think, answers seen)`."""
    named = [task["meta_task"], "derived" if task["origin"] == "D" else ""]
    named += ["think" if task["think"] else "", "answers seen" if task["seen_answer"] else ""]
    return f" ({', '.join(name for name in named if name)})"


def comparisons(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a comparison."""
    lines = [
        [
            f"{name} ({row['left']} - {row['right']})",
            interval(row),
            reading(row),
            effect_points(row["minimal_detectable_effect"]),
            str(row["queries"]),
        ]
        for name, row in found.items()
    ]
    headings = ["comparison", "points", "that is", "detectable effect", "queries"]
    return markdown_table(headings, lines)


def reading(row: Mapping[str, Any]) -> str:
    """What an interval shows; not inferior means by less than two points (METHOD 8)."""
    found = Interval.from_row(row)
    if found.low is None:
        return "no interval"
    if found.is_above(0):
        return "better"
    if found.is_below(0):
        return "worse" if not row["non_inferior"] else "worse, by less than 2 points"
    return "not inferior" if row["non_inferior"] else "open"


def verdict(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The honest sentence about deciding per query."""
    rule, shuffled = (
        rows["gated minus per-task rule"],
        rows["gated minus itself shuffled within tasks"],
    )
    over_rule, over_shuffled = Interval.from_row(rule), Interval.from_row(shuffled)
    if over_rule.low is None:
        return (
            f"{over_rule.clusters} concepts are too few for an interval: this run shows nothing "
            "about deciding per query."
        )
    if over_rule.is_below(0):
        return (
            "The gate is WORSE than the best constant depth per task: what it adds to knowing the "
            "task is noise. Use the per-task rule here."
        )
    if over_rule.is_above(0) and over_shuffled.is_above(0):
        return (
            "The gate beats the best constant depth per task and itself with decisions shuffled "
            "within tasks, both with intervals above 0: it decides per query."
        )
    if over_rule.is_above(0):
        return (
            "The gate beats the best constant depth per task, with an interval above 0, but not "
            "itself with its decisions shuffled within tasks: it chooses other depths for tasks "
            "than the rule does, perhaps for more tokens; that it picks the right queries of a "
            "task is not shown (effects below "
            f"{effect_points(shuffled['minimal_detectable_effect'])} points were out of reach)."
        )
    return (
        "The interval of gated minus per-task rule holds 0: nothing here shows that the gate does "
        "more than recognise tasks, and no claim of deciding per query can be made from this run "
        f"(effects below {effect_points(rule['minimal_detectable_effect'])} points were out of "
        "reach)."
    )


def bars(report: Mapping[str, Any]) -> str:
    """The last hop, the selection, and how the judge took foreign rationales."""
    selection, lines = report["selection"], []
    if report.get("flag_name"):
        name = report["flag_name"]
        lines.append(f"* flag-name over all {name['queries']} names, direct: {interval(name)}.")
    lines.append(
        "* Nothing was selected in this experiment; its embedder comes from another one."
        if selection is None
        else f"* Candidates on part train that name the right country: "
        f"{100 * selection['right']:.1f} % of all {selection['candidates']}, "
        f"{100 * selection['right_kept']:.1f} % of the kept, at a keep rate of "
        f"{100 * selection['keep_rate']:.1f} % (difference "
        f"{selection_gain(selection).text(100, 1)} points, {selection['concepts']} concepts)."
    )
    for name, value in report.get("swap_test", {}).items():
        lines.append(f"* {name}: {value:.3f}")
    if report.get("swap_cosines"):
        lines.append(swap_line(report["swap_cosines"]))
    return "\n".join(lines)


def selection_gain(selection: Mapping[str, Any]) -> Interval:
    """Gain of selection in the share of candidates that name the right country."""
    figures = (selection[name] for name in ("gain", "gain_low", "gain_high", "concepts"))
    return Interval(*figures)


def workers_table(selection: Mapping[str, Any] | None) -> str:
    """What each worker of a pool gave to it, by draw, and what was kept; empty for one worker."""
    workers: Mapping[str, Mapping[str, int]] = (selection or {}).get("workers", {})
    if len(workers) < 2:
        return ""
    headings = ("worker", "drawn", "name the target", "kept", "kept and name it")
    lines = [
        [
            name,
            str(row["drawn"]),
            _share(row["right"], row["drawn"]),
            _share(row["kept"], row["drawn"]),
            _share(row["right_kept"], row["kept"]),
        ]
        for name, row in workers.items()
    ]
    return markdown_table(headings, lines)


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else str(part)


def provenance(report: Mapping[str, Any]) -> str:
    """Commit, versions, time."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    dirty = ", with uncommitted changes" if report["uncommitted_changes"] else ""
    return f"Commit {report['git_commit'] or 'unknown'}{dirty}; {versions}; {report['written']}."
