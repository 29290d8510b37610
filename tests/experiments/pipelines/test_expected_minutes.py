"""Expected minutes: of the last run, else of the pipeline file, else not known."""

from __future__ import annotations

from pathlib import Path

from experiments.pipeline import read_pipeline
from experiments.pipelines.expected_minutes import expected_minutes, total_line
from tests.fixtures.paths import REPO


def test_the_last_run_comes_before_the_file(tmp_path: Path) -> None:
    assert str(expected_minutes(tmp_path, None)) == "minutes not known"
    stated = expected_minutes(tmp_path, 2.7)
    assert str(stated) == "about 2.7 minutes (as the pipeline file states)"

    (tmp_path / "summary.json").write_text('{"seconds": 90.0, "metrics": {}}')
    run = expected_minutes(tmp_path, 2.7)
    assert str(run) == "about 1.5 minutes (as its last run took)"

    unknown = expected_minutes(tmp_path / "none", None)
    assert total_line([stated, run]) == "all stages: about 4.2 minutes"
    assert total_line([run, unknown]).endswith("without 1 stage whose minutes are not known")


def test_an_overlay_does_not_take_the_minutes_of_its_base(tmp_path: Path) -> None:
    base = REPO / "experiments/configs/pocket/pipeline.yaml"
    assert all(stage.minutes is not None for stage in read_pipeline(base).stages)
    overlay = tmp_path / "p.yaml"
    overlay.write_text(f"base: {base}\nexperiment: other\n")
    assert all(stage.minutes is None for stage in read_pipeline(overlay).stages)
