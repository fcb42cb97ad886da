"""Which chat templates are certain to be cheap: they are rendered in this process.

A template comes with a model, from a stranger. The sandbox of Jinja keeps it from running code, but not from
looping for hours or filling the memory (``'a' * 10**10``, or a variable that is doubled forty times).
A template whose text and time grow in proportion to the conversation is recognised by its syntax; any
other one is rendered by ``template_process``, which can be killed.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trimtab.types import Row

MAX_OUTPUT = 1e9
"""Bound of the text, in characters, up to which a template is rendered in this process."""

_INPUTS = frozenset({"messages", "tools", "documents"})
"""Lists that a template may loop over."""
_PLAIN: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.CondExpr,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Concat,
    nodes.Add,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Test,
    nodes.Keyword,
    nodes.Continue,
    nodes.Break,
)
"""Expressions whose value is no longer than all their parts together."""
_FILTERS = frozenset(
    {"trim", "length", "count", "string", "upper", "lower", "first", "last", "safe"}
)
_ESCAPING = frozenset({"tojson", "string"})
_METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "startswith", "endswith", "upper", "lower", "get", "split"}
)
_COUNTERS = frozenset({"index", "index0", "revindex", "revindex0"})


@lru_cache(maxsize=64)
def linear_size(template: str) -> int | None:
    """The number of nodes of a template whose output is at most this number × messages × the longest text.

    Returns:
        None where this does not follow from the syntax.

    >>> linear_size("{% for m in messages %}{{ m['content'] }}{% endfor %}") is not None
    True
    >>> linear_size("{{ 'a' * 10**10 }}") is None
    True
    """
    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    try:
        tree = environment.parse(template)
    except (TemplateError, RecursionError):
        return None
    lists = set(_INPUTS)
    return _count(tree, lists, looping=False)


def is_cheap(template: str, messages: list[Row], columns: Row) -> bool:
    """Whether rendering this conversation takes no more than ``MAX_OUTPUT`` characters."""
    size = linear_size(template)
    if size is None:
        return False
    texts = len(str(messages)) + len(str(columns))
    return size * (len(messages) + len(columns) + 1) * texts <= MAX_OUTPUT


def _count(node: nodes.Node, lists: set[str], looping: bool) -> int | None:
    """The number of nodes below ``node``; None if one of them may grow faster than the conversation."""
    if isinstance(node, nodes.For):
        if looping or node.recursive or not _is_input(node.iter, lists):
            return None
        if not isinstance(node.target, nodes.Name) or node.target.name == "loop":
            return None
        lists -= {node.target.name}
        looping = True
    elif isinstance(node, nodes.Assign):
        if not isinstance(node.target, nodes.Name) or node.target.name == "loop":
            return None
        if not _is_part(node.node):
            return None
        if _is_input(node.node, lists):
            lists |= {node.target.name}
        else:
            lists -= {node.target.name}
    elif isinstance(node, nodes.Filter):
        # Escaping what was escaped before doubles it.
        escapes = node.name == "tojson" and isinstance(node.node, nodes.Name | nodes.Getattr)
        if (node.name not in _FILTERS and not escapes) or node.args or node.kwargs:
            return None
    elif isinstance(node, nodes.List | nodes.Tuple):
        if not all(isinstance(item, nodes.Const) for item in node.items):
            return None
    elif isinstance(node, nodes.Mod):
        if not _is_counter(node.left):
            return None  # of a text, it is formatting
    elif isinstance(node, nodes.Call):
        callee = node.node
        refusal = isinstance(callee, nodes.Name) and callee.name == "raise_exception"
        method = isinstance(callee, nodes.Getattr) and callee.attr in _METHODS
        if not refusal and not method:
            return None
    elif not isinstance(node, _PLAIN):
        return None
    total = 1
    for child in node.iter_child_nodes():
        size = _count(child, lists, looping)
        if size is None:
            return None
        total += size
    return total


def _is_input(node: nodes.Node, lists: set[str]) -> bool:
    """Whether the value is one of the input lists, or a slice of one."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name in lists


def _is_counter(node: nodes.Node) -> bool:
    """Whether the value is the number of a turn in its loop."""
    owner = node.node if isinstance(node, nodes.Getattr) and node.attr in _COUNTERS else None
    return isinstance(owner, nodes.Name) and owner.name == "loop"


def _is_part(node: nodes.Node) -> bool:
    """Whether the value is a part of the input, so that assigning it makes nothing longer."""
    grows = (nodes.Concat, nodes.Add, nodes.List, nodes.Tuple)
    if isinstance(node, grows) or any(node.find(kind) is not None for kind in grows):
        return False
    filters = [node, *node.find_all(nodes.Filter)]
    return not any(isinstance(f, nodes.Filter) and f.name in _ESCAPING for f in filters)
