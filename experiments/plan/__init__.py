"""The plan of a stage, before it is started: `python -m experiments.plan`."""
