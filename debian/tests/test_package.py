"""The Debian package: built, without errors for lintian, installed, upgraded, removed and purged on a private system.

Run by `bin/test-package`; apart from the other tests, for building takes a minute.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation.private import ROOT, PrivateRoot

pytestmark = pytest.mark.timeout(900)
SCRIPT = "/etc/init.d/mailsrv"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("package")
    done = subprocess.run([ROOT / "bin/build-deb", directory], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[PrivateRoot]:
    """With the package, a later version of it, and nothing installed."""
    with PrivateRoot() as root:
        root.run("mkdir", "/root/packages")
        with package.open("rb") as file:
            subprocess.run(root.command("dd", "status=none", "of=/root/packages/first.deb"), stdin=file, check=True)
        root.shell("""
            # As on a machine that was started by init: packages may restart services, which containers forbid.
            rm -f /usr/sbin/policy-rc.d /sbin/runlevel
            printf '#!/bin/sh\necho N 2\n' > /sbin/runlevel; chmod 755 /sbin/runlevel
            cd /root/packages
            dpkg-deb --raw-extract first.deb later
            sed -i 's/^Version: .*/&+later/' later/DEBIAN/control
            sed -i 's/^__version__ = "\\(.*\\)"/__version__ = "\\1+later"/' \
                later/usr/lib/mailsrv/lib/python3*/site-packages/mailsrv/__init__.py
            echo '# later' >> later/usr/share/mailsrv/mailsrv.yaml
            dpkg-deb --build --root-owner-group -Znone later later.deb >/dev/null
        """)
        yield root


def dpkg(machine: PrivateRoot, *words: str) -> str:
    done = machine.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words, timeout=300)
    return done.stdout + done.stderr


def test_lintian_finds_no_errors(package: Path):
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", package],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed(machine: PrivateRoot):
    said = dpkg(machine, "--install", "/root/packages/first.deb")
    assert "mailsrv setup" in said
    assert machine.run("mailsrv", "check").stdout == "/etc/mailsrv/mailsrv.yaml: ok\n"
    machine.run(SCRIPT, "status", code=3)
    assert "mailsrv" in machine.shell("ls /etc/rc2.d"), "it starts with the machine"
    assert "enabled" in machine.run("systemctl", "--root=/", "is-enabled", "mailsrv").stdout
    assert "enabled" in machine.run("systemctl", "--root=/", "is-enabled", "mailsrv-nightly.timer").stdout
    for unit in ("mailsrv.service", "mailsrv-nightly.service", "mailsrv-nightly.timer"):
        machine.run("systemd-analyze", "verify", f"/lib/systemd/system/{unit}")
    machine.run("test", "-s", "/etc/cron.d/mailsrv")
    assert machine.run("stat", "--format=%a %U:%G", "/etc/mailsrv/mailsrv.yaml").stdout == "640 root:mailsrv\n"
    assert machine.run("man", "--where", "8", "mailsrv").stdout.startswith("/usr/share/man/man8/mailsrv.8")
    refused = machine.run(
        "env", f"PYTHONPATH={ROOT}", "/usr/lib/mailsrv/bin/python", "-m", "mailsrv", "install", code=1
    )
    assert "Debian package" in refused.stderr


def test_set_up_and_running(machine: PrivateRoot):
    machine.run(
        "mailsrv", "setup", "--yes", "--hostname", "mx.example.org", "--domain", "example.org", "--user", "ann",
        "--password-stdin", text="correct horse\n",
    )  # fmt: skip
    machine.run(SCRIPT, "status")


def test_upgraded_with_its_configuration_and_mail_and_running(machine: PrivateRoot):
    before = machine.run("cat", "/etc/mailsrv/mailsrv.yaml").stdout
    pid = machine.run("cat", "/run/mailsrv/mailsrv.pid").stdout
    dpkg(machine, "--install", "/root/packages/later.deb")
    assert machine.run("mailsrv", "version").stdout.endswith("+later\n")
    assert machine.run("cat", "/etc/mailsrv/mailsrv.yaml").stdout == before
    assert "ann@example.org" in machine.run("mailsrv", "user", "list").stdout
    machine.run(SCRIPT, "status")
    assert machine.run("cat", "/run/mailsrv/mailsrv.pid").stdout != pid, "the new program runs"


def test_removed_but_for_configuration_and_mail(machine: PrivateRoot):
    dpkg(machine, "--remove", "mailsrv")
    assert machine.run("pgrep", "-u", "mailsrv", code=1).stdout == "", "it was stopped"
    machine.run("test", "!", "-e", "/usr/lib/mailsrv")
    machine.run("test", "!", "-e", "/usr/sbin/mailsrv")
    machine.run("test", "-s", "/etc/mailsrv/mailsrv.yaml")
    machine.run("test", "-s", "/var/lib/mailsrv/accounts.sqlite3")


def test_installed_again_it_is_as_before(machine: PrivateRoot):
    dpkg(machine, "--install", "/root/packages/first.deb")
    assert "ann@example.org" in machine.run("mailsrv", "user", "list").stdout
    dpkg(machine, "--remove", "mailsrv")


def test_purged_but_for_the_mail(machine: PrivateRoot):
    said = dpkg(machine, "--purge", "mailsrv")
    assert "mail and accounts stay in /var/lib/mailsrv" in said
    for path in ("/etc/mailsrv", "/var/log/mailsrv", SCRIPT, "/etc/logrotate.d/mailsrv", "/etc/cron.d/mailsrv"):
        machine.run("test", "!", "-e", path)
    assert "mailsrv" not in machine.shell("ls /etc/rc2.d")
    machine.run("test", "-s", "/var/lib/mailsrv/accounts.sqlite3")
    assert "mailsrv" in machine.run("getent", "passwd", "mailsrv").stdout
    assert dpkg(machine, "--list").count(" mailsrv ") == 0
