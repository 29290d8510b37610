"""The end of a fit: what counts as one, what interrupts it, and how an interrupted fit goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from typing_extensions import override

from callbacks import RunRecord, StopAtStep, run_record
from callbacks.fit_end import LAST
from callbacks.run_record import is_finished, is_unfinished
from experiments.cli.fit_loop import WholeFitLoop
from mmemb.storage.unfinished import Unfinished
from tests.fixtures.echo_module import Boring
from tests.fixtures.tiny_trainer import Stub, trainer_of


class Saving(Boring):
    """Trains one number by the batches' values, and leaves it as a product."""

    validations = 0

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.layer(torch.ones(1)) * batch).sum()

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validations += 1
        self.log("val/weight", self.layer.weight.sum(), batch_size=1)

    @override
    def on_train_end(self) -> None:
        torch.save(self.layer.state_dict(), self.products("fit")[0])

    def products(self, stage: str) -> list[Path]:
        return [Path(self.trainer.default_root_dir) / "weights.pt"] if stage == "fit" else []


@final
class Stop(Callback):
    """Asks the trainer to stop at a step, as a Timer does."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


@final
class PowerCut(Callback):
    """Fails in the hook before the weights are written."""

    @override
    def on_train_end(self, *args: Any) -> None:
        raise RuntimeError("the power went out")


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes less for each fit."""
    monkeypatch.setattr(run_record, "git_state", lambda folder: ("", ""))


def saving() -> ModelCheckpoint:
    return ModelCheckpoint(every_n_train_steps=2, save_last=True, save_top_k=0)


def fit(
    run: Path,
    *callbacks: Callback,
    module: Saving | None = None,
    checkpoint: ModelCheckpoint | None = None,
    **kwargs: Any,
) -> Saving:
    """What the command line does: a fit of six steps that goes on where its folder ends."""
    record = RunRecord(str(run), "trunk", config="", fingerprint="abc")
    checkpoint = checkpoint or saving()
    checkpoint.dirpath = str(run / "checkpoints")
    limits = {"max_steps": 6, "limit_val_batches": 1, "val_check_interval": 3} | kwargs
    trainer = trainer_of(
        run, callbacks=[record, *callbacks, checkpoint, StopAtStep()], enable_checkpointing=True,
        **limits,
    )  # fmt: skip
    trainer.fit_loop = WholeFitLoop.of(trainer)

    torch.manual_seed(0)
    module = module or Saving()
    batches = [torch.tensor(float(n)) for n in range(6)]
    data = Stub(train=lambda rank, world: batches, val=lambda rank, world: [0])
    last = run / LAST
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    return module


def weights(run: Path) -> Any:
    return torch.load(run / "weights.pt", weights_only=True)["weight"].item()


def step_of(run: Path) -> int:
    return torch.load(run / LAST, weights_only=True)["global_step"]


@pytest.mark.parametrize("limits", [{}, {"max_steps": -1, "max_epochs": 1}])
def test_a_fit_that_is_stopped_is_interrupted_and_the_same_command_ends_it(
    tmp_path: Path, limits: dict[str, int]
) -> None:
    """A stop counts the epoch as processed, so `max_epochs: 1` looked reached."""
    run = tmp_path / "1-trunk-x"
    with pytest.raises(Unfinished, match=r"step 3.*goes on from checkpoints/last\.ckpt"):
        fit(run, Stop(3), **limits)
    assert is_unfinished(run, "abc")
    assert not (run / "weights.pt").exists()
    assert not (tmp_path / "trunk").exists()
    assert step_of(run) == 3, "no step is lost"

    fit(run, **limits)
    assert is_finished(run, "abc")


def test_a_stop_waits_for_the_end_of_an_accumulation_window(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    batches = Stop(1)
    with pytest.raises(Unfinished):
        fit(run, batches, accumulate_grad_batches=2, max_steps=3)
    assert torch.load(run / LAST, weights_only=True)["loops"]["fit_loop"][
        "epoch_loop.batch_progress"
    ]["current"]["ready"] in (2, 4)


def test_the_time_limit_is_that_of_one_process(tmp_path: Path) -> None:
    """Lightning restores the time used up, so that every later process would stop at once."""
    run = tmp_path / "1-trunk-x"
    timer = Timer(duration={"days": 30})
    timer.load_state_dict({"time_elapsed": {"train": 10**6}})
    with pytest.raises(Unfinished):
        fit(run, timer, Stop(3))
    fit(run, Timer(duration={"days": 1}))
    assert is_finished(run, "abc")


def test_a_reached_limit_counts_though_a_stop_comes_with_it(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    fit(run, Stop(6))
    assert is_finished(run, "abc")


def test_an_early_stop_is_an_end(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    fit(run, stopping())
    assert is_finished(run, "abc")
    assert step_of(run) < 6


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # of the run that goes on
def test_an_early_stop_that_broke_off_is_remembered(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    with pytest.raises(RuntimeError, match="power"):
        fit(run, stopping(), PowerCut(), checkpoint=monitored())
    found = torch.load(run / LAST, weights_only=True)["state_dict"]["layer.weight"].item()
    assert step_of(run) == 3
    fit(run, stopping(), checkpoint=monitored())
    assert is_finished(run, "abc")
    assert weights(run) == found, "no further step is trained"


def stopping() -> EarlyStopping:
    """Stops at the first validation."""
    return EarlyStopping("val/weight", stopping_threshold=10**6)


def monitored() -> ModelCheckpoint:
    """Saves after every validation."""
    return ModelCheckpoint(save_last=True, monitor="val/weight")


def test_an_early_stop_by_divergence_is_none(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    with pytest.raises(ValueError, match="diverged at step 3"):
        fit(run, EarlyStopping("val/weight", divergence_threshold=-(10**6)))
    assert is_unfinished(run, "abc")


def test_a_fit_cut_behind_its_last_checkpoint_is_completed(tmp_path: Path) -> None:
    """Lightning skips the loop then: no last validation, and no weights are written."""
    whole, cut = tmp_path / "1-trunk-x", tmp_path / "2-trunk-x"
    fit(whole)
    with pytest.raises(RuntimeError, match="power"):
        fit(cut, PowerCut())
    assert step_of(cut) == 6
    assert is_unfinished(cut, "abc")

    module = fit(cut)
    assert module.validations == 1, "the last validation alone"
    assert is_finished(cut, "abc")
    assert weights(cut) == weights(whole)


def test_a_finished_run_whose_product_is_broken_is_made_again(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    fit(run)
    product = run / "weights.pt"
    before = product.read_bytes()
    product.write_bytes(before[:-1])
    assert not is_finished(run, "abc")
    assert is_unfinished(run, "abc")
    fit(run)
    assert is_finished(run, "abc")
    assert product.read_bytes() == before


def test_a_run_without_its_product_is_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"

    class Forgetful(Saving):
        def on_train_end(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"weights\.pt is missing"):
        fit(run, module=Forgetful())
    assert is_unfinished(run, "abc")


def test_weights_that_are_not_finite_are_never_finished(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"

    class Diverging(Saving):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * torch.inf

    with pytest.raises(ValueError, match=r"diverged.*layer\.weight are not finite"):
        fit(run, module=Diverging())
    with pytest.raises(ValueError, match=r"diverged.*layer\.weight are not finite"):
        fit(run)
    assert is_unfinished(run, "abc")


def test_a_fit_without_a_batch_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "1-trunk-x"
    with pytest.raises(ValueError, match="no training batch"):
        fit(run, limit_train_batches=0)
    assert is_unfinished(run, "abc")
