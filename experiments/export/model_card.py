"""The model card of an exported backbone: facts in, Markdown out; reads no file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from experiments.report.pages.markdown_page import markdown_table
from mmemb.retrieval.bootstrap import Interval


@final
@dataclass(frozen=True, slots=True)
class Ingredient:
    """A model or package that something was made of; empty strings where nothing is known."""

    name: str
    version: str = ""
    licence: str = ""

    @property
    def row(self) -> list[str]:
        """Of a table."""
        return [self.name, self.version or "-", self.licence or "not stated"]


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """A measured share between 0 and 1, with its 95 % interval where there is one."""

    name: str
    value: float
    interval: Interval | None = None

    @property
    def row(self) -> list[str]:
        """Of a table, in percent."""
        shown = self.interval.bounds(100, 1) if self.interval else "none"
        return [self.name, f"{100 * self.value:.1f}", shown]


@final
@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of an exported backbone.

    Attributes:
        name: of the run or folder.
        kind: class of the backbone.
        library: `transformers`, `sentence-transformers` or `peft`.
        reads: what the folder can read.
        usage: Python that makes vectors.
        export: the command that wrote the folder.
        notes: what is particular about this folder.
        base: models that training started from.
        hub_base: their ids on a hub, if they are from one.
        data: packages that the training data was made of.
        data_name: name of the data root, with its profile.
        figures: measured on this backbone; those of the direct path first.
        measured: where the figures are from.
        training: the command that trained it.
        commit: of the code.
        dirty: whether there were uncommitted changes.
        fingerprint: of settings and inputs.
        seed: of the run.
        versions: `package version`, of what decides numbers.
    """

    name: str
    kind: str
    library: str
    reads: tuple[str, ...]
    usage: str
    export: str
    notes: tuple[str, ...] = ()
    base: tuple[Ingredient, ...] = ()
    hub_base: tuple[str, ...] = ()
    data: tuple[Ingredient, ...] = ()
    data_name: str = ""
    figures: tuple[Figure, ...] = ()
    measured: str = ""
    training: str = ""
    commit: str = ""
    dirty: bool = False
    fingerprint: str = ""
    seed: str = ""
    versions: tuple[str, ...] = ()


def card(run: RunFacts) -> str:
    """The card: what it is, how it is used, what it was made of, how good it is, what it is not."""
    parts = [
        _front_matter(run),
        f"# {run.name}",
        f"A `{run.kind}` of mmemb-r1, exported for {run.library}. It maps {_listed(run.reads)} to "
        "unit vectors; their dot product is the similarity.",
        "**Direct path only.** The project's models can also embed a query after reading a "
        "rationale, and a gate decides when. Neither rationales nor gate are in this folder: these "
        "are the vectors of depth `direct`.",
        "\n".join(f"* {note}" for note in run.notes),
        f"## Use\n\n```python\n{run.usage.strip()}\n```",
        _made_of(run),
        _figures(run),
        _made_by(run),
        "## Fidelity\n\nThe method is a reconstruction of MMEmb-R1 (arXiv 2604.06156), made "
        "without the paper's body: its abstract and published figures were available, the rest is "
        "second-hand, inferred or our own. docs/fidelity.md of the project marks every part. No "
        "figure of the paper is claimed to be reproduced.",
        "## Intended use and limits\n\n"
        "* Meant for research on retrieval, for queries and candidates like those that it was "
        "trained on. Nothing is known about others.\n"
        "* Not checked for bias, for offensive content, or for use on people's pictures.\n"
        "* One training is one draw: an interval over concepts knows nothing of the training's "
        "luck.\n"
        "* Licences of the base models and of the data, above, hold for these weights too; the "
        "project's own code is Apache-2.0.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(run: RunFacts) -> str:
    lines = [f"library_name: {run.library}", "pipeline_tag: feature-extraction"]
    lines += ["license: other", "tags: [multimodal, embeddings, retrieval, mmemb-r1]"]
    if run.hub_base:
        lines.append(f"base_model: {json.dumps(list(run.hub_base), allow_nan=False)}")
    return "\n".join(["---", *lines, "---"])


def _made_of(run: RunFacts) -> str:
    headings = ("name", "version", "licence")
    lines = ["## Base model and data", "Started from:", "The run does not say from what."]
    if run.base:
        lines[2] = markdown_table(headings, [found.row for found in run.base])
    if run.data:
        lines += [
            f"Trained on data made of ({run.data_name}):",
            markdown_table(headings, [found.row for found in run.data]),
        ]
    else:
        name = f" ({run.data_name})" if run.data_name else ""
        lines.append(
            f"The training data{name} states no sources or licences: look them up before you "
            "publish these weights."
        )
    return "\n\n".join(lines)


def _figures(run: RunFacts) -> str:
    if not run.figures:
        return "## Figures\n\nNone were recorded for this backbone."
    table = markdown_table(("metric", "percent", "95 % interval"), _rows(run.figures))
    return f"## Figures\n\n{run.measured}\n\n{table}"


def _rows(figures: Sequence[Figure]) -> list[list[str]]:
    return [figure.row for figure in figures]


def _made_by(run: RunFacts) -> str:
    dirty = ", with uncommitted changes" if run.dirty else ""
    lines = [
        f"* trained by: `{run.training}`" if run.training else "* trained by: no run was found",
        f"* commit: {run.commit}{dirty}" if run.commit else "",
        f"* fingerprint of settings and inputs: {run.fingerprint}" if run.fingerprint else "",
        f"* seed: {run.seed}" if run.seed else "",
        f"* with: {', '.join(run.versions)}" if run.versions else "",
        f"* exported by: `{run.export}`",
    ]
    return "## How it was made\n\n" + "\n".join(line for line in lines if line)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
