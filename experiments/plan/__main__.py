"""`python -m experiments.plan fit|predict|test --config FILE`: plans memory and time of a stage.

The arguments are those of `experiments.run` and four more: `--devices N` (in place of
trainer.devices), `--device-gib G`, the memory of one device, `--tflops T`, the speed that one
reaches (not its peak), which gives hours, and `--pairs N`, which plans the training of an embedder
for N pairs like those that are there. Nothing is run or written, no weights are loaded, no GPU
is needed. With `--device-gib` the exit status is 1 if the stage needs more than nine tenths of it;
then settings that would free memory are listed, each planned anew.
docs/plan.md lists what is counted, and how exact it is.
"""

from __future__ import annotations

import sys
from math import inf

from experiments.cli.allow_class import split_allow_class
from experiments.cli.messages import command
from mmemb.storage.allowed_classes import allowing_classes

ROOM = 0.9
"""Share of a device that a plan may fill. The rest is for CUDA's own context, the workspaces of its
kernels and gaps between the blocks of the allocator, which are not planned."""

_OWN = ("--devices", "--device-gib", "--tflops", "--pairs")
_WHOLE = ("--devices", "--pairs")


@command()
def main(arguments: list[str] | None = None, program: str = "python -m experiments.plan") -> None:
    """Prints the plan of a stage; the exit status is 1 if it does not fit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(str(__doc__).replace("python -m experiments.plan", program))
        return

    allowed, arguments = split_allow_class(arguments)
    rest, flags = _split(arguments)
    if not rest or rest[0] not in ("fit", "predict", "test"):
        given = rest[0] if rest else ""
        raise ValueError(f"The first argument must be fit, predict or test, got {given!r}.")
    with allowing_classes(allowed):
        fits = _print_plan(rest, flags)
    if not fits:
        sys.exit(1)


def _split(arguments: list[str]) -> tuple[list[str], dict[str, float]]:
    """Splits the arguments into those of `experiments.run` and those of this command.

    >>> _split(["fit", "--device-gib", "24", "--config", "a.yaml", "--devices=8"])
    (['fit', '--config', 'a.yaml'], {'--device-gib': 24.0, '--devices': 8.0})
    """
    rest, flags, words = [], {}, iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _OWN:
            rest.append(word)
            continue

        # Both forms are usual: `--tflops 300` and `--tflops=300`.
        text = value if equals else next(words, "")
        try:
            flags[name] = number = float(text)
        except ValueError:
            raise ValueError(f"{name} must be a number, e.g. {name} 8, got {text!r}.") from None

        # Negated, so that NaN is refused too.
        if not 0 < number < inf or (name in _WHOLE and number != int(number)):
            kind = "a positive whole number" if name in _WHOLE else "a positive number"
            raise ValueError(f"{name} must be {kind}, got {text}.")
    return rest, flags


def _print_plan(arguments: list[str], flags: dict[str, float]) -> bool:
    """Prints a plan, and returns whether it fits; True if no limit is given."""
    from experiments.cli.experiment_cli import parse
    from experiments.cli.input_files import place_inputs
    from experiments.plan.memory import GIB
    from experiments.plan.read import read_plan
    from experiments.plan.savings import savings
    from experiments.plan.table import table

    # The plan's title has the name of the stage, which a file may leave out.
    config = place_inputs(parse(arguments).as_dict())
    config["name"] = config.get("name") or "stage"

    devices = int(flags["--devices"]) if "--devices" in flags else None
    pairs = int(flags["--pairs"]) if "--pairs" in flags else None
    plan = read_plan(config, arguments[0], devices, pairs)
    for line in table(plan):
        print(line)

    if "--tflops" in flags:
        speed = flags["--tflops"] * 1e12 * plan.training.devices
        hours = plan.flops() / speed / 3600
        print(f"time\n  {hours:.1f} hours at {flags['--tflops']:g} TFLOP/s a device")

    limit, needed = flags.get("--device-gib"), plan.memory().total / GIB
    if limit is None:
        return True

    fits = needed <= ROOM * limit
    verdict = "fits" if fits else "does not fit"
    print(f"\n{verdict}: {needed:.2f} GiB of {limit:g} GiB, of which {ROOM:.0%} may be planned")

    if not fits:
        print("\nwhat would free memory, each alone (planned anew)")
        for name, freed, then in savings(plan):
            mark = "fits" if then <= ROOM * limit else ""
            print(f"  {freed:8.2f} GiB less, {then:8.2f} GiB then  {mark:5}{name}")
    return fits


if __name__ == "__main__":
    main()
