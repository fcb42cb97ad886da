"""A report in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import FIRST_LETTER, browsers, needs_chromium
from trimtab.report.sections import Answer, Pick, Section, Table, render

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browsers()


@pytest.mark.slow
def test_samples_are_laid_out_in_their_own_direction(browser: Any) -> None:
    arabic, english = "القاهرة هي العاصمة", "Cairo is the capital"
    picks = [Pick(arabic, [Answer("start", f"{english}\n{arabic}"), Answer("end", arabic)])]
    table = Table(("Prompt", "Score"), [(arabic, "0.5"), (english, "-0.5")])
    page = browser.new_page()
    page.set_content(render([Section("Samples", picks=picks, tables=[table])]))
    texts = [(e.inner_text(), e) for e in page.locator(".text").element_handles()]
    right = [element.evaluate(FIRST_LETTER) > 0.5 for _, element in texts]
    assert [text.partition("\n")[0] for text, _ in texts] == [arabic, english, arabic]
    assert right == [True, False, True]
    # The second line of a text has its own direction.
    assert (
        page.locator(".text")
        .nth(1)
        .evaluate(
            """(element) => {
          const range = document.createRange(), text = element.firstChild;
          range.setStart(text, text.data.indexOf("\\n") + 1);
          range.setEnd(text, text.data.indexOf("\\n") + 2);
          const letter = range.getBoundingClientRect(), box = element.getBoundingClientRect();
          return letter.left > (box.left + box.right) / 2;
        }"""
        )
    )
    cells = page.locator("td").element_handles()
    assert [cell.evaluate("e => getComputedStyle(e).direction") for cell in cells] == [
        "rtl", "ltr", "ltr", "ltr",
    ]  # fmt: skip
