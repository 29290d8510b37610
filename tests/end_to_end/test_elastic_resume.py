"""A fit goes on with another number of ranks: the same samples at every step, nearly equal sums."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules import ContrastiveEmbedder
from tests.datamodules.test_negatives import data
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_trainer import trainer_of

STEPS = 5


@final
class NoteKeys(Callback):
    """Writes which samples each rank read at each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        path = self.folder / f"step{batch.step}-rank{trainer.global_rank}.json"
        path.write_text(json.dumps(batch.keys))


@final
class StopBehind(Callback):
    """Stops a fit after some steps; its schedule is that of all."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def fit(folder: Path, root: Path, world: int, steps: int, start: Path | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    saving = ModelCheckpoint(dirpath=folder, filename="end", every_n_train_steps=1, save_top_k=1)
    trainer = trainer_of(
        folder, world, max_steps=STEPS, limit_train_batches=STEPS,
        callbacks=[NoteKeys(folder), StopBehind(steps), saving], enable_checkpointing=True,
    )  # fmt: skip
    plain = partial(torch.optim.SGD, lr=0.1)  # Adam makes large steps of rounding
    module = ContrastiveEmbedder(clip(folder).train(), plain, num_warmup_steps=1)
    trainer.fit(module, datamodule=data(root), ckpt_path=start and str(start))
    return next(iter(sorted(folder.glob("end*.ckpt"))))


def samples(folder: Path, step: int) -> list[str]:
    found = sorted(folder.glob(f"step{step}-rank*.json"))
    return sorted(key for path in found for key in json.loads(path.read_text()))


def _slow(before: int, after: int) -> Any:
    return pytest.param(before, after, marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("before", "after"), [_slow(1, 2), _slow(2, 1), (2, 4)])
def test_another_number_of_ranks_reads_the_same_samples(
    tiny_root: Path, tmp_path: Path, before: int, after: int
) -> None:
    whole = fit(tmp_path / "whole", tiny_root, 1, STEPS)
    first = fit(tmp_path / "first", tiny_root, before, 2)
    second = fit(tmp_path / "second", tiny_root, after, STEPS, first)
    for step in range(STEPS):
        folder = tmp_path / ("first" if step < 2 else "second")
        assert samples(folder, step) == samples(tmp_path / "whole", step)
    assert not samples(tmp_path / "second", 1), "no step is taken twice"
    every = {key.rsplit("-", 1)[0] for n in range(STEPS) for key in samples(tmp_path / "whole", n)}
    assert every >= {"flag-name", "clip-name", "flag-continent"}, "texts, pictures and clips"
    expected, found = (
        torch.load(path, weights_only=True)["state_dict"] for path in (whole, second)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)
