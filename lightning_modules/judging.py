"""Judging once: the scores that a stage needs are made where they are missing, shard by shard."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby

from lightning.pytorch import Trainer
from tqdm import tqdm

from mmemb.records.batches import PairRowBatch
from mmemb.records.counted_nouns import counted
from mmemb.selection import PairJudge
from mmemb.selection.pair_scores import judge_pairs
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.locks import locked
from mmemb.storage.manifests import existing_shards
from mmemb.storage.protocols import JudgeData
from mmemb.storage.shard_writer import Sample, encode_members, finish_manifest, write_shard


def judge_missing(trainer: Trainer, data: JudgeData, judge: PairJudge, num_placebos: int) -> None:
    """Scores every shard that is missing or stale; to be called on all ranks.

    Rank r of W writes every W-th of these shards, so an interrupted command goes on where it was.

    Args:
        trainer: its ranks share the work, and its precision is the judge's.
        data: the pairs and queries to judge.
        judge: the judge.
        num_placebos: donors of each pair, writer and depth.
    """
    folder, origins = data.scores_folder(), data.judge_origins()
    settings = {"judge": judge.identity(), "num_placebos": num_placebos}
    settings |= {"precision": str(trainer.precision), "data": data.judge_settings()}
    mark = fingerprint(settings)

    # A development run keeps nothing: each of its ranks has a folder of its own.
    alone = bool(trainer.fast_dev_run)
    rank, world = (0, 1) if alone else (trainer.global_rank, trainer.world_size)
    barrier = trainer.strategy.barrier

    with locked(folder) if rank == 0 else nullcontext():  # a second command waits, and finds all
        barrier()
        existing = existing_shards(folder, mark, origins)
        missing = [name for name in origins if name not in existing]
        if rank == 0:
            print(f"{folder}: {counted(len(existing), 'shard')} there, {len(missing)} to judge")
        barrier()  # no rank writes before all have seen the same holes

        loader = data.judge_loader(missing[rank::world])
        shows = bool(missing) and trainer.progress_bar_callback is not None
        batches = tqdm(loader, "judge", disable=not shows)
        with trainer.precision_plugin.forward_context():
            for shard, of_shard in groupby(batches, lambda batch: batch.shard):
                samples = [
                    sample for batch in of_shard for sample in _samples(judge, batch, num_placebos)
                ]
                write_shard(folder, shard, samples, fingerprint=mark, made_from=origins[shard])

        barrier()
        if rank == 0:
            finish_manifest(folder, mark, origins, made_from=origins)
        barrier()  # no rank reads before the manifest is there


def _samples(judge: PairJudge, batch: PairRowBatch, num_placebos: int) -> list[Sample]:
    """Judges the pairs of a batch, and returns the samples of the sidecar."""
    # tau is fitted without placebos, so those of split `calibration` need not be judged.
    num_placebos = 0 if batch.pairs[0].split == "calibration" else num_placebos

    return [
        Sample(
            pair.key,
            encode_members(scored.members()),
            {
                "kind": judge.kind,
                "task": pair.task,
                "split": pair.split,
                "concept": pair.concept,
                "fact": pair.fact,
            },
        )
        for pair, scored in zip(batch.pairs, judge_pairs(judge, batch, num_placebos), strict=True)
    ]
