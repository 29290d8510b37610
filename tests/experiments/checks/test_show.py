"""A batch in words, by command and in TensorBoard."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.checks.batch import main
from mmemb.records.inputs import Media, Side
from mmemb.training.batch_text import describe_batch, media_words
from tests.datamodules.test_negatives import data
from tests.fixtures.tiny_backbones import HELPFUL, build_joint, cached_picture
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_experiment import Experiment, settings_kept
from tests.lightning_modules.test_contrastive_embedder import rows, thought, with_negatives


def test_the_joint_encoder_shows_its_tokens(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path)
    side = Side("the flag", "Find it.", (cached_picture(0),))
    words = backbone.describe(side)
    assert words.startswith("[CLS] <")
    assert " picture tokens> " in words
    assert words.endswith("[SEP]")
    assert words.count("[SEP]") == 1
    reasoned = backbone.describe(side, HELPFUL)
    assert reasoned.count("[CLS]") == 2, "the answer is read a second time"
    assert reasoned.startswith(words)


def test_a_clip_says_what_it_cuts(tmp_path: Path) -> None:
    backbone = clip(tmp_path)
    assert backbone.describe(Side("short", "find")) == "find short"
    long = backbone.describe(Side("x" * 500), thought(3))
    first, second = long.split(" + ")
    assert first.endswith(" [cut]")
    assert "03" in second
    assert backbone.describe(Side(media=(Media("frame", "a"),))) == "<frame>"


def test_a_row_is_described_whole(tmp_path: Path) -> None:
    batch = with_negatives(rows(0, 1), [[40, 41]] + [[]] * 7)
    text = describe_batch(batch, clip(tmp_path), range(99))
    assert text.count("## row") == 8
    first, second = text.split("## row")[1:3]
    assert "query: `find it the flag of 00`" in first
    assert "target image p0: pixels 3 x 8 x 8, features 2 x 8" in first
    assert "with its rationale: `find it the flag of 00 + It is country 00." in first
    assert first.count("hard negative: `country 4") == 2
    assert "attracted by target(s) 0, repelled by 7 of 7 others" in first
    assert "no rationale" in second
    assert media_words(Media("image", "0123456789")) == "image 01234567: not read"


def test_the_first_batch_stands_in_tensorboard(clip_experiment: Experiment) -> None:
    run = EventAccumulator(str((clip_experiment.folder / "embedder").resolve()))
    run.Reload()
    (event,) = run.Tensors("train/first_batch/text_summary")
    assert event.step == 0
    text = event.tensor_proto.string_val[0].decode()
    assert "## row 1: " in text
    logged = run.Tags()["scalars"]
    assert {"train/effective_rank", "train/data_wait_share", "train/grad_norm/old"} <= set(logged)


def test_the_command_prints_the_batch_of_a_step(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = clip_experiment.command("embedder", "--runs", str(clip_experiment.runs))
    with settings_kept():
        main(["batch", "--step", "1", "--rows", "1", *arguments])
    text = capsys.readouterr().out
    assert "Step 1, 8 rows" in text
    assert text.count("## row") == 1


def test_what_is_no_pair_is_refused(clip_experiment: Experiment) -> None:
    _, *arguments = clip_experiment.command("gate", "--runs", str(clip_experiment.runs))
    with settings_kept(), pytest.raises(SystemExit, match="trains on a DepthValueBatch"):
        main(["batch", *arguments])
    with pytest.raises(SystemExit, match="--step -1"):
        main(["batch", "--step", "-1", *arguments])


def test_the_same_step_is_the_same_batch(tiny_root: Path) -> None:
    whole = list(islice(data(tiny_root).train_dataloader(), 3))
    stream = data(tiny_root).train_dataloader()
    stream.load_state_dict({"batches": 2})
    assert next(stream).keys == whole[2].keys
