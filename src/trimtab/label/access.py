"""Access control: every link, session and form token is derived from one random secret."""

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
    """A signed-in person."""

    name: str
    owner: bool
    """Whether they see everyone's progress, the links and the exports."""
    labels: bool
    """Whether they label."""
    csrf: str
    """The token that every form of this sign-in must contain."""

    def csrf_is(self, token: str) -> bool:
        """Whether a form's token is correct."""
        return hmac.compare_digest(self.csrf.encode(), token.encode())


def read_secret(path: Path) -> bytes:
    """The secret in ``path``: 32 random bytes, created at the first start, readable only by the user.

    Raises:
        DataError: others can read it, or it is damaged.
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
            f"{path}: others can read it, so they may have the links; delete it to get new links"
        )
    text = path.read_text(encoding="utf-8").strip()
    if len(text) != 64:
        raise DataError(f"{path}: is damaged; delete it to get new links")
    return bytes.fromhex(text)


class Access:
    """Links and sessions of a fixed set of people; nobody else can sign in.

    Args:
        people: Who labels.
        alone: Whether the only annotator is the owner, who started the server.
    """

    def __init__(self, secret: bytes, people: Sequence[str], alone: bool) -> None:
        self.secret = secret
        self.people = tuple(people)
        self.alone = alone

    def _mac(self, use: str, text: str) -> str:
        digest = hmac.digest(self.secret, f"{use}\0{text}".encode(), "sha256")
        return urlsafe_b64encode(digest).decode().rstrip("=")

    def names(self) -> tuple[str, ...]:
        """Everyone with a link."""
        return self.people if self.alone else (OWNER, *self.people)

    def token(self, name: str) -> str:
        """The secret part of a person's link; the same after every restart."""
        return self._mac("join", name)

    def joins(self, token: str) -> str | None:
        """The person whose link has this token; None if nobody's."""
        match = None
        for name in self.names():  # all of them, so that the time taken reveals nothing
            if hmac.compare_digest(self.token(name).encode(), token.encode()):
                match = name
        return match

    def session(self, name: str) -> str:
        """A new session: the value of its cookie."""
        text = urlsafe_b64encode(f"{name}\0{secrets.token_hex(16)}".encode()).decode()
        return f"{text}.{self._mac('session', text)}"

    def visitor(self, cookie: str | None) -> Visitor | None:
        """The person of a cookie; None if it is invalid, or the person is no longer in the list."""
        text, _, mac = (cookie or "").partition(".")
        if not hmac.compare_digest(self._mac("session", text).encode(), mac.encode()):
            return None
        name = urlsafe_b64decode(text).decode().partition("\0")[0]
        if name not in self.names():
            return None
        owner = name == OWNER or self.alone
        return Visitor(name, owner, name in self.people, self._mac("csrf", text))
