"""`prepare folder`: pairs of a user and their media -> shards; faults are listed first."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from tqdm import tqdm

from datamodules.prepare.converting import add_converting
from datamodules.prepare.folder.check import (
    FaultList,
    Faults,
    check_cells,
    compare_rows,
    lines_of,
    read_contents,
)
from datamodules.prepare.folder.media import files_of
from datamodules.prepare.folder.media_folder import check_folder
from datamodules.prepare.folder.passages import in_passages
from datamodules.prepare.folder.rationales import (
    GivenRationales,
    read_rationales,
    write_rationales,
)
from datamodules.prepare.folder.sources import Source, add_sources, read_source
from datamodules.prepare.folder.splits import Shares, cut_rows, split_flag
from datamodules.prepare.folder.table import OwnRow, with_defaults
from datamodules.prepare.folder.text_lengths import long_texts
from datamodules.prepare.folder.write import write_data
from datamodules.prepare.media_paths import MediaPathError
from mmemb.records.counted_nouns import counted
from mmemb.records.pairs import SPLITS
from mmemb.records.schema import Excerpt, read_json
from mmemb.records.text import printable
from mmemb.storage.file_hashes import FileHashes
from mmemb.storage.json_files import canonical_json, write_json
from mmemb.storage.manifests import is_complete

HELP = "own data: a table of pairs, or pictures with captions (docs/own_data.md)"

FORMAT = 5
"""Raise it whenever this code writes something else for the same table."""

MANIFEST, POOL, HASHES = "manifest.json", "rationale_pool.json", "file_hashes.json"
TASKS = "tasks.json"
MOST_SHOWN = 50

POCKET_MODELS = Path("data/pocket/models")
"""Where `own/train` looks for the models of `--encoder joint`."""

CLIP_TAG = "laion2b_s34b_b79k"
"""open_clip's name of weights that fit a ViT-B/32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    add_sources(parser)
    parser.add_argument(
        "--split",
        type=split_flag,
        metavar="SPLIT",
        help="of a source without a column split: train, "
        "val, gate, calibration or test for all rows; or auto, or auto:train=90,test=10 (percents)",
    )
    parser.add_argument(
        "--labels", action="store_true", help="texts of targets are labels, which splits may share"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--passages", type=int, metavar="WORDS", help="split longer texts of targets into passages"
    )
    parser.add_argument("--frames", type=int, default=8, help="of a clip, evenly spaced")
    parser.add_argument("--rationales", type=Path, help="JSON lines by id, of any origin")
    add_converting(parser, "media")


def run(options: argparse.Namespace) -> None:
    """Checks, then writes."""
    if options.frames < 1 or options.workers < 1:
        raise ValueError("--frames and --workers: expected 1 or more.")
    if options.passages is not None and options.passages < 1:
        raise ValueError(f"--passages {options.passages}: expected the most words of a passage.")

    shares = _shares(options)
    source = read_source(options)
    rows = _rows(options, source)
    # A table of texts alone needs no media folder.
    if not source.media.is_dir() and any(side.media for row in rows for side in row.sides):
        raise FileNotFoundError(
            f"--media {source.media} is no folder: expected the one that paths of the table start "
            "from."
        )

    check_folder(source.media, rows)

    # Cheap faults are shown first: decoding all media may take hours.
    cell_faults = check_cells(rows, source.media)
    _show(list(lines_of(cell_faults)))
    rationale_file = _given_rationales(options, rows)

    # Hashing takes minutes: nothing is hashed for a table that will not be written.
    if options.check or (options.on_error == "raise" and (cell_faults or rationale_file.faults)):
        _checked(options, source, rows, cell_faults, shares)
        if rationale_file.faults:
            faults = counted(len(rationale_file.faults), "fault")
            raise ValueError(
                f"{options.rationales} has {faults}, so nothing was written: repair the lines "
                "listed above, or leave them out with --on-error skip."
            )
        return

    hashes = FileHashes(options.out / HASHES, options.recheck)
    mark = _fingerprint(options, source.media, rows, shares, hashes)
    if _is_ready(options.out, mark):
        print(f"{options.out}: everything is there ({mark})")
    else:
        _convert(options, source, rows, cell_faults, shares, mark)

    # Hashes are remembered last: the folder that holds them may be new.
    hashes.save()
    if options.rationales is not None:
        having, lacking = write_rationales(rationale_file, options.out, options.out / POOL)
        print(f"{options.out / POOL}: rationales for {counted(having, 'row')}, none for {lacking}")


