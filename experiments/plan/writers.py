"""Plans of the stages that write rationales, and that train a writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datamodules.asked import AskedTasks, part_of
from datamodules.samples import Row, SampleReader, media_of
from experiments.plan.data import rows_below, sidecar_bytes, spread
from experiments.plan.lengths import Tokens, measured
from experiments.plan.memory import ModelShape
from experiments.plan.models import language_model_shape
from experiments.plan.planned_workers import PlannedWorker, planned_worker
from experiments.plan.settings import Settings, precision_of, record
from experiments.plan.stages import Generation, Role, StagePlan
from mmemb.llm.lora import LoraSettings

BYTES_PER_TOKEN = 5
"""Bytes of a token of English text in JSON."""

RATIONALE_JSON = 420
"""Bytes of a rationale's other fields: worker, model, prompt, decoding, seed."""


def writer(settings: Settings) -> StagePlan:
    """Returns the plan of `RationaleGenerator predict`; of several workers, of the one with the
    largest model."""
    workers = _workers(settings)
    shapes = {
        name: language_model_shape(
            worker.model, trained=False, trust_remote_code=worker.trust_remote_code
        )
        for name, worker in workers.items()
    }
    name = max(shapes, key=lambda each: shapes[each].total)
    worker, shape = workers[name], shapes[name]

    # A sidecar keeps all rows; prompts are made only of those that the worker can read.
    rows, asked = _asked_rows(settings)
    read = [row for row in asked if _reads(worker, settings, row)]
    prompt = _prompt(settings, worker, read)

    plan = settings.reading(
        len(rows),
        shape,
        precision_of(worker.dtype, None),
        roles={"prompts": Role(per_row=1, tokens={"text": prompt})},
        generation=Generation(
            draws=_draws(settings, name, read),
            prompts=len(read),
            prompt=prompt,
            shared=worker.shared,
            most=worker.sampling.max_new_tokens,
            slots=worker.slots,
        ),
        disk={"sidecar, at the most": _sidecar(settings, workers, rows, asked, shape.hidden)},
    )
    title = f"{settings.title}, worker {name} of {len(workers)}"
    return replace(plan, name=title, micro_rows=min(worker.slots, settings.batch))


def _workers(settings: Settings) -> dict[str, PlannedWorker]:
    """The workers that run a model here."""
    specs = settings.model["workers"]
    workers = {name: worker for name, spec in specs.items() if (worker := planned_worker(spec))}
    if not workers:
        raise ValueError(
            f"model.workers {sorted(specs)} run no model here (a server or a table does the "
            "writing): there is nothing to plan."
        )
    return workers


def _asked_tasks(settings: Settings) -> AskedTasks:
    data = settings.data
    side, sides = data.get("side") or "query", data.get("sides") or {}
    return AskedTasks(settings.root, side, data.get("tasks"), sides)


def _asked_rows(settings: Settings) -> tuple[Sequence[Row], Sequence[Row]]:
    """All rows, which the sidecar keeps, and those that `SideDataModule` asks about."""
    folders, parts = settings.data["folders"], settings.data.get("parts")
    tasks = _asked_tasks(settings)

    # The same order as in `SideDataModule`: unknown tasks are refused before parts are left out.
    rows = rows_below(settings.root, folders)
    tasks.check(rows, folders)
    of_part = [row for row in rows if parts is None or part_of(row) in {None, *parts}]
    asked = [row for row in of_part if tasks.includes(row)]
    if not asked:
        raise ValueError(
            f"data.parts {parts}, tasks, side and sides leave no row of {folders} to write about: "
            "correct one of these keys."
        )
    return rows, asked


def _reads(worker: PlannedWorker, settings: Settings, row: Row) -> bool:
    """True if a worker is asked about a row: one that reads text alone gets no pictures."""
    side = "t" if settings.data.get("side") == "target" else "q"
    names = "c" if part_of(row) is None else side
    return worker.reads_media or not media_of(row.entry.media, names)


