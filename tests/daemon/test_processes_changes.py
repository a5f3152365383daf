"""A server that changes while it serves: new settings, certificates, log files and code, and nobody is cut off."""

import datetime
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailsrv.certificates import examine
from tests.daemon.conftest import ROOT, SECONDS, Daemon, until
from tests.daemon.test_processes import TEXT, deliver, send, smtp_connection


def change(server, **changes):
    """Write other settings into the server's file."""
    path = Path(server.settings.path)
    values = json.loads(path.read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    path.write_text(json.dumps(values))


def told(server, pattern, count=1):
    """Wait until the log has as many lines that match."""
    return until(lambda: len(found := re.findall(pattern, server.log.read_text())) >= count and found, pattern)


def pid_of(server):
    return int(Path(f"{server.settings['server.run_dir']}/mailsrv.pid").read_text())


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def served(server, name=None):
    """The certificate that a client is shown which asks for `name`."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = socket.create_connection(("127.0.0.1", server.ports["imaps"]), timeout=SECONDS)
    with context.wrap_socket(sock, server_hostname=name) as secured:
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))


def write_pair(directory, stem, authority, *names):
    made = authority.issue_cert(*names)
    certificate, key = directory / f"{stem}.pem", directory / f"{stem}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return str(certificate), str(key), made.cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize("workers", [1, 2])
def test_f02_sighup_takes_new_settings_and_ends_no_connection(daemon, imap, workers):
    server = daemon(**{"server.workers": workers})
    idler, busy = imap(server.connect("imaps")), smtp_connection(server)
    idler.idle()
    assert send(busy, b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>", b"DATA").startswith(b"354")
    change(server, smtp__message_bytes=4096, imap__listen=["127.0.0.1:9"], server__hostname="other.example.com")
    server.process.send_signal(signal.SIGHUP)
    assert sorted(told(server, r"needs-a-restart setting=(\S+)", 2)) == ["imap.listen", "server.hostname"]
    told(server, r"settings-loaded ", workers + (workers > 1))
    for _ in range(4):  # whichever worker takes it
        with smtp_connection(server) as later:
            assert b"SIZE 4096" in send(later, b"EHLO again.test")
    busy.sendall(b"Subject: Before and after\r\n\r\n" + b"x" * 70 + b"\r\n.\r\n")
    assert busy.recv(4096).startswith(b"250 2.0.0 ")
    busy.close()
    assert idler.until(b"* 1 EXISTS")
    # What is wrong is refused by name, and the old settings stay.
    change(server, smtp__message_bytes=3)
    server.process.send_signal(signal.SIGHUP)
    told(server, r"error settings-refused problem=.*smtp\.message_bytes: expected a whole number of octets from 1024")
    Path(server.settings.path).write_text("smtp: [")
    server.process.send_signal(signal.SIGHUP)
    told(server, r"error settings-refused problem=.*not YAML")
    with smtp_connection(server) as later:
        assert b"SIZE 4096" in send(later, b"EHLO again.test")
    deliver(server)
    assert idler.until(b"* 2 EXISTS")
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_f22_certificates_by_name_renewed_and_refused(daemon, imap, tmp_path, authority, workers):
    first = write_pair(tmp_path, "first", authority, "localhost", "mx.example.com")
    other = write_pair(tmp_path, "other", authority, "mail.example.net", "*.example.org")
    server = daemon(**{
        "server.workers": workers, "tls.certificate": first[0], "tls.key": first[1],
        "tls.certificates": [{"certificate": other[0], "key": other[1]}],
    })  # fmt: skip
    for name, expected in [
        (None, first), ("mx.example.com", first), ("unknown.example", first), ("mail.example.net", other),
        ("MAIL.example.NET", other), ("a.example.org", other), ("b.a.example.org", first), ("example.org", first),
    ]:  # fmt: skip
        assert served(server, name) == expected[2], name
    # STARTTLS takes the same way, and a client that checks is content.
    with server.connect("imap") as sock:
        sock.recv(4096)
        assert send(sock, b"a STARTTLS").startswith(b"a OK")
        with server.tls.wrap_socket(sock, server_hostname="mail.example.net") as secured:
            assert ("DNS", "mail.example.net") in secured.getpeercert()["subjectAltName"]
    idler = imap(server.connect("imaps"))
    idler.idle()
    renewed = write_pair(tmp_path, "other", authority, "mail.example.net")
    server.process.send_signal(signal.SIGHUP)
    told(server, r"certificates-loaded ", workers + (workers > 1))
    for _ in range(4):
        assert served(server, "mail.example.net") == renewed[2]
    # A key of another certificate: named, refused, and what was served is served on.
    Path(renewed[1]).write_text(Path(first[1]).read_text())
    server.process.send_signal(signal.SIGHUP)
    told(server, rf"error certificate-refused problem=.*{re.escape(renewed[0])}.*the key is another certificate's")
    for _ in range(4):
        assert served(server, "mail.example.net") == renewed[2]
    deliver(server)
    assert idler.until(b"* 1 EXISTS")
    assert server.stop() == 0


def test_f02_sigusr1_opens_the_log_again(daemon):
    server = daemon(**{"server.workers": 2})
    rotated = server.log.rename(server.log.with_name("log.1"))
    server.process.send_signal(signal.SIGUSR1)
    until(server.log.exists, "the new file")
    deliver(server)
    told(server, r"info delivered ")
    before = rotated.read_text()
    assert "info delivered " not in before
    deliver(server)
    told(server, r"info delivered ", 2)
    assert rotated.read_text() == before
    assert server.stop() == 0


@pytest.fixture
def held(tmp_path, certificate, authority_path, password_hash):
    """(a server of two workers, a file): processes that begin while the file is there do not serve yet."""
    server = Daemon(tmp_path, certificate, authority_path, password_hash, **{"server.workers": 2})
    file = tmp_path / "hold"
    try:
        server.start(sys.executable, "-m", "tests.daemon.held", str(file))
        yield server, file
    finally:
        file.unlink(missing_ok=True)
        server.close()


def test_a_worker_that_only_begins_hears_the_signals_when_it_serves(held):
    server, file = held
    before = until(lambda: len(found := server.workers()) == 2 and found, "two workers")
    file.touch()
    os.kill(before[1], signal.SIGKILL)
    until(lambda: before[1] not in server.workers(), "its death is seen")
    [late] = until(lambda: len(found := server.workers()) == 2 and set(found) - set(before), "the next worker begins")
    rotated = server.log.rename(server.log.with_name("log.1"))
    server.process.send_signal(signal.SIGUSR1)
    until(server.log.exists, "the new file")
    server.process.send_signal(signal.SIGHUP)
    told(server, "settings-loaded ")
    file.unlink()
    told(server, "settings-loaded ", 4)  # the supervisor, two workers, the queue
    assert alive(late) and "process-died" not in server.log.read_text()
    files = Path(f"/proc/{late}/fd")
    until(lambda: str(rotated) not in map(os.readlink, files.iterdir()), "the rotated file is let go")
    assert server.stop() == 0


class Knocking:
    """Clients that come one after another and use what they came for: the failures they see are kept."""

    def __init__(self, server):
        self.server, self.failures, self.acknowledged, self.greeted = server, [], 0, 0
        self.stopping = False
        self.threads = [threading.Thread(target=one) for one in (self._greet, self._greet, self._send, self._send)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def _greet(self):
        while not self.stopping:
            try:
                with socket.create_connection(("127.0.0.1", self.server.ports["imap"]), timeout=SECONDS) as sock:
                    assert sock.recv(4096).startswith(b"* OK"), "no greeting"
                    assert b"a OK" in send(sock, b"a LOGOUT")
                self.greeted += 1
            except (OSError, AssertionError) as failure:
                self.failures.append(repr(failure))

    def _send(self):
        while not self.stopping:
            try:
                with smtp_connection(self.server) as sock:
                    assert (
                        send(sock, b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<bo@example.com>", b"DATA")[:3] == b"354"
                    )
                    assert send(sock, TEXT % (1, 1) + b".")[:3] == b"250"
                    self.acknowledged += 1
                    assert send(sock, b"QUIT")[:3] == b"221"
            except (OSError, AssertionError) as failure:
                self.failures.append(repr(failure))

    def more(self, count):
        """Wait for as many further connections of each kind."""
        greeted, acknowledged = self.greeted + count, self.acknowledged + count
        until(lambda: self.greeted >= greeted and self.acknowledged >= acknowledged, "clients are served")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", [1, 2])
def test_f02_sigusr2_new_code_takes_over_and_nobody_is_refused_or_cut(daemon, imap, workers):
    server = daemon(**{
        "server.workers": workers, "server.goodbye_seconds": 10, "server.shutdown_seconds": 40,
        "limits.connections_per_address": 1000,
    })  # fmt: skip
    old = server.process.pid
    busy = smtp_connection(server)
    assert send(busy, b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>", b"DATA").startswith(b"354")
    busy.sendall(b"Subject: Half of it\r\n\r\n")
    with Knocking(server) as clients:
        clients.more(5)
        server.process.send_signal(signal.SIGHUP)
        clients.more(5)
        idler = imap(server.connect("imap"))  # young enough to be left alone for a while
        idler.idle()
        server.process.send_signal(signal.SIGUSR2)
        told(server, "next-server-serves")
        new = until(lambda: pid_of(server) != old and pid_of(server), "the new server's pid")
        # Delivered by the new processes, told to a session of the old ones.
        deliver(server)
        assert idler.until(b"* 1 EXISTS")
        assert idler.until(b"* BYE")
        clients.more(5)
        busy.sendall(b"The rest.\r\n.\r\n")
        assert busy.recv(4096).startswith(b"250 2.0.0 ")
        busy.close()
        assert server.process.wait(SECONDS) == 0
        clients.more(5)
    assert clients.failures == []
    assert len(server.files("bo")) == clients.acknowledged
    assert server.files("ann")[0].exists() and len(server.files("ann")) == 2
    assert server.command("status").returncode == 0
    second = server.command("serve", "--foreground")
    assert second.returncode == 1 and f"mailsrv is running already (pid {new}" in second.stderr
    server.process = None
    os.kill(new, signal.SIGTERM)
    until(lambda: not alive(new), "the new server ends")
    assert server.command("status").returncode == 3
    assert [name for name in os.listdir(server.settings["server.run_dir"]) if name.endswith((".bus", ".pid"))] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_sigusr2_with_a_new_server_that_fails_leaves_the_old_one(daemon, imap, workers):
    server = daemon(**{"server.workers": workers})
    idler = imap(server.connect("imap"))
    idler.idle()
    change(server, smtp__hops=1)
    server.process.send_signal(signal.SIGUSR2)
    told(server, r"error next-server-failed pid=\d+ reason=.*smtp\.hops: expected a whole number from 20")
    taken = socket.create_server(("127.0.0.1", 0))
    change(server, smtp__hops=100, imap__listen=[f"127.0.0.1:{taken.getsockname()[1]}"])
    server.process.send_signal(signal.SIGUSR2)
    told(server, r"error next-server-failed pid=\d+ reason=.*imap\.listen: cannot listen on 127\.0\.0\.1:")
    taken.close()
    deliver(server)
    assert idler.until(b"* 1 EXISTS")
    assert pid_of(server) == server.process.pid
    assert server.command("status").returncode == 0
    assert server.stop() == 0
    assert not Path(f"{server.settings['server.run_dir']}/mailsrv.pid").exists()


def test_idle_clients_are_sent_away_one_after_another(daemon, imap):
    limits = {"limits.connections_per_address": 1000, "limits.connections_per_user": 1000}
    server = daemon(**{"server.goodbye_seconds": 4, "server.shutdown_seconds": 40, **limits})
    clients = [imap(server.connect("imap")) for _ in range(120)]
    for client in clients:
        client.idle()
    server.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    ended = []
    for client in clients:  # they came in this order, and are asked to go in this order
        client.until(b"* BYE")
        ended.append(time.monotonic() - begun)
    assert server.process.wait(SECONDS) == 0
    assert ended[-1] - ended[0] > 0.25, "120 sessions at 100 a second, read by somebody who may be late"
    server.process = None


class Systemd:
    """The receiving end of the notify protocol."""

    def __init__(self, path):
        self.path, self.said = path, []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + path[1:] if path[0] == "@" else path)
        self.sock.settimeout(SECONDS)

    def wait_for(self, state):
        while state not in self.said:
            self.said += self.sock.recv(4096).decode().split("\n")
        return self.said


@pytest.fixture
def notified():
    made = []

    def listen(path):
        made.append(Systemd(path))
        return made[-1]

    yield listen
    for one in made:
        one.sock.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_told(daemon, notified, tmp_path, monkeypatch, workers):
    systemd = notified(f"@mailsrv-test-{os.getpid()}-{workers}" if workers == 1 else str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.path)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    server = daemon(**{"server.workers": workers})
    said = systemd.wait_for("READY=1")
    assert f"MAINPID={server.process.pid}" in said
    for _ in range(2):
        systemd.said.clear()
        systemd.wait_for("WATCHDOG=1")
    systemd.said.clear()
    server.process.send_signal(signal.SIGHUP)
    said = systemd.wait_for("READY=1")
    assert "RELOADING=1" in said and any(re.fullmatch(r"MONOTONIC_USEC=\d+", state) for state in said)
    systemd.said.clear()
    server.process.send_signal(signal.SIGTERM)
    systemd.wait_for("STOPPING=1")
    assert server.process.wait(SECONDS) == 0
    server.process = None


def serve_detached(server):
    """As an init script does it: (exit code, what was said, how long it took)."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mailsrv", "serve", "--config", server.settings.path],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - begun


