"""SidecarWriter: turns what `predict` yields into sidecar shards, and fills only the holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmemb.batches import SidecarOutput, SidecarRow
from mmemb.distributed import gather_objects
from mmemb.shard_writer import Sample, encode_members, existing_shards, finish_manifest, write_shard


@final
class SidecarWriter(Callback):
    """Writes features, rationales, selections, utilities or decisions.

    A shard is written when its last row has come, so that what exists is whole; shards that exist
    under the same fingerprint are not predicted again.

    Args:
        folder: where the shards go, e.g. `runs/pocket/rationales`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.fingerprint = ""
        self._shard: str | None = None
        self._rows: list[SidecarRow] = []
        self._failed: dict[str, str] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        self._failed = {}
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._shards = tuple(datamodule.predict_shards())
        existing = existing_shards(self.folder, self.fingerprint)
        pending = [name for name in self._shards if name not in existing]
        trainer.strategy.barrier()  # nobody writes before every rank has seen the same holes
        datamodule.pending_shards = pending
        if trainer.is_global_zero:
            print(f"{self.folder}: {len(existing)} shards exist, {len(pending)} to make")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        nothing = not isinstance(outputs, SidecarOutput) or not (outputs.rows or outputs.failure)
        if nothing:  # candidates, for instance
            return
        if outputs.shard != self._shard:
            self._flush()
        if outputs.failure:
            self._failed.setdefault(outputs.shard, outputs.failure)
            self._shard, self._rows = None, []
            return
        self._shard = outputs.shard
        self._rows.extend(outputs.rows)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the run is recorded as finished, which one with holes is not."""
        self._flush()
        if failed := dict(gather_objects(list(self._failed.items()))):
            name, said = next(iter(sorted(failed.items())))
            raise ValueError(
                f"{self.folder}: {len(failed)} of {len(self._shards)} shards could not be written, "
                f"such as {name}: {said} The others are there: the same command makes those alone."
            )

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            finish_manifest(self.folder, self.fingerprint, self._shards)

    def _flush(self) -> None:
        if self._shard is None:
            return
        samples = [
            Sample(row.key, encode_members(row.members), dict(row.meta)) for row in self._rows
        ]
        write_shard(self.folder, self._shard, samples, fingerprint=self.fingerprint)
        self._shard, self._rows = None, []
