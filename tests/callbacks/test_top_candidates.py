"""The figure of fixed queries: the same on any number of ranks, with pictures, in TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import RecallAtK
from callbacks.top_candidates import NUM_CANDIDATES, TopCandidates, TopRow
from callbacks.top_candidates import _draw as draw
from datamodules import EvaluationDataModule
from lightning_modules import ContrastiveEmbedder
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_data import TASKS
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_trainer import trainer_of


def test_the_figure_is_in_tensorboard(tiny_root: Path, tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    trainer = trainer_of(tmp_path, callbacks=[RecallAtK(root=str(tiny_root))], logger=logger)
    data = EvaluationDataModule(str(tiny_root), batch_size=16, splits=["test"])
    trainer.test(ContrastiveEmbedder(clip(tmp_path)), datamodule=data, verbose=False)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Images("test/best_candidates")[0].height > 300


def test_a_row_for_each_task_whatever_the_ranks_hold(tiny_root: Path, tmp_path: Path) -> None:
    def rows(rank: int, world: int) -> list[TopRow]:
        data = EvaluationDataModule(str(tiny_root), batch_size=7, splits=["test"])
        module = ContrastiveEmbedder(clip(tmp_path)).eval()
        candidates, queries = data._data.loaders(data._data.select(["test"]), rank, world)
        meter = RecallAtK().meter
        for batch in candidates:
            meter.add(module.validation_step(batch, 0, 0))
        for batch in queries:
            meter.add(module.validation_step(batch, 0, 1))
        return meter.first_of_each_task(meter.galleries(module.backbone.embedding_dim))

    one = rows(0, 1)
    assert [row.task for row in one] == sorted(task.name for task in TASKS)
    index = ShardIndex.open(tiny_root / "queries")
    for row in one:
        about = [
            e.key for e in index.entries if (e.meta["task"], e.meta["split"]) == (row.task, "test")
        ]
        assert row.key == min(about)
        assert len(row.names) == (3 if row.gallery == "continents" else NUM_CANDIDATES)
    assert run_ranks(rows, 2, 2) == [one, one]


def test_right_and_wrong_and_missing_candidates_are_drawn(tiny_root: Path) -> None:
    rows = [
        TopRow("flag-name", "00000000", "a flag", "flags", ("country-08", "nobody"), (True, False)),
        TopRow("odd", "no such key", "a question " * 30, "continents", ("north",), (False,)),
    ]
    figure = TopCandidates(tiny_root).figure(rows)
    cells = figure.axes
    assert len(cells) == 2 * (1 + NUM_CANDIDATES)
    assert len(cells[1].images) == 1
    assert not cells[2].images
    colours = [cell.spines["left"].get_edgecolor() for cell in cells[1:3]]
    assert colours[0] != colours[1]
    assert [cell.axison for cell in cells[3:6]] == [False] * 3


def test_a_picture_that_cannot_be_read_is_written_about() -> None:
    from matplotlib.figure import Figure

    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"
    axes = Figure().subplots()
    draw(axes, "task", "text", ("q0.png", postscript), "#ffffff")
    assert not axes.images
    assert axes.texts[0].get_text().startswith("q0.png cannot be")


def test_a_wrong_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="queries"):
        TopCandidates(tmp_path)
