"""What is signed verifies elsewhere (dkimpy, OpenDKIM), any change to it does not, and not everything is signed."""

import hashlib
import os
import re
import subprocess
import threading

import dkim
import pytest
from dkim.canonicalization import Relaxed
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv import log
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.dkim import Keys
from mailsrv.mail.signing import RelaxedBody, Signer, relaxed
from mailsrv.store import files
from mailsrv.values import AccountId, Address, Envelope, Job
from mailsrv.wire.draft import parse_authors
from mailsrv.wire.lines import WholeLines

ENVELOPE = Envelope(Address("ann", "ours.example"))
HEADER = (
    b"Received: from client (\r\n\t[192.0.2.1]) by mx\r\nFrom: Ann <ann@ours.example>\r\nTo: bo@elsewhere.example\r\n"
    b"Subject:  Hello \t there\r\n and more\r\nDate: Wed, 25 Nov 2026 03:00:00 +0000\r\n"
    b"Message-ID: <1@ours.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"List-Unsubscribe: <https://ours.example/>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
)
BODY = "Hallo  \t Bücher \r\n\r\n.dot\r\n..\r\n  indented\t\r\n\r\n\r\n".encode()
MESSAGE = HEADER + BODY


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    made = Keys(str(tmp_path_factory.mktemp("keys") / "dkim"))
    made.generate("ours.example")
    made.generate("other.example")
    return made


@pytest.fixture
def accounts(tmp_path):
    made = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    for domain in ("ours.example", "other.example", "bare.example"):
        made.add_domain(domain)
        made.add_user(f"ann@{domain}", "{PLAIN}x")
    made.add_alias("info@other.example", ["ann@ours.example"])
    yield made
    made.close()


@pytest.fixture
def signer(keys, accounts):
    return Signer(keys, may_author=accounts.may_author, authors=parse_authors, whole_lines=WholeLines)


@pytest.fixture
def job(tmp_path, accounts):
    def make(message, *, id="1", account="ann@ours.example", ours=False):
        path = tmp_path / f"{id}.eml"
        path.write_bytes(message)
        local, domain = account.split("@") if account else ("", "")
        number = accounts.user(Address(local, domain)).account.id if account else AccountId(0)
        return Job(id, ENVELOPE, (), str(path), len(message), account=number, ours=ours)

    return make


def resolver(keys):
    records = {f"{key.name}.".encode(): keys.record(key).encode() for name in keys.domains() for key in keys.of(name)}
    return lambda name, timeout=5: records.get(name)


def verdicts(keys, message):
    """What dkimpy says of each signature."""
    count = len(re.findall(rb"(?m)^DKIM-Signature:", message.partition(b"\r\n\r\n")[0]))
    results = []
    for number in range(count):
        try:
            results.append(dkim.DKIM(message).verify(number, dnsfunc=resolver(keys)))
        except dkim.DKIMException:
            results.append(False)
    return results


def whole(message):
    lines = WholeLines()
    return lines.feed(message) + lines.end()


def tags(signature):
    return [re.sub(rb"\s", b"", one).partition(b"=")[::2] for one in signature.partition(b":")[2].split(b";")]


# ------------------------------------------------------------------ others verify it


def test_s31_both_signatures_verify_and_say_what_they_should(signer, keys, job):
    signed = signer.sign(job(MESSAGE))
    assert verdicts(keys, signed + MESSAGE) == [True, True]
    one, two = (dict(tags(b"DKIM-Signature:" + part)) for part in signed.split(b"DKIM-Signature:")[1:])
    assert (one[b"a"], two[b"a"]) == (b"rsa-sha256", b"ed25519-sha256")
    for found in (one, two):
        assert found[b"v"] == b"1" and found[b"c"] == b"relaxed/relaxed" and found[b"d"] == b"ours.example"
        assert b"l" not in found and b"x" not in found
        names = found[b"h"].split(b":")
        present = {b"From": 1, b"To": 1, b"Subject": 1, b"Date": 1, b"Message-ID": 1, b"Content-Type": 1}
        for name, count in {**present, b"Reply-To": 0, b"Cc": 0}.items():
            assert names.count(name) == count + 1, "one more than there is: none can be added"
        assert names.count(b"List-Unsubscribe") == names.count(b"List-Unsubscribe-Post") == 1
        assert b"Received" not in names
    assert all(len(line) <= 78 for line in signed.split(b"\r\n"))
    assert re.fullmatch(rb"(?:[!-~][^\r\n]*\r\n(?:\t[^\r\n]+\r\n)*)+", signed), "whole header lines, ready to go first"


