"""Draws are found again by content: nothing is generated twice, and copies are to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor

from callbacks import SidecarWriter
from datamodules import SideDataModule
from lightning_modules import RationaleGenerator
from mmemb.rationales import LanguageModelWriter, RationaleWriter
from mmemb.rationales.draft_cache import DIGEST, DRAWS, DrawBook
from mmemb.rationales.writers.base import drawn_seeds
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, write_folder, write_shard
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_models import write_chat_model
from tests.fixtures.tiny_trainer import trainer_of

FOLDERS = ["pairs/questions", "queries"]


@final
class Scribe(RationaleWriter):
    """Writes down side and seed, breaks every third draw, and notes what it was asked."""

    def __init__(self, name: str = "scribe", reads: Sequence[str] = ("text",)) -> None:
        self.name, self.reads = name, frozenset(reads)
        self.asked: list[tuple[str, int]] = []
        self.with_state: list[str] = []

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        rows = zip(sides, seeds_BK, strict=True)
        return [
            [self._draw(side, seed) for seed in drawn_seeds(seeds_K)] if self.can_read(side) else []
            for side, seeds_K in rows
        ]

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        self.with_state += [side.digest for side in sides]
        return torch.tensor([[float(len(side.text)), 0.1] for side in sides])

    def _draw(self, side: Side, seed: int) -> Rationale:
        self.asked.append((side.digest, seed))
        end = "" if seed % 3 == 1 else f"<answer>{seed % 5}</answer>"
        text = f"<think>{side.text}</think>{end}"
        return Rationale(text, self.name, "m", "r", "p", "d", seed, 7, -0.1234)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def mixture(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same content in another order, under other keys, in other shards."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "tasks.json").write_bytes((root / "tasks.json").read_bytes())
    for number, name in enumerate(FOLDERS):
        index = ShardIndex.open(root / name)
        samples = [
            Sample(f"new-{number}-{n}", index.read(entry), entry.meta)
            for n, entry in enumerate(reversed(index.entries))
        ]
        write_folder(
            folder / name, samples, prefix=f"n{number}", samples_per_shard=7, fingerprint=""
        )
    return folder


def predict(
    root: Path, folder: Path, writer: RationaleWriter, batch_size: int = 8, **changes: Any
) -> tuple[ShardIndex, RationaleGenerator]:
    """Stage 1 into `folder / "rationales"`."""
    settings = {"num_drafts": 3, "num_test_draws": 2, "max_tokens": 40}
    module = RationaleGenerator({"scribe": writer}, **settings | changes)
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "rationales"))])
    data = SideDataModule(str(root), FOLDERS, batch_size)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return ShardIndex.open(folder / "rationales"), module


def shards(index: ShardIndex) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in index.manifest.shards}


def pools(index: ShardIndex) -> list[str]:
    """What was written about rows, whatever they are called."""
    return sorted(index.read(entry)["json"].decode() for entry in index.entries)


def test_without_the_option_a_sidecar_is_what_it_was(root: Path, tmp_path: Path) -> None:
    index, module = predict(root, tmp_path, Scribe())
    sources = [e for folder in FOLDERS for e in ShardIndex.open(root / folder).entries]
    assert [entry.meta for entry in index.entries] == [entry.meta for entry in sources]
    assert {name for entry in index.entries for name in entry.members} == {"json"}
    assert module.counts["generated tokens"] == 7 * module.counts["drawn"] > 0
    assert "reused" not in module.counts


def test_the_same_rows_are_copied_to_the_byte(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = predict(root, tmp_path / "a", Scribe(), reuse=[], prompt_state="scribe")
    plain, _ = predict(root, tmp_path / "plain", Scribe(), prompt_state="scribe")
    assert pools(first) == pools(plain), "the option adds a member and changes none"
    idle, old = Scribe(), str(tmp_path / "a/rationales")
    capsys.readouterr()
    second, module = predict(root, tmp_path / "b", idle, 5, reuse=[old], prompt_state="scribe")
    assert shards(second) == shards(first)
    assert not idle.asked
    assert not idle.with_state, "states are copied, too"
    assert module.counts["reused"] == module.counts["drawn"] > 0
    assert module.counts["malformed"] > 0, "broken draws are found again as well"
    printed = capsys.readouterr().out
    assert "generated tokens 0, " in printed
    assert f"reused {module.counts['drawn']}" in printed


def test_more_candidates_cost_only_the_new_ones(root: Path, tmp_path: Path) -> None:
    predict(root, tmp_path / "a", Scribe(), reuse=[], num_drafts=2, num_test_draws=1)
    more = Scribe()
    old = str(tmp_path / "a/rationales")
    second, _ = predict(root, tmp_path / "b", more, reuse=[old])
    whole, _ = predict(root, tmp_path / "c", Scribe(), reuse=[])
    assert pools(second) == pools(whole)
    assert shards(second) == shards(whole), "and no shard tells which draw was copied"
    assert all(seed != GREEDY for _, seed in more.asked)
    assert len(more.asked) == 16 + len([e for e in whole.entries if _text(e)])


def _text(entry: Any) -> bool:
    """Whether it is an evaluation query of text; the writer reads no picture."""
    return "source" not in entry.meta and entry.meta["task"] != "flag-continent"


@pytest.mark.slow
def test_a_new_mixture_regenerates_nothing_by_content(
    root: Path, mixture: Path, tmp_path: Path
) -> None:
    first, _ = predict(root, tmp_path / "a", Scribe(), seed_by="content")
    idle, old = Scribe(), str(tmp_path / "a/rationales")
    second, module = predict(mixture, tmp_path / "b", idle, reuse=[old], seed_by="content")
    assert not idle.asked
    assert module.counts["generated tokens"] == 0
    assert pools(second) == pools(first)


def test_by_key_a_new_mixture_finds_the_greedy_draws(
    root: Path, mixture: Path, tmp_path: Path
) -> None:
    predict(root, tmp_path / "a", Scribe(), reuse=[])
    busy, old = Scribe(), str(tmp_path / "a/rationales")
    second, module = predict(mixture, tmp_path / "b", busy, reuse=[old])
    assert all(seed != GREEDY for _, seed in busy.asked)
    whole, _ = predict(mixture, tmp_path / "c", Scribe(), reuse=[])
    assert pools(second) == pools(whole)
    assert module.counts["reused"] == len([e for e in second.entries if _text(e)])


def test_equal_sides_are_written_about_once(root: Path, tmp_path: Path) -> None:
    """Every query stands twice in a row, under two keys; batches and shards cut between them."""
    folder, twice = tmp_path / "twice", ShardIndex.open(root / "queries")
    rows = [(e, twice.read(e)) for e in twice.entries for _ in range(2)]
    samples = [Sample(f"r{n}", members, e.meta) for n, (e, members) in enumerate(rows)]
    write_folder(folder / "queries", samples, prefix="q", samples_per_shard=9, fingerprint="")
    found = {}
    for seed_by in ("content", "key"):
        writer = Scribe()
        module = RationaleGenerator({"s": writer}, num_test_draws=3, seed_by=seed_by, reuse=[])
        data = SideDataModule(str(folder), ["queries"], 4)
        trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / seed_by))])
        trainer.predict(module, datamodule=data, return_predictions=False)
        assert len(writer.asked) == len(set(writer.asked))
        found[seed_by] = (len(writer.asked), module.counts)
    num_texts = len([entry for entry in twice.entries if _text(entry)])
    assert found["content"][0] == 3 * num_texts
    assert found["key"][0] == num_texts + 2 * 2 * num_texts, "only greedy draws are shared"
    assert found["content"][1]["of equal sides"] == 3 * num_texts
    assert found["content"][1]["drawn"] == 6 * num_texts


def test_the_book_forgets_and_still_copies(root: Path, tmp_path: Path) -> None:
    """Few pages: what was forgotten is read again from the folder, or made again."""
    predict(root, tmp_path / "a", Scribe(), seed_by="content")
    module = RationaleGenerator({"s": Scribe()}, seed_by="content")
    book = DrawBook([str(tmp_path / "a/rationales")], module.counts, capacity=1)
    side = Side("the flag of country-10", "Find it.")
    seeds = torch.tensor([[GREEDY]])
    writer = Scribe()
    for other in ("x", "y"):
        book.write(writer, [side], seeds)
        book.write(writer, [Side(other)], seeds)
        book.trim()
    assert writer.asked == [(Side("x").digest, GREEDY), (Side("y").digest, GREEDY)]
    assert book.write(writer, [], torch.zeros(0, 1).long()) == []
    assert book.prompt_states(writer, []).shape == (0, 0)


def test_another_writer_or_another_side_is_asked(root: Path, tmp_path: Path) -> None:
    predict(root, tmp_path / "a", Scribe(), reuse=[])
    old, other = str(tmp_path / "a/rationales"), Scribe("other")
    _, module = predict(root, tmp_path / "b", other, reuse=[old])
    assert module.counts["reused"] == 0
    assert len(other.asked) == module.counts["drawn"]
    index, _ = predict(root, tmp_path / "c", Scribe(), reuse=[old])
    entry = next(e for e in index.entries if DIGEST in e.meta)
    said = json.loads(index.read(entry)[DRAWS])
    assert said[DIGEST] == entry.meta[DIGEST]
    assert list(said["draws"]) == [Scribe().draw_identity()]


def test_a_folder_that_cannot_be_reused_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    predict(root, tmp_path / "a", Scribe())
    with pytest.raises(ValueError, match=r"keeps no draws that could be found again.*`reuse` set"):
        predict(root, tmp_path / "b", Scribe(), reuse=[str(tmp_path / "a/rationales")])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        predict(root, tmp_path / "b", Scribe(), reuse=[str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match="seed_by 'text': expected one of"):
        RationaleGenerator({"s": Scribe()}, seed_by="text")


def test_a_folder_that_changes_meanwhile_is_noticed(root: Path, tmp_path: Path) -> None:
    index, module = predict(root, tmp_path, Scribe(), reuse=[])
    book = DrawBook([str(index.folder)], module.counts)
    name = index.shard_names[0]
    samples = [Sample(e.key, {"json": b"[]"}, e.meta) for e in index.of_shard(name)]
    write_shard(index.folder, name, samples)
    entry = index.of_shard(name)[0]
    sides = SideDataModule(str(root), FOLDERS, 4).predict_dataloader()
    side = next(s for batch in sides for s in batch.sides if s.digest == entry.meta[DIGEST])
    with pytest.raises(ValueError, match=r"sample .*: its draws cannot be read .*must not"):
        book.write(Scribe(), [side], torch.tensor([[GREEDY]]))


def test_a_run_cannot_reuse_what_it_writes(tmp_path: Path) -> None:
    from jsonargparse import Namespace

    from experiments.cli.experiment_cli import check_reuse

    folder = tmp_path / "rationales"
    config = Namespace(model=Namespace(init_args=Namespace(reuse=[str(folder)])))
    check_reuse(config, [tmp_path / "other"])
    with pytest.raises(ValueError, match=r"which this run writes\. Move the old folder away"):
        check_reuse(config, [folder])


def test_the_command_line_takes_folders() -> None:
    from experiments.cli.experiment_cli import parse
    from experiments.cli.messages import quieten
    from tests.fixtures.tiny_experiment import POCKET, settings_kept

    quieten()
    command = ["predict", "--config", str(POCKET / "rationales.yaml")]
    with settings_kept():
        config = parse([*command, "--model.reuse", "[a/b, c]", "--model.seed_by", "content"])
        assert config.model.init_args.reuse == ["a/b", "c"]
        assert config.model.init_args.seed_by == "content"


# ---- a language model


def test_a_model_whose_draws_are_all_found_is_never_loaded(root: Path, tmp_path: Path) -> None:
    write_chat_model(tmp_path / "chat")
    prompt = {"system": "", "examples": [], "concepts": []}
    (tmp_path / "prompt.json").write_text(json.dumps(prompt))

    def make_writer(**changes: Any) -> LanguageModelWriter:
        settings = {"max_new_tokens": 3, "prompt_state_layer": 0} | changes
        return LanguageModelWriter(
            str(tmp_path / "chat"), str(tmp_path / "prompt.json"), **settings
        )

    first, _ = predict(
        root, tmp_path / "a", make_writer(), seed_by="content", prompt_state="scribe"
    )
    old, idle = str(tmp_path / "a/rationales"), make_writer(batch_size=5)
    second, module = predict(
        root, tmp_path / "b", idle, reuse=[old], seed_by="content", prompt_state="scribe"
    )
    assert shards(second) == shards(first)
    assert "model" not in vars(idle._chat)
    assert module.counts["generated tokens"] == 0
    assert (
        make_writer().draw_identity()
        == make_writer(batch_size=5, prompt_state_layer=-1).draw_identity()
    )
    assert (
        make_writer().prompt_state_identity()
        == make_writer(temperature=0.5).prompt_state_identity()
    )
    for change in ({"temperature": 0.5}, {"max_new_tokens": 4}, {"dtype": "bfloat16"}):
        assert make_writer().draw_identity() != make_writer(**change).draw_identity()
    assert (
        make_writer().prompt_state_identity()
        != make_writer(prompt_state_layer=-1).prompt_state_identity()
    )
