"""The shipped fail2ban filter finds each failed login in the log of a real server, and nothing that was made up."""

import base64
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.daemon.conftest import ROOT, until

FILTER = str(ROOT / "etc" / "fail2ban" / "filter.d" / "mailsrv.conf")
FORGERIES = (
    "warning auth-failed rip=203.0.113.1 service=imap method=PLAIN repeated=no user=x",
    "2026-11-25T03:12:20.776Z warning auth-failed rip=203.0.113.2 service=imap method=PLAIN repeated=no user=x",
    "\r\n2026-11-25T03:12:20.776Z warning auth-failed rip=203.0.113.3 service=imap method=PLAIN repeated=no user=x",
    'x" rip=203.0.113.4 service=imap method=PLAIN repeated=no user="',
    (
        '"}\n{"time": "2026-11-25T03:12:20.776Z", "level": "warning", "event": "auth failed", "rip": "203.0.113.5", '
        '"service": "imap", "method": "PLAIN", "repeated": "no", "user": "'
    ),
    "mailsrv: warning auth-failed rip=203.0.113.6 service=imap method=PLAIN repeated=no user=x",
    "Nov 25 03:12:20 host mailsrv[1]: warning auth-failed rip=203.0.113.7 service=imap method=PLAIN repeated=no user=",
    "\u2028 rip=203.0.113.8 \x00\x1b[2J 203.0.113.9",
)


def matches(log, mode="normal"):
    """The addresses that fail2ban would count, one for each line."""
    made = subprocess.run(
        ["fail2ban-regex", "-o", "ip", str(log), f"{FILTER}[mode={mode}]"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode in (0, 255), made.stderr  # 255: nothing found
    return re.findall(r"^[0-9a-f.:]+$", made.stdout, re.MULTILINE)


def plain(name, password="guess"):
    return base64.b64encode(f"\0{name}\0{password}".encode()).decode()


def imap_failure(server, source, name, mechanism):
    with closing(socket.create_connection(("127.0.0.1", server.ports["imap"]), 30, (source, 0))) as sock:
        file = sock.makefile("rb")
        file.readline()
        if mechanism == "LOGIN":
            octets = name.encode()
            sock.sendall(b'a LOGIN {%d+}\r\n%b "guess"\r\n' % (len(octets), octets))
        else:
            sock.sendall(f"a AUTHENTICATE PLAIN {plain(name)}\r\n".encode())
        answer = file.readline()
        file.close()
    return answer


def smtp_failure(server, source, name):
    raw = socket.create_connection(("127.0.0.1", server.ports["submissions"]), 30, (source, 0))
    with server.tls.wrap_socket(raw, server_hostname="localhost") as sock, sock.makefile("rb") as file:
        file.readline()
        sock.sendall(b"EHLO warning auth-failed rip=203.0.113.10\r\n")
        assert file.readline().startswith(b"501 ")
        sock.sendall(b"EHLO x\r\n")
        while (line := file.readline()).startswith(b"250-"):
            pass
        assert line.startswith(b"250 ")
        sock.sendall(f"AUTH PLAIN {plain(name)}\r\n".encode())
        return file.readline()


@pytest.mark.parametrize("format", ["logfmt", "json"])
def test_s21_s22_fail2ban_counts_every_failure_and_no_forgery(daemon, format):
    server = daemon(**{"log.format": format, "log.level": "debug", "limits.login_failures": 100})
    with ThreadPoolExecutor(10) as pool:  # each waits two seconds for its answer
        answers = {
            source: pool.submit(imap_failure, server, source, name, "LOGIN" if number % 2 else "PLAIN")
            for number, name in enumerate(FORGERIES)
            for source in [f"127.0.0.{10 + number}"]
        }
        for number, name in enumerate(("ann@example.com", FORGERIES[1] + "y")):
            answers[f"127.0.0.{30 + number}"] = pool.submit(smtp_failure, server, f"127.0.0.{30 + number}", name)
    expected = [
        source for source, answer in answers.items()
        if b"NO [AUTHENTICATIONFAILED]" in answer.result() or answer.result().startswith(b"535 ")
    ]  # fmt: skip
    assert len(expected) >= 8 and {"127.0.0.30", "127.0.0.31"} <= set(expected)  # NUL cannot be said in every way
    with socket.create_connection(("127.0.0.1", server.ports["smtp"]), timeout=60) as sock:  # other lines of the log
        sock.recv(200)
        for line in FORGERIES[:2]:
            sock.sendall(f"MAIL FROM:<{line}>\r\n{line}\r\n".encode())
        sock.recv(200)
    log = lambda: server.log.read_text(encoding="utf-8")  # noqa: E731
    until(lambda: len(re.findall("auth.failed", log())) >= len(expected), "all is logged")
    assert sorted(matches(server.log)) == sorted(expected)


def test_s20_a_repeated_password_is_not_counted_unless_asked(daemon):
    server = daemon(**{"limits.login_failures": 100})
    for _ in range(3):
        imap_failure(server, "127.0.0.5", "ann@example.com", "PLAIN")
    until(lambda: server.log.read_text().count("auth-failed") == 3, "all is logged")
    assert matches(server.log) == ["127.0.0.5"]
    assert matches(server.log, "aggressive") == ["127.0.0.5"] * 3


def test_the_jail_uses_the_filter():
    jail = (ROOT / "etc" / "fail2ban" / "jail.d" / "mailsrv.conf").read_text()
    assert re.search(r"^filter +=\s*mailsrv$", jail, re.MULTILINE)
