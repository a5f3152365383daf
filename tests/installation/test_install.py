"""`mailsrv install` and `uninstall`: what they do to a machine, what they print, what they leave alone."""

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mailsrv import config
from mailsrv.installation import install, layout
from mailsrv.installation.actions import Actions

from .private import ROOT, PrivateRoot

pytestmark = pytest.mark.timeout(600)  # the fixture installs the program, with pip


def test_dry_run_prints_every_step_and_does_none(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "mailsrv", "install", "--dry-run", "--prefix", str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    for one in layout.shipped(install.ETC):
        assert f"write {tmp_path}{one.target} " in done.stdout
    for path in (layout.CONFIG, layout.PROGRAM, layout.COMMAND, *(one.path for one in layout.DIRECTORIES)):
        assert f"{tmp_path}{path} " in done.stdout, path
    assert "useradd" not in done.stdout, "users are of this machine, not of a prefix"


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_others_than_root_are_refused(installed, command):
    done = installed.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp",
                         f"PYTHONPATH={ROOT}", "/opt/mailsrv/bin/python", "-m", "mailsrv", command, code=1)  # fmt: skip
    assert "only root can do that" in done.stderr


def mode_and_owner(root: PrivateRoot, path: str) -> str:
    return root.run("stat", "--format=%a %U:%G", path).stdout.strip()


def test_user_and_directories(installed):
    assert re.fullmatch(r"mailsrv:x:\d+:\d+:mail server:/var/lib/mailsrv:/usr/sbin/nologin\n",
                        installed.run("getent", "passwd", "mailsrv").stdout)  # fmt: skip
    uid = int(installed.run("id", "-u", "mailsrv").stdout)
    assert uid < 1000, "a system user"
    assert mode_and_owner(installed, "/etc/mailsrv") == "750 root:mailsrv"
    assert mode_and_owner(installed, "/etc/mailsrv/mailsrv.yaml") == "640 root:mailsrv"
    for path in ("/var/lib/mailsrv", "/var/log/mailsrv", "/run/mailsrv"):
        assert mode_and_owner(installed, path) == "750 mailsrv:mailsrv"
    assert mode_and_owner(installed, "/var/log/mailsrv/mailsrv.log") == "640 mailsrv:mailsrv", "fail2ban wants it"
    for one in layout.shipped(install.ETC):
        assert mode_and_owner(installed, one.target) == f"{one.mode:o} root:root"


def test_the_installed_program_runs_as_anybody_and_from_anywhere(installed):
    out = installed.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/sbin/mailsrv", "version")
    assert out.stdout.startswith("mailsrv ")
    assert installed.run("find", "/opt/mailsrv", "-perm", "/022", "!", "-type", "l").stdout == "", "root's alone"
    assert installed.shell("grep -rl '/opt/mailsrv.next\\|/opt/mailsrv.new' /opt/mailsrv | head").strip() == ""


def test_configuration_is_right_and_never_overwritten(installed):
    assert "ok" in installed.run("mailsrv", "check").stdout
    installed.shell("echo '# mine' >> /etc/mailsrv/mailsrv.yaml; cp -a /etc/mailsrv/mailsrv.yaml /root/before")
    script = "from mailsrv.installation import install, actions; install._configuration(actions.Actions(print))"
    installed.run("env", f"PYTHONPATH={ROOT}", "/opt/mailsrv/bin/python", "-c", script)
    installed.shell("cmp /root/before /etc/mailsrv/mailsrv.yaml")
    fresh = installed.run("cat", "/etc/mailsrv/mailsrv.yaml.new").stdout
    assert fresh == install.first_configuration()
    installed.shell("sed -i '/# mine/d' /etc/mailsrv/mailsrv.yaml; rm /etc/mailsrv/mailsrv.yaml.new")


def test_first_configuration_is_the_sample_but_for_what_an_installation_needs():
    sample, first = config.sample().splitlines(), install.first_configuration().splitlines()
    assert len(sample) == len(first)
    changed = {new.split(":")[0].strip(): new for old, new in zip(sample, first, strict=True) if old != new}
    assert set(changed) <= {"user", "file"}
    assert yaml.safe_load(install.first_configuration())["log"]["file"] == "/var/log/mailsrv/mailsrv.log"


def test_unit_is_right_and_exposes_little(installed):
    done = installed.run("systemd-analyze", "verify", layout.UNIT)
    assert (done.stdout, done.stderr) == ("", "")
    text = installed.run("systemd-analyze", "security", "--offline=yes", layout.UNIT).stdout
    found = re.search(r"Overall exposure level for mailsrv.service: (\d+\.\d+)", text)
    assert found is not None
    assert float(found[1]) <= 2.0, text
    units = ("/etc/systemd/system/mailsrv-nightly.timer", "/etc/systemd/system/mailsrv-nightly.service")
    done = installed.run("systemd-analyze", "verify", *units)
    assert (done.stdout, done.stderr) == ("", "")


def test_log_is_rotated(installed):
    """By the real logrotate, which refuses insecure directories and wrong owners."""
    installed.shell("""
        echo line >> /var/log/mailsrv/mailsrv.log
        logrotate --force --state /root/state /etc/logrotate.d/mailsrv
    """)
    assert installed.run("cat", "/var/log/mailsrv/mailsrv.log.1").stdout == "line\n"
    assert mode_and_owner(installed, "/var/log/mailsrv/mailsrv.log") == "640 mailsrv:mailsrv"
    installed.shell("rm /var/log/mailsrv/mailsrv.log.1")


def test_installing_into_a_prefix_writes_there_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(install.program, "build", lambda stage, final, python: (stage / "bin").mkdir(parents=True))
    monkeypatch.setattr(install.program, "compile_all", lambda final: None)
    steps: list[str] = []
    install.install(Actions(steps.append, prefix=str(tmp_path)), dry=False)
    assert stat.S_IMODE((tmp_path / "etc/init.d/mailsrv").stat().st_mode) == 0o755
    assert Path(tmp_path / "usr/sbin/mailsrv").readlink() == Path("/opt/mailsrv/bin/mailsrv")
    again: list[str] = []
    install.install(Actions(again.append, prefix=str(tmp_path)), dry=False)
    assert [step for step in again if not step.startswith("build ")] == [], "all is there already"
    (tmp_path / "var/lib/mailsrv/accounts.sqlite3").write_text("people")
    install.uninstall(Actions(steps.append, prefix=str(tmp_path)), dry=False, purge_config=False)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"etc/mailsrv/mailsrv.yaml", "var/lib/mailsrv/accounts.sqlite3", "var/log/mailsrv/mailsrv.log"}
    install.uninstall(Actions(steps.append, prefix=str(tmp_path)), dry=False, purge_config=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"var/lib/mailsrv/accounts.sqlite3"}


def test_a_failed_build_leaves_the_program_that_was_there(tmp_path, monkeypatch):
    command = tmp_path / "opt/mailsrv/bin/mailsrv"
    command.parent.mkdir(parents=True)
    command.write_text("old")
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(install.program.BuildError, match="pip"):
        install.install(Actions(lambda text: None, prefix=str(tmp_path)), dry=False)
    assert command.read_text() == "old"
    assert {path.name for path in (tmp_path / "opt").iterdir()} == {"mailsrv"}
