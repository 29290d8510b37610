"""`audit.html` and `audit.json`: every rationale of an experiment, to look at one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from experiments.report.audit.figures import AuditFigures, audit_figures
from experiments.report.audit.page import COLUMNS, PICTURES, SEARCHED, audit_page
from experiments.report.audit.rows import AuditRow, read_audit
from experiments.report.data.pictures import CandidatePictures, Shown
from experiments.report.policies.swap import judged_swap
from experiments.runs.origin import made_now, newest_folder
from experiments.runs.recorded_data import data_root_of, pair_folders
from mmemb.records.counted_nouns import counted
from mmemb.storage.json_files import write_json

LINK = "audit"
NAMES = ("audit.html", "audit.json")


def audit(experiment: Path, data_root: Path | None = None) -> AuditFigures:
    """Writes an audit of the experiment's newest sidecars, and links to it.

    Args:
        experiment: e.g. `runs/pocket`.
        data_root: the prepared data that the experiment was made from; None takes that which its
            runs recorded.
    """
    root = data_root_of(experiment, data_root)
    rows = read_audit(experiment, root)
    figures = audit_figures(rows, judged_swap(experiment))

    # All is computed before the folder is made, so a failure leaves no empty one.
    origin = {"experiment": experiment.name, "data_root": str(root)} | made_now()
    pictures = CandidatePictures.open(root, pair_folders(experiment, root))
    list_data = embedded_rows(rows, pictures)
    content = asdict(figures) | {"rows": [asdict(row) for row in rows]}

    with newest_folder(experiment, LINK, origin, NAMES) as fresh:
        (fresh / "audit.html").write_bytes(audit_page(origin, figures, list_data))
        write_json(fresh / "audit.json", origin | content)

    print(f"{counted(len(rows), 'rationale')}: {experiment}/audit.html, audit.json")
    return figures


def embedded_rows(rows: Sequence[AuditRow], pictures: CandidatePictures) -> dict[str, Any]:
    """Returns the data of the page's script: rows as lists, each picture once."""
    # A picture is shown by many rows, and is most of the page's bytes.
    places: dict[tuple[str, str], int] = {}
    shown: list[Shown] = []

    def place(gallery: str, name: str | None) -> int | None:
        if name is not None and (gallery, name) not in places:
            places[gallery, name] = len(shown)
            shown.append(pictures.find(gallery, name))
        return None if name is None else places[gallery, name]

    def line(row: AuditRow) -> list[Any]:
        return [*astuple(row), *(place(row.gallery, getattr(row, name)) for name in PICTURES)]

    return {
        "rows": [line(row) for row in rows],
        "fields": [*(f.name for f in fields(AuditRow)), *(f"{name}_shown" for name in PICTURES)],
        "columns": [asdict(column) for column in COLUMNS],
        "text": SEARCHED,
        "shown": [[one.label, one.picture] for one in shown],
    }
