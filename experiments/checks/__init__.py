"""Checks of a backbone, of batches, and of invariance."""
