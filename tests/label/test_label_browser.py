"""The pages in a real Chromium: by keyboard alone, with hostile text, for every eye."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import FIRST_LETTER, browsers, needs_chromium, sync_api
from tests.support.labelling import many, servers
from tests.support.visits import READ, Visit, stored

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browsers()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    yield from servers(tmp_path)


@pytest.mark.slow
def test_a_comparison_takes_one_key(browser: Any, serve: Any) -> None:
    server = serve(many(12), "--annotators", "ann", "--repeat_share", "0")
    visit = Visit(browser, server, "ann")
    for key in ("1", "2", "ArrowLeft", "ArrowRight", "0", "t", "x", "s"):
        visit.judge(key)
    judgements = stored(server)
    won = [None if j.ranks is None or j.ranks[0] == j.ranks[1] else
           (j.order or ()).index(j.ranks.index(0)) for j in judgements]  # fmt: skip
    assert won == [0, 1, 0, 1, None, None, None, None]
    assert [j.bad for j in judgements] == [False] * 6 + [True, False]
    assert judgements[7].status == "skip"
    visit.judge("u")
    visit.press("f", "r")
    visit.page.keyboard.type("12 is odd, see x")
    visit.press("Escape")
    visit.judge("1")
    last = stored(server)[-1]
    assert (last.status, last.flagged, last.reason) == ("ok", True, "12 is odd, see x")
    assert last.seconds is not None and 0.5 < last.seconds < 60
    visit.press("g")
    visit.page.wait_for_url("**/guidelines")
    visit.press("Enter")
    visit.page.wait_for_selector("#verdict")
    assert not visit.wrong


@pytest.mark.slow
def test_strength_ranks_dimensions_and_steps_by_keyboard(browser: Any, serve: Any) -> None:
    server = serve(
        many(2),
        "--annotators",
        "ann",
        "--strength",
        "true",
        "--rubric",
        "hhh",
        "--repeat_share",
        "0",
    )
    visit = Visit(browser, server, "ann")
    visit.press("d", "ArrowDown", "Tab", "Space")
    visit.judge("7")
    (j,) = stored(server)
    assert (j.strength, j.ranks and j.order and j.ranks[j.order[1]]) == (3, 0)
    assert set(j.dimensions) == {"helpful", "honest"}
    assert not visit.wrong

    server = serve(many(2, k=4), "--annotators", "ann", "--repeat_share", "0", "--order", "given")
    visit = Visit(browser, server, "ann")
    visit.press("3", "1", "4", "Backspace", "=", "2", "4")
    visit.judge("Enter")
    (j,) = stored(server)
    assert j.order is not None and j.ranks is not None
    assert [j.ranks[a] for a in j.order] == [1, 1, 0, 2]
    visit.press("2")
    visit.press("Enter")
    visit.page.wait_for_timeout(200)
    assert len(stored(server)) == 1, "a half ranking is not sent"
    assert not visit.wrong

    rows = [{"prompt": "1+1+1?", "completion": "1+1=2\n2+1=4\nso 4"}]
    server = serve(rows, "--annotators", "ann", "--marks", "true")
    visit = Visit(browser, server, "ann")
    visit.press("m", "g", "b", "n")
    visit.judge("Enter")
    (j,) = stored(server)
    assert j.steps == {0: (1, -1, 0)}
    assert not visit.wrong


@pytest.mark.slow
def test_a_double_click_is_one_verdict(browser: Any, serve: Any) -> None:
    server = serve(many(5), "--annotators", "ann")
    visit = Visit(browser, server, "ann")
    for n in range(3):
        before = visit.page.locator("#page").element_handle()
        visit.page.wait_for_timeout(READ)
        visit.page.locator("button.left").dblclick()
        visit.page.wait_for_function("e => !e.isConnected", arg=before)
        visit.page.wait_for_timeout(100)
        assert len(stored(server)) == n + 1


@pytest.mark.slow
def test_a_verdict_survives_a_killed_server(browser: Any, serve: Any) -> None:
    server = serve(many(3), "--annotators", "ann")
    visit = Visit(browser, server, "ann")
    server.kill()
    visit.press("1")
    visit.page.wait_for_selector("#trouble:not([hidden])")
    before = visit.page.locator("#page").element_handle()
    server.start()
    visit.page.wait_for_function("e => !e.isConnected", arg=before)
    assert visit.page.locator("#trouble").is_hidden()
    assert len(stored(server)) == 1


@pytest.mark.slow
def test_pages_work_without_script(browser: Any, serve: Any) -> None:
    server = serve(many(3, k=3), "--annotators", "ann")
    visit = Visit(browser, server, "ann", java_script_enabled=False)
    for n, value in enumerate(("2", "1", "1")):
        visit.page.locator("select").nth(n).select_option(value)
    visit.page.locator("button[value=rank]").click()
    visit.page.wait_for_url("**/")
    (j,) = stored(server)
    assert j.order is not None and j.ranks is not None
    assert [j.ranks[a] for a in j.order] == [1, 0, 0]


@pytest.mark.slow
def test_text_is_laid_out_in_its_own_direction(browser: Any, serve: Any) -> None:
    """Also where one text holds paragraphs of both directions; code stays left to right."""
    rows = [
        {
            "prompt": "ما هي عاصمة مصر؟",
            "completions": [
                "القاهرة هي العاصمة.\n\nIn English: Cairo.\n\n- القاهرة",
                "Cairo.\n\nالقاهرة هي العاصمة.\n\n```\nx = 'القاهرة'\n```",
            ],
        }
    ]
    flags = ("--annotators", "ann", "--repeat_share", "0")
    visit = Visit(browser, serve(rows, *flags), "ann")
    place = {}
    for block in visit.page.locator(".text :is(p, li, pre)").element_handles():
        place.setdefault(block.inner_text().strip(), block.evaluate(FIRST_LETTER))
    right = {text for text, x in place.items() if x > 0.5}
    assert right == {"ما هي عاصمة مصر؟", "القاهرة هي العاصمة.", "القاهرة"}
    assert set(place) - right == {"In English: Cairo.", "Cairo.", "x = 'القاهرة'"}
    marked = serve([{"prompt": "x", "completion": "القاهرة\nCairo"}], *flags, "--marks", "true")
    visit = Visit(browser, marked, "ann")
    steps = visit.page.locator(".step .text").element_handles()
    assert [step.evaluate(FIRST_LETTER) > 0.5 for step in steps] == [True, False]
    assert not visit.wrong


# --- hostile text

VECTORS = [
    "<script>fire()</script>",
    "<img src=x onerror=fire()>",
    "<svg onload=fire()>",
    "<svg><script>fire()</script></svg>",
    "<body onload=fire()>",
    "<iframe srcdoc='<script>parent.fire()</script>'></iframe>",
    "<details open ontoggle=fire()>x</details>",
    "<input autofocus onfocus=fire()>",
    "<video><source onerror=fire()></video>",
    "<audio src=x onerror=fire()></audio>",
    "<math><mtext><img src=x onerror=fire()></mtext></math>",
    "<div hx-get='/progress' hx-trigger='load' hx-on::load='fire()'>x</div>",
    "<div hx-on:click='fire()' data-hx-trigger='load' data-hx-post='/undo'>x</div>",
    "<a href='javascript:fire()' id=x>go</a>",
    "<style>@import url(http://127.0.0.1:9/x)</style>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "<base href=http://127.0.0.1:9/>",
    "<form action=http://127.0.0.1:9/><button data-key=1>x</button></form>",
    "</div></section></form></main><script>fire()</script>",
    "\"><script>fire()</script>",
    "'-fire()-'",
    "{{ cycler.__init__.__globals__.os.popen('id') }}{% raw %}<script>fire()</script>",
    "<scr\0ipt>fire()</scr\0ipt>".replace("\0", "\u200b") + "<img/src/onerror=fire()>",
    "<noscript><p title=\"</noscript><img src=x onerror=fire()>\">",
]  # fmt: skip
AROUND = [
    "{}",
    "[{0}](javascript:fire()) ![{0}](http://127.0.0.1:9/i.png) <javascript:fire()>",
    "```{0}\n{0}\n```\n\n| {0} |\n|---|\n| [x](data:text/html,<script>fire()</script>) |",
    "# {0}\n\n> **{0}** [r]\n\n[r]: http://127.0.0.1:9/ '{0}'\n\n<!-- {0} -->",
]
PAYLOADS = [around.replace("{0}", v).replace("{}", v) for around in AROUND for v in VECTORS]
ALIVE = {"p", "br", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "span",
         "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip


@pytest.mark.slow
def test_a_hundred_payloads_are_inert(browser: Any, serve: Any, tmp_path: Path) -> None:
    """RELIABILITY.md row 22: as answers, as what was asked, as roles, steps and rubric."""
    assert len(set(PAYLOADS)) == 100
    rows = [
        {"prompt": [{"role": "user", "content": PAYLOADS[n]}, {"role": PAYLOADS[n], "content": "x"},
                    {"role": "user", "content": PAYLOADS[99 - n]}],
         "completions": [f"{n}.{i} " * (i % 2) + p for i, p in enumerate(PAYLOADS[n : n + 5])]}
        for n in range(0, 100, 5)
    ]  # fmt: skip
    steps = [{"prompt": "p", "completion": "\n".join(VECTORS)}]
    rubric = tmp_path / "rubric.yaml"
    words = {
        "question": VECTORS[19],
        "guidelines": PAYLOADS[60],
        "dimensions": {VECTORS[1]: VECTORS[20]},
    }
    rubric.write_text(json.dumps(words))
    server = serve(rows, "--annotators", "ann", "--repeat_share", "0", "--rubric", str(rubric))
    visit = Visit(browser, server, "ann")
    _inert(visit, pages=20)
    visit.page.goto(f"http://127.0.0.1:{server.port}/guidelines")
    _look(visit)
    marked = serve(steps, "--annotators", "ann", "--marks", "true")
    visit = Visit(browser, marked, "ann")
    _look(visit)
    assert visit.page.locator(".step").count() >= len(VECTORS) - 1


def _inert(visit: Visit, pages: int) -> None:
    seen: set[str] = set()
    for _ in range(pages):
        seen.add(visit.page.locator("[name=place]").input_value())
        _look(visit)
        visit.judge("x")
    assert len(seen) == pages
    assert "Done" in visit.page.inner_text("main")


def _look(visit: Visit) -> None:
    result = visit.page.evaluate(
        """() => ({
          tags: [...new Set([...document.querySelectorAll('.text *')].map(e => e.localName))],
          attributes: [...new Set([...document.querySelectorAll('.text *')]
            .flatMap(e => e.getAttributeNames()))],
          scripts: [...document.scripts].map(s => new URL(s.src).pathname),
          odd: document.querySelectorAll('iframe,object,embed,base,svg,img,video,style,' +
            'main meta,main link,main a[href^="javascript"]').length,
          fired: window.fired === undefined ? 0 : window.fired,
        })"""
    )
    assert set(result["tags"]) <= ALIVE, result["tags"]
    assert set(result["attributes"]) <= {"class", "tabindex", "start"}, result["attributes"]
    assert result["scripts"] == ["/static/htmx.min.js", "/static/label.js"]
    assert result["odd"] == 0 and result["fired"] == 0
    assert not visit.wrong, visit.wrong


@pytest.mark.slow
def test_the_payloads_do_fire_on_a_page_that_takes_them_as_html(browser: Any) -> None:
    """Else the test above could not fail."""
    context = browser.new_context()
    fired = 0
    for vector in VECTORS:
        page = context.new_page()
        page.set_content(f"<script>fired=0;function fire(){{fired++}}</script><div>{vector}</div>")
        page.wait_for_timeout(30)
        try:
            fired += page.evaluate("typeof fired !== 'undefined' && fired > 0")
        except sync_api.Error:
            fired += 1  # it took the page elsewhere
        page.close()
    assert fired >= 10


@pytest.mark.slow
def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Any, serve: Any) -> None:
    visit = Visit(browser, serve(many(1), "--annotators", "ann"), "ann")
    stopped = visit.page.evaluate(
        """() => new Promise(done => {
          const stopped = [];
          document.addEventListener('securitypolicyviolation', e => stopped.push(e.effectiveDirective));
          const box = document.querySelector('.text');
          const add = (tag, set) => box.append(Object.assign(document.createElement(tag), set));
          add('script', {textContent: 'window.fired = 1'});
          add('script', {src: 'http://127.0.0.1:9/x.js'});
          add('img', {src: 'http://127.0.0.1:9/x.png'});
          add('iframe', {src: 'http://127.0.0.1:9/'});
          add('style', {textContent: 'body{background:red}'});
          box.insertAdjacentHTML('beforeend', '<b onclick="window.fired=1" style="color:red">x</b>');
          box.lastChild.click();
          fetch('http://127.0.0.1:9/').catch(() => 0);
          setTimeout(() => done({stopped, fired: window.fired}), 300);
        })"""
    )
    assert stopped.get("fired") is None
    assert {"script-src-elem", "script-src-attr", "style-src-elem", "img-src", "connect-src",
            "frame-src", } <= set(stopped["stopped"])  # fmt: skip


# --- looks

LONG = [
    {
        "prompt": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "How do I list files in Python?"},
            {"role": "assistant", "content": "With `os.listdir` or `pathlib`."},
            {"role": "user", "content": "Show me, and say which is better."},
        ],
        "completions": [
            "Use `os.listdir`:\n\n```python\nimport os\nfor name in sorted(os.listdir('.')):\n    print(name)  # a name, and no more than that: join it with the folder yourself\n```\n\n1. It gives names\n2. It is old",
            "**pathlib** is better:\n\n| call | gives |\n|---|---|\n| `iterdir` | paths |\n| `glob` | paths that fit |\n\n> It sorts, too. See [the manual](https://docs.python.org/3/library/pathlib.html).",
            "averyverylongwordthatneverends" * 8,
        ],
    }
]  # fmt: skip


EYES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
AXE = EYES[::3]
"""Contrast depends on the scheme, layout on the width: two of the four meet all."""


@pytest.mark.slow
def test_pages_are_legible_and_axe_finds_no_serious_fault(browser: Any, serve: Any) -> None:
    axe_api = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="checking accessibility needs axe: pip install axe-playwright-python",
    )
    axe = axe_api.Axe()
    pair = [{**LONG[0], "completions": LONG[0]["completions"][:2]}]
    one = [{"prompt": "1+1+1?", "completion": "1+1=2\n2+1=4\nso 4"}]
    looks = {
        "pair": (pair, ("--rubric", "hhh", "--overlap", "2")),
        "strength": (pair, ("--strength", "true")),
        "rank": (LONG, ("--rubric", "hhh")),
        "steps": (one, ("--marks", "true")),
    }
    for name, (rows, flags) in looks.items():
        server = serve(rows, "--annotators", "ann,bob", *flags)
        visit = Visit(browser, server, "ann")
        _seen(visit, axe, name)
        if name != "pair":
            continue
        visit.judge("1")
        _seen(visit, axe, "rest")
        Visit(browser, server, "bob").judge("2")
        for path, who in (
            ("", "ann"),
            ("guidelines", "ann"),
            ("progress", "owner"),
            ("links", "owner"),
        ):
            visit = Visit(browser, server, who)
            visit.page.goto(f"http://127.0.0.1:{server.port}/{path}")
            _seen(visit, axe, path or "done")


def _seen(visit: Visit, axe: Any, name: str) -> None:
    for width, scheme in EYES:
        visit.page.set_viewport_size({"width": width, "height": 844})
        visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        if folder := os.environ.get("TRIMTAB_SHOTS"):
            visit.page.screenshot(path=f"{folder}/{name}-{width}-{scheme}.png")
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name}: {wide} pixels wide in {width}"
        if (width, scheme) not in AXE:
            continue
        violations = axe.run(visit.page).response["violations"]
        serious = [(v["id"], [n["html"] for n in v["nodes"]]) for v in violations
                   if v["impact"] in ("serious", "critical")]  # fmt: skip
        assert not serious, (name, width, scheme, serious)
    assert not visit.wrong, (name, visit.wrong)
