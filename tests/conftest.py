"""What tests of sessions and of the whole server share: a server in this process, accounts in it, and its log events.

Every test runs as the server does: with gevent's cooperative standard library, patched before all else.
"""

from gevent import monkey

monkey.patch_all()

import json
import os
import random
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.monkey import get_original

from mailsrv import config, log
from mailsrv.daemon import PARTS, Server
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.passwords import hash_password
from mailsrv.start import SERVICES, bind_all, tls_context

DOMAIN = "example.com"
USERS = ("ann", "bo", "cy")
PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """A command that runs in this process sets the process's umask; the next test begins as this one did."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def password_hash() -> str:
    """The stored form of PASSWORD, made once."""
    return hash_password(PASSWORD)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(certificate file, key file) of localhost and 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = directory / "server.pem", directory / "server.key"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    return str(chain), str(key)


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The log events of the test, as (event, fields)."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def listener(event: str, fields: dict[str, Any]) -> None:
        seen.append((event, fields))

    log.listeners.append(listener)
    yield seen
    log.listeners.remove(listener)


SECONDS = 60.0  # for whatever must happen in this process, on a machine however busy


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of the condition; fails when it does not come in time."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, f"not in time: {what}"
        gevent.sleep(0.005)
    return value


_ports_given: set[int] = set()


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Never one of those that the kernel gives to whoever asks for any: nobody takes it before a server does, or while
    the server starts again.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind((address, port))
            if port not in _ports_given:
                found.append(port)
                _ports_given.add(port)
    return found


def configuration(directory: Path, certificate: tuple[str, str] | None, changes: dict[str, Any]) -> config.Config:
    """A configuration on free loopback ports, everything below `directory`; `changes` has whole setting names."""
    values: dict[str, dict[str, Any]] = {
        "server": {
            "hostname": "mx.example.com", "data_dir": f"{directory}/data", "run_dir": f"{directory}/run", "workers": 1,
            "shutdown_seconds": 2,
        },
        "canary": {"seconds": 0},
        **{name: {"listen": [f"127.0.0.1:{port}"]} for name, port in zip(SERVICES, free_ports(5), strict=True)},
    }  # fmt: skip
    if certificate is None:
        values["tls"] = {"self_signed": False}
    else:
        values["tls"] = {"certificate": certificate[0], "key": certificate[1]}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = value
    path = directory / "mailsrv.yaml"
    path.write_text(json.dumps(values, indent=1))
    return config.load(str(path))


class Serving:
    """A server in this process, and the ways to reach it."""

    def __init__(self, settings: config.Config, authority: trustme.CA) -> None:
        self.settings = settings
        self.directory = Path(settings["server.data_dir"])
        self.ports = {name: settings[f"{name}.listen"][0][1] for name in SERVICES}
        self.client_tls = ssl.create_default_context()
        authority.configure_trust(self.client_tls)
        Path(settings["server.run_dir"]).mkdir(exist_ok=True)
        self.server = Server(settings, bind_all(settings), tls_context(settings), parts=tuple(PARTS))
        self.accounts: Accounts = self.server.accounts
        self.server.start()
        self._serving = gevent.spawn(self.server.run_until_stopped)

    def maildir(self, name: str) -> Path:
        return self.directory / "mail" / DOMAIN / name / "Maildir"

    def connect(self, service: str) -> socket.socket:
        """A connection to a service, inside TLS where that begins with the first octet; 60 s for each read."""
        sock = socket.create_connection(("127.0.0.1", self.ports[service]), timeout=60)
        if service in ("imaps", "submissions"):
            return self.client_tls.wrap_socket(sock, server_hostname="localhost")
        return sock

    def close(self) -> None:
        self.server.stop()
        self._serving.join()


@pytest.fixture
def serve(
    tmp_path: Path, authority: trustme.CA, certificate: tuple[str, str], password_hash: str
) -> Iterator[Callable[..., Serving]]:
    """`serve(**{"imap.heartbeat_seconds": 1})` starts a server with ann, bo and cy @example.com, password PASSWORD."""
    running: list[Serving] = []

    def start(**changes: Any) -> Serving:
        changes.setdefault("imap.allow_plaintext_login", True)
        serving = Serving(configuration(tmp_path, certificate, changes), authority)
        running.append(serving)
        if not serving.accounts.is_local(DOMAIN):
            serving.accounts.add_domain(DOMAIN)
            for name in USERS:
                serving.accounts.add_user(f"{name}@{DOMAIN}", password_hash)
        return serving

    yield start
    for serving in running:
        serving.close()


@pytest.fixture
def serving(serve: Callable[..., Serving]) -> Serving:
    return serve()


@pytest.fixture
def told_the_end() -> Callable[[socket.socket], None]:
    """`told_the_end(sock)` waits until the other side has ended the connection, gently or not; nothing is read."""

    def wait(sock: socket.socket) -> None:
        poll = get_original("select", "poll")()
        poll.register(sock.fileno(), select.POLLRDHUP)
        with gevent.Timeout(60):
            while not poll.poll(0):
                gevent.sleep(0.001)

    return wait


@pytest.fixture(scope="session")
def tls_of(authority: trustme.CA) -> Callable[..., ssl.SSLContext]:
    """`tls_of("mx.example.org")`: a server's context, with a certificate of these names by the test authority."""

    def make(*names: str, by: trustme.CA = authority) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        by.issue_cert(*names).configure_cert(context)
        return context

    return make


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The test authority's certificate."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)
