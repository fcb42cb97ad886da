"""The entry point: finds the command, lays flags over its file, and reports mistakes in one line."""

import os
import sys
import textwrap
from collections.abc import Sequence

import yaml

import trimtab
from trimtab.cli.flags import help_text, keys_of, parse
from trimtab.cli.terminal import print_logs, safe_terminal
from trimtab.config import build, override, read_yaml
from trimtab.errors import ConfigError, UserError
from trimtab.launch.commands import COMMANDS, Command, find_command
from trimtab.redact import redact

_GROUPS = {
    "train": "Train",
    "data": "Make data",
    "labels": "Collect and exchange labels",
    "evaluate": "Evaluate",
    "diagnose": "Diagnose",
    "run": "Run and look",
}
_EXTRAS = {
    "fastapi": "label",
    "uvicorn": "label",
    "markdown_it": "label",
    "openai": "judge",
    "math_verify": "math",
    "sklearn": "recipes",
    "gguf": "smollm2",
    "ray": "cluster",
}
"""Packages that not every installation has, and the extra that brings each."""


def usage() -> str:
    """What ``trimtab --help`` prints."""
    lines = [f"trimtab {trimtab.__version__}: preference-based post-training of language models"]
    lines += ["", "usage: trimtab COMMAND [FILE.yaml] [--key value ...]"]
    for group, title in _GROUPS.items():
        commands = [c for c in COMMANDS.values() if c.group == group and not c.deprecated]
        lines += ["", f"{title}:", *(f"  {c.name:<15} {c.help}" for c in commands)]
        for c in commands:
            if c.methods:
                names = f"{c.name} by method: " + ", ".join(v.name for v in c.verbs())
                lines += textwrap.wrap(names, 96, initial_indent="  ", subsequent_indent=" " * 18)
    lines += [
        "",
        "A command takes a YAML file, flags, or both: trimtab sft sft.yaml --optim.lr 1e-4",
        "  --help      after a command: its keys, the values that would be used, and what they mean",
        "  --dry-run   print the resolved configuration and stop",
        "  --plan      of a training command: predict time and memory from a few steps and stop",
        "  --fresh     move what is in the output folder aside, and start again",
    ]
    return "\n".join(lines)


def run_command(command: Command, words: Sequence[str]) -> None:
    """Call ``command`` with the configuration that ``words`` give."""
    if not command.config:
        command.load_function()(words)
        return
    config_class = command.load_config()
    booleans = {k.path for k in keys_of(config_class, {}) if k.boolean}
    arguments = parse(words, frozenset({"plan", "fresh"}), booleans.__contains__)
    if "plan" in arguments.switches and not command.stage:
        raise ConfigError(f"--plan is for training stages; {command.name} trains nothing")
    files, values = arguments.positionals, arguments.values
    if command.positional:
        places = [p for p in files if not p.endswith((".yaml", ".yml"))]
        files = [p for p in files if p not in places]
        if len(places) > 1 and not command.many:
            files = places
        elif places:
            values.setdefault(command.positional, places if command.many else places[0])
    if len(files) > 1:
        raise ConfigError(f"unexpected argument {files[1]!r}; flags are written --key value")
    if files:
        values = override(config_class, read_yaml(files[0]), values)
    if command.method:
        values = {"out": f"runs/{command.name.replace('-', '_')}", **command.with_preset(values)}
    if "help" in arguments.switches:
        about = f"{command.name} {command.usage or '[FILE.yaml]'}"
        print(help_text(about, command.help, config_class, values))
        return
    if command.many and command.positional not in values:
        raise ConfigError(f"give the files: trimtab {command.name} {command.usage}")
    redact(values)  # so that no message or traceback holds a secret of it
    config = build(config_class, values, files[0] if files else f"trimtab {command.name}")
    if "dry-run" in arguments.switches:
        resolved = redact(config.model_dump(mode="json", by_alias=True))
        print(yaml.safe_dump(resolved, sort_keys=False))
    elif "plan" in arguments.switches:
        from trimtab.launch.plan import plan

        print(plan(command.load_stage(), config).text())
    else:
        command.run(config, fresh="fresh" in arguments.switches)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's error is one line on standard error and exit status 2."""
    with safe_terminal():
        _main(argv)


def _main(argv: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        print(trimtab.__version__)
        return
    try:
        with print_logs():
            run_command(find_command(words[0]), words[1:])
    except UserError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        if error.filename is None:
            raise
        print(f"trimtab: {error.filename2 or error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"trimtab: {words[0]} needs {error.name}, which is not installed; "
            f"run: pip install 'trimtab[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "\ntrimtab: interrupted; run the same command again to resume from the last checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
