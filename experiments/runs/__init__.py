"""Folders of runs: made, continued, read back, also where they come from elsewhere."""
