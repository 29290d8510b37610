"""Old names in saved models, runs and YAML files."""

from __future__ import annotations

import hashlib
import inspect
import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from experiments.cli.config_check import check_config
from experiments.runs.recorded_config import read_config
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.gate.saved_settings import read_settings
from mmemb.records.old_names import ARGUMENTS, CLASS_PATHS, with_new_names
from mmemb.records.rationales import ScoredJson
from mmemb.records.schema import SchemaError, parse_json
from mmemb.records.sidecar_json import DepthValueJson
from mmemb.storage.manifests import index_path, read_record, sha256_of_record
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, write_folder
from tests.fixtures.tiny_vlm import folder as vision_language_model

OLD = "mmemb.backbones.mllm.VisionLanguageBackbone"


@pytest.mark.parametrize("old", sorted(CLASS_PATHS))
def test_new_names_are_those_of_classes(old: str) -> None:
    home, _, name = CLASS_PATHS[old].rpartition(".")
    assert isinstance(getattr(import_module(home), name), type)
    assert CLASS_PATHS[old] not in CLASS_PATHS


def test_an_old_argument_is_refused_with_its_new_place() -> None:
    for path, arguments in ARGUMENTS.items():
        home, _, name = path.rpartition(".")
        parameters = inspect.signature(getattr(import_module(home), name)).parameters
        for old, new in arguments.items():
            assert old not in parameters
            outer, _, inner = old.partition(".")
            model = {"class_path": path, "init_args": {outer: {inner: 1} if inner else 1}}
            with pytest.raises(ValueError, match=rf"F\.yaml: model\.init_args\.{old} is now {new}"):
                check_config({"model": model}, Path("F.yaml"), ["model"])


def test_a_backbone_of_an_older_version_is_loaded_with_a_warning(tmp_path: Path) -> None:
    saved = tmp_path / "backbone"
    VisionLanguageBackbone(str(vision_language_model("qwen3_vl"))).save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "class_path": OLD}))

    with pytest.warns(UserWarning, match=rf"{OLD} is now {CLASS_PATHS[OLD]}"):
        assert isinstance(load_backbone(str(saved)), VisionLanguageBackbone)


def test_a_run_of_an_older_version_is_read_with_one_warning(tmp_path: Path) -> None:
    head = {"class_path": "mmemb.gating.MlpDepthHead"}
    model = {"class_path": "lightning_modules.GatingPolicy", "init_args": {"head": head}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": model}))

    with pytest.warns(UserWarning, match="saved by an older version") as caught:
        config = read_config(tmp_path)
    assert len(caught) == 1
    assert config["model"]["init_args"]["head"] == {"class_path": "mmemb.gate.MlpDepthHead"}


def test_a_file_with_an_old_name_is_told_the_new_one() -> None:
    data = {"model": {"class_path": "mmemb.gating.MlpDepthHead"}}
    with pytest.raises(
        ValueError, match=r"F\.yaml: model\.class_path: .* is now mmemb\.gate\.MlpD"
    ):
        check_config(data, Path("F.yaml"), ["model"])


def test_names_of_now_are_left_alone() -> None:
    settings = {"class_path": "mmemb.backbones.JointEncoder", "init_args": {"a": [1, {"b": None}]}}
    assert with_new_names(settings, "F") == settings


def test_old_arguments_of_a_run_are_read_under_their_new_names(tmp_path: Path) -> None:
    writer = {
        "class_path": "mmemb.rationales.LanguageModelWorker",
        "init_args": {"probe_layer": 18},
    }
    arguments = {"workers": {"full": writer}, "price": 0.01, "temperature": 0.1}
    model = {"class_path": "lightning_modules.GatingPolicy", "init_args": arguments}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))

    with pytest.warns(UserWarning, match=r"price of lightning_modules.GatingPolicy is now token_c"):
        config = read_config(tmp_path)
    assert config["model"]["init_args"] == {
        "writers": {
            "full": {
                "class_path": "mmemb.rationales.LanguageModelWriter",
                "init_args": {"prompt_state_layer": 18},
            }
        },
        "token_cost": 0.01,
        "gallery_temperature": 0.1,
    }


def test_json_of_an_older_version_is_read() -> None:
    """Fields of a depth value's row, of a draft in it, and none inside the text."""
    old = {
        "task": "t", "part": "gate", "concept": "c", "eligible": True, "depths": ["direct"],
        "utility": [[-1.0]], "cost": [[0.0]],
    }  # fmt: skip
    found = parse_json(json.dumps(old).encode(), DepthValueJson, "File")
    assert (found.split, found.depth_value) == ("gate", ((-1.0,),))

    draft = {
        "text": "part", "worker": "w", "model": "", "revision": "", "prompt": "", "decoding": "",
        "seed": 0, "num_tokens": 1,
    }  # fmt: skip
    (scored,) = parse_json(json.dumps([draft]).encode(), list[ScoredJson], "File")
    assert (scored.writer, scored.text) == ("w", "part")

    with pytest.raises(SchemaError, match=r"Expected `str`, got `int` - at `\$\.split`"):
        parse_json(json.dumps({**old, "part": 2}).encode(), DepthValueJson, "File")


def test_shards_of_an_older_version_are_read_and_keep_their_hash(tmp_path: Path) -> None:
    samples = [Sample("a", {"direct.npy": b"1", "json": b"{}"}, {"split": "gate", "fold": "b"})]
    write_folder(tmp_path, samples, prefix="q", samples_per_shard=9, fingerprint="f")
    place = index_path(tmp_path, "q-000000.tar")
    now = read_record(tmp_path, "q-000000.tar")

    data = json.loads(place.read_text())
    (entry,) = data["entries"]
    entry["meta"] = {"part": "gate", "half": "b"}
    entry["members"]["state.npy"] = entry["members"].pop("direct.npy")
    place.write_text(json.dumps(data))

    (found,) = ShardIndex.open(tmp_path).entries
    assert found.meta == {"split": "gate", "fold": "b"}
    assert ShardIndex.open(tmp_path).read(found) == {"direct.npy": b"1", "json": b"{}"}
    assert sha256_of_record(read_record(tmp_path, "q-000000.tar")) == sha256_of_record(now)
    rows = [["a", [["half", "b"], ["part", "gate"]]]]
    text = json.dumps([now.shard.sha256, rows])
    assert sha256_of_record(now) == hashlib.sha256(text.encode()).hexdigest()


def test_a_gate_of_an_older_version_is_loaded(tmp_path: Path) -> None:
    settings = {
        "state": ["embedding", "probe"], "temperature": 0.1, "workers": {},
        "thresholds": {"logits": [], "costs": [], "ties": [], "milliseconds": []},
    }  # fmt: skip
    (tmp_path / "adaptive.json").write_text(json.dumps(settings))
    found = read_settings(tmp_path)
    assert found.state == ("embedding", "prompt_state")
    assert found.gallery_temperature == 0.1
    assert found.calibration.logits == ()
