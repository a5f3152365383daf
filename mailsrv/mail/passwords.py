"""Who somebody is: password hashes made, verified and upgraded. The only module that knows argon2 and passlib.

Nothing expensive happens on the hub: argon2 and bcrypt release the interpreter and run in the thread pool, two at a
time; schemes computed in Python run in a short-lived helper process. A verified password is remembered for some
minutes, by all workers. A name that does not exist, or may not log in, costs the same argon2 run
and gets the same answer. How often somebody may fail is `mail.throttle`'s to say.

Imports: mail.{accounts,logins,throttle,tickets}, store.files (the pool), libraries, log, errors, values.
RFC 9106 (argon2), OWASP password storage.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original

from mailsrv import log
from mailsrv.errors import AddressInvalid, AuthenticationFailed, LoginThrottled, MailError
from mailsrv.libraries import load
from mailsrv.mail.accounts import Accounts, User
from mailsrv.mail.logins import Logins
from mailsrv.mail.throttle import Throttle
from mailsrv.mail.tickets import Tickets
from mailsrv.store.files import offload
from mailsrv.values import Account

SHORTEST, LONGEST = 8, 128
LONGEST_NAME = 320
MEMORY_KIB, PASSES, LANES = 19 * 1024, 2, 1  # OWASP's floor for argon2id; 25 ms on one core
AT_ONCE = 2
HELPER_SECONDS = 20
LONGEST_QUESTION = 32 * 1024  # a pipe takes it without waiting
_posix_spawn, _waitpid, _close = get_original("os", ["posix_spawn", "waitpid", "close"])
_poll = get_original("select", "poll")
CURRENT = "{ARGON2ID}"
_ARGON2 = ("argon2", "argon2.exceptions")

# What Dovecot calls a scheme, as passlib names it. Computed in Python there, hence in the helper process.
_PASSLIB = {
    "SHA512-CRYPT": "sha512_crypt", "SHA256-CRYPT": "sha256_crypt", "MD5-CRYPT": "md5_crypt", "MD5": "md5_crypt",
    "DES-CRYPT": "des_crypt",
}  # fmt: skip
# Salted or plain digests: cheap, computed here. Dovecot appends the salt to the digest.
_DIGESTS = {
    "SHA": "sha1", "SHA1": "sha1", "SSHA": "sha1", "SHA256": "sha256", "SSHA256": "sha256", "SHA512": "sha512",
    "SSHA512": "sha512", "PLAIN-MD5": "md5", "LDAP-MD5": "md5", "SMD5": "md5",
}  # fmt: skip


def check_strength(password: str) -> None:
    """Raises AddressInvalid unless a new password has an acceptable length."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise AddressInvalid(f"A password has {SHORTEST} to {LONGEST} characters")


def hash_password(password: str) -> str:
    """`{ARGON2ID}$argon2id$…` with OWASP's parameters; blocks for some 25 ms."""
    load(*_ARGON2)
    from argon2 import PasswordHasher

    return CURRENT + PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES).hash(password)


def split_scheme(stored: str) -> tuple[str, str]:
    """(scheme in capitals, the rest) of a stored hash; crypt forms without a scheme are recognised by their start."""
    if stored.startswith("{"):
        scheme, end, rest = stored[1:].partition("}")
        if end:
            scheme, _, encoding = scheme.upper().partition(".")
            if encoding in ("HEX", "B64", "BASE64"):
                return scheme, f"{encoding}:{rest}"
            if scheme == "CRYPT":
                return split_scheme(rest)
            return scheme, rest
    for start, scheme in (
        ("$argon2", "ARGON2ID"), ("$2", "BLF-CRYPT"), ("$6$", "SHA512-CRYPT"), ("$5$", "SHA256-CRYPT"), ("$1$",
        "MD5-CRYPT"),
    ):  # fmt: skip
        if stored.startswith(start):
            return scheme, stored
    return "UNKNOWN", stored


def is_known_scheme(stored: str) -> bool:
    scheme, _ = split_scheme(stored)
    return scheme in ("ARGON2ID", "ARGON2I", "BLF-CRYPT", "PBKDF2", "PLAIN", "CLEARTEXT", *_PASSLIB, *_DIGESTS)


