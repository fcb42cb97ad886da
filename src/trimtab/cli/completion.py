"""``trimtab completion``: completion scripts for bash, zsh and fish."""

import re
from collections.abc import Sequence

from trimtab.cli.flags import keys_of
from trimtab.cli.recipes import RECIPES
from trimtab.errors import ConfigError
from trimtab.launch.commands import COMMANDS, METHOD_VERBS, Command

_BASH = """_trimtab() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$current")); return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
}}
complete -o default -F _trimtab trimtab"""
_INSTALL = {
    "bash": 'eval "$(trimtab completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(trimtab completion zsh)"  # in ~/.zshrc',
    "fish": "trimtab completion fish > ~/.config/fish/completions/trimtab.fish",
}


def _words(command: Command) -> list[str]:
    """What may follow the command."""
    if command.name == "run":
        return [*(p.stem for p in sorted(RECIPES.glob("*.yaml"))), "--out", "--dry-run", "--fresh"]
    if command.name == "question":
        from trimtab.cli import question_command
        from trimtab.questions import experiment

        flags = re.findall(r"^  (--[a-z-]+)", question_command.USAGE, re.M)
        return ["list", "all", *map(str, experiment.available()), *flags]
    if command.name == "completion":
        return list(_INSTALL)
    if not command.config:
        return []
    keys = [f"--{k.path}" for k in keys_of(command.load_config(), command.with_preset({}))]
    return [*keys, "--help", "--dry-run", *(["--plan"] if command.stage else [])]


def script(shell: str) -> str:
    """The completion script of a shell: commands first, then the keys of the command."""
    commands = COMMANDS | METHOD_VERBS
    if shell == "fish":
        lines = [
            f"complete -c trimtab -n __fish_use_subcommand -f -a {c.name} -d {c.help!r}"
            for c in commands.values()
        ]
        for command in commands.values():
            seen = f"'__fish_seen_subcommand_from {command.name}'"
            flags = [f"-l {w[2:]}" if w.startswith("--") else f"-a {w}" for w in _words(command)]
            lines += [f"complete -c trimtab -n {seen} {flag}" for flag in flags]
        return "\n".join(lines)
    cases = "\n".join(
        f'    {c.name}) COMPREPLY=($(compgen -W "{" ".join(_words(c))}" -- "$current")) ;;'
        for c in commands.values()
    )
    bash = _BASH.format(commands=" ".join(commands), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def main(words: Sequence[str]) -> None:
    """Print the script of the shell that is named.

    Raises:
        ConfigError: another shell, or none.
    """
    if len(words) == 1 and words[0] in _INSTALL:
        print(script(words[0]))
        return
    install = "\n".join(f"  {line}" for line in _INSTALL.values())
    if list(words) in (["--help"], ["-h"]):
        print(f"trimtab completion bash|zsh|fish\n\n{install}")
        return
    raise ConfigError(f"name one shell: {', '.join(_INSTALL)}; to install:\n{install}")
