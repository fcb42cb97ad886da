"""A reader of pages that finds every element which could run code, and texts that try to."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

ACTIVE = [
    "<script>alert({})</script>", "<img src=x onerror=alert({})>", "<svg/onload=alert({})>",
    "<iframe src=javascript:alert({})>", "<a href='javascript:alert({})'>x</a>",
    "\"><script src=//evil.test/{}></script>", "'><body onload=alert({})>", "</p><style>*{{}}</style>{}",
    "</style><script>{}</script>", "</title><script>{}</script>", "<math><mi xlink:href='data:{}'>",
    "<object data=data:text/html,{}>", "<embed src=//evil.test/{}>", "<link rel=stylesheet href=//e/{}>",
    "<meta http-equiv=refresh content='0;url=//e/{}'>", "<base href=//e/{}>", "<form action=//e/{}>",
    "<video><source onerror=alert({})>", "{{{{ 7*7 }}}}{}", "--><!--<script>{}</script>",
    "\x00<scr\x00ipt>{}</script>", "\u202e<b onmouseover=alert({})>", "\" onfocus=alert({}) autofocus x=\"",
    "<details open ontoggle=alert({})>", "<textarea><script>{}</script>",
]  # fmt: skip
PAYLOADS = [form.format(i) for i in range(4) for form in ACTIVE]
TAGS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "section",
        "div",
        "span",
        "b",
        "small",
        "figure",
        "ul",
        "li",
        "svg",
        "path",
        "text",
        "rect",
        "circle",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "article",
        "footer",
    ]
)
NAMES = set(
    [
        "class",
        "dir",
        "id",
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "viewbox",
        "role",
        "aria-label",
        "aria-hidden",
        "d",
        "x",
        "y",
        "r",
        "cx",
        "cy",
        "rx",
        "width",
        "height",
        "transform",
    ]
)


class Nodes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.policy = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names.update(name for name, _ in attrs)
        attributes = dict(attrs)
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""
        elif tag == "meta":
            assert "http-equiv" not in attributes


def check(page: str) -> Nodes:
    nodes = Nodes()
    nodes.feed(page)
    assert nodes.tags <= TAGS, nodes.tags - TAGS
    assert nodes.names <= NAMES, nodes.names - NAMES
    style = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert nodes.policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert "unsafe" not in nodes.policy
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    return nodes