def test_opendkim_verifies_both(signer, keys, job, tmp_path):
    (tmp_path / "keys").write_text("".join(f"{k.name} {keys.record(k)}\n" for k in keys.of("ours.example")))
    (tmp_path / "conf").write_text(f"Mode v\nTestPublicKeys {tmp_path}/keys\nSyslog no\nAlwaysAddARHeader yes\n")

    def examined(message):
        (tmp_path / "signed.eml").write_bytes(message)
        command = ["opendkim", "-x", str(tmp_path / "conf"), "-t", str(tmp_path / "signed.eml"), "-vv"]
        path = f"{os.environ['PATH']}:/usr/sbin"
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path})
        return re.findall(r"dkim=(\w+) .*?header\.a=(\S+)", ran.stdout)

    signed = signer.sign(job(MESSAGE)) + MESSAGE
    assert examined(signed) == [("pass", "rsa-sha256"), ("pass", "ed25519-sha256")]
    changed = examined(signed.replace(b"..\r\n", b".\r\n"))
    assert [result for result, _ in changed] == ["fail", "fail"]


def test_s31_any_change_to_what_is_signed_breaks_both(signer, keys, job):
    signed = signer.sign(job(MESSAGE)) + MESSAGE
    for old, new in (
        (b"Ann <ann@", b"Eve <ann@"), (b"bo@elsewhere", b"cy@elsewhere"),
        (b"Hello", b"HELLO"), (b"03:00:00", b"03:00:01"),
        (b"\r\nTo: bo", b"\r\nCc: cy@x.example\r\nTo: bo"), (b"\r\nTo: bo", b"\r\nFrom: eve@x.example\r\nTo: bo"),
        (b"\r\nTo: bo", b"\r\nReply-To: eve@x.example\r\nTo: bo"), (b"\r\nTo: bo", b"\r\nSubject: Two\r\nTo: bo"),
        (b"text/plain", b"text/html"), (b"List-Unsubscribe: <https://ours", b"List-Unsubscribe: <https://eve"),
        (b".dot", b"dot"), (b"  indented", b"indented"),
        (b"\r\n\r\n\r\n", b"\r\n\r\n\r\nMore\r\n"), (b"d=ours.", b"d=other."),
    ):  # fmt: skip
        assert old in signed
        assert verdicts(keys, signed.replace(old, new, 1)) in ([False, False], [False, True], [True, False]), old
        if not old.startswith(b"d="):
            assert verdicts(keys, signed.replace(old, new, 1)) == [False, False], old
    for old, new in (
        (b"Hello \t there\r\n and", b"Hello there and"),
        (b"\t\r\n\r\n\r\n", b"\r\n"),
        (b"  \t B", b"\tB"),
    ):
        assert old in signed
        assert verdicts(keys, signed.replace(old, new, 1)) == [True, True], "white space alone, which servers change"


@pytest.mark.parametrize(
    "message",
    [
        HEADER, HEADER[:-2], HEADER + b"\r\n\r\n", HEADER + b" \t\r\n\r\n", HEADER + b"x", HEADER + b"x\r\n ",
        b"From: ann@ours.example\r\n\r\nx\r\n", b"from:ann@ours.example\r\nSubject:\r\n\r\n\r\nx\r\n",
        b"From: ann@ours.example\r\nTo: a@x.example\r\nTo: b@x.example\r\nReferences: <1>\r\n <2>\r\n\r\n x \r\n",
        b"Subject: " + b"x" * 900 + b"\r\n " + b"y" * 900 + b"\r\nFrom: ann@ours.example\r\n\r\n" + b"z" * 5000,
        HEADER + b"\r\n" * 200_000 + b"end" + b"\r\n" * 70_000,
        HEADER + b"x" * 64_000 + b" \t" * 1500 + b"y" + b"z" * 63_000 + b"\t " * 1500 + b"\r\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_odd_messages_verify(signer, keys, job, message):
    assert verdicts(keys, signer.sign(job(message)) + whole(message)) == [True, True]


@pytest.mark.parametrize("kept", [b"a\nb\rc\r\r\nd\n.\n\nlast", b"x\r", b"\n\n\n", b"\0\xff\n\x80\r\n"])
def test_s02_what_is_signed_is_what_is_sent(signer, keys, job, kept):
    message = HEADER.replace(b"\r\nTo:", b"\nTo:") + kept
    assert whole(message) != message
    assert verdicts(keys, signer.sign(job(message)) + whole(message)) == [True, True]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"\r\n", b" ", b"\t", b"a", b"bc", b" \r\n", b"\r\n\r\n"]), max_size=30), st.data())
def test_bodies_are_made_relaxed_as_dkimpy_does(pieces, data):
    body = b"".join(pieces) + b"\r\n"
    hashing, at = RelaxedBody(), 0
    while at < len(body):
        size = data.draw(st.integers(1, 5))
        hashing.feed(body[at : at + size])
        at += size
    assert hashing.digest() == hashlib.sha256(Relaxed.canonicalize_body(body)).digest()


@given(st.binary(max_size=40).filter(lambda value: b"\r" not in value and b"\n" not in value))
def test_fields_are_made_relaxed_as_rfc_6376_has_it(value):
    assert relaxed(b"SubJect", value) == b"subject:" + re.sub(rb"[ \t]+", b" ", value).strip(b" ")
    assert relaxed(b"X", b" a\r\n\tb \r\n  c ") == b"x:a b c"


# ------------------------------------------------------------------ who is signed for


def with_author(author):
    return MESSAGE.replace(b"Ann <ann@ours.example>", author)


