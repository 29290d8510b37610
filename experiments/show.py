"""`python -m experiments.show`: samples of a batch as the model sees them."""

from experiments.checks.batch import main

if __name__ == "__main__":
    raise SystemExit(main())
