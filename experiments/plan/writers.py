"""Plans of the stages that write rationales, and that train a writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datamodules.asked import AskedTasks, split_of
from datamodules.samples import Row, SampleReader, media_of
from experiments.plan.data import rows_below, sidecar_bytes, spread
from experiments.plan.lengths import Tokens, measured
from experiments.plan.memory import ModelShape
from experiments.plan.models import language_model_shape
from experiments.plan.planned_writers import PlannedWriter, planned_writer
from experiments.plan.settings import Settings, precision_of, record
from experiments.plan.stages import Generation, Role, StagePlan
from mmemb.llm.lora import LoraSettings

BYTES_PER_TOKEN = 5
"""Bytes of a token of English text in JSON."""

RATIONALE_JSON = 420
"""Bytes of a rationale's other fields: writer, model, prompt, decoding, seed."""


def writer(settings: Settings) -> StagePlan:
    """Returns the plan of `RationaleGenerator predict`; of several writers, of the one with the
    largest model."""
    writers = _writers(settings)
    shapes = {
        name: language_model_shape(
            writer.model, trained=False, trust_remote_code=writer.trust_remote_code
        )
        for name, writer in writers.items()
    }
    name = max(shapes, key=lambda each: shapes[each].total)
    writer, shape = writers[name], shapes[name]

    # A sidecar keeps all rows; prompts are made only of those that the writer can read.
    rows, asked_rows = _asked_rows(settings)
    read = [row for row in asked_rows if _reads(writer, settings, row)]
    prompt = _prompt(settings, writer, read)

    plan = settings.reading(
        len(rows),
        shape,
        precision_of(writer.dtype, None),
        roles={"prompts": Role(per_row=1, tokens={"text": prompt})},
        generation=Generation(
            draws=_draws(settings, name, read),
            prompts=len(read),
            prompt=prompt,
            shared=writer.shared,
            most=writer.sampling.max_new_tokens,
            slots=writer.slots,
        ),
        disk={"sidecar, at the most": _sidecar(settings, writers, rows, asked_rows, shape.hidden)},
    )
    title = f"{settings.title}, writer {name} of {len(writers)}"
    return replace(plan, name=title, micro_rows=min(writer.slots, settings.batch))


def _writers(settings: Settings) -> dict[str, PlannedWriter]:
    """The writers that run a model here."""
    specs = settings.model["writers"]
    writers = {name: writer for name, spec in specs.items() if (writer := planned_writer(spec))}
    if not writers:
        raise ValueError(
            f"model.writers {sorted(specs)} run no model here (a server or a table does the "
            "writing): there is nothing to plan."
        )
    return writers


def _asked_tasks(settings: Settings) -> AskedTasks:
    data = settings.data
    side, sides = data.get("side") or "query", data.get("sides") or {}
    return AskedTasks(settings.root, side, data.get("tasks"), sides)


def _asked_rows(settings: Settings) -> tuple[Sequence[Row], Sequence[Row]]:
    """All rows, which the sidecar keeps, and those that `SideDataModule` asks about."""
    folders, splits = settings.data["folders"], settings.data.get("splits")
    tasks = _asked_tasks(settings)

    # The same order as in `SideDataModule`: unknown tasks are refused before parts are left out.
    rows = rows_below(settings.root, folders)
    tasks.check(rows, folders)
    of_split = [row for row in rows if splits is None or split_of(row) in {None, *splits}]
    asked_rows = [row for row in of_split if tasks.includes(row)]
    if not asked_rows:
        raise ValueError(
            f"data.splits {splits}, tasks, side and sides leave no row of {folders} to write "
            "about: correct one of these keys."
        )
    return rows, asked_rows


def _reads(writer: PlannedWriter, settings: Settings, row: Row) -> bool:
    """True if a writer is asked about a row: one that reads text alone gets no pictures."""
    side = "t" if settings.data.get("side") == "target" else "q"
    names = "c" if split_of(row) is None else side
    return writer.reads_media or not media_of(row.entry.media, names)


