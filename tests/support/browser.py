"""A real Chromium, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="the browser tests need Chromium (Debian: apt-get install chromium)"
)

FIRST_LETTER = """(element) => {
  // Distance of the first letter from the left edge of its block, as a share of the block's width.
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let node;
  while ((node = walker.nextNode()) && !node.data.trim());
  const range = document.createRange();
  range.setStart(node, 0);
  range.setEnd(node, 1);
  const letter = range.getBoundingClientRect(), box = element.getBoundingClientRect();
  return (letter.left + letter.width / 2 - box.left) / box.width;
}"""


def browsers() -> Iterator[Any]:
    """Chromium without a window; the body of a fixture."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
