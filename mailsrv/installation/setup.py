"""`mailsrv setup`: from an installed program to a server that runs, by the few questions that matter.

Every answer can be an option. What is there already is the default of its question, so that setting up again changes
what is answered differently and nothing else. The configuration is edited in its text. What needs the server's user is
done by the commands that an administrator would give.

Imports: config, privileges, installation, mail.accounts (to read), mail.passwords (what is a password).
"""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from mailsrv import config, privileges
from mailsrv.errors import MailError
from mailsrv.installation import actions, edit, install, layout
from mailsrv.mail.accounts import Accounts, parse_address, parse_domain
from mailsrv.mail.passwords import check_strength
from mailsrv.pidfile import running_pid
from mailsrv.settings import HOST, Wrong

SELF_SIGNED = "self-signed"
LIVE = "/etc/letsencrypt/live"


class SetupError(Exception):
    """It cannot go on; the text says why and what to do."""


@dataclass(slots=True)
class Answers:
    """What is to be; "" and None where nothing was said."""

    hostname: str = ""
    domain: str = ""
    user: str = ""
    password: str = ""
    certificate: str = ""  # a file, or SELF_SIGNED
    key: str = ""


@dataclass(frozen=True, slots=True)
class Present:
    """What there is: the text of the configuration and what it means, domains and users."""

    path: str
    text: str
    settings: config.Config
    domains: list[str]
    users: list[str]


