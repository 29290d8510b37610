"""From a stage's configuration and its data to its plan; nothing is built or written."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from experiments.plan_data import (
    measured,
    num_pictures,
    query_rows,
    rationale_lengths,
    rows_below,
    sidecar_bytes,
    sides_of,
    spread,
    trained_rows,
)
from experiments.plan_models import PlannedModel, planned_backbone, precision_of
from experiments.plan_stages import Role, StagePlan
from mmemb.model_sizes import efficient_net_parameters
from mmemb.plan_layers import PRECISIONS
from mmemb.planning import ModelShape, Training
from mmemb.records import Side


def read_plan(config: Mapping[str, Any], subcommand: str, devices: int | None) -> StagePlan:
    """The plan of one stage.

    Args:
        config: resolved, as plain data.
        subcommand: `fit`, `predict` or `test`.
        devices: in place of `trainer.devices`.

    Raises:
        ValueError: the stage is of a kind that is not planned.
    """
    from experiments import plan_writers

    kind = str(config["model"]["class_path"]).rpartition(".")[2]
    ranks = devices or num_devices(config["trainer"])
    if kind in ("ContrastiveEmbedder", "TeacherEmbedder", "HardNegativeMiner"):
        read = trained_embedder if subcommand == "fit" else running_embedder
        return read(config, subcommand, ranks)
    if kind == "RationaleGenerator" and subcommand in ("fit", "predict"):
        return plan_writers.generator(config, subcommand, ranks)
    if kind == "CounterfactualSelector":
        return plan_writers.selector(config, subcommand, ranks)
    if kind == "FeatureExtractor":
        return feature_extractor(config, ranks)
    raise ValueError(
        f"model.class_path {kind} with {subcommand} runs no large model, so there is nothing to "
        "plan: name a stage of ContrastiveEmbedder, RationaleGenerator (fit, predict), "
        "CounterfactualSelector, TeacherEmbedder, HardNegativeMiner or FeatureExtractor."
    )


def num_devices(trainer: Mapping[str, Any]) -> int:
    """Of `trainer.devices` times `num_nodes`; what leaves the number open counts as one.

    >>> num_devices({"devices": "auto"}), num_devices({"devices": [0, 1], "num_nodes": 2})
    (1, 4)
    """
    given = trainer.get("devices")
    if isinstance(given, list):
        count = len(given)
    else:
        count = int(given) if str(given).isdigit() and int(given) > 0 else 1
    return count * int(trainer.get("num_nodes") or 1)


def strategy_of(trainer: Mapping[str, Any], ranks: int) -> str:
    """`single`, `ddp` or `fsdp2`."""
    given = trainer.get("strategy") or "auto"
    name = given if isinstance(given, str) else str(given.get("class_path"))
    if "ModelParallel" in name or "fsdp" in name.lower():
        return "fsdp2"
    return "ddp" if ranks > 1 else "single"


def arguments_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """`init_args` of `model` or `data`."""
    return dict(config[part].get("init_args") or {})


def trained_embedder(config: Mapping[str, Any], subcommand: str, ranks: int) -> StagePlan:
    """`ContrastiveEmbedder fit`."""
    model, data = arguments_of(config, "model"), arguments_of(config, "data")
    trainer = config["trainer"]
    planned = planned_backbone(model["backbone"], model.get("lora"), data.get("features"))
    root = Path(data["root"])
    rows = trained_rows(root, data)
    few, lengths = spread(rows), planned.lengths
    reasons = bool(model.get("reasoning_weight", 1.0)) and data.get("sidecar") is not None
    targets, queries = (sides_of(few, lengths, which) for which in ("target", "query"))
    notes = rationale_lengths(few, data.get("sidecar"), lengths.longest_rationale)
    notes = notes if reasons else [None] * len(few)
    read = [lengths.of(s, n) for s, n in zip(queries, notes, strict=True)]
    alone = [lengths.of(side) for side in queries]
    roles = {"targets": Role(per_row=1, tokens=measured([lengths.of(s) for s in targets]))}
    if reasons and not lengths.one_sequence:
        roles["queries"] = Role(per_row=1, tokens=measured(alone))
        roles["reasoned"] = Role(per_row=1, tokens=measured(read))
    else:
        roles["queries"] = Role(per_row=1, tokens=measured(read))
    negatives = int(data.get("num_negatives") or 1) if data.get("negatives") else 0
    if negatives:
        roles["negatives"] = Role(per_row=negatives, tokens=roles["targets"].tokens)
    batch = int(data["batch_size"])
    mine = max(1, batch // ranks)
    cache = dict(model.get("gradient_cache") or {})
    cache = dict(cache.get("init_args") or cache)
    steps = int(trainer.get("max_steps") or -1)
    if steps < 1:
        steps = int(trainer.get("limit_train_batches") or 1) * int(trainer.get("max_epochs") or 1)
    training = Training(
        precision=precision_of(planned.dtype, trainer.get("precision")),
        checkpointing=bool(model.get("gradient_checkpointing")),
        padded=planned.padded,
        moments=num_moments(model.get("optimizer")),
        strategy=strategy_of(trainer, ranks),
        devices=ranks,
        retained_gib=float(cache.get("retained_gib") or 0.0),
    )
    terms = 1 + reasons
    columns = batch * (1 + negatives)
    return StagePlan(
        name=f"{config['name']} fit",
        samples=len(rows),
        steps=steps,
        rows=mine,
        micro_rows=micro_rows(cache, mine, [*queries, *targets]),
        model=planned.shape,
        training=training,
        trains=True,
        roles=roles,
        loss=(columns, planned.width, terms, bool(model.get("symmetric", True))),
        disk=trained_disk(planned.shape, training, trainer),
        tuned=planned.tuned,
        media_share=media_share(queries + targets, planned),
    )


def micro_rows(cache: Mapping[str, Any], rows: int, sides: list[Side]) -> int:
    """Rows of a micro-batch; a bound on tokens is one on the estimates of `Side.num_tokens`."""
    found = min(rows, int(cache.get("micro_batch_size") or rows))
    if cache.get("micro_batch_tokens"):
        cost = 2 * sum(side.num_tokens for side in sides) / max(1, len(sides))
        found = min(found, max(1, int(cache["micro_batch_tokens"] // cost)))
    return found


def media_share(sides: list[Side], planned: PlannedModel) -> float:
    """Share of pictures in the text tower's tokens; 0 where they have a fixed size."""
    if not planned.lengths.reads_pixels:
        return 0.0
    whole = sum(planned.lengths.of(side)["text"] for side in sides)
    texts = [Side(side.text or "-", side.instruction) for side in sides]
    words = sum(planned.lengths.of(side)["text"] for side in texts)
    return max(0.0, 1 - words / whole)


