"""RationaleGenerator: fit through Lightning, its stream of replies, and who writes about whom."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from callbacks import SidecarWriter
from datamodules import SideDataModule
from lightning_modules import RationaleGenerator
from mmemb.llm.lora import LoraSettings
from mmemb.rationales import LanguageModelWriter, RationaleWriter
from mmemb.storage.json_files import write_json
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.chat_server import GOOD, Said, chat, serving, write_prompts
from tests.fixtures.chat_server import make_writer as server_writer
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_models import write_chat_model
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny data with selected rationales, and a tiny chat model."""
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "selected", scored=True)
    write_tiny_rationales(root, root / "rationales")
    write_chat_model(root / "chat")
    example = {"query": "Rome", "think": "It is Italy.", "answer": "Italy"}
    prompt = {"system": "", "examples": [example], "concepts": ["country:it"]}
    (root / "prompt.json").write_text(json.dumps(prompt))
    return root


def data(root: Path, **changes: Any) -> SideDataModule:
    arguments = {"folders": ["pairs/questions"], "batch_size": 4, "seed": 2}
    arguments["rationales"] = str(root / "selected")
    return SideDataModule(str(root), **(arguments | changes))


def writer(root: Path, name: str = "chat", **kwargs: Any) -> LanguageModelWriter:
    model, prompt = str(root / "chat"), str(root / "prompt.json")
    return LanguageModelWriter(model, prompt, name, max_new_tokens=3, **kwargs)


def generator(writers: dict[str, RationaleWriter], **changes: Any) -> RationaleGenerator:
    settings = {"tuned": "chat", "lora": LoraSettings(rank=2), "num_warmup_steps": 1}
    settings["optimizer"] = lambda parameters: torch.optim.AdamW(parameters, lr=0.01)
    return RationaleGenerator(writers, **(settings | changes))


# ---- fit


def fit(root: Path, folder: Path, world: int = 1, resume: Path | None = None) -> dict[str, Tensor]:
    """Four steps; the weights of the adapter that is left."""
    every_two = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2)
    trainer = trainer_of(
        folder,
        world,
        max_steps=4,
        limit_train_batches=4,
        callbacks=[every_two],
        enable_checkpointing=True,
    )
    module = generator({"chat": writer(root)})
    trainer.fit(module, datamodule=data(root), ckpt_path=resume, weights_only=True)
    return load_file(folder / "generator/adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # the second run saves there again
def test_a_fit_leaves_an_adapter_and_resumes_exactly(root: Path, tmp_path: Path) -> None:
    whole = fit(root, tmp_path / "whole")
    middle = tmp_path / "whole/step=2.ckpt"
    resumed = fit(root, tmp_path / "whole", resume=middle)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(bool(x.abs().max() > 0) for x in whole.values()), "B starts at 0"
    state = torch.load(middle, weights_only=True)["state_dict"]
    assert set(state) == {f"adapter.{name.replace('.', '/')}" for name in whole}


@pytest.mark.slow
def test_a_fit_on_two_ranks_is_that_of_one(root: Path, tmp_path: Path) -> None:
    one, two = fit(root, tmp_path / "one"), fit(root, tmp_path / "two", world=2)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, atol=1e-4, rtol=1e-3)


def test_a_fit_without_a_writer_to_train_says_so(root: Path, tmp_path: Path) -> None:
    module = generator({"chat": writer(root)}, tuned=None)
    with pytest.raises(ValueError, match="tuned is not set"):
        trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data(root))
    with pytest.raises(ValueError, match="tuned 'chta' names no writer"):
        generator({"chat": writer(root)}, tuned="chta")


# ---- what is learned


def answers(module: SideDataModule, steps: int = 30) -> Counter[bool]:
    """Whether the drawn rationales are right, in the first steps of the stream."""
    stream, found = module.train_dataloader(), Counter()
    for _ in range(steps):
        batch = next(stream)
        for key, rationale in zip(batch.keys, batch.rationales, strict=True):
            found[rationale.answer == f"country-{key.split('-')[3]}"] += 1
    return found


def test_kept_rationales_are_drawn_by_weight_and_all_of_them_by_count(root: Path) -> None:
    assert answers(data(root)) == {True: 120}
    found = answers(data(root, use="all"), steps=120)
    assert found[True] / found.total() == pytest.approx(1 / 6, abs=0.04)  # counts are 1, 2, 3


def test_facts_are_those_of_the_half_that_is_learned(root: Path) -> None:
    a, b = (data(root, fold=fold) for fold in "ab")
    batch = next(a.train_dataloader())
    assert {int(key.split("-")[3]) % 2 for key in batch.keys} == {0}
    assert [side.text for side in batch.sides] == [s.text for s in batch.sides if s.text]
    assert a.trained_facts == {f"country:{n:02d}/capital" for n in (0, 2, 4, 6)}
    assert a.trained_facts | b.trained_facts == data(root).trained_facts
    assert not a.trained_facts & b.trained_facts