def _digest_bytes(text: str, size: int) -> bytes:
    encoding, colon, rest = text.partition(":")
    if (colon and encoding == "HEX") or (not colon and len(text) == 2 * size):
        return bytes.fromhex(rest if colon else text)
    return base64.b64decode(rest if colon else text)


def verify(password: str, stored: str) -> bool:
    """Whether the password matches a stored hash of any scheme Dovecot writes. Blocks; a malformed hash matches
    nothing.
    """
    scheme, rest = split_scheme(stored)
    secret = password.encode()
    try:
        if scheme in ("ARGON2ID", "ARGON2I"):
            load(*_ARGON2)
            from argon2 import PasswordHasher
            from argon2.exceptions import Argon2Error, InvalidHashError

            try:
                return PasswordHasher().verify(rest, password)
            except (Argon2Error, InvalidHashError):
                return False
        if scheme == "BLF-CRYPT":
            load("bcrypt")
            import bcrypt

            return bool(bcrypt.checkpw(secret[:72], rest.replace("$2y$", "$2b$", 1).encode()))
        if scheme in ("PLAIN", "CLEARTEXT"):
            return hmac.compare_digest(rest.encode(), secret)
        if scheme == "PBKDF2":  # $1$salt$rounds$hex of SHA-1, as Dovecot writes it
            _, version, salt, rounds, digest = rest.split("$")
            if version != "1" or int(rounds) > 10_000_000:
                return False
            made = hashlib.pbkdf2_hmac("sha1", secret, salt.encode(), int(rounds))
            return hmac.compare_digest(made.hex(), digest.lower())
        if scheme in _DIGESTS:
            size = hashlib.new(_DIGESTS[scheme]).digest_size
            raw = _digest_bytes(rest, size)
            return hmac.compare_digest(hashlib.new(_DIGESTS[scheme], secret + raw[size:]).digest(), raw[:size])
        if scheme in _PASSLIB:
            return _verify_in_helper(_PASSLIB[scheme], password, rest)
    except (ValueError, TypeError) as failure:
        log.warning("stored password not usable", scheme=scheme, error=type(failure).__name__)
    return False


def _verify_in_helper(handler: str, password: str, stored: str) -> bool:
    """Crypt schemes are computed in Python and would hold the interpreter for a quarter of a second.

    Not `subprocess`: gevent's has children only of its own thread, and forks, which in a process of many threads may
    leave the child waiting for ever for a lock that nobody holds any more.
    """
    question, asked = os.pipe()
    given, answer = os.pipe()
    try:
        try:
            pid = _posix_spawn(
                sys.executable,
                [sys.executable, "-m", "mailsrv.mail.verify_helper", handler],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, question, 0), (os.POSIX_SPAWN_DUP2, answer, 1)],
            )
        finally:
            _close(question)
            _close(answer)
        try:
            os.write(asked, f"{len(password)}\n{password}{stored}".encode()[:LONGEST_QUESTION])
            _close(asked)
            asked = -1
            return _answered(given)
        finally:
            _end(pid)
    finally:
        _close(given)
        if asked >= 0:
            _close(asked)


def _answered(given: int) -> bool:
    """Whether the helper says yes in time. Waits in this thread alone. ValueError for what is no hash."""
    waiting = _poll()
    waiting.register(given, select.POLLIN)
    said = b""
    while waiting.poll(HELPER_SECONDS * 1000):
        chunk = os.read(given, 16)
        said += chunk
        if not chunk or len(said) > 16:
            break
    if said == b"unusable":
        raise ValueError("not a hash of this scheme")
    return said == b"yes"


def _end(pid: int) -> None:
    """What has answered ends by itself; what has not is ended."""
    try:
        os.kill(pid, signal.SIGKILL)
        _waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # somebody else in this process waited for all its children


@dataclass(frozen=True, slots=True)
class Caller:
    """Where an attempt comes from: the peer's address, the service and the mechanism, for the log and the limits."""

    peer: str = "127.0.0.1"
    service: str = "internal"
    method: str = "PLAIN"


