"""Score files of benchmarks: written, compared, checked for contamination."""
