"""The number that fills up rows of ids or columns of unequal length."""

PADDING = -1
"""Stands for no id and no column."""
