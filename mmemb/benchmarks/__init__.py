"""Tasks of MMEB-V2, and score files."""
