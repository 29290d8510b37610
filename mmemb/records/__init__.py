"""Records that travel between packages: sides, rationales, pairs, batches, and their JSON."""
