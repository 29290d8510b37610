"""Which trainer settings make another run, and that each of Lightning's has been looked at."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from experiments.runs.deciding_settings import FREE_CALLBACKS, FREE_KEYS, deciding_trainer

DECIDING = {
    "precision", "callbacks", "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps",
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "use_distributed_sampler", "barebones",
    "plugins", "sync_batchnorm", "reload_dataloaders_every_n_epochs",
}  # fmt: skip


def test_every_argument_of_the_trainer_is_on_one_of_the_lists() -> None:
    """A new one of Lightning's counts until it is entered here, or in FREE_KEYS with a reason."""
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert known == DECIDING | set(FREE_KEYS)
    assert not DECIDING & set(FREE_KEYS)


def of_class(path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": init_args}


EMA = of_class("lightning.pytorch.callbacks.EMAWeightAveraging", decay=0.9)
SAVING = of_class("lightning.pytorch.callbacks.ModelCheckpoint", save_last=True)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_clip_algorithm": "value"},
        {"overfit_batches": 2},
        {"a_key_of_tomorrow": 1},
        {"callbacks": [SAVING, EMA]},
        {"callbacks": EMA},
        {"callbacks": [of_class("lightning.pytorch.callbacks.BackboneFinetuning")]},
        {"callbacks": [of_class("callbacks.SidecarWriter", folder="elsewhere")]},
        {"callbacks": [of_class("no.such.Callback")]},
    ],
)
def test_what_may_change_a_result_counts(change: dict[str, Any]) -> None:
    usual = {"max_steps": 4, "callbacks": [SAVING]}
    assert deciding_trainer(usual | change) != deciding_trainer(usual)


@pytest.mark.parametrize("key", FREE_KEYS)
def test_what_changes_no_result_does_not_count(key: str) -> None:
    assert deciding_trainer({"max_steps": 4, key: "other"}) == deciding_trainer({"max_steps": 4})


@pytest.mark.parametrize("free", FREE_CALLBACKS)
def test_callbacks_that_only_look_do_not_count(free: type) -> None:
    block = of_class(f"{free.__module__}.{free.__name__}", anything=1)
    assert deciding_trainer({"callbacks": [block, EMA]}) == deciding_trainer({"callbacks": [EMA]})


def test_settings_of_an_earlier_run_import_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--ckpt_path` compares them, and the run may come from anywhere."""
    (tmp_path / "canary_of_settings.py").write_text("class Callback: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    block = of_class("canary_of_settings.Callback")
    assert deciding_trainer({"callbacks": [block]}) != deciding_trainer({"callbacks": []})
    assert "canary_of_settings" not in sys.modules
