"""`python -m experiments.bench_peers`: timings against other libraries."""

from experiments.bench.peers import main

if __name__ == "__main__":
    raise SystemExit(main())
