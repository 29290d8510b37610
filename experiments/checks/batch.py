"""`python -m experiments.show batch --config FILE`: samples of a batch as the model sees them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from experiments.cli.messages import command


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.show"
) -> None:
    """Parses the command line; whatever it does not know goes to `experiments.run fit`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        epilog="Other arguments are those of `experiments.run fit`, e.g. --data.fold b",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    batch = commands.add_parser("batch", help="what a step of a fit over pairs reads")
    batch.add_argument("--config", action="append", required=True, help="as for experiments.run")
    batch.add_argument("--step", type=int, default=0, help="number of the step, from 0 on")
    batch.add_argument("--rows", type=int, default=2, help="how many of its samples")

    options, rest = parser.parse_known_args(arguments)
    configs = [word for path in options.config for word in ("--config", path)]
    print(show_batch(["fit", *configs, *rest], options.step, options.rows))


def show_batch(arguments: list[str], step: int = 0, rows: int = 2) -> str:
    """Describes the batch that a `fit` with these arguments reads at a step.

    Args:
        arguments: of `experiments.run`.
        step: which batch.
        rows: how many of its samples.

    Raises:
        ValueError: the stage does not train an embedder on pairs, or there is no such step.
    """
    from experiments.cli.experiment_cli import build
    from mmemb.records.batches import PairBatch
    from mmemb.training.batch_text import describe_batch

    if step < 0 or rows < 1:
        raise ValueError(f"--step {step}, --rows {rows}: expected 0 or more, and 1 or more.")

    module, data = build(arguments)
    stream = data.train_dataloader()

    # The stream's own state leads to the step without reading the batches before it.
    stream.load_state_dict({"batches": step})
    batch = next(iter(stream))

    if not isinstance(batch, PairBatch):
        raise ValueError(
            f"this stage trains on a {type(batch).__name__}: `show batch` is for embedders, such "
            "as experiments/configs/pocket/embedder.yaml."
        )

    return describe_batch(batch, module.backbone, range(rows))
