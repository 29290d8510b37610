"""Plans of the stages that write rationales and judge them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, final

from experiments.plan_data import (
    gallery_sizes,
    measured,
    rows_below,
    sidecar_bytes,
    sides_of,
    spread,
    trained_rows,
)
from experiments.plan_lengths import PromptLengths, SideLengths, processor_of
from experiments.plan_models import lora_settings, planned_backbone, precision_of
from experiments.plan_read import arguments_of, num_moments, strategy_of, trained_disk
from experiments.plan_stages import Generation, Role, StagePlan
from mmemb.adapters import LoraSettings
from mmemb.backbones.chat_prompt import PromptBuilder, PromptStyle
from mmemb.evaluators.judge_prompt import JudgePrompts, JudgeStyle
from mmemb.model_sizes import language_model_shape
from mmemb.plan_work import Tokens, judge_tokens
from mmemb.planning import ModelShape, Training
from mmemb.rationales.chat_model import ChatModel
from mmemb.rationales.prompts import FewShotPrompt
from mmemb.records import Side

_BYTES_PER_TOKEN = 5
"""Of English text in JSON."""

_RATIONALE_JSON = 420
"""Bytes of a rationale's other fields: worker, model, prompt, decoding, seed."""


def generator(config: Mapping[str, Any], subcommand: str, ranks: int) -> StagePlan:
    """`RationaleGenerator`: of several workers the one with the largest model."""
    model, data = arguments_of(config, "model"), arguments_of(config, "data")
    workers = {
        name: dict(spec["init_args"])
        for name, spec in model["workers"].items()
        if str(spec["class_path"]).endswith(("LanguageModelWorker", "VisionLanguageWorker"))
        and (subcommand == "predict" or name == model.get("tuned"))
    }
    if not workers:
        raise ValueError(
            f"model.workers {sorted(model['workers'])} run no model here (a server or a table does "
            "the writing), or model.tuned names none of them: there is nothing to plan."
        )
    rows = rows_below(Path(data["root"]), data["folders"])
    parts = data.get("parts")
    rows = tuple(r for r in rows if parts is None or r.meta.get("part", "train") in parts)
    half = data.get("half") if subcommand == "fit" else None
    if subcommand == "fit":
        rows = trained_rows(Path(data["root"]), {"pairs": data["folders"], "half": half})
    shapes = {name: language_model_shape(w["model"], trained=False) for name, w in workers.items()}
    name = max(shapes, key=lambda worker: shapes[worker].total)
    worker, shape = workers[name], shapes[name]
    reader = _reader(worker)
    sides = sides_of(spread(rows), reader[0], "query") if reader[0] else []
    few = sides or sides_of(spread(rows), _TEXT_ALONE, "query")
    shared, lengths = reader[1](few)
    prompt = measured([{"text": n} for n in lengths])["text"]
    dtype = precision_of(worker.get("dtype", "float32"), None)
    most = int(worker.get("max_new_tokens", 40 if "prompt" in worker else 256))
    if subcommand == "fit":
        return _tuned(config, worker, rows, (prompt, shared, most), dtype, ranks)
    draws = sum(
        int(model.get("num_candidates", 4))
        if row.meta.get("part", "train") == "train"
        else int(model.get("num_test_draws", 1))
        for row in rows
    )
    each = draws * len(workers) / max(1, len(rows))
    hidden = shape.towers["text"].blocks[0].hidden
    content = each * (most * _BYTES_PER_TOKEN + _RATIONALE_JSON)
    content += 2 * hidden if model.get("probe") else 0
    batch = int(data["batch_size"])
    slots = int(worker.get("batch_size", 96 if "prompt" in worker else 32))
    return StagePlan(
        name=f"{config['name']} predict, worker {name} of {len(workers)}",
        samples=len(rows),
        steps=ceil(len(rows) / (batch * ranks)),
        rows=batch,
        micro_rows=min(slots, batch),
        model=shape,
        training=Training(precision=dtype, devices=ranks),
        trains=False,
        roles={"prompts": Role(per_row=1, tokens={"text": prompt})},
        generation=Generation(
            draws=draws, prompts=len(rows), prompt=prompt, shared=shared, most=most, slots=slots
        ),
        disk={"sidecar, at the most": sidecar_bytes(len(rows), content)},
    )


@final
class _TextAlone(SideLengths):
    """For workers that read no picture: none is decoded."""

    longest_rationale = 0

    def of(self, side: Side, rationale: Any = None) -> dict[str, int]:
        return {"text": side.num_tokens}


_TEXT_ALONE = _TextAlone()


def _reader(worker: Mapping[str, Any]) -> tuple[SideLengths | None, Any]:
    """What decodes pictures, and a function: sides -> shared tokens, tokens of each prompt."""
    if "prompt" in worker:
        chat = ChatModel(
            str(worker["model"]), FewShotPrompt.load(worker["prompt"]), None, "cpu", "float32"
        )

        def of_chat(sides: list[Side]) -> tuple[int, list[int]]:
            questions = [chat.prompt.question(side) for side in sides]
            return len(chat.prefix_ids), [len(chat.question_ids(q)) for q in questions]

        return None, of_chat
    style = worker.get("style") or {}
    given = PromptStyle(**dict(style)) if isinstance(style, Mapping) else style
    lengths = PromptLengths(processor_of(str(worker["model"])), given, 0)
    return lengths, lambda sides: (0, [lengths.of(side)["text"] for side in sides])


