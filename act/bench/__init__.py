"""Measuring exported files side by side: latency, throughput, accuracy, where the time goes, and other tools' files."""
