"""What reports read: sidecars, runs, pictures."""
