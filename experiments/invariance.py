"""`python -m experiments.invariance`: whether scores depend on how a model is run."""

from experiments.checks.invariance import main

if __name__ == "__main__":
    raise SystemExit(main())
