"""SidecarWriter: writes the rows of `predict` as sidecar shards, and fills only the holes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from callbacks.folder_writer import FolderWriter
from mmemb.distributed import gather_objects
from mmemb.records.counted_nouns import counted
from mmemb.records.outputs import SidecarRow, step_output
from mmemb.storage.manifests import Origin
from mmemb.storage.protocols import ShardData, require
from mmemb.storage.shard_writer import (
    Sample,
    encode_members,
    existing_shards,
    finish_manifest,
    write_shard,
)
from mmemb.storage.trained_facts import FACTS, write_facts
from mmemb.storage.unfinished import Unfinished


@final
class SidecarWriter(FolderWriter):
    """Writes features, rationales, selections, depth values or decisions.

    A shard is written when its last row has come, so that what exists is whole; shards that exist
    under the same fingerprint, made from the same bytes, are not predicted again. Each records what
    it was made from, as the data module opened it. Without all shards there is no manifest, and the
    run is not finished. Only one run writes a folder at a time. A development run (`fast_dev_run`)
    writes nothing.

    Args:
        folder: folder of the shards, e.g. `runs/pocket/rationales`.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._shard: str | None = None
        self._rows: list[SidecarRow] = []
        self._failed: dict[str, str] = {}
        self._written: list[str] = []
        self._sizes: Mapping[str, int] = {}
        self._made_from: Mapping[str, tuple[Origin, ...]] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        self._failed, self._written = {}, []

        data = require(trainer.datamodule, ShardData, "SidecarWriter")  # type: ignore[attr-defined]
        self._shards = tuple(data.predict_shards())
        self._sizes = data.shard_sizes()
        self._limit = trainer.limit_predict_batches
        if trainer.fast_dev_run:
            print(f"{self.folder}: fast_dev_run, so nothing is written")
            return

        self.lock(trainer)
        self._made_from = data.origins()
        existing = existing_shards(self.folder, self.fingerprint, self._made_from)
        pending = [name for name in self._shards if name not in existing]
        trainer.strategy.barrier()  # no rank writes before all have seen the same holes
        data.pending_shards = pending
        self._written = list(existing)
        if trainer.is_global_zero:
            print(f"{self.folder}: {counted(len(existing), 'shard')} there, {len(pending)} to make")

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        sidecar = step_output(outputs).sidecar
        if sidecar is None or trainer.fast_dev_run:
            return

        if sidecar.shard != self._shard:
            self._flush()

        # What came of this shard so far is dropped: a sidecar has all of its rows or none.
        if sidecar.failure:
            self._failed.setdefault(sidecar.shard, sidecar.failure)
            self._shard, self._rows = None, []
            return

        self._shard = sidecar.shard
        self._rows.extend(sidecar.rows)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses holes: comes before `RunRecord` would record the run as finished."""
        if trainer.fast_dev_run:
            return
        self._flush()

        # Gathered from all ranks, so that all of them fail alike.
        failed = dict(gather_objects(list(self._failed.items())))
        written = set(gather_objects(self._written))
        missing = [name for name in self._shards if name not in written]
        if failed:
            name, reason = min(failed.items())
            raise ValueError(
                f"{self.folder}: {len(failed)} of {len(self._shards)} shards could not be written, "
                f"such as {name}: {reason} The others are there: the same command makes only these."
            )
        if missing:
            raise Unfinished(
                f"{self.folder}: {len(missing)} of {len(self._shards)} shards were not written, "
                f"such as {missing[0]}, since not all of their rows were predicted "
                f"(trainer.limit_predict_batches is {self._limit}). The folder is not complete and "
                "the run is not finished: set no limit and run the command again."
            )

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        # The manifest states all shards, so it comes after the last one of every rank.
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            write_facts(self.folder / FACTS, self.facts)
            finish_manifest(self.folder, self.fingerprint, self._shards, made_from=self._made_from)
        self.release()

    def products(self, stage: str) -> list[Path]:
        """The folder of shards and the facts behind it; see `mmemb.storage.products.Producer`."""
        return [self.folder, self.folder / FACTS] if stage == "predict" else []

    def _flush(self) -> None:
        if self._shard is None:
            return
        name, rows = self._shard, self._rows
        self._shard, self._rows = None, []

        # A limit on batches may stop within a shard: then it stays a hole.
        if len(rows) != self._sizes.get(name, len(rows)):
            return

        samples = [Sample(row.key, encode_members(row.members), dict(row.meta)) for row in rows]
        write_shard(
            self.folder,
            name,
            samples,
            fingerprint=self.fingerprint,
            made_from=self._made_from[name],
            command=self.command,
        )

        self._written.append(name)
