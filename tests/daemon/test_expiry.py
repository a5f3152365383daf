"""Certificates that end soon are told of: in the log, and to the postmaster, once a day."""

import datetime
import email
import grp
import os
import socket
import ssl
import subprocess
import time
from email.policy import default
from pathlib import Path

import pytest

from mailsrv import authority as authorities
from mailsrv import daemon as process
from mailsrv.certificates import examine
from tests.daemon.conftest import ROOT, SECONDS, environment, until
from tests.daemon.test_parts import eventually


def issue(directory, stem, authority, days, *names):
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days, hours=1)
    made = authority.issue_cert(*names, not_after=ends)
    certificate, key = directory / f"{stem}.pem", directory / f"{stem}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return str(certificate), str(key)


def test_what_a_certificate_says(tmp_path, authority):
    path, _ = issue(tmp_path, "one", authority, 20, "mx.example.com", "*.example.org", "192.0.2.1")
    known = examine(path)
    assert (known.names, known.days_left) == (("mx.example.com", "*.example.org", "192.0.2.1"), 20)
    assert not known.self_signed and not known.problem
    assert examine(issue(tmp_path, "two", authority, -3, "mx.example.com")[0]).days_left == -3
    authorities.self_signed(str(tmp_path / "own.pem"), str(tmp_path / "own.key"), "mx.example.com")
    own = examine(str(tmp_path / "own.pem"))
    assert own.self_signed and own.names == ("mx.example.com",) and own.days_left == authorities.SERVER_DAYS - 1
    assert examine(str(tmp_path / "none.pem")).problem == "No such file or directory"
    (tmp_path / "text.pem").write_text("no certificate here")
    assert examine(str(tmp_path / "text.pem")).problem.startswith("no certificate: ")
    assert examine(str(tmp_path / "text.pem")).days_left is None


def test_postmaster_is_told_once_a_day(serve, tmp_path, authority, events):
    soon = issue(tmp_path, "soon", authority, 5, "mx.example.com")
    later = issue(tmp_path, "later", authority, 60, "mx.example.net")
    serving = serve(**{
        "tls.certificate": soon[0], "tls.key": soon[1],
        "tls.certificates": [{"certificate": later[0], "key": later[1]}],
    })  # fmt: skip
    serving.accounts.add_alias("postmaster@example.com", ["ann@example.com"])
    expiry = serving.server.expiry
    assert expiry.look()
    assert [(fields["file"], fields["days_left"]) for event, fields in events if event == "certificate ends"] == [
        (soon[0], 5)
    ]
    [path] = [path for sub in ("new", "cur") for path in (serving.maildir("ann") / sub).iterdir()]
    message = email.message_from_bytes(path.read_bytes(), policy=default)
    assert message["Subject"] == "A certificate of the mail server ends in 5 days"
    assert message["To"] == "postmaster@example.com" and message["Auto-Submitted"] == "auto-generated"
    assert message["Return-Path"] == "<>"
    text = message.get_content()
    assert soon[0] in text and "for mx.example.com" in text and later[0] not in text
    assert not expiry.look(), "told today already"
    stamp = Path(serving.settings["server.data_dir"]) / "certificate-warning"
    os.utime(stamp, (time.time() - 25 * 3600,) * 2)
    assert expiry.look()
    assert len([1 for event, _ in events if event == "certificate ends"]) == 2
    os.utime(stamp, (time.time() - 25 * 3600,) * 2)
    Path(soon[0]).write_bytes(Path(later[0]).read_bytes())
    assert not expiry.look(), "renewed"


def test_renewed_files_are_used_without_being_asked_to(serve, tmp_path, authority, events, monkeypatch):
    monkeypatch.setattr(process, "CERTIFICATES_SECONDS", 0.05)
    certificate, key = issue(tmp_path, "one", authority, 60, "localhost")
    serving = serve(**{"tls.certificate": certificate, "tls.key": key})

    def ends():
        with serving.connect("imaps") as sock:
            return sock.getpeercert()["notAfter"]

    before = ends()
    issue(tmp_path, "one", authority, 90, "localhost")
    eventually(lambda: ends() != before)
    # A file that is not whole yet is refused, and tried again when it is another.
    now = ends()
    whole = Path(certificate).read_bytes()
    Path(certificate).write_bytes(whole[:100])
    eventually(lambda: any(event == "certificate refused" for event, _ in events))
    assert ends() == now
    issue(tmp_path, "one", authority, 120, "localhost")
    eventually(lambda: ends() != now)


