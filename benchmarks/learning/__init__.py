"""Does every method learn? ``python -m benchmarks.learning`` (``make learning``)."""
