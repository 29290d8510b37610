"""Galleries, exact ranks with ties, metrics, and values of depths."""
