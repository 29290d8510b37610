"""`prepare tiny-vlm`: a random vision-language model of a real architecture, to try recipes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.prepare.tiny_vlm import ARCHITECTURES, write_tiny_vlm

HELP = "random vision-language models of real architectures, to try recipes out in seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen3_vl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Writes one."""
    if (options.out / "config.json").is_file():
        print(f"{options.out}: everything is there")
        return
    write_tiny_vlm(options.out, options.architecture, options.seed)
    print(f"{options.out}: a random {options.architecture}; it runs as the large ones do, no more")
