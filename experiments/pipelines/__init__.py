"""Stages as processes, ablations, selection anew from stored scores."""