def _prompt(settings: Settings, worker: PlannedWorker, rows: Sequence[Row]) -> Tokens:
    if not rows:
        raise ValueError(f"{worker.model} reads text alone, and every row shows a picture.")
    # Lengths are those of the question behind the part that all prompts share.
    reader, tasks = SampleReader(pixels=worker.lengths.reads_pixels), _asked_tasks(settings)
    sides = [tasks.read(reader, row) for row in spread(rows)]
    return measured([{"text": worker.lengths.of(side)["text"]} for side in sides])["text"]


def _draws(settings: Settings, name: str, rows: Sequence[Row]) -> int:
    """Draws of one worker about some rows."""
    # Rows outside of training are written about by one worker alone, if one is named.
    model = settings.model
    of_train = sum(part_of(row) == "train" for row in rows)
    writes_test = model.get("test_worker") in (None, name)
    of_test = int(model.get("num_test_draws", 1)) * writes_test
    return of_train * int(model.get("num_candidates", 4)) + (len(rows) - of_train) * of_test


def _sidecar(
    settings: Settings,
    workers: dict[str, PlannedWorker],
    rows: Sequence[Row],
    asked: Sequence[Row],
    hidden: int,
) -> int:
    """Bytes of the sidecar, every draw as long as it may be."""
    # A probe keeps the state of every prompt, in two bytes a number.
    content = 2.0 * hidden * len(asked) if settings.model.get("probe") else 0.0
    for name, worker in workers.items():
        draws = _draws(settings, name, [row for row in asked if _reads(worker, settings, row)])
        content += draws * (worker.sampling.max_new_tokens * BYTES_PER_TOKEN + RATIONALE_JSON)
    return sidecar_bytes(len(rows), content / len(rows))


def tuned_writer(settings: Settings) -> StagePlan:
    """Returns the plan of `RationaleGenerator fit`: next-token loss of LoRA updates; the few-shot
    prefix is read once a step.

    Raises:
        ValueError: `tuned` names no worker that runs a model here.
    """
    model, name = settings.model, settings.model.get("tuned")
    worker = planned_worker(model["workers"][name]) if name in model["workers"] else None
    if worker is None:
        raise ValueError(
            f"model.tuned {name!r} names no worker that runs a model here; they are "
            f"{sorted(model['workers'])}: there is nothing to plan."
        )

    rows = _taught_rows(settings, worker)
    shape = language_model_shape(
        worker.model,
        lora=record(LoraSettings, model.get("lora")) or LoraSettings(),
        trust_remote_code=worker.trust_remote_code,
    )
    training = settings.training(worker.dtype)

    # The folder of the run gets the updates alone.
    updates = ModelShape(total=0, trainable=0, towers={}, updates=shape.updates)
    return StagePlan(
        name=settings.title,
        samples=len(rows),
        steps=settings.training_steps(len(rows)),
        rows=settings.rows,
        micro_rows=settings.rows,
        model=shape,
        training=training,
        trains=True,
        roles=_reply_roles(settings, worker, _prompt(settings, worker, rows)),
        disk=settings.saved(updates, training, "generator/"),
    )


def _taught_rows(settings: Settings, worker: PlannedWorker) -> list[Row]:
    """The pairs of training that the worker can read, of one half if the data asks for it."""
    # An empty half of a pair belongs to both.
    halves = {settings.data.get("half"), ""} if settings.data.get("half") else {"a", "b", ""}
    rows = rows_below(settings.root, settings.data["folders"])
    pairs = [row for row in rows if "group" in row.meta and row.meta["part"] == "train"]
    of_half = [row for row in pairs if row.meta.get("half", "") in halves]
    return [row for row in of_half if _reads(worker, settings, row)]


def _reply_roles(settings: Settings, worker: PlannedWorker, prompt: Tokens) -> dict[str, Role]:
    most = worker.sampling.max_new_tokens
    whole, replies = Tokens(prompt.mean + most, prompt.longest + most), Tokens(most, most)
    rows = Role(per_row=1, tokens={"text": whole}, replies=replies, together=worker.together)
    if not worker.shared:
        return {"replies": rows}

    # The prefix is read once a step, whatever the number of its rows is.
    prefix = {"text": Tokens(worker.shared, worker.shared)}
    return {"replies": rows, "prefix": Role(per_row=1 / settings.rows, tokens=prefix)}
