"""Releases on a hub: published, fetched, kept in the cache, and refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

import mmemb
from mmemb import AdaptiveEmbedder, rationales
from mmemb.backbones import OpenClipBackbone
from mmemb.gate.release_card import MODEL_ARGUMENTS, release_card
from mmemb.llm.loading import load_model
from mmemb.rationales import RationaleWriter, SelfWriter
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.storage.hub import HubError, is_hub_id
from mmemb.storage.pretrained import load_pretrained
from tests.fixtures.hub import Hub, hub_on_loopback
from tests.fixtures.tiny_gated import PERU, tiny_backbone, tiny_gated

NAME = "org/name"
TEXTS = [PERU, "the flag of Chile"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_on_loopback(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    return tiny_backbone()


@pytest.fixture
def gated(backbone: OpenClipBackbone, tmp_path: Path) -> AdaptiveEmbedder:
    return tiny_gated(backbone, tmp_path, TEXTS)


def test_a_release_comes_back_with_its_gate(
    hub: Hub, gated: AdaptiveEmbedder, tmp_path: Path
) -> None:
    address = gated.push_to_hub(NAME, private=True, token="hf_planted")
    assert address.startswith(hub.address)
    assert hub.private == {NAME: True}
    assert "Bearer hf_planted" in hub.tokens
    card = hub.models[NAME][-1]["README.md"].decode()
    assert "library_name: mmemb-r1" in card
    assert 'mmemb.load("org/name")' in card
    assert "depths: direct, full" in card

    expected = gated.encode(TEXTS, 0.5)
    for load in (mmemb.load, AdaptiveEmbedder.from_pretrained):
        loaded = load(NAME, cache_dir=tmp_path / "cache")
        encoded = loaded.encode(TEXTS, 0.5)
        assert torch.equal(encoded.vectors_BD, expected.vectors_BD)
        assert encoded.rationales == expected.rationales


def test_an_older_release_leaves_no_file_in_the_next_one(
    hub: Hub, gated: AdaptiveEmbedder, backbone: OpenClipBackbone, tmp_path: Path
) -> None:
    first = gated.push_to_hub(NAME).rpartition("/")[2]
    hub.models[NAME][-1]["figures.png"] = b"the owner's own"
    AdaptiveEmbedder(backbone).push_to_hub(NAME, card="My words.")
    files = hub.models[NAME][-1]
    assert files["README.md"] == b"My words."
    assert not [name for name in files if name.startswith(("gate/", "writers/"))]
    assert files["figures.png"] == b"the owner's own"

    cache = tmp_path / "cache"
    assert mmemb.load(NAME, cache_dir=cache).depths == ("direct",)
    del hub.models[NAME][-2]["figures.png"]  # back to what the hash was made of
    assert mmemb.load(NAME, cache_dir=cache, revision=first).depths == ("direct", "full")
    with pytest.raises(HubError, match=r"has no revision 'v9' of org/name\.$"):
        mmemb.load(NAME, cache_dir=cache, revision="v9")

    gated.push_to_hub(NAME, branch="trial")
    assert mmemb.load(NAME, cache_dir=cache, revision="trial").depths == ("direct", "full")
    assert mmemb.load(NAME, cache_dir=cache).depths == ("direct",)


def test_without_a_network_the_cache_answers_or_one_sentence_does(
    hub: Hub, gated: AdaptiveEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated.push_to_hub(NAME)
    cache = tmp_path / "cache"
    mmemb.load(NAME, cache_dir=cache)

    hub.asked.clear()
    mmemb.load(NAME, cache_dir=cache, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    mmemb.load(NAME, cache_dir=cache)
    assert hub.asked == []
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(HubError, match="the network may not be asked") as error:
            mmemb.load("org/other", cache_dir=cache, **options)
        assert one_sentence(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    # A port where nothing listens; waiting between two tries fails here.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    assert mmemb.load(NAME, cache_dir=cache).depths == ("direct", "full")
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 does not answer") as error:
        mmemb.load("org/other", cache_dir=cache)
    assert one_sentence(error)
    with pytest.raises(ValueError, match="could not be published"):
        gated.push_to_hub(NAME)


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"{}", b"[1]", b"null"])
def test_a_reply_that_is_none_of_a_hub_is_no_answer(
    hub: Hub, gated: AdaptiveEmbedder, tmp_path: Path, page: bytes
) -> None:
    """As a network gives where somebody has to sign in first."""
    gated.push_to_hub(NAME)
    mmemb.load(NAME, cache_dir=tmp_path)
    hub.page = page
    assert mmemb.load(NAME, cache_dir=tmp_path).depths == ("direct", "full")
    with pytest.raises(HubError, match="does not answer") as error:
        mmemb.load("org/other", cache_dir=tmp_path)
    assert one_sentence(error)


def test_a_hub_that_drips_its_reply_is_given_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps the connection's own limit of time from being reached."""
    hub.drips = True
    monkeypatch.setattr("mmemb.storage.hub.WHOLE_SECONDS", 0.3)
    with pytest.raises(HubError, match="does not answer"):
        mmemb.load("org/other", cache_dir=tmp_path)
    hub.drips = False