@pytest.mark.parametrize("workers", [1, 2])
def test_in_the_background_the_command_returns_when_the_server_is_ready(daemon, imap, workers):
    server = daemon(**{"server.workers": workers})
    assert server.stop() == 0
    code, said, _ = serve_detached(server)
    assert (code, said) == (0, "")
    assert server.answers("imap") and server.answers("smtp")
    pid = pid_of(server)
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, session, terminal = int(status[1]), int(status[3]), int(status[4])
    assert parent != os.getpid() and session != os.getsid(0) and session != pid and terminal == 0
    for process in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        assert [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    code, said, _ = serve_detached(server)
    assert code == 1 and f"mailsrv is running already (pid {pid}" in said
    os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(pid), "it ends")
    # What goes wrong is said where somebody can read it.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.ports["imap"]))
        taken.listen()
        code, said, _ = serve_detached(server)
        assert code == 1 and "imap.listen: cannot listen on 127.0.0.1:" in said and "Traceback" not in said
    change(server, tls__key="/nonexistent.key")
    code, said, _ = serve_detached(server)
    assert code == 1 and said == "mailsrv: tls.key /nonexistent.key: No such file or directory\n"
    assert server.command("status").returncode == 3


def test_without_a_certificate_a_self_signed_one_is_made_and_kept(daemon, authority):
    server = daemon(**{"tls.certificate": "", "tls.key": ""})
    shown = served(server)
    path = Path(server.settings["server.data_dir"]) / "tls/mx.example.com.pem"
    assert path.read_text() == shown
    assert path.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    told(server, rf"warning self-signed-certificate file={re.escape(str(path))} advice=")
    assert server.stop() == 0
    server.start()
    assert served(server) == shown
    assert server.stop() == 0
    # Not for ever: one that has ended, or ends soon, is made again at the next start.
    made = authority.issue_cert("mx.example.com", not_after=datetime.datetime.now(datetime.UTC))
    path.write_bytes(made.cert_chain_pems[0].bytes())
    path.with_suffix(".key").write_bytes(made.private_key_pem.bytes())
    server.start()
    assert served(server) == path.read_text()
    assert (examine(str(path)).days_left or 0) > 30
    assert server.stop() == 0
