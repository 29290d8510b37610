"""Gates that are fitted for the report alone: the supervised row, and one for each kind of state.

Shapes: N queries, S state width, A depths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.depth_values import DepthValueTable
from datamodules.samples import rows_of
from experiments.report.policies.fit_head import fit_head
from mmemb.gate.heads import MlpDepthHead
from mmemb.gate.policy_gradients import reward_BA
from mmemb.gate.policy_loss import Estimator
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import StatePart, check_parts
from mmemb.records.hashing import stable_hash
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex

NUM_STEPS = 300
"""Steps of every head, each over all queries of split `gate`, as in the gate's own fit."""


def supervised_depths(splits: Mapping[str, DepthValueBatch], gate: Mapping[str, Any]) -> np.ndarray:
    """Returns the depths (N,) on split `test` of a gate that was trained on every depth's reward.

    Args:
        splits: `read_splits`.
        gate: settings of the gate's run, of which state, token_cost and clip are used.
    """
    # The state is that of the method's gate, so the two rows differ in the estimator alone.
    logit_NA = fitted_logits(
        splits, check_parts(gate["state"] or ["embedding"]), gate, "supervised"
    )
    return logit_NA.argmax(1).numpy()


def read_splits(experiment: Path, data_root: Path) -> dict[str, DepthValueBatch]:
    """Reads the depth values of each split, in the order of the query shards.

    Args:
        experiment: holds `depth_values/`.
        data_root: holds `queries/`.
    """
    rows = rows_of(ShardIndex.open(data_root / "queries"))
    table = DepthValueTable(str(ExperimentFolder(experiment).depth_values), rows[0].index)
    return {
        split: table.batch(table.of_split(rows, split)) for split in ("gate", "calibration", "test")
    }


def fitted_logits(
    splits: Mapping[str, DepthValueBatch],
    state: tuple[StatePart, ...],
    gate: Mapping[str, Any],
    estimator: Estimator,
    seed: int = 0,
    *,
    split: str = "test",
    depths: Sequence[int] | None = None,
) -> Tensor:
    """Fits a head on split `gate`, and returns its logits (N, A) on another split.

    Args:
        splits: depth values by split.
        state: what the head sees.
        gate: settings of the gate's run.
        estimator: estimator of the policy gradient.
        seed: seed of the fit.
        split: the split that the logits are about.
        depths: numbers of the depths that the head chooses from; by default all.
    """
    # Queries that are not eligible have no depth to choose, so the head is fitted on the others.
    batch = splits["gate"]
    numbers = list(range(batch.depth_value_BA.shape[1])) if depths is None else list(depths)
    reward_NA = reward_BA(
        batch.depth_value_BA[:, numbers],
        batch.cost_BA[:, numbers],
        clip=gate["clip"],
        token_cost=gate["token_cost"],
    )[batch.eligible_B]
    state_NS = batch.inputs.state(state)[batch.eligible_B]

    # The seed fixes the first weights, so that the same runs give the same report.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash("head", seed))
        head = MlpDepthHead(
            state_NS.shape[1], len(numbers), **(gate["head"].get("init_args") or {})
        )

    fit_head(head, state_NS, reward_NA, estimator, num_steps=NUM_STEPS, seed=seed)

    with torch.inference_mode():
        return head(splits[split].inputs.state(state))
