"""`prepare mmeb-train`: local copies of the training data -> pairs, and cuts that are held out."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from datamodules.prepare.converting import add_converting, raise_failures
from datamodules.prepare.mmeb_train.rows import read_source
from datamodules.prepare.mmeb_train.sources import MIXTURE, TOTAL_WEIGHT, Source, source_named
from datamodules.prepare.mmeb_train.write import (
    Cut,
    Report,
    held_out_rows,
    write_held_out,
    write_pairs,
)
from mmemb.records.counted_nouns import counted
from mmemb.records.pairs import EvaluationTask
from mmemb.records.schema import read_json, to_json
from mmemb.storage.file_hashes import FileHashes
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import canonical_json, write_json
from mmemb.storage.manifests import is_complete

HELP = "the training mixture of MMEB-V2, from local copies (docs/mmeb_train.md)"

FORMAT = 3
"""Raise it whenever this code writes something else for the same files."""

MANIFEST, MIXTURE_FILE = "manifest.json", "mixture.yaml"
MOST_SHOWN = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("--source", type=Path, required=True, help="folder of OWNER/REPOSITORY")
    parser.add_argument("--out", type=Path, default=Path("data/mmeb_train"))
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="default: all of the mixture")
    add_converting(parser, "files")
    parser.add_argument("--validation-share", type=float, default=0.01, help="of the topics")
    parser.add_argument("--gate-share", type=float, default=0.01, help="the same of split gate")
    parser.add_argument(
        "--calibration-share", type=float, default=0.005, help="the same of split calibration"
    )
    parser.add_argument(
        "--validation-queries", type=int, default=200, help="most of a source and split"
    )


def run(options: argparse.Namespace) -> None:
    """Checks or converts the sources."""
    sources = [source_named(name) for name in options.sources or [s.name for s in MIXTURE]]

    shares = (options.validation_share, options.gate_share, options.calibration_share)
    cut = Cut(*shares, options.validation_queries)
    # Above a sum of 1 the cuts would overlap, and nothing would be trained on.
    if not 0 <= sum(shares) < 1 or min(shares) < 0 or options.workers < 1:
        raise ValueError(
            "--validation-share, --gate-share and --calibration-share: expected 0 to below 1 "
            "together; --workers: 1 or more."
        )

    if options.check:
        skips = options.on_error == "skip"
        failures = [_checked(s, options.source / s.repository, skips) for s in sources]
        raise_failures(list(filter(None, failures)), len(sources), "source")
        return

    work = partial(_convert, options, cut)
    if options.workers == 1:
        failures = list(map(work, sources))
    else:
        # Spawned, as a fork of a process with threads may hang.
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            failures = list(pool.map(work, sources))

    raise_failures(list(filter(None, failures)), len(sources), "source")
    # After all sources: the overlay lists them all, and must not name one that failed.
    _finish(options, cut, sources)


def _checked(source: Source, folder: Path, skips: bool) -> str:
    """Reads all rows, no picture; "" or what is wrong."""
    try:
        rows = list(read_source(source, folder))
    except (ValueError, OSError) as error:
        return str(error)

    faults = [row for row in rows if row.fault]
    for row in faults[:MOST_SHOWN]:
        print(f"{source.name}, row {row.number}: {row.fault}")
    if faults and not skips:
        return f"{source.name}: {counted(len(faults), 'row')} cannot be read, as listed above."

    # An unreadable row has empty sides as well, and is not counted twice.
    empty = sum(row.is_empty for row in rows) - len(faults)
    cap = "" if source.cap is None else f" of at most {source.cap:,}"

    size = counted(len(rows), "row")
    print(f"{source.name}: {size}{cap}, {empty} with an empty side", flush=True)
    return "" if len(rows) > empty + len(faults) else f"{source.name}: no row could be used."


def _convert(options: argparse.Namespace, cut: Cut, source: Source) -> str:
    """Writes the pairs of a source and says what became of its rows; "" or what is wrong."""
    folder, path = options.source / source.repository, _report_path(options.out, source)
    try:
        # The fingerprint reads the annotations, so errors of theirs are caught here, too.
        mark = _fingerprint(options, cut, source)
        is_current = path.is_file() and read_json(path, Report).fingerprint == mark
        if is_current and is_complete(options.out / "pairs" / source.name, mark):
            print(f"{source.name}: everything is there", flush=True)
            return ""

        skips = options.on_error == "skip"
        report = write_pairs(source, folder, options.out, cut, mark, skips)
    except (ValueError, OSError) as error:
        return str(error)

    # The report is written last: it says that the shards are whole.
    write_json(path, to_json(report))
    print(f"{source.name}: {_said(report)}", flush=True)
    return ""


def _said(report: Report) -> str:
    lost = f", {len(report.skipped)} left out" if report.skipped else ""
    return (
        f"{report.pairs:,} pairs, {report.held_out:,} rows held out, {report.empty:,} empty{lost}"
    )


def _finish(options: argparse.Namespace, cut: Cut, sources: Sequence[Source]) -> None:
    """Queries, candidates, tasks, the overlay for training, and the manifest, last."""
    folders = {source: options.source / source.repository for source in sources}
    skips = options.on_error == "skip"
    # The held-out rows are found anew, since a source that was complete is not read above.
    rows = {source: held_out_rows(source, folders[source], cut, skips) for source in sources}
    marks = [_fingerprint(options, cut, source) for source in sources]
    mark = hashlib.sha256("".join(marks).encode()).hexdigest()[:16]

    held_out = {source: source_rows for source, source_rows in rows.items() if source_rows}
    if held_out:
        write_held_out(held_out, folders, options.out, mark)
    tasks = [EvaluationTask(s.name, "validation", s.name, seen_answer=True) for s in held_out]
    write_json(options.out / "tasks.json", [to_json(task) for task in tasks])

    weights = {source.name: source.weight for source in sources}
    pairs = [f"pairs/{name}" for name in weights]
    drawn = f"a source is drawn with probability weight / {TOTAL_WEIGHT}"
    overlays: dict[str, tuple[str, dict[str, Any]]] = {
        MIXTURE_FILE: (drawn, {"pairs": pairs, "source_weights": weights}),
        "sides.yaml": ("what stage 1 writes about", {"folders": [*pairs, "queries"]}),
        "judged.yaml": ("what stage 2 judges", {"pairs": pairs}),
    }
    for name, (says, settings) in overlays.items():
        text = yaml.safe_dump({"data": {"init_args": settings}}, sort_keys=False)
        write_atomically(options.out / name, f"# Overlay: {says}.\n{text}".encode())

    reports = {s.name: to_json(read_json(_report_path(options.out, s), Report)) for s in sources}
    write_json(options.out / MANIFEST, {"fingerprint": mark, "sources": reports})
    print(f"{options.out / MIXTURE_FILE}: --config it beside a training configuration")


def next_words(options: argparse.Namespace) -> list[str]:
    """Returns the words of the command that comes next."""
    mixture = ["--config", str(options.out / MIXTURE_FILE)]
    return ["fit", "--config", "mmeb_v2/validation", *mixture, "--data_root", str(options.out)]


def _report_path(out: Path, source: Source) -> Path:
    return out / "reports" / f"{source.name}.json"


def _fingerprint(options: argparse.Namespace, cut: Cut, source: Source) -> str:
    """A hash of the source's row, of the cut, and of the bytes of the annotations."""
    folder = options.source / source.repository
    # Hashes lie beside the report: each source has its own process, and none shares a file.
    hashes = FileHashes(_report_path(options.out, source).with_suffix(".files"), options.recheck)
    files = [(str(p.relative_to(folder)), hashes.sha256(p)) for p in _annotations(folder, source)]
    hashes.save()

    parts: list[Any] = [FORMAT, asdict(source), asdict(cut), options.on_error, files]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


def _annotations(folder: Path, source: Source) -> Iterator[Path]:
    # Only annotations are hashed; the pictures are too many.
    places = {"mmeb": source.name, "colpali": "data", "visrag": "data"}
    inside = folder / places.get(source.layout, "video_instruction")
    for suffix in ("parquet", "jsonl"):
        yield from sorted(inside.rglob(f"*.{suffix}"))
