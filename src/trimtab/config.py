"""Configuration: frozen pydantic models, YAML files, unknown keys refused by path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import secrets
import sys
import types as pytypes
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    create_model,
    model_validator,
)

from trimtab.errors import ConfigError
from trimtab.yaml_size import MAX_VALUES, expanded_size

log = logging.getLogger(__name__)
_WARNED: set[tuple[str, str]] = set()
"""Classes and old keys that a warning was given for: one each per process."""


KeyKind = Literal["extent_keys", "free_keys", "model_keys", "output_folders", "output_files"]


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown keys, defaults validated."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )
    renamed: ClassVar[dict[str, str]] = {}
    """Keys of the release before and the dotted keys that replace them: still read, with a warning."""
    extent_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that say how far the work goes: they may change when a run is resumed."""
    free_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that never change the result: what is logged and saved, and how much time and memory it takes.
    They may change when a run is resumed, as may those of outputs."""
    output_folders: ClassVar[frozenset[str]] = frozenset({"out"})
    """Keys of folders that are written."""
    output_files: ClassVar[frozenset[str]] = frozenset()
    """Keys of files that are written."""
    model_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys with the folder or hub id of a model or tokenizer."""

    @classmethod
    def declared_keys(cls, *names: KeyKind) -> frozenset[str]:
        """The keys of these kinds of this class and of its bases."""
        kinds = (vars(base).get(name, ()) for name in names for base in cls.__mro__)
        return frozenset().union(*kinds)

    def input_contents(self) -> dict[str, Any]:
        """The ``runs.content.Content`` of keys that name an input which is not simply a model, a local
        file or folder, or the code of a function."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _read_renamed(cls, values: Any) -> Any:
        return read_renamed(cls, values)


def read_renamed(config: type[Config], values: Any) -> Any:
    """``values`` with the keys of the release before replaced, with one warning for each.

    A group of keys may have the name of an old single key: ``{"advantage": "advantage.estimator"}``
    reads ``advantage: gae`` as ``advantage: {estimator: gae}``. A function never had that place.
    """
    if not isinstance(values, dict):
        return values
    values = dict(cast("dict[str, Any]", values))
    # Names of the bases count too; a class that uses such a key again keeps it.
    renamed = {
        k: v for base in reversed(config.__mro__) for k, v in vars(base).get("renamed", {}).items()
    }
    for old, new in renamed.items():
        if old not in values:
            continue
        single = not isinstance(values[old], (dict, BaseModel)) and not callable(values[old])
        grouped = new.startswith(f"{old}.") and single
        if old in config.model_fields and not grouped:
            continue
        value = values.pop(old)
        *parents, last = new.split(".")
        target = values
        for part in parents:
            group: Any = target.get(part) or {}
            target[part] = {"type": group} if isinstance(group, str) else dict(group)
            target = target[part]
        if last in target:
            raise ValueError(
                f"{old!r} is the old name of {new!r}, and both are set; remove {old!r}"
            )
        target[last] = value
        if (config.__name__, old) not in _WARNED:
            _WARNED.add((config.__name__, old))
            log.warning(
                "%s: the key %r is now %r; the old name goes with the next release",
                config.__name__,
                old,
                new,
            )
    return values


class Kind(Config):
    """A configuration of several kinds told apart by ``type``; a kind is a subclass.

    The subclass declares ``type: Literal["name"]``. One from outside the package need not: its
    type is the import path it was found at.
    """

    usual: ClassVar[str] = ""
    """The type where none is given."""

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The subclass, at any depth, whose type is ``name``, or the class at that import path;
        this one when there is none."""
        if ":" in name:
            return _imported(cls, name)
        todo: list[type[Self]] = [cls]
        while todo:
            one = todo.pop()
            if "type" in one.model_fields and one.model_fields["type"].default == name:
                return one
            todo += one.__subclasses__()
        return cls

    @property
    def name(self) -> str:
        """What it is called."""
        return str(getattr(self, "type", type(self).__name__))


