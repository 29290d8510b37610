"""The pocket data set: facts, emoji and flags."""