def num_moments(optimizer: Any) -> int:
    """Numbers that an optimiser keeps for each trained one; 2 unless it is known to keep fewer.

    >>> num_moments({"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}})
    1
    """
    given = optimizer if isinstance(optimizer, Mapping) else {"class_path": str(optimizer)}
    if str(given.get("class_path")).endswith("SGD"):
        return int(bool((given.get("init_args") or {}).get("momentum")))
    return 2


def trained_disk(
    model: ModelShape, training: Training, trainer: Mapping[str, Any]
) -> dict[str, int]:
    """Bytes that a training leaves."""
    weight = PRECISIONS[training.precision].weight
    weights, updates = weight * model.total, 4 * model.updates
    trained = weight * model.trainable + updates
    one = weights + updates + training.moments * trained
    copies = 0
    for callback in trainer.get("callbacks") or []:
        if str(callback["class_path"]).endswith("ModelCheckpoint"):
            given = callback.get("init_args") or {}
            best = given.get("save_top_k", 1)
            copies += bool(given.get("save_last")) + max(0, int(1 if best is None else best))
    return {f"{copies} checkpoint(s)": copies * one, "backbone/": weights}


def running_embedder(config: Mapping[str, Any], subcommand: str, ranks: int) -> StagePlan:
    """A backbone that embeds queries and candidates, or pairs, without a backward pass."""
    model, data = arguments_of(config, "model"), arguments_of(config, "data")
    trainer = config["trainer"]
    if model.get("backbone") is None:
        raise ValueError("model.backbone is not set: name the backbone that embeds.")
    planned = planned_backbone(model["backbone"], None, data.get("features"))
    root, lengths = Path(data["root"]), planned.lengths
    pairs = data.get("pairs")
    parts = data.get("parts") or (["test"] if subcommand == "test" else None)
    rows = rows_below(root, pairs) if pairs else query_rows(root, parts)
    others = rows if pairs else rows_below(root, ["candidates"])
    few = spread(rows)
    sides = sides_of(few, lengths, "query")
    found = sides_of(spread(others), lengths, "target" if pairs else "candidate")
    sidecar = data.get("rationales") if subcommand == "predict" or model.get("reason") else None
    notes = rationale_lengths(few, sidecar, lengths.longest_rationale)
    read = [lengths.of(s, n) for s, n in zip(sides, notes, strict=True)]
    share = len(others) / max(1, len(rows))
    roles = {
        "queries": Role(per_row=1, tokens=measured([lengths.of(s) for s in sides])),
        "others": Role(per_row=share, tokens=measured([lengths.of(s) for s in found])),
    }
    if sidecar is not None:
        draws = int(model.get("num_draws") or 1) * (len(model.get("depths") or "12") - 1)
        roles["reasoned"] = Role(per_row=draws, tokens=measured(read))
    batch = int(data["batch_size"])
    content = 8 * planned.width + 2048
    writes = subcommand == "predict"
    return StagePlan(
        name=f"{config['name']} {subcommand}",
        samples=len(rows),
        steps=ceil(len(rows) / (batch * ranks)),
        rows=batch,
        micro_rows=batch,
        model=planned.shape,
        training=Training(
            precision=precision_of(planned.dtype, trainer.get("precision")), devices=ranks
        ),
        trains=False,
        roles=roles,
        disk={"sidecar": sidecar_bytes(len(rows), content)} if writes else {},
        media_share=media_share(sides, planned),
    )


def feature_extractor(config: Mapping[str, Any], ranks: int) -> StagePlan:
    """Pictures through a frozen tower of a few million weights: what counts is the disk."""
    data = arguments_of(config, "data")
    pictures = num_pictures(Path(data["root"]), data["folders"])
    batch = int(data["batch_size"])
    return StagePlan(
        name=f"{config['name']} predict",
        samples=pictures,
        steps=ceil(pictures / (batch * ranks)),
        rows=batch,
        micro_rows=batch,
        model=ModelShape(total=efficient_net_parameters(), trainable=0, towers={}),
        training=Training(devices=ranks),
        trains=False,
        disk={"sidecar": sidecar_bytes(pictures, 2 * 6 * 1280 + 128)},
    )
