"""Sweeps: one fit for each combination of values, each with a name and a result of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.pipelines.sweep import Axis, read_sweep, result_table, sweep, swept_runs
from experiments.runs.run_files import RunSummary
from tests.fixtures.tiny_experiment import REPO, write_experiment

LR = Axis("model.optimizer.lr", ("1e-4", "3e-4"))


def test_runs_are_all_combinations_with_their_values_in_the_name() -> None:
    rest, axes = read_sweep(
        [
            "fit",
            "--sweep",
            "model.optimizer.lr=1e-4,3e-4",
            "--tags",
            "a",
            "--sweep=losses.dims=[8],[8, 16]",
        ]
    )
    assert rest == ["fit", "--tags", "a"]
    assert axes == [LR, Axis("losses.dims", ("[8]", "[8, 16]"))]

    runs = swept_runs(rest, axes, "trunk")
    assert [run.name for run in runs] == [
        "trunk-lr=1e-4-dims=8", "trunk-lr=1e-4-dims=8_16",
        "trunk-lr=3e-4-dims=8", "trunk-lr=3e-4-dims=8_16",
    ]  # fmt: skip
    assert runs[3].command == [
        *rest, "--model.optimizer.lr=3e-4", "--losses.dims=[8, 16]", "--name", runs[3].name,
    ]  # fmt: skip


def test_two_keys_that_end_alike_are_named_whole() -> None:
    axes = [Axis("model.gate.lr", ("1",)), Axis("model.optimizer.lr", ("2",))]
    (run,) = swept_runs(["fit"], axes, "x")
    assert run.name == "x-model.gate.lr=1-model.optimizer.lr=2"


@pytest.mark.parametrize("text", ["", "lr", "=1", "lr=", "lr=[1,2"])
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a setting and its values, such as"):
        Axis.read(text)


def test_quotes_that_keep_a_comma_are_no_part_of_a_text() -> None:
    """A setting that is a text would hold them; where they decide what is meant, they stay."""
    axis = Axis.read("owner=" + """ "a,b",'c',"1","null","x: y" """)
    assert axis.values == ("a,b", "c", '"1"', '"null"', '"x: y"')


def test_a_key_that_is_swept_twice_is_refused() -> None:
    """The last value would count, in a run whose name holds both."""
    for key in ("model.lr", "model.init_args.lr"):
        with pytest.raises(ValueError, match=r"--sweep names model\.lr twice: put all its values"):
            swept_runs(["fit"], [Axis("model.lr", ("1",)), Axis(key, ("2",))], "x")


def test_a_sweep_that_would_mix_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a/b and a\?b would both be the run x-k=a_b"):
        swept_runs(["fit"], [Axis("k", ("a/b", "a?b"))], "x")
    with pytest.raises(ValueError, match="write fit in front"):
        sweep(["test"], [LR])

    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "2", "RANK": "0"})
    with pytest.raises(ValueError, match="started several ranks"):
        sweep(["fit"], [LR])


def test_the_table_has_the_metrics_of_each_run_and_names_its_result() -> None:
    runs = swept_runs(["fit"], [LR], "x")
    summary = RunSummary(seconds=60.0, metrics={"train/loss": 0.5, "train/other": 2.0})
    table = result_table(
        [LR], [(runs[0], summary, "a/summary.json"), (runs[1], RunSummary(), "failed")]
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["model.optimizer.lr", "train/loss", "minutes", "result"]
    assert cells[2] == ["1e-4", "0.5", "1.0", "a/summary.json"]
    assert cells[3] == ["3e-4", "-", "-", "failed"]


@pytest.mark.slow
def test_a_sweep_runs_each_fit_once_and_goes_on_after_a_failure(
    tiny_root: Path, tmp_path: Path
) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    command = experiment.command("trunk", "--runs", str(experiment.runs))
    command += ["--sweep", "model.optimizer.lr=1e-3,-1,1e-4"]

    outputs = []
    for _ in range(2):
        words = [sys.executable, "-m", "experiments.run", *command]
        done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "error: 1 of 3 runs failed (trunk-lr=-1)" in done.stderr, done.stderr[-3000:]
        outputs.append(done.stdout)

    losses = {}
    for value in ("1e-3", "1e-4"):
        summary = experiment.folder / f"trunk-lr={value}/summary.json"
        losses[value] = json.loads(summary.read_text())["metrics"]["train/loss"]
        assert f"trunk-lr={value}: done before" not in outputs[0]
        assert f"trunk-lr={value}: done before" in outputs[1]
        assert all(str(summary) in output for output in outputs)
    assert losses["1e-3"] != losses["1e-4"]
