"""Keeping secrets out of what a run writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

_SECRET = re.compile(
    r"(?i)(^|[_\-.])(api_?key|(secret|private|access)_?key|secret|password|passwd|credentials?"
    r"|authorization|bearer|(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!stop_)token)$"
)
_TOKEN = re.compile(r"\b(sk-|hf_|ghp_|xox[bp]-)[A-Za-z0-9_\-]{8,}")
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_IN_QUERY = re.compile(r"(?i)([?&](?:api_?key|key|token|secret|password)=)[^&\s]+")
HIDDEN = "[redacted]"


def redact(value: Any, key: str = "") -> Any:
    """``value`` without secrets: by the key's name, by the text's shape, and whatever the
    environment holds under a secret's name.

    >>> redact({"api_key": "abc", "url": "http://me:pw@host/", "pad_token": "<pad>"})
    {'api_key': '[redacted]', 'url': 'http://[redacted]@host/', 'pad_token': '<pad>'}
    """
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, key) for item in cast(Sequence[Any], value)]
    if not isinstance(value, str):
        return value
    if value and _SECRET.search(key):
        return HIDDEN
    for name, secret in os.environ.items():
        if len(secret) >= 8 and _SECRET.search(name):
            value = value.replace(secret, HIDDEN)
    value = _IN_URL.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, value))
    return _IN_QUERY.sub(rf"\1{HIDDEN}", value)
