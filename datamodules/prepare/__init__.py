"""Builds data sets: `python -m datamodules.prepare pocket`."""
