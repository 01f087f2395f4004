"""Structured pruning: what can be removed from a model, what it is worth, and removing it."""
