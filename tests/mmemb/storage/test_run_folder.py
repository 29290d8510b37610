"""Names of runs and experiments are those that lie on disks already."""

from __future__ import annotations

from pathlib import Path

from mmemb.storage.provenance import git_state, package_versions
from mmemb.storage.run_folder import ExperimentFolder, RunFolder


def test_links_of_stages() -> None:
    pocket = ExperimentFolder(Path("runs/pocket"))
    assert pocket.run("trunk").backbone == Path("runs/pocket/trunk/backbone")
    assert pocket.gate.adaptive.gate == Path("runs/pocket/gate/adaptive/gate")
    assert pocket.gate_test.latency == Path("runs/pocket/gate-test/latency.json")
    assert pocket.selection_test == RunFolder(Path("runs/pocket/selection-test"))
    assert RunFolder(Path("runs/x")).last_checkpoint == Path("runs/x/checkpoints/last.ckpt")


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == ("", "")
    assert package_versions().keys() >= {"python", "torch"}