def _tuned(
    config: Mapping[str, Any],
    worker: Mapping[str, Any],
    rows: Any,
    tokens: tuple[Tokens, int, int],
    dtype: str,
    ranks: int,
) -> StagePlan:
    """`fit`: next-token loss of LoRA updates; the few-shot prefix is read once a step."""
    model, data = arguments_of(config, "model"), arguments_of(config, "data")
    trainer, (prompt, shared, most) = config["trainer"], tokens
    lora = lora_settings(model.get("lora")) or LoraSettings()
    shape = language_model_shape(str(worker["model"]), lora=lora)
    mine = max(1, int(data["batch_size"]) // ranks)
    said = Tokens(prompt.mean + most, prompt.longest + most)
    training = Training(
        precision=precision_of(dtype, trainer.get("precision")),
        moments=num_moments(model.get("optimizer")),
        strategy=strategy_of(trainer, ranks),
        devices=ranks,
    )
    roles = {"replies": Role(per_row=1, tokens={"text": said})}
    if shared:
        roles["prefix"] = Role(per_row=1 / mine, tokens={"text": Tokens(shared, shared)})
    updates = ModelShape(total=0, trainable=0, towers={}, updates=shape.updates)
    disk = trained_disk(updates, training, trainer)
    disk["generator/"] = disk.pop("backbone/")
    return StagePlan(
        name=f"{config['name']} fit",
        samples=len(rows),
        steps=max(1, int(trainer.get("max_steps") or 1)),
        rows=mine,
        micro_rows=mine,
        model=shape,
        training=training,
        trains=True,
        roles=roles,
        logits=most + 1,
        disk=disk,
    )


def selector(config: Mapping[str, Any], subcommand: str, ranks: int) -> StagePlan:
    """`CounterfactualSelector`: with a yes/no judge its tokens, else the judges' backbones."""
    model, data = arguments_of(config, "model"), arguments_of(config, "data")
    root, spec = Path(data["root"]), model["evaluator"]
    rows = rows_below(root, data.get("pairs") or ["pairs/questions"])
    judge = dict(spec["init_args"])
    galleries = gallery_sizes(root)
    seen = [galleries[r.meta["gallery"]] for r in rows if "gallery" in r.meta]
    negatives = round(sum(seen) / len(seen)) - 1 if seen else max(galleries.values()) - 1
    candidates = rows_below(root, ["candidates"])
    batch = int(data["batch_size"])
    num_rationales = _pool_size(data.get("rationales")) + int(model.get("num_donors", 3))
    content = num_rationales * (48 * _BYTES_PER_TOKEN + _RATIONALE_JSON + 200)
    if not str(spec["class_path"]).endswith("YesNoEvaluator"):
        first = next(iter(judge["judges"].values()))
        folder = {"class_path": "load_backbone", "init_args": {"folder": f"{first}/backbone"}}
        planned = planned_backbone(folder, None, data.get("features"))
        shape, dtype, tokens = planned.shape, planned.dtype, {}
        read = [planned.lengths.of(s, 40) for s in sides_of(spread(rows), planned.lengths, "query")]
        roles = {"queries": Role(per_row=1 + num_rationales, tokens=measured(read))}
    else:
        shape = language_model_shape(str(judge["model"]), trained=False)
        dtype = judge.get("dtype", "float32")
        query, shown, ending = _pieces(judge, rows, candidates)
        tokens = {
            contrast: judge_tokens(query.mean, shown.mean, ending.mean, n, num_rationales)
            for contrast, n in (("gain", 0), ("margin", negatives))
        }
        longest = query.longest + shown.longest + ending.longest
        most = int(judge.get("max_rows", 64)) / batch
        contrast = "gain" if model.get("contrast", "gain") == "gain" else "margin"
        mean = tokens[contrast].shared / most
        roles = {"judged": Role(per_row=most, tokens={"text": Tokens(mean, longest)})}
    return StagePlan(
        name=f"{config['name']} {subcommand}",
        samples=len(rows),
        steps=ceil(len(rows) / (batch * ranks)),
        rows=batch,
        micro_rows=batch,
        model=shape,
        training=Training(precision=precision_of(dtype, None), devices=ranks),
        trains=False,
        roles=roles,
        judge=tokens,
        disk={"sidecar": sidecar_bytes(len(rows), content)} if subcommand == "predict" else {},
    )


def _pool_size(folder: str | None) -> int:
    """Rationales of a pair: as they were written, else four."""
    if folder is None or not (Path(folder) / "manifest.json").is_file():
        return 4
    import json

    from mmemb.shards import ShardIndex

    index = ShardIndex.open(folder, verify=False)
    few = [e for e in index.entries if e.meta.get("part", "train") == "train"][:32]
    sizes = [len(json.loads(index.read(entry, {"json"})["json"])) for entry in few]
    return round(sum(sizes) / len(sizes)) if sizes else 4


def _pieces(judge: Mapping[str, Any], rows: Any, candidates: Any) -> tuple[Tokens, Tokens, Tokens]:
    """Tokens of a query's, a candidate's and a rationale's piece, by the judge's own prompts."""
    style, prompt = (
        dict(given) if isinstance(given, Mapping) else {}
        for given in (judge.get("style"), judge.get("prompt"))
    )
    style = {k: tuple(v) if isinstance(v, list) else v for k, v in style.items()}
    processor = processor_of(str(judge["model"]), bool(judge.get("trust_remote_code")))
    made = JudgePrompts(PromptBuilder(processor, PromptStyle(**prompt)), JudgeStyle(**style))
    lengths = PromptLengths(processor, PromptStyle(), 0)
    queries = sides_of(spread(rows)[:16], lengths, "query")
    shown = sides_of(spread(candidates)[:16], lengths, "candidate")
    counts = (
        [len(made.query(side)) for side in queries],
        [len(made.candidate(queries[0], side)) for side in shown],
        [48 + len(made.ending(side, None)) for side in queries],
    )
    found = [measured([{"text": n} for n in count])["text"] for count in counts]
    return found[0], found[1], found[2]
