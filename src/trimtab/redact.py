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
_IN_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{8,}")
HIDDEN = "[redacted]"
_MIN_LENGTH = 8
"""Characters of a value that is searched in other text: a shorter one would be found by chance."""
_known: set[str] = set()
"""Values that this process has met under a secret's name."""


def redact(value: Any, key: str = "") -> Any:
    """``value`` without secrets: by the key's name, by the text's shape, and whatever the
    environment, or a configuration seen before, holds under a secret's name.

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
        if len(value) >= _MIN_LENGTH and value != HIDDEN:
            _known.add(value)
        return HIDDEN
    secrets = {s for n, s in os.environ.items() if len(s) >= _MIN_LENGTH and _SECRET.search(n)}
    # The longest first: one may begin with another.
    for secret in sorted(secrets | _known, key=len, reverse=True):
        value = value.replace(secret, HIDDEN)
    value = _IN_URL.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, value))
    value = _IN_HEADER.sub(rf"\1 {HIDDEN}", value)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", value)
