"""Runs open again: the module of a run from its own records, the inference path of a gate."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.load import load_run
from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import OpenClipBackbone
from mmemb.records.inputs import Side
from tests.fixtures.paths import CLIP_TINY as TINY

SIDES = [Side("the flag of Peru"), Side("a cat")]


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    torch.manual_seed(1)
    return OpenClipBackbone(str(TINY), tokenizer="bytes").eval()


@pytest.fixture
def run(tmp_path: Path, backbone: OpenClipBackbone) -> Path:
    """What `experiments.run fit` leaves of a ContrastiveEmbedder."""
    settings = {
        "class_path": "lightning_modules.ContrastiveEmbedder",
        "init_args": {
            "backbone": {
                "class_path": "mmemb.backbones.OpenClipBackbone",
                "init_args": {"model": str(TINY), "tokenizer": "bytes"},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
            "num_warmup_steps": 3,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": settings, "name": "trunk"}))
    (tmp_path / "checkpoints").mkdir()
    state = {"state_dict": ContrastiveEmbedder(backbone).state_dict()}
    torch.save(state, tmp_path / "checkpoints/last.ckpt")
    return tmp_path


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_checkpoint_that_is_older_than_the_weights_that_are_left_is_not_taken(
    run: Path, backbone: OpenClipBackbone, has_checkpoint: bool
) -> None:
    torch.manual_seed(2)
    trained = OpenClipBackbone(str(TINY), tokenizer="bytes").eval()
    trained.save_pretrained(run / "backbone")
    (run / "summary.json").write_text('{"metrics": {}, "weights": {"select": "last", "step": 110}}')
    if not has_checkpoint:
        (run / "checkpoints/last.ckpt").unlink()

    module = load_run(run, models=[str(TINY)])
    with torch.no_grad():
        torch.testing.assert_close(module.backbone.encode(SIDES), trained.encode(SIDES))


def test_a_run_opens_with_its_settings_and_weights(run: Path, backbone: OpenClipBackbone) -> None:
    module = load_run(run, models=[str(TINY)])
    assert isinstance(module, ContrastiveEmbedder)
    assert module.num_warmup_steps == 3
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(module.backbone.encode(SIDES), backbone.encode(SIDES))


def test_a_checkpoint_of_another_module_is_one_clear_error(run: Path) -> None:
    torch.save({"state_dict": {"head.weight": torch.zeros(1)}}, run / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt does not fit the ContrastiveEmbedder"):
        load_run(run, run / "other.ckpt", models=[str(TINY)])


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = yaml.safe_load((run / "config.yaml").read_text())
    edit(data["model"])
    (run / "config.yaml").write_text(yaml.safe_dump(data))


CODE = "from pathlib import Path\nPath({canary!r}).write_text('it ran')\nclass Module: pass\n"


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.update(class_path="canary_of_a_run.Module"),
        lambda model: model["init_args"].update(backbone="canary_of_a_run.Module"),
        lambda model: model["init_args"].update(backbone={"class_path": "canary_of_a_run.Module"}),
        lambda model: model["init_args"].update(optimizer="canary_of_a_run.Module"),
        lambda model: model["init_args"].update(optimizer={"class_path": "os.system"}),
        lambda model: model["init_args"].update(
            optimizer={"class_path": "mmemb.storage.files.os.system"}
        ),
        lambda model: model["init_args"].update(optimizer="mmemb.storage.files.write_atomically"),
        lambda model: model["init_args"].update(lora={"targets": ["canary_of_a_run.Module"]}),
    ],
    ids=range(8),
)
def test_a_run_imports_no_code_of_others(
    edit: Callable[[dict[str, Any]], object], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = run / "canary"
    (run / "canary_of_a_run.py").write_text(CODE.format(canary=str(canary)))
    monkeypatch.syspath_prepend(run)
    change(run, edit)
    with pytest.raises(ValueError, match=r"config\.yaml: model.* (names|there is no) '"):
        load_run(run, models=[str(TINY)])
    assert not canary.exists()


@pytest.mark.parametrize("part", ["model", "init_args", "backbone", "optimizer"])
@pytest.mark.parametrize("text", ["{class_path: canary_of_a_run.Module}", "more.yaml"])
def test_a_text_in_a_run_is_no_further_configuration(
    text: str, part: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = run / "canary"
    (run / "canary_of_a_run.py").write_text(CODE.format(canary=str(canary)))
    (run / "more.yaml").write_text("class_path: canary_of_a_run.Module")
    monkeypatch.syspath_prepend(run)
    data = yaml.safe_load((run / "config.yaml").read_text())
    within = {"model": data, "init_args": data["model"]}.get(part, data["model"]["init_args"])
    within[part] = text.replace("more.yaml", str(run / "more.yaml"))
    (run / "config.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=r"config\.yaml.*(Expected `object|does not fit)"):
        load_run(run, models=[str(TINY)])
    assert not canary.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda init: init.update({"backbone.init_args.model": "/etc/clip.json"}),
        lambda init: init["backbone"].update(dict_kwargs={"model": "/etc/clip.json"}),
        lambda init: init["backbone"]["init_args"].update(pretrained="/etc/clip.json"),
    ],
    ids=["a dotted key", "dict_kwargs", "init_args"],
)
def test_a_place_is_the_callers_however_it_is_written(
    edit: Callable[[dict[str, Any]], object], run: Path
) -> None:
    change(run, lambda model: edit(model["init_args"]))
    with pytest.raises(ValueError, match=r"config\.yaml: model\..*names '/etc/clip\.json'"):
        load_run(run, models=[str(TINY)])


BOMB = "a: &a [1, 1]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in itertools.pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expected `object`, got `null`"),
        ("[1]", "Expected `object`, got `array`"),
        ("name: x", "missing required field `model`"),
        ("model: {class_path: [a]}", r"Expected `str`, got `array` - at `\$\.model\.class_path`"),
        (
            "model: {class_path: a}\ndata: x",
            r"Expected `object \| null`, got `str` - at `\$\.data`",
        ),
        ("model: {a: [", "no YAML in line 1"),
        ("model: !!python/name:os.system", "no YAML in line 1"),
        ("a: 2026-13-45", "no YAML"),
        ("model: " + "[" * 2000, "nested too deeply"),
        (f"{BOMB}model: {{x: *h}}", "more than 100000 values"),
        ("model: &m {x: *m}", "more than 100000 values"),
        ("model: " + "x" * 2**20, "more than 1024 KiB"),
    ],
    ids=range(12),
)
def test_a_configuration_that_is_none_is_one_sentence(content: str, said: str, run: Path) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.yaml .*{said}.*fetch or train the run again"):
        load_run(run)


def test_a_file_may_be_called_like_a_module(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(TINY, run / "yaml.json")
    change(run, lambda model: model["init_args"]["backbone"]["init_args"].update(model="yaml.json"))
    monkeypatch.chdir(run)
    assert load_run(run)


def test_the_caller_may_allow_a_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lightning_modules import ContrastiveEmbedder\nMine = ContrastiveEmbedder\n"
    code += "class Module(ContrastiveEmbedder): pass\n"
    (run / "package_of_a_user.py").write_text(code)
    monkeypatch.syspath_prepend(run)
    change(run, lambda model: model.update(class_path="package_of_a_user.Module"))
    with pytest.raises(ValueError, match=r"packages=\['package_of_a_user'\]"):
        load_run(run, models=[str(TINY)])
    module = load_run(run, models=[str(TINY)], packages=["package_of_a_user"])
    assert isinstance(module, ContrastiveEmbedder)


def test_the_caller_may_allow_one_class(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lightning_modules import ContrastiveEmbedder\n"
    code += "class One(ContrastiveEmbedder): pass\nclass Other(ContrastiveEmbedder): pass\n"
    (run / "module_of_a_user.py").write_text(code)
    monkeypatch.syspath_prepend(run)
    change(run, lambda model: model.update(class_path="module_of_a_user.One"))
    with pytest.raises(ValueError, match=r"--allow-class module_of_a_user\.One\), or all of its"):
        load_run(run, models=[str(TINY)], allow_classes=["module_of_a_user.Other"])
    assert "module_of_a_user" not in sys.modules
    module = load_run(run, models=[str(TINY)], allow_classes=["module_of_a_user.One"])
    assert type(module).__name__ == "One"


def test_a_run_grants_itself_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"init_args\.backbone\.init_args\.model names .*models="):
        load_run(run)
    monkeypatch.setenv("MMEMB_RUNS", str(run.parent))
    assert load_run(run)  # a run of this checkout names its models without leave

    looks = {
        "class_path": "mmemb.backbones.VisionLanguageBackbone",
        "init_args": {"model": "someone/model", "trust_remote_code": True},
    }
    change(run, lambda model: model["init_args"].update(backbone=looks))
    with pytest.raises(ValueError, match="trust_remote_code asks to run code"):
        load_run(run)


def test_a_server_of_a_run_is_sent_the_key_that_the_caller_names(run: Path) -> None:
    prompt = str(TINY.parents[1] / "pocket/few_shot.json")
    writer = {"url": "http://elsewhere.example/v1", "model": "m", "prompt": prompt}
    settings = {
        "class_path": "lightning_modules.RationaleGenerator",
        "init_args": {"writers": {"full": {"class_path": "mmemb.rationales.ServerWriter"}}},
    }

    def loaded(servers: Any, **said: Any) -> Any:
        settings["init_args"]["writers"]["full"]["init_args"] = writer | said
        (run / "config.yaml").write_text(yaml.safe_dump({"model": settings}))
        return load_run(run, servers=servers, models=[prompt]).writers["full"].client.api_key_env

    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="url names the server elsewhere"):
        loaded([])
    for said in ({}, {"api_key_env": "MMEMB_API_KEY"}, {"api_key_env": None}):
        assert loaded(["elsewhere.example"], **said) is None
        assert loaded({"elsewhere.example": "MINE"}, **said) == "MINE"
    with pytest.raises(ValueError, match="names the variable 'SECRET'"):
        loaded(["elsewhere.example"], api_key_env="SECRET")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        load_run(tmp_path)
