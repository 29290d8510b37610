"""`python -m experiments.adopt`: a public embedder as if a run had made it."""

from experiments.export.import_embedder import main

if __name__ == "__main__":
    raise SystemExit(main())
