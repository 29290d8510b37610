"""The audit page: every rationale of an experiment."""