def look(path: str) -> Present:
    """Raises ConfigError for a configuration that is wrong: that is the administrator's to correct."""
    if os.path.exists(path):
        settings = config.load(path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
    else:
        text = install.first_configuration() if os.geteuid() == 0 else config.sample()
        settings = config.parse(text, path)
    domains, users = [], []
    if os.path.exists(settings.accounts_path):
        with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
            domains = [domain.name for domain in accounts.domains()]
            users = [str(user.account.address) for user in accounts.users()]
    return Present(path, text, settings, domains, users)


def require_rights(path: str) -> None:
    """SetupError for who may not write the configuration, before any question."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(os.path.abspath(there))
    if not os.access(there, os.W_OK):
        raise SetupError(f"{there} is not yours to write: do it as root, or name another file with --config")


# ------------------------------------------------------------------ questions


def defaults(present: Present, given: Answers) -> Answers:
    """What the answers are if nobody is asked."""
    now = present.settings
    hostname = given.hostname or now["server.hostname"] or socket.getfqdn().lower()
    domain = given.domain or _usual_domain(present.domains, hostname)
    user = given.user or next((user for user in present.users if user.endswith(f"@{domain}")), "")
    certificate, key = given.certificate, given.key
    if not certificate:
        certificate, key = now["tls.certificate"] or _lets_encrypt(hostname) or SELF_SIGNED, now["tls.key"]
    if certificate != SELF_SIGNED and not key:
        key = _key_beside(certificate)
    return Answers(hostname, domain, user, given.password, certificate, key)


def _usual_domain(domains: list[str], hostname: str) -> str:
    """The one that the host belongs to, if it is among those that there are."""
    own = max((name for name in domains if hostname == name or hostname.endswith(f".{name}")), key=len, default="")
    return own or next(iter(domains), "") or _parent(hostname)


def _parent(hostname: str) -> str:
    """mx.example.org receives for example.org."""
    parent = hostname.partition(".")[2]
    return parent if "." in parent else hostname


def _lets_encrypt(hostname: str) -> str:
    path = f"{LIVE}/{hostname}/fullchain.pem"
    return path if os.path.exists(path) else ""


def _key_beside(certificate: str) -> str:
    """Where a key usually is, of a certificate there."""
    directory, name = os.path.split(certificate)
    stem = name.rpartition(".")[0] or name
    names = [*(["privkey.pem"] if name == "fullchain.pem" else []), f"{stem}.key", "privkey.pem"]
    return next((f"{directory}/{one}" for one in names if os.path.exists(f"{directory}/{one}")), "")


def ask(present: Present, given: Answers) -> Answers:
    """The questions, on the terminal. What was given is not asked."""
    answers = Answers()
    base = defaults(present, given)
    answers.hostname = given.hostname or _question("Host name of this server", base.hostname, check_host)
    base = defaults(present, Answers(answers.hostname, given.domain, given.user, "", given.certificate, given.key))
    answers.domain = given.domain or _question("Domain to receive mail for", base.domain, parse_domain)
    base = defaults(present, Answers(answers.hostname, answers.domain, given.user, "", given.certificate, given.key))
    suggested = base.user or f"postmaster@{answers.domain}"
    answers.user = given.user or _question("First user", suggested, lambda text: full_address(text, answers.domain))
    answers.password = given.password
    if not answers.password and full_address(answers.user, answers.domain) not in present.users:
        answers.password = _new_password(answers.user)
    answers.certificate = given.certificate or _question(
        f"Certificate: a PEM file, or {SELF_SIGNED}", base.certificate, check_certificate
    )
    if answers.certificate != SELF_SIGNED:
        beside = base.key if answers.certificate == base.certificate else _key_beside(answers.certificate)
        answers.key = given.key or _question("Key of the certificate", beside, check_file)
    return answers


def _question(text: str, default: str, check: Callable[[str], str]) -> str:
    while True:
        sys.stderr.write(f"{text} [{default}]: " if default else f"{text}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise SetupError("no more answers; nothing was changed")
        try:
            return check(line.strip() or default)
        except (SetupError, MailError) as failure:
            sys.stderr.write(f"  {failure}\n")


def _new_password(address: str) -> str:
    while True:
        password = getpass.getpass(f"Password for {address}: ")
        try:
            check_strength(password)
        except MailError as failure:
            sys.stderr.write(f"  {failure}\n")
            continue
        if getpass.getpass("Again: ") == password:
            return password
        sys.stderr.write("  the two differ\n")


def confirmed() -> bool:
    sys.stderr.write("Do it? [Y/n]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


# ------------------------------------------------------------------ what is an answer


def check_host(text: str) -> str:
    try:
        HOST.read(text)
    except Wrong as wrong:
        raise SetupError(f"expected {wrong}") from None
    if "." not in text:
        raise SetupError("a full name is needed, such as mx.example.org: other servers look it up")
    return text.lower()


def full_address(text: str, domain: str) -> str:
    """An address of the domain; its part before the @ is enough."""
    address = str(parse_address(text if "@" in text else f"{text}@{domain}"))
    if not address.endswith(f"@{domain}"):
        raise SetupError(f"expected an address in {domain}")
    return address


def check_certificate(text: str) -> str:
    return text if text == SELF_SIGNED else check_file(text)


def check_file(text: str) -> str:
    if not text.startswith("/"):
        raise SetupError("expected an absolute path")
    if not os.path.isfile(text):
        raise SetupError(f"{text}: there is no such file")
    return text


def checked(answers: Answers) -> Answers:
    """Answers that came as options. Raises SetupError or MailError."""
    domain = parse_domain(answers.domain)
    if answers.password:
        check_strength(answers.password)
    if answers.certificate != SELF_SIGNED and not answers.key:
        raise SetupError(f"--key is needed: no key was found beside {answers.certificate}")
    return Answers(
        check_host(answers.hostname), domain, full_address(answers.user, domain) if answers.user else "",
        answers.password, check_certificate(answers.certificate),
        "" if answers.certificate == SELF_SIGNED else check_file(answers.key),
    )  # fmt: skip


# ------------------------------------------------------------------ doing it


def changes(present: Present, answers: Answers) -> dict[str, Any]:
    """The settings that become other than they are."""
    own = answers.certificate == SELF_SIGNED
    wanted: dict[str, Any] = {
        "server.hostname": answers.hostname,
        "tls.certificate": "" if own else answers.certificate,
        "tls.key": "" if own else answers.key,
    }
    if own:
        wanted["tls.self_signed"] = True
    return {name: value for name, value in wanted.items() if present.settings[name] != value}


def copied(present: Present, answers: Answers) -> Answers:
    """Files that the server's user cannot read, as certbot's, are copied to where it can."""
    user = present.settings["server.user"]
    files = [path for path in (answers.certificate, answers.key) if path and path != SELF_SIGNED]
    if os.geteuid() != 0 or not user or all(_can_read(user, path) for path in files):
        return answers
    doing = actions.Actions(lambda text: None)
    kept = []
    for path, end in zip(files, ("pem", "key"), strict=True):
        kept.append(f"{os.path.dirname(present.path)}/tls/{answers.hostname}.{end}")
        with open(path, "rb") as file:
            doing.directory(os.path.dirname(kept[-1]), 0o750, "root", user)
            doing.file(kept[-1], file.read(), 0o640, "root", user)
    return Answers(answers.hostname, answers.domain, answers.user, answers.password, *kept)


def _can_read(user: str, path: str) -> bool:
    test = ["test", "-r", path]
    return subprocess.run(test, user=user, group=user, extra_groups=[], check=False).returncode == 0


def write(present: Present, changed: dict[str, Any]) -> None:
    """The configuration with the changes, put in place at once, owner and mode as before."""
    text = edit.set_values(present.text, changed, present.path)
    if os.path.exists(present.path) and text == present.text:
        return
    directory = os.path.dirname(os.path.abspath(present.path))
    os.makedirs(directory, exist_ok=True)
    temporary = f"{directory}/.mailsrv.yaml.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="utf-8") as file:
            if os.path.exists(present.path):
                shutil.copymode(present.path, temporary)
                status = os.stat(present.path)
                os.chown(temporary, status.st_uid, status.st_gid)
            elif os.geteuid() == 0 and layout.USER in (group.gr_name for group in grp.getgrall()):
                shutil.chown(temporary, "root", layout.USER)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, present.path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def people(present: Present, answers: Answers) -> None:
    """Domain, user, password, and a postmaster, whom RFC 5321 4.5.1 asks for; a key to sign the domain's mail with."""
    privileges.prepare(present.settings, privileges.wanted(present.settings))  # server.data_dir may be a new one
    if answers.domain not in present.domains:
        command(present, "domain", "add", answers.domain)
        command(present, "dkim", "generate", answers.domain)
    if not answers.user:
        return
    if answers.user not in present.users:
        if not answers.password:
            raise SetupError(f"a password for {answers.user} is needed: --password-stdin")
        command(present, "user", "add", answers.user, "--password-stdin", text=answers.password + "\n")
    elif answers.password:
        command(present, "user", "passwd", answers.user, "--password-stdin", text=answers.password + "\n")
    postmaster = f"postmaster@{answers.domain}"
    if answers.domain not in present.domains and answers.user != postmaster:
        command(present, "alias", "add", postmaster, answers.user)


def command(present: Present, *words: str, text: str = "", may_fail: bool = False) -> str:
    """One of this program's commands, in a process of its own that becomes the server's user; what it printed."""
    isolated = ["-I"] if sys.flags.isolated else []
    done = subprocess.run(
        [sys.executable, *isolated, "-m", "mailsrv", *words, "--config", present.path],
        input=text, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode != 0 and not may_fail:
        raise SetupError(f"mailsrv {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def start(present: Present, changed: dict[str, Any]) -> str:
    """Have the server run with what is configured now; what was done, in words."""
    runs = running_pid(f"{present.settings['server.run_dir']}/mailsrv.pid") is not None
    action = "start" if not runs else "restart" if changed else "reload"
    if present.path != layout.CONFIG:
        return f"Start it with: mailsrv serve --config {present.path}"
    if actions.systemd_runs():
        words = ["systemctl", action, "mailsrv"]
    elif os.path.exists(layout.INIT):
        words = [layout.INIT, action]
    else:
        return "There is no service here (mailsrv install makes one). Start it with: mailsrv serve"
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}".rstrip())
    return f"The server runs ({' '.join(words)})."


def connection_rows(settings: config.Config, answers: Answers) -> list[dict[str, Any]]:
    """What to enter in a mail program."""
    kinds = {"imaps": ("read", "TLS"), "imap": ("read", "STARTTLS"), "submissions": ("send", "TLS"),
             "submission": ("send", "STARTTLS")}  # fmt: skip
    return [
        {
            "to": to,
            "server": answers.hostname,
            "port": port,
            "security": security,
            "user_name": answers.user or "the whole address",
        }
        for service, (to, security) in kinds.items()
        for _host, port in settings[f"{service}.listen"][:1]
    ]
