"""Mistakes of users: one paragraph that names what was wrong, where, and what was meant."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from experiments.cli.config_check import check_config_files
from experiments.run import is_of_lightning
from tests.fixtures.tiny_experiment import POCKET, Experiment, run, write_experiment

TRUNK = POCKET / "trunk.yaml"


@pytest.fixture(autouse=True)
def tracebacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks are written into the test's own folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a pocket YAML file after `change(data)`."""

    def edit(change: Callable[[dict[str, Any]], Any], name: str = "trunk") -> Path:
        data = yaml.safe_load((POCKET / f"{name}.yaml").read_text())
        change(data)
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return edit


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a user reads: our own paragraph, or the parser's on standard error."""
    with pytest.raises(SystemExit) as raised:
        run(arguments)
    text = raised.value.code if isinstance(raised.value.code, str) else capsys.readouterr().err
    assert raised.value.code not in (None, 0)
    assert "Traceback (most recent call last)" not in text
    return text


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "top level": (lambda d: d.update(trainr={}), r"unknown key trainr\. Did you mean trainer\?"),
    "trainer": (
        lambda d: d["trainer"].update(max_stepz=3),
        r"unknown key trainer\.max_stepz\. Did you mean max_steps\?",
    ),
    "needs": (lambda d: d["needs"].update(disc_gib=3), r"needs\.disc_gib\. Did you mean disk_gib"),
    "model": (
        lambda d: d["model"]["init_args"].update(temprature=0.1),
        r"model\.init_args\.temprature\. Did you mean loss_temperature\?",
    ),
    "data": (
        lambda d: d["data"]["init_args"].update(bach_size=2),
        r"data\.init_args\.bach_size\. Did you mean batch_size\?",
    ),
    "nested": (
        lambda d: d["model"]["init_args"]["backbone"]["init_args"].update(max_framez=2),
        r"backbone\.init_args\.max_framez\. Did you mean max_frames\?",
    ),
    "optimiser": (
        lambda d: d["model"]["init_args"]["optimizer"]["init_args"].update(weight_dekay=2),
        r"optimizer\.init_args\.weight_dekay\. Did you mean weight_decay\?",
    ),
    "callback": (
        lambda d: d["trainer"]["callbacks"][0].update(init_args={"kk": [1]}),
        r"trainer\.callbacks\.0\.init_args\.kk\. ",
    ),
    "a class": (
        lambda d: d["model"].update(class_path="lightning_modules.ContrastiveEmbeder"),
        r"lightning_modules has no ContrastiveEmbeder\. Did you mean ContrastiveEmbedder\?",
    ),
    "a data module": (
        lambda d: d["data"].update(class_path="datamodules.PairDatamodule"),
        r"datamodules has no PairDatamodule\. Did you mean PairDataModule\?",
    ),
    "a backbone": (
        lambda d: d["model"]["init_args"]["backbone"].update(
            class_path="mmemb.backbones.JointEncodr"
        ),
        r"mmemb\.backbones has no JointEncodr\. Did you mean JointEncoder\?",
    ),
    "a module": (
        lambda d: d["model"].update(class_path="lightningmodules.ContrastiveEmbedder"),
        r"model\.class_path is lightningmodules\..*cannot be imported",
    ),
    "a bare class": (
        lambda d: d["model"].update(class_path="ContrastiveEmbeder"),
        r"model\.class_path is ContrastiveEmbeder.*Did you mean ContrastiveEmbedder\?",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_unknown_keys_and_classes_name_file_and_nearest_name(
    edited: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, pattern = MISTAKES[name]
    path = edited(change)
    text = message_of(["fit", "--config", str(path)], capsys)
    assert text.startswith(f"error: {path}: ")
    assert re.search(pattern, text), text
    assert len(text.splitlines()) == 2, "one paragraph, and where the traceback is"


def test_a_mistyped_writer_is_answered_too(
    edited: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Writers sit in a mapping, and their package loads its names lazily."""

    def change(data: dict[str, Any]) -> None:
        writer = data["model"]["init_args"]["writers"]["smollm2"]
        writer["class_path"] = "mmemb.rationales.LanguageModelWorkr"

    text = message_of(["predict", "--config", str(edited(change, "rationales"))], capsys)
    assert "Did you mean LanguageModelWriter?" in text


def test_a_missing_file_is_answered_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = message_of(["fit", "--config", str(POCKET / "trnk.yaml")], capsys)
    assert "trnk.yaml: there is no such file. Did you mean trunk.yaml?" in text
    text = message_of(["fit", f"--config={tmp_path}/a.yaml"], capsys)
    assert f"{tmp_path}/a.yaml: there is no such file." in text


CONTENTS = ["a: [", "- a\n- b", "just words", "model: 3", "trainer: 3", "name: 2026-13-45"]


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_no_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    text = message_of(["fit", "--config", str(TRUNK), "--config", str(path)], capsys)
    assert "odd.yaml" in text or "model" in text


FLAGS = {
    "--model.optimzer.lr": "unknown key model.optimzer. Did you mean optimizer?",
    "--model.optimizer.init_args.weight_dekay": "optimizer.weight_dekay. Did you mean weight_decay",
    "--model.backbone.max_framez": "unknown key model.backbone.max_framez. Did you mean max_frames",
    "--trainer.max_step": "unknown key trainer.max_step. Did you mean max_steps?",
    "--data.batchsize": "unknown key data.batchsize. Did you mean batch_size?",
    "--needs.disc_gib": "unknown key needs.disc_gib. Did you mean disk_gib?",
    "--bach_size": "unknown key bach_size. Did you mean batch_size?",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_wrong_flag_is_one_paragraph_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    """The beginning of a name (`max_step`) is no name, either."""
    text = message_of(["fit", "--config", str(TRUNK), flag, "3"], capsys)
    assert text.startswith(f"error: {flag}: ")
    assert FLAGS[flag] in text
    assert len(text.splitlines()) == 2, "one paragraph, and where the traceback is"


def test_a_wrong_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = message_of(["fit", "--config", str(TRUNK), "--trainer.max_steps", "many"], capsys)
    assert "max_steps" in text
    text = message_of(["fit", "--config", str(POCKET / "judge.yaml"), "--data.fold", "c"], capsys)
    assert "fold" in text


def test_the_traceback_is_printed_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMEMB_TRACEBACK", "1")
    message_of(["fit", "--config", str(TRUNK), "--data.batchsize", "3"], capsys)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_right_file_passes() -> None:
    keys = ["name", "seed_everything", "trainer", "model", "data", "data_root", "needs"]
    check_config_files(["fit", "--config", str(TRUNK), "--trainer.max_steps", "3"], keys)


# ---- inputs that a stage before should have made


@pytest.fixture(scope="module")
def empty(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment of which no stage has run."""
    return write_experiment(tmp_path_factory.mktemp("empty"), tiny_root)


MISSING = {
    "judge-a": r"trunk/backbone.*not a saved backbone",
    "selection": r"judge-a/fitted\.json is missing.*experiments\.run fit",
    "selected": r"judge-a/fitted\.json is missing",
    "embedder": r"trunk/backbone",
    "depth_values": r"embedder/",
    "gate": r"depth_values.*manifest",
    "decisions": r"depth_values does not exist.*Run the step",
    "gate-test": r"adaptive\.json is missing",
}


LATER = {"selected", "embedder", "gate", "gate-test"}
"""They ask in the same words as the stages before them, so only `make test-all` asks them too."""


@pytest.mark.parametrize(
    "stage",
    [pytest.param(s, marks=pytest.mark.slow) if s in LATER else s for s in MISSING],
)
def test_a_missing_input_names_the_file_and_what_to_do(
    empty: Experiment, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    text = message_of(empty.command(stage, "--runs", str(empty.runs)), capsys)
    assert re.search(MISSING[stage], text, re.DOTALL), text
    assert len(text) < 1500, "a paragraph, no page"
    if found := re.findall(r"\(traceback: (.*)\)", text):
        assert "Traceback (most recent call last)" in Path(found[0]).read_text()
    assert found or stage != "decisions", "the traceback is kept in a file"


def test_data_that_was_not_prepared_is_said(
    empty: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--runs", str(tmp_path / "runs"), "--data_root", str(tmp_path / "nowhere")]
    text = message_of(empty.command("rationales", *more), capsys)
    assert "nowhere" in text
    assert "prepare" in text


def test_too_little_disk_or_memory_stops_before_anything_is_made(
    empty: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for need, words in (("disk", "free disk"), ("memory", "free memory")):
        more = ["--runs", str(runs), f"--needs.{need}_gib", "1e9"]
        assert words in message_of(empty.command("trunk", *more), capsys)
    assert not runs.exists()


def test_a_checkpoint_brings_no_settings_and_no_code(
    empty: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning would import the class that a checkpoint's hyperparameters name."""
    canary = tmp_path / "canary"
    code = f"from pathlib import Path\nPath({str(canary)!r}).write_text('it ran')\n"
    (tmp_path / "code_of_a_checkpoint.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"_class_path": "code_of_a_checkpoint.Module", "num_warmup_steps": 3}
    torch.save({"state_dict": {}, "hyper_parameters": settings}, tmp_path / "foreign.ckpt")

    more = ["--ckpt_path", str(tmp_path / "foreign.ckpt"), "--runs", str(tmp_path / "runs")]
    text = message_of(empty.command("trunk", *more, "--needs.disk_gib", "1e9"), capsys)
    assert "free disk" in text
    assert not canary.exists()


def test_a_stage_that_has_no_such_step_is_a_paragraph(
    empty: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *rest = empty.command("rationales", "--runs", str(empty.runs))
    text = message_of(["validate", *rest], capsys)
    assert "validation_step" in text
    assert len(text) < 1500, "a paragraph, no page"


def test_training_a_generator_asks_for_the_writer_to_train(
    empty: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = empty.command("rationales", "--runs", str(empty.runs))
    text = message_of(["fit", *arguments[1:], "--trainer.max_epochs", "1"], capsys)
    assert "tuned is not set" in text


@pytest.mark.parametrize(
    ("key", "value"), [("name", "../up"), ("experiment", "../up"), ("experiment", "/tmp/up")]
)
def test_a_run_stays_below_the_folder_of_runs(
    empty: Experiment, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(empty.runs.parent.rglob("*"))
    arguments = empty.command("rationales", "--runs", str(empty.runs), f"--{key}", value)
    text = message_of(arguments, capsys)
    assert key in text
    assert "expected the name of one folder" in text
    assert {p for p in empty.runs.parent.rglob("*") if p.is_dir()} <= before


def test_a_fitted_fact_stops_the_depth_values_stage(
    clip_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guard of trained facts through the command line, as the pocket's file sets it."""
    fitted = tmp_path / "fitted.json"
    fitted.write_text(json.dumps({"facts": ["country:18/capital"]}))
    more = ["--runs", str(clip_experiment.runs), "--model.trained_facts", str(fitted)]
    more += ["--trainer.callbacks", "[]"]
    text = message_of(clip_experiment.command("depth_values", *more), capsys)
    assert "asks for country:18/capital, on which this model was fitted" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "http://h/v1?api_key=sk-PLANTED"),
        pytest.param("url", "http://me:sk-PLANTED@h/v1", marks=pytest.mark.slow),
        pytest.param("url", "me:it's/sk-PLANTED@h", marks=pytest.mark.slow),
        ("api_key_env", "sk-PLANTED"),
    ],
)
def test_a_key_in_a_wrong_place_is_written_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    """The parser puts the values that it was given into its errors, and those into a file."""
    files = (POCKET / "rationales.yaml", POCKET.parent / "writer/server.yaml")
    given = [word for file in files for word in ("--config", str(file))]
    given += ["--runs", str(tmp_path / "runs"), "--data_root", str(tmp_path)]
    given += ["--needs.memory_gib", "0.1", "--needs.disk_gib", "0.1"]
    writer = f"--model.writers.server.init_args.{key}={value}"
    text = message_of(["predict", *given, writer], capsys)
    (path,) = re.findall(r"\(traceback: (.*)\)", text)
    kept = Path(path).read_text()
    assert "Given value: Namespace(" in kept, "the rest of what was given stays"
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert not [said for said in (text, *written) if "PLANTED" in said]


def test_a_package_that_is_not_installed_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arguments: list[str]) -> None:
        raise ModuleNotFoundError("Requirement 'transformer_engine' not met.")

    monkeypatch.setattr("experiments.cli.experiment_cli.ExperimentCLI", refuse)
    text = message_of(["fit"], capsys)
    assert text.startswith("error: Requirement 'transformer_engine' not met.")


def test_what_lightning_refuses_is_no_fault_of_the_code() -> None:
    """A mistyped monitor, for instance; an error within torch keeps its traceback."""
    with pytest.raises(RuntimeError, match="not available") as refused:
        EarlyStopping("val/recal@1")._validate_condition_metric({})
    assert is_of_lightning(refused.value)
    with pytest.raises(RuntimeError) as broken:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_of_lightning(broken.value)
