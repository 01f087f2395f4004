"""Fewer tokens: which to merge, the blocks that merge them, and which models can."""
