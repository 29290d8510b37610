"""`prepare tiny-vlm`: a random vision-language model of a real architecture, to try recipes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.prepare.tiny_vlm import ARCHITECTURES, write_tiny_vlm
from mmemb.lineage import read_json, write_json

HELP = "random vision-language models of real architectures, to try recipes out in seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen3_vl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Writes one."""
    mark = {"architecture": options.architecture, "seed": options.seed}
    done = options.out / "tiny.json"  # written last
    if done.is_file() and read_json(done, "the mark of a tiny model") == mark:
        print(f"{options.out}: everything is there")
        return
    done.unlink(missing_ok=True)
    write_tiny_vlm(options.out, options.architecture, options.seed)
    write_json(done, mark)
    print(f"{options.out}: a random {options.architecture}; it runs as the large ones do, no more")
