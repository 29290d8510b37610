"""`python -m experiments.score`: score files from saved embeddings or rankings."""

from experiments.scoring.score import main

if __name__ == "__main__":
    raise SystemExit(main())
