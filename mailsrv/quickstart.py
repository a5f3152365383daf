"""The main job on an embedded default: a private server on loopback that shows deliveries and pushes as they happen.

Everything lives in one directory: certificates, accounts, mail, the passwords of the two demo users. Starting it again
keeps all of it.

Imports: config, daemon, supervisor (the pid file), certificates, mail, log.
"""

from __future__ import annotations

import imaplib
import json
import os
import secrets
import shutil
import smtplib
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent

from mailsrv import authority, config, log
from mailsrv.daemon import PARTS, Server
from mailsrv.installation.program import is_source
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.passwords import hash_password
from mailsrv.pidfile import PidFile, running_pid
from mailsrv.privileges import raise_descriptor_limit
from mailsrv.start import StartError, bind_all, tls_context

DOMAIN = "example.test"
USERS = ("ann", "bo")
HOST = "127.0.0.1"
DEFAULT_PORT = 2000
CHECK_SECONDS = 20.0
DEFAULT_DIRECTORY = "mailsrv-quickstart"


def default_directory() -> str:
    """Where a quickstart lives unless told: below the user's data directory."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, DEFAULT_DIRECTORY)


def _configuration(directory: str, base_port: int) -> config.Config:
    text = f"""
server:
  hostname: localhost
  data_dir: {json.dumps(directory + "/data")}
  run_dir: {json.dumps(directory + "/run")}
  workers: 1
  shutdown_seconds: 5
tls:
  certificate: {json.dumps(directory + "/tls/server.pem")}
  key: {json.dumps(directory + "/tls/server.key")}
smtp:
  listen: ["{HOST}:{base_port + 25}"]
submission:
  listen: ["{HOST}:{base_port + 587}"]
submissions:
  listen: ["{HOST}:{base_port + 465}"]
imap:
  listen: ["{HOST}:{base_port + 143}"]
imaps:
  listen: ["{HOST}:{base_port + 993}"]
canary:
  seconds: 0
log:
  level: info
  file: {json.dumps(directory + "/mailsrv.log")}
"""
    path = f"{directory}/mailsrv.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write("# Written by `mailsrv quickstart` at each start.\n" + text.lstrip())
    return config.load(path)


def prepare(directory: str, base_port: int) -> tuple[config.Config, dict[str, str]]:
    """Everything a quickstart needs, made where it is missing: (configuration, password of each demo address)."""
    os.umask(config.UMASK)
    directory = os.path.abspath(directory)
    for name in ("", "/data", "/run", "/tls"):
        os.makedirs(directory + name, mode=0o700, exist_ok=True)
    authority.make(f"{directory}/tls", "localhost", [HOST, "::1"])
    settings = _configuration(directory, base_port)
    secret_path = f"{directory}/passwords.json"
    passwords: dict[str, str] = {}
    if os.path.exists(secret_path):
        with open(secret_path, encoding="utf-8") as file:
            passwords = json.load(file)
    with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
        if not accounts.is_local(DOMAIN):
            accounts.add_domain(DOMAIN)
        known = {str(user.account.address) for user in accounts.users()}
        for name in USERS:
            address = f"{name}@{DOMAIN}"
            if address in known and address in passwords:
                continue
            passwords[address] = f"{name}-{secrets.token_hex(5)}"
            if address in known:
                accounts.set_password_hash(address, hash_password(passwords[address]))
            else:
                accounts.add_user(address, hash_password(passwords[address]))
    fd = os.open(secret_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(passwords, file, indent=1)
    return settings, passwords


@contextmanager
def _running(settings: config.Config) -> Iterator[Server]:
    pid_file = PidFile(settings["server.run_dir"])
    pid_file.acquire()
    try:
        raise_descriptor_limit()
        server = Server(settings, bind_all(settings), tls_context(settings), parts=tuple(PARTS))
        yield server
    finally:
        pid_file.release()
        log.flush()


def run(directory: str, base_port: int) -> int:
    """Serve in the foreground until Ctrl-C."""
    directory = os.path.abspath(directory)
    pid = running_pid(f"{directory}/run/mailsrv.pid")
    if pid is not None:  # before its settings are written anew
        raise StartError(f"it runs in {directory} already (pid {pid}); for another one: --dir DIR --base-port N")
    settings, passwords = prepare(directory, base_port)
    log.configure(level="info", file=settings["log.file"])
    with _running(settings) as server:
        sys.stdout.write(_welcome(directory, base_port, passwords))
        sys.stdout.flush()
        log.listeners.append(_show)
        server.run()
    sys.stdout.write("\nStopped. Start it again with the same command: the mail is kept.\n")
    return 0


def _show(event: str, fields: dict[str, Any]) -> None:
    """Deliveries and pushes, as they happen."""
    if event == "delivered":
        text = (
            f"delivered  to {fields['recipient']}  uid {fields['uid']}, {fields['size']} octets:  "
            f"durable after {fields['durable_ms']:.3f} ms, committed {fields['committed_ms']:.3f} ms"
        )
    elif event == "pushed":
        since = fields["since_accepted_ms"]
        in_all = "" if since is None else f", {since:.3f} ms after the end of data"
        several = "" if fields["watchers"] == 1 else f" (last of {fields['watchers']}: {fields['last_ms']:.3f} ms)"
        text = (
            f"pushed     uid {fields['uid']} of {fields['name']}:  {fields['first_ms']:.3f} ms after the commit"
            f"{several}{in_all}"
        )
    elif event == "login":
        text = f"login      {fields['user']} from {fields['peer']}"
    else:
        return
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stdout.flush()


def _welcome(directory: str, base: int, passwords: dict[str, str]) -> str:
    ann, bo = (f"{name}@{DOMAIN}" for name in USERS)
    ca = f"{directory}/tls/ca.pem"
    return f"""mailsrv is running on {HOST}, in {directory}

  {ann:<18} password {passwords[ann]}
  {bo:<18} password {passwords[bo]}

  IMAP   port {base + 993} (TLS), {base + 143} (STARTTLS)     user name: the address
  SMTP   port {base + 465} (TLS), {base + 587} (STARTTLS)     for sending, with the same name and password
  SMTP   port {base + 25}: mail from anywhere to these two addresses, without a password
  The certificate was signed by {ca}

