"""The README's commands and its Python example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
COMMANDS = [
    shlex.split(line, comments=True)
    for line in PAGE.partition("## Commands\n\n```\n")[2].partition("```")[0].splitlines()
]
"""Each begins with "trimtab"."""