def test_the_server_s_own_certificate_is_made_again_in_its_last_month(serve, tmp_path, authority, events, monkeypatch):
    monkeypatch.setattr(process, "CERTIFICATES_SECONDS", 0.05)
    directory = tmp_path / "data" / "tls"
    directory.mkdir(parents=True)
    certificate, _ = issue(directory, "localhost", authority, 31, "localhost")
    serving = serve(**{
        "tls.certificate": "", "tls.key": "", "tls.self_signed": True, "server.hostname": "localhost",
    })  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def served():
        with socket.create_connection(("127.0.0.1", serving.ports["imaps"])) as sock, context.wrap_socket(sock) as one:
            return one.getpeercert(binary_form=True)

    assert served() == ssl.PEM_cert_to_DER_cert(first(certificate))
    issue(directory, "localhost", authority, 28, "localhost")
    eventually(lambda: examine(certificate).days_left == authorities.SERVER_DAYS - 1)
    eventually(lambda: served() == ssl.PEM_cert_to_DER_cert(first(certificate)))
    assert (directory / "localhost.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in directory.iterdir()) == ["localhost.key", "localhost.pem"]
    assert [fields["file"] for event, fields in events if event == "self-signed certificate"] == [certificate]


def first(path):
    """The certificate at the top of a file."""
    return Path(path).read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("days", [-2, 3])
def test_doctor_names_what_ends(serve, tmp_path, authority, days):
    from mailsrv.doctor import examine as examination

    certificate, key = issue(tmp_path, "one", authority, days, "localhost")
    serving = serve(**{"tls.certificate": certificate, "tls.key": key})
    [finding] = [one for one in examination(serving.settings) if one.what.startswith(f"tls: {certificate} end")]
    assert finding.result == ("fail" if days < 0 else "warn")


def test_certbot_s_deploy_hook_gives_the_server_the_new_pair(daemon, tmp_path, authority):
    """As certbot runs it: with RENEWED_LINEAGE, and nothing on standard input."""
    lineage, place = tmp_path / "live" / "mx.example.com", tmp_path / "tls"
    lineage.mkdir(parents=True)

    def renew(days):
        certificate, key = issue(tmp_path, "one", authority, days, "localhost", "mx.example.com")
        Path(certificate).rename(lineage / "fullchain.pem")
        Path(key).rename(lineage / "privkey.pem")

    def hook(**more):
        group = grp.getgrgid(os.getegid()).gr_name
        return subprocess.run(
            [str(ROOT / "etc/certbot-deploy-hook")], capture_output=True, text=True, timeout=SECONDS, check=True,
            stdin=subprocess.DEVNULL, env=environment(
                RENEWED_LINEAGE=str(lineage), MAILSRV_TLS_DIR=str(place), MAILSRV_GROUP=group,
                MAILSRV_PID_FILE=str(tmp_path / "run/mailsrv.pid"), **more,
            ),
        ).stdout  # fmt: skip

    renew(10)
    assert "is in place; the server does not run" in hook()
    certificate, key = place / "mx.example.com.pem", place / "mx.example.com.key"
    assert key.stat().st_mode & 0o777 == 0o640 and place.stat().st_mode & 0o777 == 0o750
    server = daemon(**{"tls.certificate": str(certificate), "tls.key": str(key)})
    renew(90)
    assert hook(MAILSRV_LINEAGES="other.example.com") == ""
    assert certificate.read_bytes() != (lineage / "fullchain.pem").read_bytes()
    assert hook(MAILSRV_LINEAGES="other.example.com mx.example.com") == "mailsrv: mx.example.com is in use\n"
    until(lambda: "certificates-loaded" in server.log.read_text(), "the server reads it")
    with server.connect("imaps") as sock:
        assert ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----"
                                        ) == sock.getpeercert(binary_form=True)  # fmt: skip
    assert sorted(path.name for path in place.iterdir()) == ["mx.example.com.key", "mx.example.com.pem"]
    assert server.stop() == 0