C = TypeVar("C", bound=Config)
K = TypeVar("K", bound=Kind)


def by_type(base: type[K], classes: Mapping[str, type[K]]) -> BeforeValidator:
    """What turns ``{type: NAME, …}``, or NAME alone, into the class of that name in ``classes``, or the
    subclass of ``base`` at that import path ("package.module:Class" or "file.py:Class").
    """

    def make(value: Any) -> Any:
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            return value
        values = {str(k): v for k, v in cast("dict[Any, Any]", value).items()}
        old = next((k for k, new in base.renamed.items() if new == "type"), "type")
        name = str(values.get("type", values.get(old, base.usual)))
        if ":" in name:
            return _imported(base, name).model_validate(values)
        if name not in classes:
            raise ValueError(f"type {name!r} is none of {', '.join(classes)}, and no import path")
        return classes[name].model_validate(values)

    return BeforeValidator(make)


def _imported(base: type[K], path: str) -> type[K]:
    """The subclass of ``base`` at ``path``, with the path as its type: what a resolved
    configuration says is what it reads back.

    Raises:
        ConfigError: nothing is there, or it is no such class.
    """
    imported = import_function(path, "type")
    if not (isinstance(imported, type) and issubclass(imported, base)):
        raise ConfigError(f"type: {path!r} is no {base.__name__}; subclass {base.__module__}'s")
    typed: Any = create_model(imported.__name__, __base__=imported, type=(Literal[path], path))  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownVariableType]
    return typed


def _arms(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes that a value of this annotation may have: several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, pytypes.UnionType, typing.Annotated):
        return [a for arm in typing.get_args(annotation) for a in _arms(arm)]
    return []


def _fields(annotation: Any) -> dict[str, Any]:
    """The keys a value of this annotation may have, with their annotations."""
    return {
        info.alias or name: info.annotation
        for arm in _arms(annotation)
        for name, info in arm.model_fields.items()
    }


def _keys_at(kind: type[BaseModel], path: tuple[Any, ...], values: Any) -> list[str]:
    keys: dict[str, Any] = _fields(kind)
    for part in path:
        values = cast("dict[str, Any]", values).get(part) if isinstance(values, dict) else None
        if isinstance(part, str) and part in keys:
            inner = keys[part]
            if isinstance(inner, type) and isinstance(values, dict):
                inner = _kind_of(inner, cast("dict[str, Any]", values))
            keys = _fields(inner)
    return sorted(keys)


def build(kind: type[C], values: dict[str, Any], source: str = "configuration") -> C:
    """Validate ``values`` into ``kind``.

    Raises:
        ConfigError: naming every faulty key by its dotted path, with the nearest known key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines: list[str] = []
        for item in error.errors():
            path = ".".join(str(p) for p in item["loc"]) or "(top)"
            if item["type"] == "extra_forbidden":
                keys = _keys_at(kind, item["loc"][:-1], values)
                near = difflib.get_close_matches(str(item["loc"][-1]), keys, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}"
                lines.append(f"{path}: unknown key; {hint}")
            elif item["type"] == "missing":
                lines.append(f"{path}: required, but not given")
            elif item["type"] == "value_error":
                # Our own words, which say what was given; pydantic puts its prefix before them.
                lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')}")
            else:
                lines.append(f"{path}: {item['msg']} (got {item['input']!r})")
        raise ConfigError(f"{source}: " + "\n  ".join(lines)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises:
        ConfigError: the file is missing, is not UTF-8, is not YAML, or is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        if expanded_size(loaded) > MAX_VALUES:
            raise ConfigError(
                f"{path}: its aliases stand for over {MAX_VALUES:,} values; remove them"
            )
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or a value that holds itself") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys at the top, got {type(loaded).__name__}"
        )
    return typing.cast("dict[str, Any]", loaded)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, mappings merged key by key; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], typing.cast("dict[str, Any]", value))
        else:
            result[key] = value
    return result


def override(config: type[Config], base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, both values of ``config``; old keys count as those that replace them."""
    return merge(_with_new_keys(config, base), _with_new_keys(config, over))


