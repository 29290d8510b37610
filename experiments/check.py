"""`python -m experiments.check`: the promises of a backbone."""

from experiments.checks.backbone import main

if __name__ == "__main__":
    raise SystemExit(main())
