"""Stages as processes of their own that start at once.

Importing torch, Lightning and transformers takes longer than many a stage. One server process
imports them, and every stage is forked from it: isolated like a new process, without the wait.
"""

from __future__ import annotations

import multiprocessing
import runpy
import sys
from collections.abc import Sequence

# No module here asks for a GPU when it is imported; a process that has done so cannot be forked.
_PRELOADED = [
    "experiments.run",
    "experiments.cli.experiment_cli",
    "datamodules.pairs",
    "lightning_modules.contrastive_embedder",
    "lightning_modules.gating_policy",
    "lightning_modules.rationale_generator",
    "transformers.modeling_utils",
    "torchvision",
]


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m module arguments` in a process of its own; returns its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_as_main, args=(module, list(arguments)))

    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():  # a signal ends this process: the stage must not go on alone
            process.terminate()
            process.join()
    return process.exitcode or 0


def _as_main(module: str, arguments: list[str]) -> None:
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # runpy warns of a module that it is to run a second time
    # As `__main__`, since Lightning reads from it how to launch the other ranks.
    runpy.run_module(module, run_name="__main__", alter_sys=True)
