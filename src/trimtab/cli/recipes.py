"""``trimtab run`` and ``trimtab recipes``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import trimtab
from trimtab.cli.flags import parse
from trimtab.config import build, merge, override, read_yaml
from trimtab.errors import ConfigError
from trimtab.launch.commands import find_stage_type
from trimtab.redact import redact

RECIPES = Path(trimtab.__file__).parent / "recipes"
_USAGE = """trimtab run RECIPE [--out DIR] [--STAGE.key value ...] [--inputs.NAME PATH] [--dry-run] [--fresh]

  RECIPE       the name of a packaged recipe (see trimtab recipes), or a YAML file
  --STAGE.key  changes a key of a stage, as --ppo.steps 100
  --dry-run    print every stage, resolved, and stop
  --fresh      move stages whose inputs have changed aside, and run them again"""


def find_recipe(name: str) -> Path:
    """The recipe file ``name``, or the packaged recipe of that name."""
    packaged = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    return packaged if not Path(name).is_file() and packaged.is_file() else Path(name)


def run(words: Sequence[str]) -> None:
    """Run a recipe, or with ``--dry-run`` print its stages.

    Raises:
        ConfigError: there is no such recipe, or a flag names neither a stage nor a key of it.
    """
    arguments = parse(words, frozenset({"fresh"}))
    if not arguments.positionals:
        print(_USAGE)
        if "help" in arguments.switches:
            return
        raise ConfigError("give a recipe; 'trimtab recipes' lists those of the package")
    from trimtab.launch import recipe as recipes

    source = str(find_recipe(arguments.positionals[0]))
    values = read_yaml(source)
    stages: dict[str, Any] = dict(values.get("stages") or {})
    for key, value in arguments.values.items():
        if key in stages:
            stages[key] = _override(stages[key], value, key) if isinstance(value, dict) else value
        elif key in recipes.Recipe.model_fields:
            old = values.get(key)
            values[key] = merge(old, value) if isinstance(value, dict) and old else value
        else:
            raise ConfigError(
                f"--{key}: neither a stage of {source} ({', '.join(stages)}) nor a key of a recipe"
            )
    recipe = build(recipes.Recipe, {**values, "stages": stages}, source)
    if arguments.switches & {"help", "dry-run"}:
        for stage in recipes.plan(recipe, source):
            marker = stage.read_marker()
            state = "complete" if marker and marker.complete else "to do"
            print(f"# {stage.name}: {stage.command.name} -> {stage.folder} ({state})")
            resolved = redact({stage.name: stage.config.model_dump(mode="json")})
            print(yaml.safe_dump(resolved, sort_keys=False))
        return
    recipes.run(recipe, source, fresh="fresh" in arguments.switches)


def _override(stage: dict[str, Any], flags: dict[str, Any], name: str) -> dict[str, Any]:
    command = find_stage_type(str(stage.get("type", stage.get("kind"))), f"stages.{name}.type")
    return override(command.load_config(), stage, flags)


def list_recipes(words: Sequence[str]) -> None:
    """Print the packaged recipes, each by name with what it does."""
    for path in sorted(RECIPES.glob("*.yaml")):
        print(f"{path.stem:<18} {' '.join(str(read_yaml(path).get('about', '')).split())}")
    print("\ntrimtab run NAME runs one; python -m trimtab.recipes.bare_ppo is PPO on one page.")
