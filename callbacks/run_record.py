"""RunRecord: settings and state of a run beside its results, and a link to the newest finished one.

A run is finished when `fingerprint.json` states it and every product that it names is still there
(`is_finished`): the one rule for the pipeline, for resuming, for ablations and for seeds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from msgspec.structs import replace
from torch.distributed.tensor import DTensor
from typing_extensions import override

from callbacks.fit_end import has_ended, unfinished_fit
from callbacks.selected_weights import SelectedWeights
from mmemb.distributed import gather_objects
from mmemb.records.schema import read_json, to_json
from mmemb.storage.files import link_atomically, write_atomically
from mmemb.storage.json_files import write_json
from mmemb.storage.locks import FolderLock
from mmemb.storage.products import Producer, lost_product, record_products
from mmemb.storage.protocols import FactData, having, require
from mmemb.storage.provenance import git_state, package_versions
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.run_marks import RunMark
from mmemb.storage.trained_facts import TrainedFacts, write_run_facts

HEADLINES = ("val/recall@1", "val/reward", "train/loss")
"""Metrics that the last line of a run shows, where they were logged."""


NO_FACTS = TrainedFacts()


@final
class RunRecord(Callback):
    """Writes config, commit, diff, versions, fingerprint and trained facts into the run folder.

    The mark `finished` is the last that a run writes, after every product of its module and
    callbacks (`mmemb.storage.products.Producer`) is on disk and recorded.

    Args:
        run: the run's folder, `<runs>/<experiment>/<time>-<name>-<commit>`.
        link: name of the link to it, made when the run has finished.
        config: the resolved configuration, as YAML text.
        fingerprint: hash of inputs and settings (`mmemb.storage.fingerprints`).
        inputs: path -> identity of everything that the run reads.
        lock: lock of the folder, on the rank that writes it; released when the run has finished.
        announcement: a file that is removed when every rank has come so far.
        owner: name of the person who started it.
        tags: words to find it by.
        inherited_facts: facts behind the models and sidecars that this run starts from.
        selected: says which weights a fit leaves; None of the other subcommands.
    """

    def __init__(
        self,
        run: str,
        link: str,
        config: str,
        fingerprint: str,
        inherited_facts: TrainedFacts = NO_FACTS,
        inputs: Mapping[str, str] | None = None,
        lock: FolderLock | None = None,
        announcement: Path | None = None,
        owner: str = "",
        tags: Sequence[str] = (),
        selected: SelectedWeights | None = None,
    ) -> None:
        self.run = Path(run)
        self.folder = RunFolder(self.run)
        self.link = link
        self.config = config
        self.fingerprint = fingerprint
        self.inherited_facts, self.inputs = inherited_facts, dict(inputs or {})

        self.owner, self.tags = owner, list(tags)
        self.lock, self.announcement = lock, announcement
        self.selected = selected

        self.has_begun = False  # whether a batch has been worked on
        self._started = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._at_end = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before anything is written: other settings on one rank would train a mixture in silence.
        marks = gather_objects([self.fingerprint])
        if len(set(marks)) > 1:
            raise ValueError(
                f"Ranks run with different settings or data (fingerprints by rank: {marks}): start "
                "all of them with the same command, on the same files."
            )

        folders = gather_objects([self.run.name])
        if len(set(folders)) > 1:
            raise ValueError(
                f"Ranks have different run folders (by rank: {folders}), so they were not started "
                "by one launch: start all of them with one torchrun or srun."
            )

        # The gathers above have passed, so every rank has come this far.
        if self.announcement is not None:
            self.announcement.unlink(missing_ok=True)

        if not trainer.is_global_zero:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder.config, self.config.encode())

        commit, diff = git_state(Path(__file__).parent)
        write_atomically(self.folder.diff, diff.encode())
        environment = {"git_commit": commit, "uncommitted_changes": bool(diff)}
        environment |= {"owner": self.owner, "tags": self.tags}
        write_json(self.folder.environment, environment | {"versions": package_versions()})

        self._mark(finished=False)

    # The metrics of a checkpoint's step: a fit that goes on from its last step logs none.

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["metrics"] = _logged_metrics(trainer)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._metrics = checkpoint.get("metrics", {})

        # `max_time` is the time of one process, or its used-up Timer would stop every later one.
        for callback in trainer.callbacks:
            if isinstance(callback, Timer):
                checkpoint.get("callbacks", {}).pop(callback.state_key, None)

    def _begin(self, *_: Any) -> None:
        self.has_begun = True

    on_train_batch_start = on_validation_batch_start = _begin
    on_test_batch_start = on_predict_batch_start = _begin

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_finite(pl_module, self.run, trainer.global_step)

    # Callbacks come before the module, which writes its weights in this hook.
    on_train_end = on_train_start

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that starts from a checkpoint of an interrupted run inherits them, too.
        self._write_facts(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.num_training_batches == 0 or trainer.limit_train_batches == 0:
            raise ValueError(
                f"{self.run}: the data gave no training batch, so nothing was trained. Look at "
                "trainer.limit_train_batches and at the rows of split train."
            )
        if not has_ended(trainer):
            raise unfinished_fit(trainer)

        self._write_facts(trainer)
        self._note_end(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._note_end(trainer)

    def _write_facts(self, trainer: Trainer) -> None:
        data = require(trainer.datamodule, FactData, "RunRecord")  # type: ignore[attr-defined]

        # On every rank: where facts are known only by reading, the ranks join theirs.
        facts = self.inherited_facts | TrainedFacts(data.trained_facts, data.calibrated_facts)
        if trainer.is_global_zero:
            write_run_facts(self.run, facts)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_end(trainer)

    on_predict_end = on_test_end

    def _note_end(self, trainer: Trainer) -> None:
        self._metrics = self._metrics | _logged_metrics(trainer)
        self._at_end = True

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finishes the run: later than every hook in which a callback may still write."""
        if self._at_end and trainer.is_global_zero:
            self._finish(trainer, stage)
            # Released last: a waiting command then finds the run finished.
            if self.lock is not None:
                self.lock.release()
        # Teardown follows an exception, too, and must not finish the run.
        self._at_end = False

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._at_end = False

    def _finish(self, trainer: Trainer, stage: str) -> None:
        summary: dict[str, Any] = {"seconds": round(time.monotonic() - self._started, 1)}
        # The metrics of the weights that are left, which those of the last step are not always.
        if self.selected is not None and self.selected.record:
            self._metrics = self._metrics | self.selected.metrics
            summary["weights"] = self.selected.record
        write_json(self.folder.summary, summary | {"metrics": self._metrics})

        files = (self.folder.config, self.folder.summary, self.folder.facts)
        products = [path for path in files if path.is_file()]
        for part in having([trainer.lightning_module, *trainer.callbacks], Producer):
            products += part.products(stage)

        # The mark names all products, so it follows them; the link never shows an unfinished run.
        self._mark(finished=True, products=record_products(self.run, products))
        link_atomically(self.run.parent / self.link, self.run)

        headlines = [
            f", {name} {self._metrics[name]:.3f}{_chance(self._metrics, name)}"
            for name in HEADLINES
            if name in self._metrics
        ]
        chosen = "" if self.selected is None else self.selected.describe()
        said = f"{summary['seconds']:.0f} s{''.join(headlines)}{chosen}"
        print(f"{self.run.parent / self.link}: {said}")

    def _mark(self, finished: bool, products: Sequence[Mapping[str, Any]] = ()) -> None:
        record: dict[str, Any] = {"fingerprint": self.fingerprint, "finished": finished}
        record |= {"inputs": self.inputs, "products": list(products)}
        write_json(self.folder.mark, record)


