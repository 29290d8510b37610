"""Timings of our code against peers and limits."""
