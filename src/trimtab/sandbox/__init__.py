"""The sandbox: a small synthetic task with an exact ground-truth score."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""Folder of the small pretrained model that runs on the sandbox start from."""
