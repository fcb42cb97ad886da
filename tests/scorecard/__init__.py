"""The reliability scorecard: ``python -m tests.scorecard``."""