def next_words(options: argparse.Namespace) -> list[str]:
    """Returns the words of the command that comes next.

    It names an encoder whose weights can be had: the pocket's small models where they lie, else
    CLIP's by a tag, which downloads them.
    """
    encoder = ["clip_vit_b32", "--pretrained", CLIP_TAG]
    if POCKET_MODELS.is_dir():
        encoder = ["joint"]
    shared = ["--data_root", str(options.out), "--encoder", *encoder]
    if options.rationales is not None:
        return ["pipeline", "own/pipeline", *shared, "--writer", "file"]
    return ["fit", "--config", "own/train", *shared]


def _shares(options: argparse.Namespace) -> Shares | None:
    """Returns the shares of a source whose rows are cut into splits here."""
    match options.split:
        case dict():
            return Shares(options.split, options.labels)
        case _ if options.labels:
            raise ValueError("--labels says how rows are cut: give it with --split auto.")
    return None


def _rows(options: argparse.Namespace, source: Source) -> list[OwnRow]:
    """Reads all rows, fills what their source does not give, and says so.

    Raises:
        ValueError: no row has a split, and none is given; or both.
    """
    progress = tqdm(source.rows, desc="reading", disable=None, delay=2)
    rows, notes = with_defaults(list(progress))
    for note in (*source.columns.notes(), *source.remarks, *notes):
        print(f"note: {note}")

    # Rows that cannot be read lack everything, and say nothing about the source.
    readable = [row for row in rows if row.positives or row.query.name]
    has_split = any("split" not in row.lacks for row in readable)
    if options.split and has_split:
        raise ValueError(
            f"{source.path} has a column split, which --split would overwrite: leave out one of "
            "them."
        )
    if readable and not (options.split or has_split):
        raise ValueError(
            f"{source.path} has no column split: add one with {', '.join(SPLITS)}, map one by "
            "--map COLUMN=split, or say --split auto (cuts by content) or --split train."
        )
    if options.passages is not None:
        rows, note = in_passages(rows, options.passages)
        print(
            f"note: {note}; all passages of a right document are right answers, so that hit@1, and "
            "not recall@1, says how often the right document is first."
        )

    if not options.split:
        return rows

    # Rows that are cut by content later are all of one split until then.
    split = options.split if isinstance(options.split, str) else "train"
    return [replace(row, split=split) for row in rows]


def _given_rationales(options: argparse.Namespace, rows: Sequence[OwnRow]) -> GivenRationales:
    if options.rationales is None:
        return GivenRationales({}, ())

    rationale_file = read_rationales(options.rationales, {row.id for row in rows})
    _show(rationale_file.faults)
    return rationale_file


