"""What a label is worth: ``python -m benchmarks.labelling.active`` and ``.forms``."""
