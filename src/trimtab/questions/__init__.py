"""Thirteen questions of RLHF, answered by experiment: claims, verdicts, and the pages they fill."""
