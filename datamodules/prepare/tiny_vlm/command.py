"""`prepare tiny-vlm`: a random vision-language model of a real architecture, to try recipes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.prepare.tiny_vlm.build import ARCHITECTURES, write_tiny_vlm
from mmemb.records.schema import read_json
from mmemb.storage.files import is_temporary, whole_folder
from mmemb.storage.json_files import write_json

HELP = "random vision-language models of real architectures, to try recipes out in seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen3_vl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Writes one."""
    mark = {"architecture": options.architecture, "seed": options.seed}
    path = options.out / "tiny.json"
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; expected a folder.")

    # What a killed run of this command has left is no model of others.
    entries = options.out.iterdir() if options.out.is_dir() else ()
    if not path.is_file() and not all(map(is_temporary, entries)):
        raise ValueError(f"--out {options.out} holds something else: give an empty folder.")

    if path.is_file() and read_json(path, dict[str, bool | int | str]) == {**mark, "done": True}:
        print(f"{options.out}: everything is there")
        return

    # All files or none: the folder appears under its name when it is whole.
    with whole_folder(options.out) as fresh:
        write_tiny_vlm(fresh, options.architecture, options.seed)
        write_json(fresh / path.name, {**mark, "done": True})
    print(f"{options.out}: a random {options.architecture}; it runs as the large ones do, no more")


def next_words(options: argparse.Namespace) -> list[str]:
    """Returns the words of the command that comes next."""
    recipe = ["--config", "mmeb_v2/direct", "--config", "mmeb_v2/cpu", "--vlm", str(options.out)]
    return ["fit", *recipe, "--data_root", "data/pocket", "--data.pairs", "[pairs/plain]"]
