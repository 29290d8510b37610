"""Names of the files and links of a run and of an experiment: the whole layout in one place.

<runs>/<experiment>/                          ExperimentFolder
    <time>-gate-<commit>/                     RunFolder
        config.yaml  fingerprint.json  environment.json  summary.json  fitted.json
        adaptive/                             AdaptiveFolder
    gate -> <time>-gate-<commit>              the newest finished `fit`
    gate-test -> <time>-gate-test-<commit>    the newest finished `test`
    utilities/                                a sidecar
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

CONFIG = "config.yaml"
MARK = "fingerprint.json"
FACTS = "fitted.json"
"""File with the facts of a run, of a sidecar, or of the weights beside it."""

LAST_CHECKPOINT = "last.ckpt"


def link_name(name: str, subcommand: str) -> str:
    """Returns the name of the link to the newest finished run of a stage.

    >>> link_name("trunk", "fit"), link_name("gate", "test")
    ('trunk', 'gate-test')
    """
    return name if subcommand == "fit" else f"{name}-{subcommand}"


@final
@dataclass(frozen=True, slots=True)
class AdaptiveFolder:
    """A saved AdaptiveEmbedder.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """State, temperature, thresholds and writers."""
        return self.path / "adaptive.json"

    @property
    def backbone(self) -> Path:
        """A saved backbone."""
        return self.path / "backbone"

    @property
    def gate(self) -> Path:
        """A saved head."""
        return self.path / "gate"

    @property
    def copied(self) -> Path:
        """Fingerprint of the run whose backbone was copied."""
        return self.path / "copied.json"


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, or a link to it.

    Attributes:
        path: of the folder or link.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def mark(self) -> Path:
        """Fingerprint, inputs and products; states whether the run has finished."""
        return self.path / MARK

    @property
    def environment(self) -> Path:
        """Commit, versions, owner and tags."""
        return self.path / "environment.json"

    @property
    def diff(self) -> Path:
        """Uncommitted changes of the code."""
        return self.path / "uncommitted.diff"

    @property
    def summary(self) -> Path:
        """Seconds and metrics."""
        return self.path / "summary.json"

    @property
    def facts(self) -> Path:
        """Facts that the run was trained on."""
        return self.path / FACTS

    @property
    def checkpoints(self) -> Path:
        """Folder of all checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The state from which an interrupted fit goes on."""
        return self.checkpoints / LAST_CHECKPOINT

    @property
    def backbone(self) -> Path:
        """Left by a fit of an embedder: a saved backbone."""
        return self.path / "backbone"

    @property
    def generator(self) -> Path:
        """Left by a fit of a writer: low-rank updates of its model."""
        return self.path / "generator"

    @property
    def selection(self) -> Path:
        """Left by a fit of the selector: tau and eta."""
        return self.path / "selection.json"

    @property
    def adaptive(self) -> AdaptiveFolder:
        """Left by a fit of the gate: the whole model."""
        return AdaptiveFolder(self.path / "adaptive")

    @property
    def latency(self) -> Path:
        """Left by a test of the gate: milliseconds of each depth."""
        return self.path / "latency.json"

    @property
    def test(self) -> RunFolder:
        """The newest finished test of a stage whose fit this link names."""
        return RunFolder(self.path.with_name(link_name(self.path.name, "test")))


@final
@dataclass(frozen=True, slots=True)
class ExperimentFolder:
    """The folder of an experiment: links to its newest runs, and the sidecars that they wrote.

    Attributes:
        path: of the folder.
    """

    path: Path

    def run(self, name: str, subcommand: str = "fit") -> RunFolder:
        """Returns the link to the newest finished run of a stage."""
        return RunFolder(self.path / link_name(name, subcommand))

    @property
    def embedder(self) -> RunFolder:
        """Stage 3."""
        return self.run("embedder")

    @property
    def gate(self) -> RunFolder:
        """Stage 4."""
        return self.run("gate")

    @property
    def gate_test(self) -> RunFolder:
        """The test of stage 4."""
        return self.gate.test

    @property
    def selection_test(self) -> RunFolder:
        """The test of stage 2."""
        return self.run("selection", "test")

    @property
    def features(self) -> Path:
        """Sidecar: outputs of frozen towers."""
        return self.path / "features"

    @property
    def rationales(self) -> Path:
        """Sidecar of stage 1: all drafts."""
        return self.path / "rationales"

    @property
    def selected(self) -> Path:
        """Sidecar of stage 2: the drafts that were kept, with their weights."""
        return self.path / "selected"

    @property
    def utilities(self) -> Path:
        """Sidecar of stage 3: the value of each depth for each query."""
        return self.path / "utilities"

    @property
    def decisions(self) -> Path:
        """Sidecar of stage 4: the depth that the gate chose for each query."""
        return self.path / "decisions"

    @property
    def report(self) -> Path:
        """Link to the files of the newest report."""
        return self.path / "report"

    @property
    def report_json(self) -> Path:
        """Link to the figures of the newest report."""
        return self.path / "report.json"
