"""Losses as pure functions of tensors, exact on any number of ranks."""
