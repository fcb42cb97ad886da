"""Who may come in: one random secret, from which every link, session and form token is made."""

from __future__ import annotations

import hmac
import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import DataError
from trimtab.label.label_config import OWNER


@dataclass(frozen=True, slots=True)
class Visitor:
    """Someone signed in."""

    name: str
    owner: bool
    """Sees everyone's progress, the links and the exports."""
    labels: bool
    """Is asked for verdicts."""
    csrf: str
    """What every form of this sign-in must carry."""

    def csrf_is(self, given: str) -> bool:
        """Whether a form carries it."""
        return hmac.compare_digest(self.csrf.encode(), given.encode())


def read_secret(path: Path) -> bytes:
    """The secret in ``path``, made at the first start: 32 random bytes, readable by its owner only.

    Raises:
        DataError: others can read it, or it is not whole.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
    if path.stat().st_mode & 0o077:
        raise DataError(
            f"{path}: others can read it, so anyone may have the links; delete it for new ones"
        )
    text = path.read_text(encoding="utf-8").strip()
    if len(text) != 64:
        raise DataError(f"{path}: not the secret that trimtab wrote; delete it, and links are new")
    return bytes.fromhex(text)


class Access:
    """Links and sessions of a fixed set of people; nobody else can sign up.

    Args:
        secret: See ``read_secret``.
        people: Who labels.
        alone: The one who labels started the server, and is its owner.
    """

    def __init__(self, secret: bytes, people: Sequence[str], alone: bool) -> None:
        self.secret = secret
        self.people = tuple(people)
        self.alone = alone

    def _mac(self, use: str, text: str) -> str:
        made = hmac.digest(self.secret, f"{use}\0{text}".encode(), "sha256")
        return urlsafe_b64encode(made).decode().rstrip("=")

    def names(self) -> tuple[str, ...]:
        """Everyone with a link."""
        return self.people if self.alone else (OWNER, *self.people)

    def token(self, name: str) -> str:
        """The secret part of a person's link; the same after every restart."""
        return self._mac("join", name)

    def joins(self, token: str) -> str | None:
        """Whose link this is."""
        found = None
        for name in self.names():
            if hmac.compare_digest(self.token(name).encode(), token.encode()):
                found = name
        return found

    def session(self, name: str) -> str:
        """A new session, as the cookie's value."""
        text = urlsafe_b64encode(f"{name}\0{secrets.token_hex(16)}".encode()).decode()
        return f"{text}.{self._mac('session', text)}"

    def visitor(self, cookie: str | None) -> Visitor | None:
        """Who holds this cookie; None when it is not ours, or its person is no longer asked."""
        text, _, mac = (cookie or "").partition(".")
        if not hmac.compare_digest(self._mac("session", text).encode(), mac.encode()):
            return None
        name = urlsafe_b64decode(text).decode().partition("\0")[0]
        if name not in self.names():
            return None
        owner = name == OWNER or self.alone
        return Visitor(name, owner, name in self.people, self._mac("csrf", text))