Try it. Watch an inbox in one terminal:

  (printf 'a login {ann} {passwords[ann]}\\nb select inbox\\nc idle\\n'; cat) | \\
    openssl s_client -quiet -crlf -CAfile {ca} -connect localhost:{base + 993}

and send to it from another:

  printf 'From: {bo}\\r\\nTo: {ann}\\r\\nSubject: Hello\\r\\n\\r\\nHello Ann.\\r\\n' | \\
    curl --cacert {ca} --user '{bo}:{passwords[bo]}' \\
      --mail-from {bo} --mail-rcpt {ann} --upload-file - smtps://localhost:{base + 465}

Look at the server from there, too; instead of status also who, trace {ann}, user list, doctor --no-dns:

  {_command()} status --config {directory}/mailsrv.yaml

Mail is plain Maildir below {directory}/data/mail. Ctrl-C stops the server.

"""


def _command() -> str:
    """By which name this program can be called."""
    return "bin/mailsrv" if is_source() else "mailsrv"


# ------------------------------------------------------------------ --check


def check(directory: str | None, base_port: int | None) -> int:
    """Once by itself: a message in through SMTP, seen by an idling IMAP client over TLS. 0 if it works, 1 if not."""
    temporary = None
    if directory is None:
        temporary = directory = tempfile.mkdtemp(prefix="mailsrv-check-")
    try:
        settings, passwords = prepare(directory, base_port if base_port is not None else _free_base())
        log.configure(level="info", file=settings["log.file"])
        with _running(settings) as server:
            server.start()
            serving = gevent.spawn(server.run_until_stopped)
            try:
                after_reply, after_data = _one_message(settings, passwords, f"{os.path.abspath(directory)}/tls/ca.pem")
            finally:
                server.stop()
                serving.join()
    except StartError:
        raise
    except (OSError, imaplib.IMAP4.error, smtplib.SMTPException, gevent.Timeout, AssertionError) as failure:
        sys.stderr.write(f"quickstart check failed: {type(failure).__name__}: {failure}\n")
        return 1
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    sys.stdout.write("A message sent by SMTP was pushed to an idling IMAP client over TLS:\n")
    sys.stdout.write(f"  250 -> EXISTS          {after_reply * 1e3:8.3f} ms\n")
    sys.stdout.write(f"  end of data -> EXISTS  {after_data * 1e3:8.3f} ms\n")
    return 0


def _free_base() -> int:
    """A base from which all five ports are free."""
    for base in range(20000, 60000, 1111):
        try:
            for offset in (25, 143, 465, 587, 993):
                with socket.socket() as probe:
                    probe.bind((HOST, base + offset))
        except OSError:
            continue
        return base
    raise StartError("no free ports found; give one with --base-port")


def _one_message(settings: config.Config, passwords: dict[str, str], authority: str) -> tuple[float, float]:
    """(seconds from the 250 to the EXISTS, seconds from the end of data to it), as the two clients see them."""
    context = ssl.create_default_context(cafile=authority)
    sender, recipient = f"{USERS[1]}@{DOMAIN}", f"{USERS[0]}@{DOMAIN}"
    with gevent.Timeout(CHECK_SECONDS):
        reader = imaplib.IMAP4_SSL("localhost", settings["imaps.listen"][0][1], ssl_context=context)
        reader.login(recipient, passwords[recipient])
        before = int(reader.select("INBOX")[1][0] or b"0")
        reader.send(b"X1 IDLE\r\n")
        assert reader.readline().startswith(b"+"), "IDLE was not accepted"
        arrival: list[float] = []
        waiting = gevent.spawn(_await_exists, reader, before + 1, arrival)
        writer = smtplib.SMTP_SSL("localhost", settings["submissions.listen"][0][1], context=context)
        writer.login(sender, passwords[sender])
        for _ in range(3):  # the first makes mailboxes and opens files; the last one counts
            arrival.clear()
            ended, replied = _send(writer, sender, recipient)
            waiting.join()
            assert arrival, "the message was not announced"
            before += 1
            waiting = gevent.spawn(_await_exists, reader, before + 1, arrival)
        found = arrival[0]
        waiting.kill()
        writer.quit()
        reader.send(b"DONE\r\n")
        while not reader.readline().startswith(b"X1 OK"):
            pass
        assert reader.fetch(str(before), "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[0] == "OK"
        reader.logout()
    return found - replied, found - ended


def _await_exists(reader: imaplib.IMAP4_SSL, count: int, arrival: list[float]) -> None:
    wanted = b"* %d EXISTS" % count
    while not reader.readline().startswith(wanted):
        pass
    arrival.append(time.perf_counter())


def _send(writer: smtplib.SMTP_SSL, sender: str, recipient: str) -> tuple[float, float]:
    """(when the data was sent, when the 250 came)."""
    text = f"From: {sender}\r\nTo: {recipient}\r\nSubject: quickstart check\r\n\r\nIt works.\r\n.\r\n"
    writer.mail(sender)
    writer.rcpt(recipient)
    writer.docmd("DATA")
    writer.send(text)
    ended = time.perf_counter()
    code, reply = writer.getreply()
    replied = time.perf_counter()
    assert code == 250, f"the message was answered with {code} {reply!r}"
    return ended, replied
