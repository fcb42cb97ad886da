"""A hash of the code behind an import path: of a reward function, or of a class given by its path.

It covers the function, everything of its module that it refers to, and the user's own modules that these
import. Comments and formatting do not count, nor does the rest of the module: a script may change its
call of ``trimtab.rl`` and still resume the run. Installed packages, the standard library and trimtab are
left out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from trimtab.runs.content import Content

_PATH = re.compile(r"[\w./~-]+:[A-Za-z_][\w.]*")
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


def code_content(path: str) -> Content | None:
    """The content of the code at "package.module:name" or "file.py:name"; None if there is none."""
    if not _PATH.fullmatch(path):
        return None
    where, _, name = path.partition(":")
    module = "" if where.endswith(".py") else where
    file = Path(where) if where.endswith(".py") else _module_file(where)
    if file is None or not file.is_file() or file.resolve().is_relative_to(_PACKAGE):
        return None
    texts: dict[Path, str] = {}
    try:
        _add(texts, file.resolve(), module, name.partition(".")[0])
    except (SyntaxError, ValueError, OSError):  # importing it reports that
        return None
    digest = hashlib.sha256("\n".join(texts.values()).encode("utf-8", "replace")).hexdigest()
    return Content(kind="code", digest=digest)


def _module_file(module: str) -> Path | None:
    """The source of a module; nothing is imported to find it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    bases = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    candidates = [p for base in bases for p in (base.with_suffix(".py"), base / "__init__.py")]
    return next((p for p in candidates if p.is_file()), None)


def _add(texts: dict[Path, str], file: Path, module: str, name: str = "") -> None:
    """Add the code of ``name`` in ``file``, or all of it, and of the user's modules it imports."""
    tree = ast.parse(file.read_bytes())
    nodes = _reachable(tree.body, name) if name else tree.body
    texts[file] = "\n".join(ast.unparse(node) for node in nodes)
    is_package = file.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for imported in _imported(nodes, package):
        inner = _module_file(imported)
        if inner is not None and (inner := inner.resolve()) not in texts and _is_own(inner):
            _add(texts, inner, imported)


def _is_own(file: Path) -> bool:
    return not (
        _INSTALLED & set(file.parts)
        or file.is_relative_to(_STANDARD)
        or file.is_relative_to(_PACKAGE)
    )


def _reachable(body: Sequence[ast.stmt], name: str) -> list[ast.stmt]:
    """The statements at the top of a module that ``name`` refers to, directly or not."""
    names_of = [_bound(statement) for statement in body]
    used: set[int] = set()
    names, done = {name, "*"}, set[str]()
    while names - done:
        current = (names - done).pop()
        done.add(current)
        for i, bound in enumerate(names_of):
            if current in bound and i not in used:
                used.add(i)
                names |= {n.id for n in ast.walk(body[i]) if isinstance(n, ast.Name)}
    return [body[i] for i in sorted(used)]


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def _imported(nodes: Iterable[ast.stmt], package: str) -> list[str]:
    """Names of the modules that the statements import, sorted."""
    modules: set[str] = set()
    for node in (inner for statement in nodes for inner in ast.walk(statement)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.level == 0 or package):
            base = "." * node.level + (node.module or "")
            if node.level:
                base = importlib.util.resolve_name(base, package)
            modules |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return sorted(modules)
