"""Rendering chat templates in a process with a deadline and a limit of memory."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from typing import Any

import jinja2

from trimtab.errors import ConfigError, ModelError
from trimtab.runs.child import Child, ChildDiedError, ChildTimeoutError
from trimtab.types import Row

TIMEOUT_S = 30.0
"""Seconds for one conversation."""
MEMORY_GB = 2.0
"""Address space of the process in GiB."""
REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What rendering raises where a template does not accept a conversation: its own refusal, or an
expression that fails on a value of another type."""
TRUST_KEY = "TRIMTAB_TRUST_TEMPLATES"
"""Environment variable: 1 renders every template in the trainer's process, which is faster."""
_LOCK = threading.Lock()
_PROCESS: list[Child] = []


def trusted() -> bool:
    """Whether the operator trusts the templates of their models."""
    return os.environ.get(TRUST_KEY) == "1"


def serve() -> tuple[Any, Callable[[Any], Any]]:
    """In the process: nothing to say at the start, and the handler of conversations."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def handle(call: Row) -> Row:
        try:
            texts, _ = render_jinja_template(**call)
            return {"text": texts[0]}
        except REFUSALS as error:
            return {"refused": str(error) or type(error).__name__}
        except (MemoryError, RecursionError) as error:
            return {"exceeded": type(error).__name__}

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return None, handle


def render(where: str, call: Row) -> str:
    """The text of one conversation.

    Args:
        where: The tokenizer, for messages.
        call: Arguments of transformers' ``render_jinja_template``, as JSON.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
        ModelError: it takes longer than ``TIMEOUT_S`` or more memory than ``MEMORY_GB``.
    """
    with _LOCK:
        if not _PROCESS:
            _PROCESS.append(
                Child(f"{__name__}:serve", {}, what="chat template", memory_gb=MEMORY_GB)
            )
        try:
            reply: Row = _PROCESS[0].call(call, TIMEOUT_S)
        except ConfigError as error:
            raise ModelError(str(error)) from None
        except ChildTimeoutError:
            reply = {"exceeded": f"no result in {TIMEOUT_S:g} s"}
        except ChildDiedError as error:
            reply = {"exceeded": str(error)}
    if "refused" in reply:
        raise jinja2.TemplateError(reply["refused"])
    if "text" not in reply:
        raise ModelError(
            f"the chat template of {where!r} was stopped: one conversation took more than {TIMEOUT_S:g} s or "
            f"{MEMORY_GB:g} GiB ({reply['exceeded']}); the template may be hostile or broken, so give another "
            "one with model.chat_template"
        )
    return reply["text"]
