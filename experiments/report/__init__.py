"""Reports of an experiment: `python -m experiments.report build|show|audit RUN`."""

from experiments.report.build import build

__all__ = ["build"]
