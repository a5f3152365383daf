"""The server in one process: what the fixtures of all session tests stand on."""

import imaplib
import smtplib


def test_f03_f05_message_from_smtp_to_imap(serving):
    with smtplib.SMTP("127.0.0.1", serving.ports["smtp"]) as client:
        client.sendmail("x@elsewhere.org", ["ann@example.com"], "Subject: Hello\r\n\r\nText.\r\n")
    with imaplib.IMAP4_SSL("localhost", serving.ports["imaps"], ssl_context=serving.client_tls) as client:
        client.login("ann@example.com", "correct horse")
        assert client.select()[1] == [b"1"]
        assert client.fetch("1", "(BODY[HEADER.FIELDS (SUBJECT)])")[1][0][1] == b"Subject: Hello\r\n\r\n"
    assert len(list((serving.maildir("ann") / "cur").iterdir())) == 1