def test_files_of_a_hub_stay_in_its_cache(
    hub: Hub, gated: AdaptiveEmbedder, tmp_path: Path
) -> None:
    gated.push_to_hub(NAME)
    hub.models[NAME][-1]["../../../../escaped"] = b"x"
    with pytest.raises(HubError, match=r"^org/name could not be fetched from http://127.*escaped"):
        mmemb.load(NAME, cache_dir=tmp_path / "a/b")
    assert not list(tmp_path.rglob("escaped"))


def one_sentence(error: pytest.ExceptionInfo[Exception]) -> bool:
    text = str(error.value)
    return "\n" not in text and len(re.findall(r"\.( |$)", text)) == 1


def test_models_of_transformers_fail_as_fast(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    with pytest.raises(HubError, match="has no model org/other, or it is private"):
        load_pretrained(AutoConfig, "org/other", cache_dir=tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    with pytest.raises(HubError, match="does not answer") as error:
        load_model("org/other", None, torch.float32, trust_remote_code=False)
    assert one_sentence(error)


def test_a_snapshot_may_link_to_its_own_blobs_alone(
    hub: Hub, gated: AdaptiveEmbedder, tmp_path: Path
) -> None:
    gated.push_to_hub(NAME)
    mmemb.load(NAME, cache_dir=tmp_path / "cache")
    (snapshot,) = (tmp_path / "cache").glob("models--org--name/snapshots/*")
    settings = snapshot / "adaptive.json"
    assert settings.is_symlink()
    (tmp_path / "secret.json").write_bytes(settings.read_bytes())
    settings.unlink()
    settings.symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="outside of its folder"):
        mmemb.load(snapshot)


def test_paths_and_ids_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/pocket")
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/pocket")
    for name in ("runs", "/a/b", "../b", "a/b/c", "~/b", Path("org/name")):
        assert not is_hub_id(name)
    with pytest.raises(FileNotFoundError, match="There is no folder org/name"):
        mmemb.load(Path("org/name"))


@final
class Thinker(RationaleWriter):
    """A writer of another package, with a model under a name of its own."""

    model_arguments: ClassVar[tuple[str, ...]] = ("brain",)

    def __init__(self, brain: str, model: str) -> None:
        self.brain, self.model = brain, model

    def config(self) -> dict[str, Any]:
        return {"brain": self.brain, "model": self.model}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        return [[] for _ in sides]


def test_a_card_names_models_and_no_place_of_the_publisher(backbone: OpenClipBackbone) -> None:
    writer = Thinker("/home/me/secret/brain-7b", "org/model")
    card = release_card(NAME, backbone, {"full": writer})
    assert "`brain-7b`, `org/model`" in card
    assert "models=['org/model'])" in card
    assert "folders of the publisher" in card
    assert "secret" not in card


def test_a_card_knows_the_model_arguments_of_all_writers() -> None:
    kinds = [getattr(rationales, name) for name in rationales.__all__ if name.endswith("Writer")]
    assert {key for kind in kinds for key in kind.model_arguments} == MODEL_ARGUMENTS
    assert not SelfWriter.model_arguments
