"""Removing whole blocks: which can go, which matter least, and what stands in their place."""