def _checked(
    options: argparse.Namespace,
    source: Source,
    rows: list[OwnRow],
    cell_faults: FaultList,
    shares: Shares | None,
) -> tuple[list[OwnRow], Faults]:
    """Checks a source whole, cuts it, and prints all its faults and notices.

    Returns:
        The rows without faults, with their splits, and the faults.

    Raises:
        ValueError: there are some, and they do not merely leave their rows out; or a split would
            get no row.
    """
    size, is_strict = counted(len(rows), "row"), options.on_error == "raise" or options.check
    contents, broken = read_contents(rows, source.media, options.frames, options.workers)
    known = sorted({*cell_faults, *broken})

    # A row that is left out must not join others; a table that is refused needs no splits.
    if shares is not None and not (known and is_strict):
        wrong = {number for number, _ in known}
        rows = [row for row in rows if row.number not in wrong]
        cut = cut_rows(rows, {row.number: contents[row.number].sides for row in rows}, shares)
        rows = list(cut.rows)
        print("\n".join(cut.lines))

    faults = compare_rows(rows, contents, known)

    # `run` has printed the faults of cells already.
    cell_lines = set(lines_of(cell_faults))
    _show([line for line in faults.lines if line not in cell_lines])
    for notice in (*faults.notices, *long_texts(rows)):
        print(f"note: {notice}")

    counts = "no faults"
    if faults.lines:
        counts = f"{counted(len(faults.lines), 'fault')} in {counted(len(faults.rows), 'row')}"
    print(f"{source.path}: {size}, {counts}", flush=True)

    if faults.lines and is_strict:
        raise ValueError(
            f"{source.path} has {counted(len(faults.lines), 'fault')}, so nothing was written: "
            "repair the rows listed above, or leave them out with --on-error skip."
        )
    return [row for row in rows if row.number not in faults.rows], faults


def _convert(
    options: argparse.Namespace,
    source: Source,
    rows: list[OwnRow],
    cell_faults: FaultList,
    shares: Shares | None,
    mark: str,
) -> None:
    good, faults = _checked(options, source, rows, cell_faults, shares)
    if not good:
        raise ValueError(f"{source.path} has no row that could be written.")

    # Without its manifest an interrupted run counts as incomplete, and is taken up again.
    (options.out / MANIFEST).unlink(missing_ok=True)
    counts = write_data(options.out, good, source.media, options.frames, mark, faults.groups)

    stated = {"fingerprint": mark, "table": printable(source.path.name), "counts": counts}
    stated |= {"partial": bool(faults.lines), "skipped": list(faults.lines)}
    write_json(options.out / MANIFEST, stated)

    written = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"{options.out}: {written}")


def _show(lines: Sequence[str]) -> None:
    """Prints faults as soon as they are found."""
    for line in lines[:MOST_SHOWN]:
        print(line)
    if len(lines) > MOST_SHOWN:
        print(f"... and {len(lines) - MOST_SHOWN} more")
    # A log that is piped would keep the lines until the end of a long check.
    sys.stdout.flush()


@final
class _ManifestJson(Excerpt):
    """The fields of the manifest that are compared."""

    fingerprint: str
    counts: dict[str, int] = {}


def _is_ready(out: Path, mark: str) -> bool:
    """Tells whether the data of this fingerprint exist, with every folder that they name."""
    path = out / MANIFEST
    stated = read_json(path, _ManifestJson) if path.is_file() else None
    if stated is None or stated.fingerprint != mark or not (out / TASKS).is_file():
        return False

    return all(is_complete(out / name, mark) for name, count in stated.counts.items() if count)


def _fingerprint(
    options: argparse.Namespace,
    media: Path,
    rows: Sequence[OwnRow],
    shares: Shares | None,
    hashes: FileHashes,
) -> str:
    """A hash of the table, of the bytes of the media, and of the settings."""
    files: dict[str, Any] = {}
    # A name may occur in many rows; each file is hashed once.
    names = dict.fromkeys(name for row in rows for side in row.sides for name in side.media)
    for name in tqdm(names, desc="hashing", disable=None, delay=2):
        try:
            files[name] = [(path.name, hashes.sha256(path)) for path in files_of(media, name)]
        except (MediaPathError, OSError):
            continue  # a fault of its row

    settings: list[Any] = [FORMAT, options.frames, options.on_error]
    if shares is not None:
        settings.append(asdict(shares))
    table = [asdict(row) for row in rows]
    for row in table:
        # Of the form of the table, and not of the data.
        del row["media_columns"], row["lacks"]

    text = canonical_json([settings, table, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
