"""Authentication exchanges as state: the server's side of PLAIN and LOGIN. Base64 and lines are the session's business.

Imports: wire.errors.    RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN).
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsrv.wire.errors import WireError

LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the client claims. `authorize_as` is "" unless it asks to act as somebody else."""

    user: str
    password: str
    authorize_as: str = ""


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("Credentials are not UTF-8") from None


class Plain:
    """One message: authorization identity NUL user NUL password."""

    def start(self, initial: bytes | None) -> bytes | Credentials:
        return b"" if initial is None else self.step(initial)

    def step(self, response: bytes) -> bytes | Credentials:
        parts = response.split(b"\0")
        if len(parts) != 3 or not parts[1] or len(response) > LONGEST:
            raise WireError("Not a PLAIN response")
        authorize_as, user, password = (_text(part) for part in parts)
        return Credentials(user, password, "" if authorize_as == user else authorize_as)


class Login:
    """Two prompts, still the only mechanism of some mail programs."""

    def __init__(self) -> None:
        self._user: str | None = None

    def start(self, initial: bytes | None) -> bytes | Credentials:
        return b"Username:" if initial is None else self.step(initial)

    def step(self, response: bytes) -> bytes | Credentials:
        if len(response) > LONGEST or b"\0" in response:
            raise WireError("Not a LOGIN response")
        if self._user is None:
            self._user = _text(response)
            return b"Password:"
        return Credentials(self._user, _text(response))


MECHANISMS: dict[str, type[Plain] | type[Login]] = {"PLAIN": Plain, "LOGIN": Login}
