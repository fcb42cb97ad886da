"""Measurements: speed and memory beside other libraries, and learning curves."""