def domain_signed(signed):
    return {dict(tags(b"x:" + one))[b"d"].decode() for one in signed.split(b"DKIM-Signature:")[1:]}


def test_b18_only_an_authors_own_domain_signs(signer, job):
    def signs(author, **who):
        return domain_signed(signer.sign(job(with_author(author), id=author.hex()[:60], **who)))

    assert signs(b"ann+x@Ours.Example") == {"ours.example"}
    assert signs(b"Info <info@other.example>") == {"other.example"}, "an alias that leads to the sender"
    assert signs(b"ann@other.example") == set(), "a user of another domain here"
    assert signs(b"ann@elsewhere.example") == set()
    assert signs(b"ann@ours.example, ann@other.example") == set(), "one of two authors is somebody else"
    assert signs(b"ann@bare.example", account="ann@bare.example") == set(), "a domain without keys"
    assert signs(b"nobody") == set() and signs(b"") == set() and signs(b"<@@>") == set()


def test_b18_forwards_are_not_signed_and_reports_are(signer, job, keys):
    assert signer.sign(job(MESSAGE, account="")) == b""
    report = with_author(b"Mail Delivery System <mailer-daemon@ours.example>")
    signed = signer.sign(job(report, id="2", account="", ours=True))
    assert verdicts(keys, signed + report) == [True, True]


def test_without_any_keys_nothing_is_read(job, accounts, tmp_path, monkeypatch):
    bare = Signer(
        Keys(str(tmp_path / "no" / "dkim")), may_author=accounts.may_author, authors=parse_authors,
        whole_lines=WholeLines,
    )  # fmt: skip
    one = job(MESSAGE)
    os.unlink(one.path)
    assert bare.sign(one) == b""


def test_a_sender_who_is_gone_is_not_vouched_for(signer, job, accounts):
    going = job(MESSAGE)
    accounts.remove_user("ann@ours.example")
    assert signer.sign(going) == b""


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE.replace(b"To: bo", b"From: ann@ours.example\r\nTo: bo"), MESSAGE.replace(b"From:", b"Form:"), b"",
        b"\r\nFrom: ann@ours.example\r\n\r\nx\r\n", b"X: " + b"x" * 300_000 + b"\r\n" + MESSAGE,
        b"To: x@x.example\r\n" * 60 + MESSAGE, b"no header at all",
    ],
    ids=["two From", "no From", "empty", "empty header", "huge header", "many To", "no header"],
)  # fmt: skip
def test_what_cannot_be_signed_is_sent_without(signer, job, message):
    assert signer.sign(job(message)) == b""


def test_a_key_that_cannot_be_read_is_logged_and_mail_goes_on(signer, job, accounts, tmp_path, monkeypatch):
    broken = Keys(str(tmp_path / "dkim"))
    made = broken.generate("ours.example")
    told = []
    monkeypatch.setattr(log, "error", lambda event, **fields: told.append((event, fields)))
    other = Signer(broken, may_author=accounts.may_author, authors=parse_authors, whole_lines=WholeLines)
    with open(broken._path(made[0]), "w") as file:
        file.write("-----BEGIN PRIVATE KEY-----\nxyzzy\n-----END PRIVATE KEY-----\n")
    assert other.sign(job(MESSAGE)) == b""
    assert told[0][0] == "not signed" and told[0][1]["domain"] == "ours.example" and "xyzzy" not in str(told)


def test_a_message_that_cannot_be_read_is_not_sent_unsigned(signer, job):
    gone = job(MESSAGE)
    os.unlink(gone.path)
    with pytest.raises(OSError, match=r"1\.eml"):
        signer.sign(gone)


# ------------------------------------------------------------------ how often


def test_an_entry_for_many_destinations_is_signed_once(signer, job, monkeypatch):
    runs = []
    real = files.offload
    monkeypatch.setattr(files, "offload", lambda fn, *args: runs.append(fn.__name__) or real(fn, *args))
    one, results = job(MESSAGE), []
    threads = [threading.Thread(target=lambda: results.append(signer.sign(one))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1 and results[0]
    assert runs == ["read_text", "_sign"], "and in a thread of the pool, both times"


def test_b21_changed_keys_count_for_the_next_message(job, accounts, tmp_path):
    clock = [1_795_575_900.0]
    own = Keys(str(tmp_path / "dkim"), now=lambda: clock[0])
    own.generate("ours.example")
    signer = Signer(
        own, may_author=accounts.may_author, authors=parse_authors, whole_lines=WholeLines, now=lambda: clock[0]
    )
    one = job(MESSAGE)
    first = signer.sign(one)
    Keys(str(tmp_path / "dkim")).rotate("ours.example")
    Keys(str(tmp_path / "dkim")).activate("ours.example")
    second = signer.sign(job(MESSAGE, id="2"))
    assert verdicts(own, first + MESSAGE) == verdicts(own, second + MESSAGE) == [True, True]
    assert set(re.findall(rb"s=(\S+);", first)).isdisjoint(re.findall(rb"s=(\S+);", second))
    clock[0] += 301
    assert re.findall(rb"s=(\S+);", signer.sign(one)) == re.findall(rb"s=(\S+);", second), "a retry later as well"
