"""Other people's programs against the real server: curl, mbsync, neomutt, swaks, imapclient."""

import fcntl
import os
import pty
import select
import smtplib
import struct
import subprocess
import termios

import imapclient

from tests.conftest import PASSWORD
from tests.daemon.conftest import SECONDS, environment, until

TEXT = "From: bo@example.com\r\nTo: ann@example.com\r\nSubject: {}\r\n\r\nHello Ann.\r\n"


def deliver(daemon, subject, to="ann@example.com"):
    with smtplib.SMTP("127.0.0.1", daemon.ports["smtp"]) as client:
        client.sendmail("x@elsewhere.org", [to], TEXT.format(subject))


def run(*words, **more):
    return subprocess.run(words, capture_output=True, timeout=SECONDS, check=False, **more)


def test_f03_f05_curl_sends_over_smtps_and_fetches_over_imaps(daemon, tmp_path):
    server = daemon()
    message = tmp_path / "message"
    message.write_bytes(TEXT.format("By curl").encode())
    sent = run(
        "curl", "-sS", "--cacert", server.authority, "--user", f"bo@example.com:{PASSWORD}",
        "--mail-from", "bo@example.com", "--mail-rcpt", "ann@example.com",
        "--upload-file", str(message), f"smtps://localhost:{server.ports['submissions']}",
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    read = run(
        "curl", "-sS", "--cacert", server.authority, "--user", f"ann@example.com:{PASSWORD}",
        f"imaps://localhost:{server.ports['imaps']}/INBOX;MAILINDEX=1",
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    assert read.stdout.endswith(TEXT.format("By curl").encode())
    assert read.stdout.startswith(b"Return-Path: <bo@example.com>\r\nDelivered-To: ann@example.com\r\nReceived: from ")
    assert b"with ESMTPSA id " in read.stdout


def test_f03_mbsync_syncs_twice_and_the_second_run_changes_nothing(daemon, tmp_path):
    server = daemon()
    for number in range(5):
        deliver(server, f"Number {number}")
    rc = tmp_path / "mbsyncrc"
    rc.write_text(f"""
IMAPAccount test
Host localhost
Port {server.ports["imaps"]}
User ann@example.com
Pass "{PASSWORD}"
SSLType IMAPS
CertificateFile {server.authority}

IMAPStore remote
Account test

MaildirStore local
Path {tmp_path}/local/
Inbox {tmp_path}/local/INBOX
SubFolders Verbatim

Channel test
Far :remote:
Near :local:
Patterns *
Create Both
Expunge Both
SyncState *
CopyArrivalDate yes
""")
    (tmp_path / "local").mkdir()

    def tree(top):
        # The state file's own bookkeeping line for the far UIDNEXT may move; what is synced may not.
        return {
            str(path.relative_to(top)): path.read_bytes()
            for path in sorted(top.rglob("*"))
            if path.is_file() and not path.name.startswith(".mbsyncstate")
        }

    first = run("mbsync", "-c", str(rc), "-V", "test")
    assert first.returncode == 0, first.stderr
    local, remote = tree(tmp_path / "local"), tree(server.maildir("ann"))
    assert len([name for name in local if name.startswith("INBOX/")]) >= 5
    assert {name.split("/")[0] for name in local} >= {"INBOX"}
    second = run("mbsync", "-c", str(rc), "-V", "test")
    assert second.returncode == 0, second.stderr
    assert tree(tmp_path / "local") == local
    assert tree(server.maildir("ann")) == remote
    # What changes here goes there: a local flag, a local message, and a message expunged there.
    seen = next(iter((tmp_path / "local/INBOX/new").iterdir()), None) or next((tmp_path / "local/INBOX/cur").iterdir())
    seen.rename(tmp_path / "local/INBOX/cur" / (seen.name.partition(":2,")[0] + ":2,FS"))
    (tmp_path / "local/INBOX/cur/1700000000.1.here:2,S").write_bytes(b"Subject: Local\n\nwritten here\n")
    third = run("mbsync", "-c", str(rc), "-V", "test")
    assert third.returncode == 0, third.stderr
    names = [path.name for path in server.files("ann")]
    assert len(names) == 6
    assert len([name for name in names if name.endswith(":2,FS")]) == 1


def test_f04_neomutt_sees_a_new_message_while_it_idles(daemon, tmp_path):
    server = daemon()
    deliver(server, "The first one")
    rc = tmp_path / "neomuttrc"
    rc.write_text(f"""
set folder="imap://localhost:{server.ports["imap"]}/"
set spoolfile="+INBOX"
set imap_user="ann@example.com"
set imap_pass="{PASSWORD}"
set ssl_starttls=yes
set ssl_force_tls=yes
set certificate_file="{server.authority}"
set ssl_ca_certificates_file="{server.authority}"
set imap_idle=yes
set timeout=1
set mail_check=1
set header_cache=""
set index_format="%s"
set quit=yes
""")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    mutt = subprocess.Popen(
        ["neomutt", "-n", "-F", str(rc)], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env=environment(TERM="xterm", HOME=str(tmp_path), LANG="C.UTF-8"),
    )  # fmt: skip
    os.close(slave)
    screen = b""

    def shows(text):
        nonlocal screen
        try:
            while select.select([master], [], [], 0)[0]:
                screen += os.read(master, 65536)
        except OSError:
            pass  # the terminal is gone with its program
        return text in screen

    try:
        until(lambda: shows(b"The first one"), "neomutt shows the mailbox")
        deliver(server, "While you wait")
        until(lambda: shows(b"While you wait"), "neomutt shows the new message")
        os.write(master, b"q")
        until(lambda: (shows(b""), mutt.poll())[1] is not None, "neomutt ends")
    finally:
        print(screen)  # for whoever has to find out why it failed
        mutt.kill()
        mutt.wait()
        os.close(master)


def test_f05_swaks_submits_with_starttls(daemon):
    server = daemon()
    words = [
        "swaks", "--server", "127.0.0.1", "--port", str(server.ports["submission"]), "--tls", "--tls-ca-path",
        server.authority, "--tls-verify", "--tls-verify-ca", "--auth", "PLAIN", "--auth-user", "bo@example.com",
        "--auth-password", PASSWORD, "--from", "bo@example.com", "--to", "ann@example.com",
        "--header", "Subject: By swaks",
    ]  # fmt: skip
    plain = [word for word in words if not word.startswith("--tls-verify")]
    sent = run(*plain)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert b"<~  250 2.0.0 Accepted as" in sent.stdout
    wrong = run(*[word if word != PASSWORD else "wrong password" for word in plain])
    assert wrong.returncode != 0
    assert b"535 5.7.8" in wrong.stdout
    assert [b"Subject: By swaks" in path.read_bytes() for path in server.files("ann")] == [True]


def test_f03_f04_imapclient_as_its_documentation_shows(daemon):
    server = daemon()
    client = imapclient.IMAPClient("localhost", port=server.ports["imaps"], ssl_context=server.tls)
    client.login("ann@example.com", PASSWORD)
    folders = {name: flags for flags, _, name in client.list_folders()}
    assert set(folders) == {"INBOX", "Drafts", "Sent", "Junk", "Trash", "Archive"}
    assert b"\\Sent" in folders["Sent"]
    assert client.find_special_folder(b"\\Sent") == "Sent"
    assert client.select_folder("INBOX")[b"EXISTS"] == 0
    client.idle()
    assert client.idle_check(timeout=0) == []
    deliver(server, "Hello")
    assert (1, b"EXISTS") in client.idle_check(timeout=SECONDS)
    client.idle_done()
    messages = client.search(["SUBJECT", "hello"])
    assert messages == [1]
    data = client.fetch(messages, ["ENVELOPE", "FLAGS", "RFC822.SIZE", "BODYSTRUCTURE"])[1]
    assert data[b"ENVELOPE"].subject == b"Hello"
    assert data[b"ENVELOPE"].from_[0].mailbox == b"bo"
    client.add_flags(messages, [imapclient.FLAGGED, "Important"])
    assert set(client.get_flags(messages)[1]) >= {b"\\Flagged", b"Important"}
    client.create_folder("Work/2026 \N{SNOWMAN}")
    client.copy(messages, "Work/2026 \N{SNOWMAN}")
    client.move(messages, "Archive")
    assert client.search() == []
    assert client.select_folder("Work/2026 \N{SNOWMAN}")[b"EXISTS"] == 1
    appended = client.append("Drafts", b"Subject: Draft\r\n\r\nText.\r\n", [imapclient.DRAFT])
    assert b"APPENDUID" in appended
    client.delete_folder("Work/2026 \N{SNOWMAN}")
    assert client.folder_status("Archive", ["MESSAGES"]) == {b"MESSAGES": 1}
    client.logout()
