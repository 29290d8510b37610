"""Names of the files and links of a run and of an experiment: the whole layout in one place.

<runs>/<experiment>/                          ExperimentFolder
    <time>-gate-<commit>/                     RunFolder
        config.yaml  fingerprint.json  environment.json  summary.json  fitted.json  ranks.json
        adaptive/                             AdaptiveFolder
    gate -> <time>-gate-<commit>              the newest finished `fit`
    gate-test -> <time>-gate-test-<commit>    the newest finished `test`
    depth_values/                                a sidecar
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

CONFIG = "config.yaml"
MARK = "fingerprint.json"
FACTS = "fitted.json"
"""File with the facts of a run, of a sidecar, or of the weights beside it."""

RANKS = "ranks.json"
"""File with every query's rank, left by a test."""

LAST_CHECKPOINT = "last.ckpt"


def link_name(name: str, subcommand: str) -> str:
    """Returns the name of the link to the newest finished run of a stage.

    >>> link_name("trunk", "fit"), link_name("gate", "test")
    ('trunk', 'gate-test')
    >>> link_name("trained-test", "test")
    'trained-test'
    """
    # A stage that is only a test may be named as its link is.
    ending = f"-{subcommand}"
    return name if subcommand == "fit" or name.endswith(ending) else name + ending


def _below(name: str) -> property:
    """The path of a file or folder in a folder."""
    return property(lambda folder: folder.path / name)


@final
@dataclass(frozen=True, slots=True)
class AdaptiveFolder:
    """A saved AdaptiveEmbedder.

    Attributes:
        path: of the folder.
    """

    path: Path

    settings = _below("adaptive.json")
    """State, temperature, calibration and writers."""

    backbone = _below("backbone")
    """A saved backbone."""

    gate = _below("gate")
    """A saved head."""

    copied = _below("copied.json")
    """Fingerprint of the run whose backbone was copied."""


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, or a link to it.

    Attributes:
        path: of the folder or link.
    """

    path: Path

    config = _below(CONFIG)
    """The resolved configuration."""

    mark = _below(MARK)
    """Fingerprint, inputs and products; states whether the run has finished."""

    environment = _below("environment.json")
    """Commit, versions, owner and tags."""

    diff = _below("uncommitted.diff")
    """Uncommitted changes of the code."""

    summary = _below("summary.json")
    """Seconds and metrics."""

    facts = _below(FACTS)
    """Facts that the run was trained on."""

    checkpoints = _below("checkpoints")
    """Folder of all checkpoints."""

    @property
    def last_checkpoint(self) -> Path:
        """The state from which an interrupted fit goes on."""
        return self.checkpoints / LAST_CHECKPOINT

    backbone = _below("backbone")
    """Left by a fit of an embedder: a saved backbone."""

    generator = _below("generator")
    """Left by a fit of a writer: low-rank updates of its model."""

    selection = _below("selection.json")
    """Left by a fit of the selector: tau and eta."""

    @property
    def adaptive(self) -> AdaptiveFolder:
        """Left by a fit of the gate: the whole model."""
        return AdaptiveFolder(self.path / "adaptive")

    latency = _below("latency.json")
    """Left by a test of the gate: milliseconds of each depth."""

    ranks = _below(RANKS)
    """Left by a test that ranks: every query's rank and metrics."""

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

    features = _below("features")
    """Sidecar: outputs of frozen towers."""

    rationales = _below("rationales")
    """Sidecar of stage 1: all drafts."""

    selected = _below("selected")
    """Sidecar of stage 2: the drafts that were kept, with their weights."""

    depth_values = _below("depth_values")
    """Sidecar of stage 3: the value of each depth for each query."""

    decisions = _below("decisions")
    """Sidecar of stage 4: the depth that the gate chose for each query."""

    report = _below("report")
    """Link to the files of the newest report."""

    report_json = _below("report.json")
    """Link to the figures of the newest report."""
