"""Imports what commands need, once, in the server from which ``tests.support.processes`` forks them."""

from __future__ import annotations

import transformers.models.llama.modeling_llama  # noqa: F401

import tests.support.processes  # noqa: F401
from trimtab.launch.commands import COMMANDS

for command in COMMANDS.values():
    if command.config:
        command.load_config()
    command.load_function()
