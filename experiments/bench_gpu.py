"""`python -m experiments.bench_gpu`: timings on one GPU."""

from experiments.bench.gpu import main

if __name__ == "__main__":
    raise SystemExit(main())