def _prompt(settings: Settings, writer: PlannedWriter, rows: Sequence[Row]) -> Tokens:
    if not rows:
        raise ValueError(f"{writer.model} reads text alone, and every row shows a picture.")
    # Lengths are those of the question behind the part that all prompts share.
    reader, tasks = SampleReader(pixels=writer.lengths.reads_pixels), _asked_tasks(settings)
    sides = [tasks.read(reader, row) for row in spread(rows)]
    return measured([{"text": writer.lengths.of(side)["text"]} for side in sides])["text"]


def _draws(settings: Settings, name: str, rows: Sequence[Row]) -> int:
    """Draws of one writer about some rows."""
    # Rows outside of training are written about by one writer alone, if one is named.
    model = settings.model
    of_train = sum(split_of(row) == "train" for row in rows)
    writes_test = model.get("test_writer") in (None, name)
    of_test = int(model.get("num_test_draws", 1)) * writes_test
    return of_train * int(model.get("num_drafts", 4)) + (len(rows) - of_train) * of_test


def _sidecar(
    settings: Settings,
    writers: dict[str, PlannedWriter],
    rows: Sequence[Row],
    asked_rows: Sequence[Row],
    hidden: int,
) -> int:
    """Bytes of the sidecar, every draw as long as it may be."""
    # The prompt state of every row is kept, in two bytes a number.
    content = 2.0 * hidden * len(asked_rows) if settings.model.get("prompt_state") else 0.0
    for name, writer in writers.items():
        draws = _draws(settings, name, [row for row in asked_rows if _reads(writer, settings, row)])
        content += draws * (writer.sampling.max_new_tokens * BYTES_PER_TOKEN + RATIONALE_JSON)
    return sidecar_bytes(len(rows), content / len(rows))


def tuned_writer(settings: Settings) -> StagePlan:
    """Returns the plan of `RationaleGenerator fit`: next-token loss of LoRA updates; the few-shot
    prefix is read once a step.

    Raises:
        ValueError: `tuned` names no writer that runs a model here.
    """
    model, name = settings.model, settings.model.get("tuned")
    writer = planned_writer(model["writers"][name]) if name in model["writers"] else None
    if writer is None:
        raise ValueError(
            f"model.tuned {name!r} names no writer that runs a model here; they are "
            f"{sorted(model['writers'])}: there is nothing to plan."
        )

    rows = _taught_rows(settings, writer)
    shape = language_model_shape(
        writer.model,
        lora=record(LoraSettings, model.get("lora")) or LoraSettings(),
        trust_remote_code=writer.trust_remote_code,
    )
    training = settings.training(writer.dtype)

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
        roles=_reply_roles(settings, writer, _prompt(settings, writer, rows)),
        disk=settings.saved(updates, training, "generator/"),
    )


def _taught_rows(settings: Settings, writer: PlannedWriter) -> list[Row]:
    """The pairs of training that the writer can read, of one fold if the data asks for it."""
    # A pair without a fold is learned by the writers of both.
    folds = {settings.data.get("fold"), ""} if settings.data.get("fold") else {"a", "b", ""}
    rows = rows_below(settings.root, settings.data["folders"])
    pairs = [row for row in rows if "source" in row.meta and row.meta["split"] == "train"]
    of_fold = [row for row in pairs if row.meta.get("fold", "") in folds]
    return [row for row in of_fold if _reads(writer, settings, row)]


def _reply_roles(settings: Settings, writer: PlannedWriter, prompt: Tokens) -> dict[str, Role]:
    most = writer.sampling.max_new_tokens
    whole, replies = Tokens(prompt.mean + most, prompt.longest + most), Tokens(most, most)
    rows = Role(per_row=1, tokens={"text": whole}, replies=replies, together=writer.together)
    if not writer.shared:
        return {"replies": rows}

    # The prefix is read once a step, whatever the number of its rows is.
    prefix = {"text": Tokens(writer.shared, writer.shared)}
    return {"replies": rows, "prefix": Role(per_row=1 / settings.rows, tokens=prefix)}
