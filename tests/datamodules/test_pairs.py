"""PairDataModule: batches, draws of rationales, folds, features, skips."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from datamodules.pairs import PairDataModule
from mmemb.records.pairs import Pair
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, finish_manifest, write_folder, write_shard
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_features, write_tiny_rationales


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "rationales")
    write_tiny_rationales(root, root / "selected", scored=True)
    write_tiny_features(root, root / "features")
    return root


def make(root: Path, **changes) -> PairDataModule:
    arguments = {
        "root": str(root),
        "pairs": ["pairs/plain", "pairs/questions"],
        "batch_size": 8,
        "group_size": 4,
        "source_weights": {},
        "seed": 0,
    }
    return PairDataModule(**(arguments | changes))


def batches(root: Path, count: int = 12, **changes) -> list:
    return list(islice(make(root, **changes).train_dataloader(), count))


def answers(root: Path, **changes) -> Counter:
    only = {"pairs": ["pairs/questions"], "source_weights": {}} | changes
    return Counter(
        rationale.answer if rationale else None
        for batch in batches(root, 25, **only)
        for rationale in batch.rationales
    )


def test_batch_holds_all_kinds_of_sides(root):
    found = batches(root, 20)
    modalities = {
        (query.modalities, target.modalities)
        for batch in found
        for query, target in zip(batch.queries, batch.targets, strict=True)
    }
    text, image, video = (frozenset({name}) for name in ("text", "image", "video"))
    assert modalities == {(text, image), (text, video), (text | image, text)}
    clip = next(t for b in found for t in b.targets if t.modalities == video)
    assert [media.kind for media in clip.media] == ["frame"] * 3
    assert clip.media[0].pixels.dtype == torch.uint8
    assert clip.media[0].pixels.shape == (3, 16, 24)


def test_a_batch_that_is_larger_than_the_data_is_told(root, caplog):
    make(root, batch_size=8).setup("fit")
    assert "larger than" not in caplog.text
    make(root, batch_size=4000, group_size=4).setup("fit")
    (record,) = [r for r in caplog.records if "larger than" in r.message]
    assert re.search(
        r"batch_size 4000 is larger than the (\d+) pairs .* \1 or less", record.message
    )


def test_ids(root):
    questions = batches(root, 8, pairs=["pairs/questions"])
    names = batches(root, 60, pairs=["pairs/plain"])
    target_of = {k: t for b in questions for k, t in zip(b.keys, b.target_ids_B.tolist())}  # noqa: B905
    assert target_of["flag-capital-t2i-03-0"] == target_of["flag-capital-t2i-03-1"]
    assert target_of["flag-capital-t2i-03-0"] != target_of["flag-capital-t2i-04-0"]
    by_name = {k: t for b in names for k, t in zip(b.keys, b.target_ids_B.tolist())}  # noqa: B905
    assert by_name["flag-name-03"] == target_of["flag-capital-t2i-03-0"]  # one gallery, one name
    assert by_name["clip-name-03"] != by_name["flag-name-03"]  # another gallery
    for batch in questions:
        assert batch.positive_ids_BP[:, 0].tolist() == batch.target_ids_B.tolist()
        assert len(batch.query_ids_B) == len(batch.keys) == 8


def test_steps_are_numbered(root):
    assert [batch.step for batch in batches(root, 3)] == [0, 1, 2]


def test_group_weights(root):
    weights = {"flags": 0.5, "questions": 0.25, "continent": 0.25, "clips": 0}
    found = Counter(key[:6] for b in batches(root, 16, source_weights=weights) for key in b.keys)
    assert found == {"flag-n": 64, "flag-c": 64}


def test_weight_of_a_group_that_is_not_there(root, caplog):
    weights = {"flags": 1, "questions": 1, "continent": 1, "clips": 1, "emoji": 5}
    assert len(batches(root, 1, source_weights=weights)) == 1
    assert "no training pair belongs to emoji; groups of this data are clips" in caplog.text


def test_group_without_a_weight_is_left_out(root, caplog):
    with caplog.at_level("INFO"):
        module = make(root, source_weights={"flags": 1})
        keys = {key for batch in islice(module.train_dataloader(), 6) for key in batch.keys}
    assert len(keys) == 24
    assert all(key.startswith("flag-name") for key in keys)
    assert {fact.split("/")[1] for fact in module.trained_facts} == {"name"}
    assert "not trained on: clips, continent, questions" in caplog.text


def test_no_group_has_a_weight(root):
    with pytest.raises(ValueError, match=r"leave nothing to train on: groups .*'clips'"):
        make(root, source_weights={"flag": 1}).train_dataloader()


def test_halves_and_fitted_facts(root):
    whole, a, b = (make(root, fold=fold).trained_facts for fold in (None, "a", "b"))
    questions = {fact for fact in whole if fact.endswith("/capital")}
    assert len(questions) == 8
    assert a | b == whole
    assert {f for f in a & b if f.endswith("/capital")} == set()
    assert "country:20/name" in a & b  # names of all countries are trained in both
    assert "country:20/capital" not in whole
    keys = {key for batch in batches(root, fold="a") for key in batch.keys}
    assert not keys & {key for key in keys if key.startswith("flag-capital-t2i-01")}


def test_soft_and_hard_draw_take_what_was_kept(root):
    for soft in (True, False):
        found = answers(
            root, sidecar=str(root / "selected"), unselected_fraction=0, sample_by_weight=soft
        )
        assert set(found) == {f"country-{n:02d}" for n in range(8)}


def test_nothing_kept_is_direct_only(root, tmp_path):
    index = ShardIndex.open(root / "selected")
    for name in index.shard_names:
        pools = {e.key: index.read(e)["json"] for e in index.of_shard(name)}
        samples = [Sample(k, {"json": v.replace(b"true", b"false")}) for k, v in pools.items()]
        write_shard(tmp_path, name, samples, made_from=index.records[name].made_from)
    finish_manifest(tmp_path, "", index.shard_names)
    assert set(answers(root, sidecar=str(tmp_path), unselected_fraction=0.0)) == {None}


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_rationales_that_no_selector_judged_are_not_passed_over(root, fraction):
    unjudged = str(root / "rationales")
    with pytest.raises(ValueError, match=r"rationales holds unjudged .*`selected`.* to 1, which"):
        make(root, sidecar=unjudged, unselected_fraction=fraction).train_dataloader()
    assert None not in answers(root, sidecar=unjudged, unselected_fraction=1.0)


def test_prior_draws_by_count(root):
    found = answers(root, sidecar=str(root / "selected"), unselected_fraction=1.0)
    total = sum(found.values())
    assert total == 200
    assert found["country-yy"] / total == pytest.approx(3 / 6, abs=0.1)
    assert found["country-xx"] / total == pytest.approx(2 / 6, abs=0.1)


def test_prior_fraction_mixes(root):
    found = answers(root, sidecar=str(root / "selected"), unselected_fraction=0.5)
    wrong = found["country-xx"] + found["country-yy"]
    assert wrong / sum(found.values()) == pytest.approx(0.5 * 5 / 6, abs=0.1)


def test_foreign_rationales_are_about_others(root):
    folder = str(root / "selected")
    for batch in batches(root, 20, pairs=["pairs/questions"], sidecar=folder, placebo_fraction=1.0):
        for key, rationale in zip(batch.keys, batch.rationales, strict=True):
            assert rationale.answer != f"country-{key.split('-')[-2]}"


def test_draws_depend_on_step_and_key_only(root):
    arguments = {"sidecar": str(root / "selected"), "unselected_fraction": 1.0}
    first = batches(root, 6, **arguments)
    stream = make(root, **arguments).train_dataloader()
    stream.load_state_dict({"batches": 4})
    assert [next(stream).rationales for _ in range(2)] == [b.rationales for b in first[4:]]


def test_features_replace_pixels(root):
    for batch in batches(root, 4, features=str(root / "features")):
        for media in (m for side in batch.queries + batch.targets for m in side.media):
            assert media.pixels is None
            assert media.features.shape == (2, 8)
            assert media.features.dtype == torch.float16


def test_features_are_read_without_decoding_images(root, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.samples.decode_image", None)
    assert batches(root, 4, features=str(root / "features"))


def test_missing_feature_names_folder_and_sample(root, tmp_path):
    write_folder(tmp_path, [], prefix="none", samples_per_shard=1, fingerprint="")
    with pytest.raises(ValueError, match=r"sample flag.*holds no features of this picture"):
        batches(root, 1, features=str(tmp_path), pairs=["pairs/questions"], on_error="raise")


def test_sidecar_of_other_data(root, tmp_path):
    write_shard(tmp_path, "questions-000000.tar", [Sample("other", {"json": b"[]"})])
    finish_manifest(tmp_path, "", ["questions-000000.tar"])
    with pytest.raises(ValueError, match="expected key 'flag-capital-t2i-00-0' at row 0"):
        make(root, sidecar=str(tmp_path)).train_dataloader()


def test_sidecar_that_covers_nothing(root, tmp_path):
    write_folder(tmp_path, [], prefix="none", samples_per_shard=1, fingerprint="")
    with pytest.raises(ValueError, match=r"covers no shard of"):
        make(root, sidecar=str(tmp_path)).train_dataloader()


def test_sidecar_that_covers_half_a_folder(root, tmp_path):
    index, name = ShardIndex.open(root / "pairs/plain"), "plain-000000.tar"
    samples = [Sample(entry.key, {"json": b"[]"}) for entry in index.of_shard(name)]
    write_shard(tmp_path, name, samples, made_from=[index.origin(name)])
    finish_manifest(tmp_path, "", ["plain-000000.tar"])
    with pytest.raises(ValueError, match=r"does not cover shard .*plain-000001\.tar"):
        make(root, sidecar=str(tmp_path)).train_dataloader()


def test_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pairs/plain does not exist"):
        make(tmp_path).train_dataloader()


def with_broken(root: Path, folder: Path, broken: dict[str, bytes]) -> Path:
    """A copy of the questions in which some targets are not images."""
    index = ShardIndex.open(root / "pairs/questions")
    samples = []
    for entry in index.entries:
        members = index.read(entry) | {k: v for k, v in broken.items() if entry.key == "x"}
        if entry.key in broken:
            members["t0.webp"] = broken[entry.key]
        samples.append(Sample(entry.key, members, entry.meta))
    write_folder(folder / "broken", samples, prefix="broken", samples_per_shard=8, fingerprint="f")
    return folder


def test_undecodable_image_raises(root, tmp_path):
    folder = with_broken(root, tmp_path, {"flag-capital-t2i-03-1": b"junk"})
    with pytest.raises(ValueError, match=r"broken-000000\.tar, sample flag-capital-t2i-03-1, mem"):
        batches(folder, 2, pairs=["broken"], on_error="raise")


def test_undecodable_image_is_skipped_and_named(root, tmp_path, caplog):
    bad = {"flag-capital-t2i-03-1": b"junk", "flag-capital-t2i-04-0": b""}
    folder = with_broken(root, tmp_path, bad)
    stream = make(folder, pairs=["broken"]).train_dataloader()
    found = list(islice(stream, 6))
    assert {len(batch.keys) for batch in found} == {8}  # every rank keeps its number of rows
    assert not set(bad) & {key for batch in found for key in batch.keys}
    assert len(stream.skipped) == 2
    assert caplog.text.count("sample flag-capital-t2i-03-1,") == 1
    assert "2 so far" in caplog.text


def test_nothing_can_be_decoded(root, tmp_path):
    keys = [e.key for e in ShardIndex.open(root / "pairs/questions").entries]
    folder = with_broken(root, tmp_path, dict.fromkeys(keys, b"junk"))
    with pytest.raises(ValueError, match="No sample of source 'questions' can be decoded"):
        batches(folder, 1, pairs=["broken"])


def test_json_that_lacks_a_field(tmp_path):
    data = {"task": "t", "split": "train"}
    sample = Sample("k", {"json": json.dumps(data).encode()}, {"source": "g"})
    write_folder(tmp_path / "p", [sample], prefix="p", samples_per_shard=1, fingerprint="")
    with pytest.raises(
        ValueError, match=r"sample k, member json: .*missing required field `concept`"
    ):
        batches(tmp_path, 1, pairs=["p"], on_error="raise")


def test_predict_yields_every_pair_by_shard(root):
    module = make(root, sidecar=str(root / "selected"), fold="a", batch_size=5, group_size=5)
    found = list(module.predict_dataloader())
    keys = [pair.key for batch in found for pair in batch.pairs]
    folders = ("pairs/plain", "pairs/questions")
    assert keys == [e.key for f in folders for e in ShardIndex.open(root / f).entries]
    for batch in found:
        expected = 3 if batch.shard.startswith("questions") else 0
        assert {len(candidates) for candidates in batch.rationales} == {expected}
    assert isinstance(found[-1].pairs[0], Pair)
    assert found[-1].rationales[0][0].kept
    assert module.predict_shards() == tuple(dict.fromkeys(batch.shard for batch in found))


def test_predict_keeps_the_row_of_a_broken_pair(root, tmp_path, caplog):
    folder = with_broken(root, tmp_path, {"flag-capital-t2i-03-1": b"junk"})
    found = list(make(folder, pairs=["broken"]).predict_dataloader())
    keys = [pair.key for batch in found for pair in batch.pairs]
    assert "flag-capital-t2i-03-1" in keys
    assert len(keys) == 16
    assert "left out 1 sample(s)" in caplog.text


def test_validation_loaders(root):
    rationales = str(root / "rationales")
    candidates, queries = make(root, val_rationales=rationales).val_dataloader()
    found = [query for batch in queries for query in batch.queries.queries]
    assert {query.split for query in found} == {"val"}
    assert len(found) == 8
    assert sum(len(batch.candidates.candidates) for batch in candidates) == 24 + 3 + 24


def test_pairs_are_not_tested_with_the_weights_that_training_starts_from(root: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be tested: .*`--config own/test`"):
        make(root).test_dataloader()
