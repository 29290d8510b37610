"""Search in a folder of candidates."""