class Passwords:
    """Authentication for the sessions of one process. `throttle` has failures wait, `logins` keeps a record, `tickets`
    are those of all workers.
    """

    def __init__(
        self, accounts: Accounts, throttle: Throttle | None = None, logins: Logins | None = None,
        tickets: Tickets | None = None,
    ) -> None:  # fmt: skip
        self._accounts, self._throttle, self._logins = accounts, throttle, logins
        self._tickets = tickets if tickets is not None else Tickets()
        self._at_once = BoundedSemaphore(AT_ONCE)
        self._dummy: str | None = None
        self.verifications = 0

    def authenticate(self, name: str, password: str, caller: Caller = Caller()) -> Account:
        """The account of the user; raises AuthenticationFailed, which never says what was wrong, or LoginThrottled."""
        user = self._accounts.by_login(name) if len(name) <= 320 and len(password) <= 1024 else None
        whose = str(user.account.address) if user is not None else name.strip().lower()[:LONGEST_NAME]
        try:
            account = self._account(user, password, lambda: self._check(whose, caller))
        except AuthenticationFailed:
            self._failed(whose, name, password, caller)
            raise
        except LoginThrottled as throttled:
            log.warning(
                "auth put off", rip=caller.peer, service=caller.service, method=caller.method,
                wait_s=round(throttled.wait_seconds), user=name,
            )  # fmt: skip
            raise
        if self._throttle is not None and self._throttle.news(whose, caller.peer):
            offload(self._throttle.succeeded, whose, caller.peer)
        if self._logins is not None:
            self._logins.succeeded(whose, caller.peer, caller.service)
        return account

    def _account(self, user: User | None, password: str, check: Callable[[], None]) -> Account:
        # Before a remembered password is looked up too: else that would tell the right one from others meanwhile.
        check()
        if user is None or not user.enabled:
            self._verify_nobody(password[:LONGEST], check)
            raise AuthenticationFailed("Wrong user name or password")
        ticket = self._ticket(user, password)
        if ticket in self._tickets:
            return user.account
        if not self._verified(password, user.hash, check):
            raise AuthenticationFailed("Wrong user name or password")
        self._tickets.add(ticket)
        if not user.hash.startswith(CURRENT):
            self._upgrade(user, password)
        return user.account

    def _check(self, whose: str, caller: Caller) -> None:
        if self._throttle is not None:
            self._throttle.check(whose, caller.peer)

    def _failed(self, whose: str, name: str, password: str, caller: Caller) -> None:
        """Count it and say so. The line is what fail2ban reads: the address stands before anything that the client
        chose (S21), and a wrong password that was tried before is marked, since an old telephone repeats it all day.
        """
        repeated = self._throttle is not None and offload(self._throttle.failed, whose, caller.peer, password)
        log.warning(
            "auth failed", rip=caller.peer, service=caller.service, method=caller.method,
            repeated="yes" if repeated else "no", user=name,
        )  # fmt: skip
        if self._logins is not None:
            self._logins.failed(name, caller.peer, caller.service)

    def _verified(self, password: str, stored: str, check: Callable[[], None]) -> bool:
        if split_scheme(stored)[0] in ("PLAIN", "CLEARTEXT"):
            self.verifications += 1
            return verify(password, stored)  # nothing to wait for
        with self._at_once:
            check()  # again: those that waited here with it may have failed meanwhile
            self.verifications += 1
            return offload(verify, password, stored)

    def _verify_nobody(self, password: str, check: Callable[[], None]) -> None:
        with self._at_once:
            check()
            self.verifications += 1
            if self._dummy is None:
                self._dummy = offload(hash_password, os.urandom(16).hex())
            offload(verify, password, self._dummy)

    def _ticket(self, user: User, password: str) -> bytes:
        return self._tickets.make(str(user.account.id), user.hash, password)

    def _upgrade(self, user: User, password: str) -> None:
        """Keep the password in today's scheme from now on. Failing to is no reason to refuse the login."""
        try:
            with self._at_once:
                made = offload(hash_password, password)
                if not offload(self._accounts.upgrade_password_hash, user.account.address, user.hash, made):
                    return
            self._tickets.add(self._ticket(User(user.account, made, True), password))
            log.info("password scheme upgraded", user=str(user.account.address))
        except MailError as failure:
            log.warning("password scheme not upgraded", user=str(user.account.address), error=str(failure))