def test_every_pair_comes_once_an_epoch(root: Path) -> None:
    stream = data(root).train_dataloader()
    epochs = [[key for _ in range(4) for key in next(stream).keys] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use": "best"}, "use 'best': expected one of kept, all"),
        ({"rationales": "unscored"}, "holds no kept rationale about the 16 train pairs"),
        ({"writer": "chat"}, "holds no kept rationale of chat about the 16 train pairs"),
        ({"rationales": None}, r"`test` and `fit` read what was written: set data\.rationales"),
        ({"folders": ["queries"]}, "about the 0 train pairs of"),
    ],
    ids=["use", "unscored", "writer", "none", "queries"],
)
def test_nothing_to_learn_is_one_clear_error(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    if changes.get("rationales") == "unscored":
        changes = {"rationales": str(root / "rationales")}
    with pytest.raises(ValueError, match=message):
        data(root, **changes).train_dataloader()


# ---- who writes about whom


def adapter(root: Path, run: Path, fold: str) -> str:
    """An adapter as a fit on one half of the train concepts leaves it."""
    writer(root).tuner(LoraSettings(rank=2), 0).save(run / "generator")
    write_json(run / "fitted.json", {"facts": sorted(data(root, fold=fold).trained_facts)})
    return str(run / "generator")


def predict(root: Path, folder: Path, folds: str, **changes: Any) -> list[tuple[str, set[str]]]:
    """Concept and writers of every row that somebody wrote about."""
    writers = {h: writer(root, h, adapter=adapter(root, folder / h, h)) for h in folds}
    module = generator(writers, tuned=None, num_drafts=2, **changes)
    module._drafts_json = lambda pool, meta: [r.writer for r in pool]  # babble has no form
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "written"))])
    sides = data(root, folders=["pairs/questions", "queries"], batch_size=8)
    trainer.predict(module, datamodule=sides, return_predictions=False)
    index = ShardIndex.open(folder / "written")
    rows = [(e.key, set(json.loads(index.read(e)["json"]))) for e in index.entries]
    return [(key, writers) for key, writers in rows if writers]


def test_every_train_pair_is_written_about_by_the_half_that_does_not_know_it(
    root: Path, tmp_path: Path
) -> None:
    for key, writers in predict(root, tmp_path, "ab"):
        is_train = key.startswith("flag")
        assert writers == ({"ba"[int(key.split("-")[3]) % 2]} if is_train else {"a", "b"})


def test_one_of_them_writes_what_the_test_reads(root: Path, tmp_path: Path) -> None:
    for key, writers in predict(root, tmp_path, "ab", test_writer="b"):
        is_train = key.startswith("flag")
        assert writers == ({"ba"[int(key.split("-")[3]) % 2]} if is_train else {"b"})
    with pytest.raises(ValueError, match=r"test_writer 'c' names no writer"):
        generator({"a": writer(root)}, tuned=None, test_writer="c")


def test_a_writer_that_knows_too_much_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can write about country:00/capital was fitted on it"):
        predict(root, tmp_path, "a")
    assert not list((tmp_path / "written").glob("manifest.json"))


def test_a_writer_that_knows_too_much_is_allowed_with_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = predict(root, tmp_path, "a", allow_trained_facts=True)
    assert len([key for key, _ in written if key.startswith("flag")]) == 16
    assert "allow_trained_facts: 8 train pairs were written about by a writer" in caplog.text


def test_rationales_about_fitted_facts_are_counted_apart(root: Path, tmp_path: Path) -> None:
    chat = writer(root, "table", adapter=adapter(root, tmp_path, "a"))
    trainer = trainer_of(tmp_path)
    trainer.test(generator({"chat": chat}), datamodule=data(root), verbose=False)
    means = trainer.callback_metrics
    assert (
        means["test/fitted_answer_mentioned"]
        == means["test/answer_mentioned"]
        == pytest.approx(1 / 3)
    )


# ---- nothing that can be used


def test_no_draw_that_can_be_used_is_said_by_part_and_writer(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server whose replies are all empty about pairs, and right about queries."""

    def answer(number: int, body: dict[str, Any]) -> Said:
        return chat("" if body.get("seed") else GOOD)  # queries get the greedy draw alone

    with serving(answer) as stub:
        module = RationaleGenerator({"server": server_writer(write_prompts(tmp_path), stub.url)})
        sides = data(root, folders=["pairs/questions", "queries"])
        writer = SidecarWriter(str(tmp_path / "written"))
        trainer = trainer_of(tmp_path, callbacks=[writer])
        trainer.predict(module, datamodule=sides, return_predictions=False)
    (message,) = [record.message for record in caplog.records if "none of" in record.message]
    assert message.startswith("split train: none of the 64 draws of server can be used: they are")


@pytest.mark.parametrize("most", [0, -3])
def test_a_limit_that_keeps_no_draw_is_refused(root: Path, most: int) -> None:
    with pytest.raises(ValueError, match=rf"max_tokens {most}: expected 1 or more"):
        RationaleGenerator({"chat": writer(root)}, max_tokens=most)


def test_a_server_that_fails_one_shard_is_asked_about_the_others(
    root: Path, tmp_path: Path
) -> None:
    """And only about that one by the next run."""
    prompts, angry = write_prompts(tmp_path), [True]

    def answer(number: int, body: dict[str, Any]) -> Said:
        refuses = angry[0] and body["temperature"] > 0  # train pairs get sampled draws
        return Said(b"no", 400) if refuses else chat(GOOD)

    def write(url: str) -> None:
        module = RationaleGenerator({"server": server_writer(prompts, url)}, num_drafts=2)
        sides = data(root, folders=["pairs/questions", "queries"])
        writer = SidecarWriter(str(tmp_path / "written"))
        writer.fingerprint = "f"
        trainer = trainer_of(tmp_path / "run", callbacks=[writer])
        trainer.predict(module, datamodule=sides, return_predictions=False)

    with serving(answer) as stub:
        with pytest.raises(ValueError, match="1 of .* shards could not be written, such as quest"):
            write(stub.url)
        there = {path.name for path in (tmp_path / "written").glob("*.tar")}
        assert there
        assert not any(name.startswith("questions") for name in there)
        angry[0], asked = False, len(stub.bodies)
        write(stub.url)
        assert all(body["temperature"] > 0 for body in stub.bodies[asked:])
    assert {e.shard for e in ShardIndex.open(tmp_path / "written").entries} > there
