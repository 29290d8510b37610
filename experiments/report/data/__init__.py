"""Data of reports: sidecars, runs, pictures."""
