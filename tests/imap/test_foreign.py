"""Foreign clients: imapclient and imaplib do with the server what their documentation shows."""

import contextlib
import imaplib
from datetime import UTC, datetime

import gevent
import imapclient
import pytest

PASSWORD = "correct horse"
TEXT = (
    "From: bo@example.org\r\nTo: ann@example.com\r\nSubject: Gr\u00fc\u00dfe\r\n"
    "Date: Mon, 7 Feb 1994 21:52:25 -0800\r\n\r\nHello\r\n"
)


@pytest.fixture
def client(serving):
    with imapclient.IMAPClient(
        "localhost", serving.ports["imaps"], ssl_context=serving.client_tls, timeout=10
    ) as client:
        client.login("ann@example.com", PASSWORD)
        yield client


def test_f03_select_search_fetch(serving, client, mail):
    for _ in range(3):
        mail(serving)
    selected = client.select_folder("INBOX")
    assert selected[b"EXISTS"] == 3 and selected[b"READ-WRITE"] and selected[b"UIDNEXT"] == 4
    assert client.search(["NOT", "DELETED"]) == [1, 2, 3]
    assert client.search(["SUBJECT", "mail", "UID", "2:3"]) == [2, 3]
    for uid, data in client.fetch(
        [1, 3], ["ENVELOPE", "RFC822.SIZE", "FLAGS", "INTERNALDATE", "BODYSTRUCTURE"]
    ).items():
        assert data[b"ENVELOPE"].subject == b"mail"
        assert data[b"ENVELOPE"].from_ is None or data[b"ENVELOPE"].from_[0].host
        assert data[b"RFC822.SIZE"] == len(client.fetch(uid, "BODY.PEEK[]")[uid][b"BODY[]"])
        assert data[b"BODYSTRUCTURE"][:2] == (b"TEXT", b"PLAIN")
        assert isinstance(data[b"INTERNALDATE"], datetime)


def test_f03_append_flags_copy_move_expunge(client):
    when = datetime(2003, 2, 1, 4, 5, 6, tzinfo=UTC)
    client.select_folder("INBOX")
    for number in range(3):
        client.append("INBOX", f"Subject: {number}\r\n\r\n", (imapclient.FLAGGED, "Work"), when)
    data = client.fetch([1], ["INTERNALDATE", "FLAGS"])[1]
    assert data[b"INTERNALDATE"].timestamp() == when.timestamp()
    assert {imapclient.FLAGGED, b"Work"} <= set(data[b"FLAGS"])
    assert imapclient.SEEN in client.add_flags([1, 2], imapclient.SEEN)[2]
    assert imapclient.FLAGGED not in client.remove_flags([1], [imapclient.FLAGGED])[1]
    assert set(client.set_flags([1], [b"Play"])[1]) - {imapclient.RECENT} == {b"Play"}
    client.copy([1, 2], "Archive")
    client.move([3], "Archive")
    assert client.search() == [1, 2]
    client.delete_messages([1])
    client.expunge()
    assert client.search() == [2]
    client.delete_messages([2])
    client.uid_expunge([2])
    assert client.search() == []
    assert client.folder_status("Archive", ["MESSAGES", "UNSEEN"]) == {b"MESSAGES": 3, b"UNSEEN": 2}


def test_f03_folders(client):
    names = ["Entw\u00fcrfe", "\u65e5\u672c\u8a9e/\U0001f600", "Tom & Jerry", 'quote " and \\ backslash', "a.b"]
    for name in names:
        client.create_folder(name)
    listed = [name for _, _, name in client.list_folders()]
    assert set(names) <= set(listed)
    assert {delimiter for _, delimiter, _ in client.list_folders()} == {b"/"}
    client.rename_folder("Tom & Jerry", "Jerry & Tom")
    assert client.folder_exists("Jerry & Tom") and not client.folder_exists("Tom & Jerry")
    client.delete_folder("a.b")
    client.subscribe_folder("Entw\u00fcrfe")
    client.unsubscribe_folder("Trash")
    subscribed = [name for _, _, name in client.list_sub_folders()]
    assert "Entw\u00fcrfe" in subscribed and "Trash" not in subscribed
    assert client.find_special_folder(b"\\Sent") == "Sent"
    assert client.namespace().personal == (("", "/"),)
    assert {name for _, _, name in client.list_folders("\u65e5\u672c\u8a9e/")} == {"\u65e5\u672c\u8a9e/\U0001f600"}


def test_f03_search_in_other_scripts(client):
    client.append("INBOX", TEXT.encode())
    client.select_folder("INBOX", readonly=True)
    assert client.search(["SUBJECT", "gr\u00fc\u00dfe"], charset="UTF-8") == [1]
    assert client.search(["SINCE", datetime(2020, 1, 1), "SENTBEFORE", datetime(1995, 1, 1)]) == [1]
    assert client.search('TEXT "Hello"') == [1]


def test_f04_idle(serving, client, mail):
    client.select_folder("INBOX")
    client.idle()
    mail(serving)
    seen = []
    with gevent.Timeout(60):
        while (1, b"EXISTS") not in seen:
            seen += client.idle_check(timeout=5)
    text, rest = client.idle_done()
    assert b"IDLE" in text
    assert [line for line in rest if line[1] == b"EXISTS"] == []
    assert client.noop()[0].startswith(b"NOOP")


def test_f03_the_standard_library_as_documented(serving):
    with imaplib.IMAP4_SSL("localhost", serving.ports["imaps"], ssl_context=serving.client_tls) as client:
        client.login("ann@example.com", PASSWORD)
        assert client.append("INBOX", "\\Flagged", imaplib.Time2Internaldate(0), TEXT.encode())[0] == "OK"
        assert client.select()[1] == [b"1"]
        assert client.search(None, "ALL")[1] == [b"1"]
        text = client.fetch("1", "(RFC822)")[1]
        assert text[0][1] == TEXT.encode()
        assert client.store("1", "+FLAGS", "\\Deleted")[0] == "OK"
        assert client.expunge()[1] == [b"1"]
        assert client.list()[0] == "OK" and client.lsub()[0] == "OK"
        assert client.uid("FETCH", "1:*", "(FLAGS)")[0] == "OK"
        client.close()


@pytest.mark.parametrize("method", ["login", "authenticate"])
def test_f12_wrong_password(serving, method):
    client = imaplib.IMAP4_SSL("localhost", serving.ports["imaps"], ssl_context=serving.client_tls)
    with contextlib.closing(client.socket()), pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        if method == "login":
            client.login("ann@example.com", "wrong")
        else:
            client.authenticate("PLAIN", lambda _: b"\0ann@example.com\0wrong")
