"""`prepare folder`: a table of pairs and a folder of media -> shards; faults are listed first."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.prepare.folder.check import Faults, check_rows
from datamodules.prepare.folder.media import inside
from datamodules.prepare.folder.rationales import write_rationales
from datamodules.prepare.folder.table import OwnRow, read_table
from datamodules.prepare.folder.write import write_data
from mmemb.file_hashes import FileHashes
from mmemb.lineage import canonical_json, read_json, write_json
from mmemb.shards import is_complete

HELP = "own data: a table of pairs and a folder of pictures and clips (docs/own_data.md)"

FORMAT = 3
"""Raise it whenever this code writes something else for the same table."""

MANIFEST, POOL, HASHES = "manifest.json", "rationale_pool.json", "file_hashes.json"
TASKS = "tasks.json"
MOST_SHOWN = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    parser.add_argument("--table", type=Path, required=True, help=".csv, .parquet or .jsonl")
    parser.add_argument("--media", type=Path, default=Path(), help="folder that paths start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=8, help="of a clip, evenly spaced")
    parser.add_argument("--check", action="store_true", help="list the faults; write nothing")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="skip: leave faulty rows out"
    )
    parser.add_argument("--rationales", type=Path, help="JSON lines by id, of any origin")
    parser.add_argument(
        "--recheck", action="store_true", help="read all media, also those that look unchanged"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def run(options: argparse.Namespace) -> None:
    """Checks, then writes."""
    if options.frames < 1 or options.workers < 1:
        raise ValueError("--frames and --workers: expected 1 or more.")

    rows = list(read_table(options.table))
    hashes = FileHashes(options.out / HASHES, options.recheck)
    mark = _fingerprint(options, rows, hashes)
    if _is_ready(options.out, mark) and not options.check:
        print(f"{options.out}: everything is there ({mark})")
    else:
        _convert(options, rows, mark)

    # Hashes are remembered last: the folder that holds them may be new.
    if not options.check:
        hashes.save()
    if options.rationales is not None and not options.check:
        having, lacking = write_rationales(options.rationales, options.out, options.out / POOL)
        print(f"{options.out / POOL}: rationales for {having} rows, none for {lacking}")


def _convert(options: argparse.Namespace, rows: list[OwnRow], mark: str) -> None:
    faults = check_rows(rows, options.media, options.frames, options.workers)
    _tell(options.table, faults, len(rows))
    good = [row for row in rows if row.number not in faults.rows]
    if faults.lines and (options.on_error == "raise" or options.check):
        raise ValueError(
            f"{options.table} has {len(faults.lines)} fault(s), so nothing was written: mend the "
            "rows listed above, or leave them out with --on-error skip."
        )
    if options.check:
        return
    if not good:
        raise ValueError(f"{options.table} has no row that could be written.")
    (options.out / MANIFEST).unlink(missing_ok=True)
    counts = write_data(options.out, good, options.media, options.frames, mark, faults.groups)
    stated = {"fingerprint": mark, "table": options.table.name, "counts": counts}
    stated |= {"partial": bool(faults.lines), "skipped": list(faults.lines)}
    write_json(options.out / MANIFEST, stated)
    written = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"{options.out}: {written}")


def _tell(table: Path, faults: Faults, num_rows: int) -> None:
    for line in faults.lines[:MOST_SHOWN]:
        print(line)
    if len(faults.lines) > MOST_SHOWN:
        print(f"... and {len(faults.lines) - MOST_SHOWN} more")
    for notice in faults.notices:
        print(f"note: {notice}")
    print(f"{table}: {num_rows} rows, {len(faults.lines)} faults in {len(faults.rows)} rows")


def _is_ready(out: Path, mark: str) -> bool:
    """Says whether the data of this fingerprint are there, with every folder that they name."""
    path = out / MANIFEST
    stated = read_json(path, "own data") if path.is_file() else {}
    if stated.get("fingerprint") != mark or not (out / TASKS).is_file():
        return False
    counts = stated.get("counts", {})
    return all(is_complete(out / name, mark) for name, count in counts.items() if count)


def _fingerprint(options: argparse.Namespace, rows: Sequence[OwnRow], hashes: FileHashes) -> str:
    """A hash of the table, of the bytes of the media, and of the settings."""
    files: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for side in row.sides for name in side.media):
        try:
            path = inside(options.media, name)
        except ValueError:
            continue  # a fault that is told of later
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files[name] = [(p.name, hashes.sha256(p)) for p in found if p.is_file()]
    settings = [FORMAT, options.frames, options.on_error]
    text = canonical_json([settings, [asdict(row) for row in rows], files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
