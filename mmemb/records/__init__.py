"""What travels between packages: sides, rationales, pairs, batches, and their JSON."""
