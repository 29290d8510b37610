"""Reports of an experiment: `python -m experiments.report build|show RUN`."""

from experiments.report.build import build

__all__ = ["build"]
