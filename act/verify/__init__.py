"""Proof that an exported file is what its report says."""
