"""`mailsrv setup` and `preflight`: by options as any user, by questions on a terminal as root of a private machine."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailsrv import config
from mailsrv.installation import preflight

from ..conftest import configuration
from .private import ROOT, PrivateRoot, environment

pytestmark = pytest.mark.timeout(600)


def mailsrv(*words: str, text: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mailsrv", *words], input=text, capture_output=True, text=True, timeout=120, check=False,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A configuration on free ports, with a comment."""
    configuration(tmp_path, None, {})
    values = json.loads((tmp_path / "mailsrv.yaml").read_text())
    lines = ["# by hand"]
    for section, settings in values.items():
        lines += [f"{section}:", *(f"  {name}: {json.dumps(value)}  # {name}" for name, value in settings.items())]
    (tmp_path / "mailsrv.yaml").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "mailsrv.yaml")


def test_by_options_and_again(path, certificate):
    before = Path(path).read_text()
    done = mailsrv(
        "setup", "--yes", "--no-start", "--config", path, "--hostname", "mail.example.org", "--domain", "example.org",
        "--user", "ann", "--password-stdin", "--certificate", certificate[0], "--key", certificate[1],
        text="correct horse\n",
    )  # fmt: skip
    settings = config.load(path)
    assert settings["server.hostname"] == "mail.example.org"
    assert (settings["tls.certificate"], settings["tls.key"]) == certificate
    after = Path(path).read_text()
    added = [f"  key: {json.dumps(certificate[1])}", f"  certificate: {json.dumps(certificate[0])}"]
    kept = [line for line in after.splitlines() if line not in added]
    assert kept == before.replace('"mx.example.com"', '"mail.example.org"').splitlines(), (
        "all else is as it was written"
    )
    assert re.search(r"^read +mail\.example\.org +\d+ +TLS +ann@example\.org$", done.stdout, re.MULTILINE)
    assert re.search(r"^@ +MX +10 +mail\.example\.org\.?$", done.stdout, re.MULTILINE), done.stdout
    assert "v=DKIM1" in done.stdout
    assert json.loads(mailsrv("domain", "list", "--json", "--config", path).stdout)[0]["domain"] == "example.org"
    assert mailsrv("alias", "list", "--config", path).stdout.split()[3:5] == [
        "postmaster@example.org",
        "ann@example.org",
    ]
    # Again, with nothing said: nothing changes.
    mailsrv("setup", "--yes", "--no-start", "--config", path)
    assert Path(path).read_text() == after
    # Again, with one thing said: that changes.
    mailsrv("setup", "--yes", "--no-start", "--config", path, "--hostname", "mx2.example.org")
    assert Path(path).read_text() == after.replace('"mail.example.org"', '"mx2.example.org"')
    mailsrv("setup", "--yes", "--no-start", "--config", path, "--self-signed")
    assert config.load(path)["tls.certificate"] == ""
    assert len(json.loads(mailsrv("user", "list", "--json", "--config", path).stdout)) == 1
    # Of several domains the host's own is meant; what only looks is not in the audit trail.
    mailsrv("domain", "add", "a.example", "--config", path)
    again = mailsrv("setup", "--yes", "--no-start", "--config", path)
    assert "For the DNS of example.org:" in again.stdout
    other = mailsrv("setup", "--yes", "--no-start", "--config", path, "--domain", "a.example")
    assert re.search(r"^read +mx2\.example\.org +\d+ +TLS +the whole address$", other.stdout, re.MULTILINE)
    kept = {one["action"] for one in json.loads(mailsrv("audit", "list", "--json", "--config", path).stdout)}
    assert "setup" in kept
    assert not kept & {"dns generate", "preflight"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hostname", "mail"], "a full name is needed"),
        (["--hostname", "a b.test"], "expected a host name"),
        (["--certificate", "/nowhere.pem", "--key", "/nowhere.key"], "no such file"),
        (["--user", "ann@other.test"], "expected an address in example.org"),
        (["--user", "ann"], "a password for ann@example.org is needed"),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(path, options, words):
    before = Path(path).read_text()
    arguments = ["--hostname", "mx.example.org"] if "--hostname" not in options else []
    done = mailsrv(
        "setup", "--yes", "--no-start", "--config", path, "--domain", "example.org", *arguments, *options, code=1
    )
    assert words in done.stderr
    if "password" not in words:
        assert Path(path).read_text() == before


def test_who_is_not_root_is_told_before_any_question(installed: PrivateRoot):
    done = installed.run("setpriv", "--reuid", "nobody", "--clear-groups", "mailsrv", "setup", code=1)
    assert done.stderr == (
        "mailsrv: /etc/mailsrv is not yours to write: do it as root, or name another file with --config\n"
    )


def test_without_a_terminal_it_asks_for_options(path):
    assert "--yes" in mailsrv("setup", "--no-start", "--config", path, code=1).stderr


def test_f23_preflight_says_what_is_in_the_way(path):
    settings = config.load(path)
    rows = {finding.what: finding.result for finding in preflight.examine(settings)}
    host, port = settings["smtp.listen"][0]
    assert rows[f"smtp: {host}:{port} is free"] == "ok"
    from gevent import socket

    with socket.create_server((host, port)):
        rows = {finding.what: finding.result for finding in preflight.examine(settings, outgoing="host.invalid")}
        assert rows[f"smtp: {host}:{port} is another program's"] == "fail"
        assert [what for what in rows if what.startswith("outgoing: host.invalid:25")]
        done = mailsrv("setup", "--yes", "--config", path, code=1)
        assert "another program's" in done.stderr
        assert mailsrv("preflight", "--config", path, "--json", code=1).stdout.startswith("[")


CERTIFY = """
    cd /etc/letsencrypt/live/mx.example.net
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=mx.example.net \\
        -addext subjectAltName=DNS:mx.example.net -keyout privkey.pem -out fullchain.pem 2>/dev/null
"""


# Which certificate is served?
SERVED = """
import ssl
served = ssl.get_server_certificate(("127.0.0.1", 993))
new = open("/etc/letsencrypt/live/mx.example.net/fullchain.pem").read()
print("the new one" if served.split() == new.split() else "another")
"""


class Terminal:
    """A command on a terminal of the private root: waits for what it says, and types."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment())  # not the caller's PATH, which may lead to a tree under test
        self.said = ""

    def expect(self, text: str, seconds: float = 120) -> None:
        """Wait until it has said this, after what was expected before."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"it did not say {text!r} but {self.said!r}"
            try:
                part = os.read(self._fd, 4096).decode()
            except OSError:  # it has ended
                part = ""
            assert part, f"it ended without saying {text!r}: {self.said!r}"
            self.said += part
        self.said = self.said.partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self._fd, (line + "\n").encode())

    def rest(self) -> tuple[str, int]:
        """What it says until it ends, and its exit code."""
        try:
            while part := os.read(self._fd, 4096):
                self.said += part.decode()
        except OSError:
            pass
        os.close(self._fd)
        return self.said.replace("\r\n", "\n"), os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_f23_by_questions_to_a_running_server(installed: PrivateRoot):
    """On an installed system: wrong answers are asked again, the defaults make sense, the server runs at the end."""
    installed.shell("cp -a /etc/mailsrv/mailsrv.yaml /root/fresh.yaml")
    installed.shell("mkdir -p /etc/letsencrypt/live/mx.example.net; chmod 700 /etc/letsencrypt/live")
    installed.shell(CERTIFY)
    terminal = Terminal(installed.command("mailsrv", "setup"))
    terminal.expect("Host name of this server [")
    terminal.type("mx")
    terminal.expect("a full name is needed")
    terminal.expect("Host name of this server [")
    terminal.type("mx.example.net")
    terminal.expect("Domain to receive mail for [example.net]: ")
    terminal.type("")
    terminal.expect("First user [postmaster@example.net]: ")
    terminal.type("ann")
    terminal.expect("Password for ann@example.net: ")
    terminal.type("short")
    terminal.expect("Password for ann@example.net: ")
    terminal.type("correct horse")
    terminal.expect("Again: ")
    terminal.type("correct horse")
    terminal.expect("[/etc/letsencrypt/live/mx.example.net/fullchain.pem]: ")
    terminal.type("")
    terminal.expect("Key of the certificate [/etc/letsencrypt/live/mx.example.net/privkey.pem]: ")
    terminal.type("")
    terminal.expect("new domain example.net")
    terminal.expect("Do it? [Y/n]: ")
    terminal.type("")
    said, code = terminal.rest()
    assert code == 0, said
    assert "The server runs (/etc/init.d/mailsrv start)." in said
    assert re.search(r"^@ +MX +10 +mx\.example\.net\.?$", said, re.MULTILINE), said
    assert "correct horse" not in said
    try:
        # The key, which only root can read where certbot has it, is where the server can.
        kept = installed.run("stat", "--format=%a %U:%G", "/etc/mailsrv/tls/mx.example.net.key").stdout.strip()
        assert kept == "640 root:mailsrv"
        login = (
            "import imaplib, ssl; c = ssl.create_default_context(cafile='/etc/mailsrv/tls/mx.example.net.pem');"
            "i = imaplib.IMAP4_SSL('mx.example.net', 993, ssl_context=c);"
            "print(i.login('ann@example.net', 'correct horse'))"
        )
        installed.shell("echo 127.0.0.1 mx.example.net >> /etc/hosts")
        assert "OK" in installed.run("/usr/bin/python3", "-c", login).stdout
        pid = installed.run("cat", "/run/mailsrv/mailsrv.pid").stdout
        # Again: everything is its default, and the server only reads it anew.
        again = installed.run("mailsrv", "setup", "--yes")
        assert "(/etc/init.d/mailsrv reload)" in again.stderr
        assert installed.run("cat", "/run/mailsrv/mailsrv.pid").stdout == pid
        # A renewed certificate is taken over by certbot's hook, and served by the same process.
        installed.shell(CERTIFY)
        hook = "/etc/letsencrypt/renewal-hooks/deploy/mailsrv"
        installed.run("env", "RENEWED_LINEAGE=/etc/letsencrypt/live/mx.example.net", hook)
        installed.shell("cmp /etc/letsencrypt/live/mx.example.net/privkey.pem /etc/mailsrv/tls/mx.example.net.key")
        deadline = time.monotonic() + 120
        while installed.run("/usr/bin/python3", "-c", SERVED).stdout.strip() != "the new one":
            assert time.monotonic() < deadline
        assert installed.run("cat", "/run/mailsrv/mailsrv.pid").stdout == pid
        assert installed.run("find", "/var/lib/mailsrv", "!", "-user", "mailsrv").stdout == ""
    finally:
        installed.run("/etc/init.d/mailsrv", "stop")
        installed.shell("cp -a /root/fresh.yaml /etc/mailsrv/mailsrv.yaml; rm -rf /var/lib/mailsrv/*")


def test_thinking_better_of_it_changes_nothing(installed: PrivateRoot):
    before = installed.run("cat", "/etc/mailsrv/mailsrv.yaml").stdout
    options = ("--hostname", "mx.example.net", "--domain", "example.net", "--user", "ann", "--self-signed")
    terminal = Terminal(installed.command("mailsrv", "setup", *options))
    for _ in range(2):
        terminal.expect(": ")
        terminal.type("correct horse")
    terminal.expect("Do it? [Y/n]: ")
    terminal.type("n")
    said, code = terminal.rest()
    assert (code, "Nothing was changed." in said) == (1, True)
    assert installed.run("cat", "/etc/mailsrv/mailsrv.yaml").stdout == before
    installed.run("test", "!", "-e", "/var/lib/mailsrv/accounts.sqlite3")
