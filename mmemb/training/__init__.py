"""A training step around the losses: batches, vectors, gradient cache, health."""