def check_finite(module: LightningModule, run: Path, step: int) -> None:
    """Raises ValueError if a weight is not a finite number: such a training has diverged."""
    for name, weight in module.named_parameters():
        # Each rank checks the part that it holds: no collective, which a failing rank would miss.
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        if not local.is_meta and not torch.isfinite(local).all():
            raise ValueError(
                f"{run}: the training has diverged: after step {step} the weights {name} are not "
                "finite. The run is not finished and cannot be continued. Start it with other "
                "settings (a lower learning rate, another precision); to try the same ones again, "
                "remove its folder."
            )


def mark_started(run: Path, fingerprint: str) -> None:
    """Marks a folder as that of a run of this fingerprint, before anything else is in it."""
    write_json(RunFolder(run).mark, {"fingerprint": fingerprint, "finished": False})


def note_reason(run: Path, reason: str) -> None:
    """Records why a run ended before it was finished; the first process to tell is the cause.

    Args:
        run: the folder of the run; nothing is recorded if it is gone, or is finished.
        reason: one line, see `RunMark`.
    """
    # Whatever is wrong here, such as a full disk, must not take the place of the reason itself.
    with contextlib.suppress(OSError, ValueError):
        mark = _mark_of(run)
        if mark is not None and not mark.finished and not mark.reason:
            write_json(RunFolder(run).mark, to_json(replace(mark, reason=reason)))


def fingerprint_of(run: Path) -> str | None:
    """The fingerprint under which a run was started; None if the folder is no run."""
    mark = _mark_of(run)
    return None if mark is None else mark.fingerprint


def is_finished(run: Path, fingerprint: str) -> bool:
    """True if `run` (a folder or a link to one) finished under this fingerprint, and every product
    that it left is still there and whole."""
    mark = _mark_of(run)
    # A run recorded before products were is made again, like one whose products are lost.
    if mark is None or mark.fingerprint != fingerprint or mark.products is None:
        return False
    return mark.finished and lost_product(run.resolve(), mark.products, fingerprint) is None


def is_unfinished(run: Path, fingerprint: str) -> bool:
    """True if `run` was started under this fingerprint and is to be continued."""
    return fingerprint_of(run) == fingerprint and not is_finished(run, fingerprint)


def _mark_of(run: Path) -> RunMark | None:
    path = RunFolder(run).mark
    return read_json(path, RunMark) if path.is_file() else None


def _chance(metrics: Mapping[str, float], name: str) -> str:
    """Returns the chance level of a metric, where the same run has logged it.

    >>> _chance({"val/recall@1": 0.5, "val/chance@1": 0.02}, "val/recall@1")
    ' (chance 0.020)'
    """
    level = metrics.get(name.replace("recall@", "chance@"))
    return "" if level is None or "recall@" not in name else f" (chance {level:.3f})"


def _logged_metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