def _with_new_keys(config: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the keys of the release before replaced, those of inner configurations too."""
    values = read_renamed(config, values)
    annotations = _fields(config)
    for key, value in values.items():
        if isinstance(value, dict):
            for inner in _arms(annotations.get(key)):
                if issubclass(inner, Config):
                    value = _with_new_keys(_kind_of(inner, value), value)
            values[key] = value
    return values


def _kind_of(config: type[Any], values: dict[str, Any]) -> type[Any]:
    """The kind that ``values`` name; ``config`` itself where it has no kinds."""
    if not issubclass(config, Kind):
        return config
    return config.named(str(values.get("type", config.usual)))


def set_path(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``values["a"]["b"] = value`` for ``dotted`` "a.b" in place."""
    *parents, last = dotted.split(".")
    for part in parents:
        inner: Any = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--{dotted}: {part!r} is a single value, it has no keys below it")
        values = typing.cast("dict[str, Any]", inner)
    values[last] = value


_LOCAL = "<local>"
_FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Functions that were given as objects, by the path that stands for them in a configuration."""


def function_path(function: Callable[..., Any]) -> str:
    """The path that stands for ``function`` in a configuration: "module:qualname".

    That of a script is "file.py:qualname". A lambda or a local function cannot be imported again:
    its path holds for this process alone, and a warning says that its run cannot be resumed.
    """
    module = getattr(function, "__module__", None) or ""
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    if module == "__main__":
        module = str(getattr(sys.modules["__main__"], "__file__", ""))
    path = f"{module}:{name}"
    if not module or "<" in name or not hasattr(function, "__qualname__"):
        local = next((p for p, f in _FUNCTIONS.items() if f is function), None)
        path = local or f"{_LOCAL}:{name}-{secrets.token_hex(4)}"
        if local is None:
            log.warning(
                "%s is a lambda or a local function, so a run with it cannot be resumed; define it "
                "at the top of a module to resume",
                name,
            )
    _FUNCTIONS[path] = function
    return path


def is_local_function(path: str) -> bool:
    """Whether the function of this path existed in the process that configured it only."""
    return path.startswith(f"{_LOCAL}:")


FunctionPath = Annotated[
    str, BeforeValidator(lambda value: function_path(value) if callable(value) else value)
]
"""A key that takes "package.module:name", "file.py:name", or the function itself."""


def import_function(path: str, key: str = "function") -> Callable[..., Any]:
    """The function or class at "package.module:name" or "file.py:name".

    Raises:
        ConfigError: the path has another form, or nothing is there.
    """
    if path in _FUNCTIONS:
        return _FUNCTIONS[path]
    if is_local_function(path):
        raise ConfigError(
            f"{key}: {path!r} was a lambda or a local function of another process; give the function "
            "itself, or define it at the top of a module"
        )
    where, _, name = path.partition(":")
    if not name:
        raise ConfigError(f"{key}: {path!r} should be 'package.module:name' or 'file.py:name'")
    try:
        if where.endswith(".py"):
            # Under its path, so that it hides no other module; known to ``sys.modules``, because
            # the annotations of its classes are looked up there.
            name_of = str(Path(where).resolve())
            spec = importlib.util.spec_from_file_location(name_of, where)
            if spec is None or spec.loader is None or not Path(where).is_file():
                raise ConfigError(f"{key}: {where}: no such Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name_of] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except ImportError as error:
        raise ConfigError(f"{key}: {path!r} cannot be imported: {error}") from None
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ConfigError(f"{key}: {where!r} has no function {name!r}")
    return cast("Callable[..., Any]", function)
