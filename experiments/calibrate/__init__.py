"""Budgets of a gate, calibrated again on queries without labels."""
