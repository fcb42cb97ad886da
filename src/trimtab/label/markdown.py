"""Untrusted text as inert markup.

Markdown and code are rendered; raw HTML stays text, and links and pictures are written out instead
of being followed or fetched. The templates escape everything else on the page.
"""

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

MAX_MARKDOWN = 20_000
"""Characters rendered as markdown; a longer text is shown as plain text."""


def _address(token: Token, name: str) -> str:
    return html.escape(str(token.attrGet(name) or ""))


def _link_open(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    return '<span class="link">'


def _link_close(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    depth = 0
    for i in range(at, -1, -1):
        depth += (tokens[i].type == "link_close") - (tokens[i].type == "link_open")
        if depth == 0:
            text = "".join(t.content for t in tokens[i + 1 : at])
            url = str(tokens[i].attrGet("href") or "")
            address = "" if text == url else f' <span class="url">({html.escape(url)})</span>'
            return f"</span>{address}"
    return "</span>"


def _image(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    token = tokens[at]
    text = html.escape(token.content)
    return f'<span class="url">[picture: {text} ({_address(token, "src")})]</span>'


def _heading_open(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    # Not a heading element: the outline belongs to the page.
    return '<p class="head">'


def _heading_close(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    return "</p>\n"


def _fence(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    # tabindex: code can be scrolled by keyboard.
    code = html.escape(tokens[at].content)
    return f'<pre tabindex="0"><code>{code}</code></pre>\n'


def _parser() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(
        ["table", "strikethrough"]
    )
    for name, rule in (
        ("link_open", _link_open),
        ("link_close", _link_close),
        ("image", _image),
        ("heading_open", _heading_open),
        ("heading_close", _heading_close),
        ("fence", _fence),
        ("code_block", _fence),
    ):
        md.add_render_rule(name, rule)
    return md


_MARKDOWN = _parser()


@lru_cache(maxsize=1024)
def render_markdown(text: str) -> Markup:
    """Markdown as safe markup.

    >>> render_markdown("a <b> [x](javascript:1) [y](http://z)")
    Markup('<p>a &lt;b&gt; [x](javascript:1) <span class="link">y</span> <span class="url">(http://z)</span></p>\\n')
    """
    if len(text) > MAX_MARKDOWN:
        return Markup('<pre class="plain" tabindex="0">{}</pre>').format(text)
    return Markup(_MARKDOWN.render(text))
