"""Packed storage: N:M sparse and integer weights at the bits they need, everything else exactly."""
