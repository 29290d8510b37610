"""Ways to decide, compared: rows, curves, studies, seeds."""
