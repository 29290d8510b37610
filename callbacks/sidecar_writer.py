"""SidecarWriter: turns what `predict` yields into sidecar shards, and fills only the holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmemb.batches import SidecarOutput, SidecarRow
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

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
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
        if not isinstance(outputs, SidecarOutput) or not outputs.rows:  # candidates, for instance
            return
        if outputs.shard != self._shard:
            self._flush()
        self._shard = outputs.shard
        self._rows.extend(outputs.rows)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
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
