"""What strangers send, each to the parser that reads it: the targets of fuzzing, by name.

A target takes octets and returns. A value, or the typed error its parser promises, is an answer; whatever else comes
out of a target is a finding, and so is a call that takes longer than SECONDS of the processor. Where the program also
writes what it reads, a target writes it and reads it again; where input comes in pieces, it is cut in two ways.

The first octet of many targets is no text: it chooses options, or how long the pieces are.
"""

from __future__ import annotations

import email
import hashlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from fuzz.responses import check_bodystructure, check_envelope, check_message, read_response
from mailsrv import config, log
from mailsrv.errors import MailboxNameInvalid
from mailsrv.imap.reader import AFTER_LOGIN, Unreadable, finish_append, read_command
from mailsrv.mail import srs
from mailsrv.mail.bounce import LONGEST_LINE, Bounces, Kind, Report
from mailsrv.mail.signing import RelaxedBody, chosen, signed_header, split_fields
from mailsrv.net.https import FetchFailed, _get
from mailsrv.net.stream import Stream, StreamError
from mailsrv.smtp import dane, mta_sts
from mailsrv.store import entry as queue_entry
from mailsrv.store import names
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions
from mailsrv.wire import (
    address,
    draft,
    header,
    header_addresses,
    imap_commands,
    imap_responses,
    imap_values,
    lines,
    mime,
    mutf7,
    pieces,
    sasl,
    smtp,
    smtp_client,
    structure,
)
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_tokens import Cursor, line_literal

SECONDS = 1.0  # of the processor; far more than any input here may take
EVERYTHING = smtp_client.Offers(dict.fromkeys(("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "REQUIRETLS"), ()))
Target = Callable[[bytes], None]


class TooSlow(AssertionError):
    """An answer that was too long in coming."""


def run(name: str, data: bytes) -> None:
    """The target once. Raises what a finding is."""
    begun = time.thread_time()
    TARGETS[name](data)
    spent = time.thread_time() - begun
    if spent > SECONDS:
        raise TooSlow(f"{name}: {spent:.1f} s for {len(data)} octets")


def _choice(data: bytes) -> tuple[int, bytes]:
    return (data[0], data[1:]) if data else (0, b"")


def _cut(data: bytes, size: int) -> list[bytes]:
    size = max(size, 1)
    return [data[at : at + size] for at in range(0, len(data), size)]


def _one_line(text: str | bytes) -> bool:
    return not re.search(r"[\r\n\0]", text if isinstance(text, str) else text.decode("latin-1"))


# --- lines ------------------------------------------------------------------------------------------------------------


def _decoded(parts: list[bytes], normalize: bool) -> tuple[bytes | None, bytes, bool]:
    decoder, text = lines.DotDecoder(normalize=normalize), b""
    for number, part in enumerate(parts):
        text += decoder.feed(part)
        if decoder.done:
            return text, decoder.rest + b"".join(parts[number + 1 :]), decoder.bare
    return None, b"", False


def dotted(data: bytes) -> None:
    """The text after DATA, however it was cut: it ends at CRLF . CRLF and nowhere else (S1, S6)."""
    size, text = _choice(data)
    for normalize in (False, True):
        whole, in_pieces = _decoded([text], normalize), _decoded(_cut(text, size), normalize)
        assert whole == in_pieces
        assert (whole[0] is not None) is (b"\r\n.\r\n" in b"\r\n" + text)
        if normalize and whole[0] is not None:
            assert whole[0].count(b"\r") == whole[0].count(b"\n") == whole[0].count(b"\r\n")


def _sent(parts: list[bytes]) -> tuple[bytes, bytes, lines.Survey]:
    whole_lines, stuffer, survey = lines.WholeLines(), lines.DotStuffer(), lines.Survey()
    plain, stuffed = [], []
    for part in (*(whole_lines.feed(part) for part in parts), whole_lines.end()):
        survey.feed(part)
        plain.append(part)
        stuffed.append(stuffer.feed(part))
    return b"".join(plain), b"".join(stuffed) + stuffer.finish(), survey


def sent(data: bytes) -> None:
    """A kept text as it is sent: whole lines, dots stuffed, and received again as it was (S2)."""
    size, text = _choice(data)
    plain, stuffed, survey = _sent([text])
    plain2, stuffed2, survey2 = _sent(_cut(text, size))
    assert (plain, stuffed) == (plain2, stuffed2)
    for attribute in ("size", "eight_bit", "header_eight_bit", "header_utf8", "long_line"):
        assert getattr(survey, attribute) == getattr(survey2, attribute), attribute
    assert plain.count(b"\r") == plain.count(b"\n") == plain.count(b"\r\n")
    assert plain.endswith(b"\r\n") or not plain
    assert survey.size == len(plain) and survey.eight_bit is not plain.isascii()
    assert survey.long_line is any(len(line) > lines.LINE_OCTETS for line in plain.split(b"\r\n"))
    assert stuffed == lines.dot_stuffed(plain)
    assert _decoded([stuffed], False) == (plain, b"", False)


def dkim(data: bytes) -> None:
    """Relaxed form of header and body, against the words of RFC 6376 3.4.2, 3.4.4."""
    size, text = _choice(data)
    text = _sent([text])[0]
    head, _, body = text.partition(b"\r\n\r\n")
    in_pieces = RelaxedBody()
    for part in _cut(body, size):
        in_pieces.feed(part)
    relaxed = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in body.split(b"\r\n")]
    while relaxed and not relaxed[-1]:
        relaxed.pop()
    expected = b"".join(line + b"\r\n" for line in relaxed)
    assert in_pieces.digest() == hashlib.sha256(expected).digest()
    fields = split_fields(head)
    signed = chosen(fields)
    if signed is not None:
        for line in signed_header(fields, signed).split(b"\r\n")[:-1]:
            assert line.partition(b":")[1] and _one_line(line.replace(b"\0", b""))


# --- SMTP -------------------------------------------------------------------------------------------------------------


def smtp_command(data: bytes) -> None:
    """A command line; what is understood can be written, and is then understood as the same (S5, S9, S23)."""
    options, line = _choice(data)
    try:
        command = smtp.parse_command(line)
    except WireError:
        return
    assert command.verb.isalpha() and command.verb == command.verb.upper()
    with suppress(WireError):
        assert smtp.parse_helo(command.argument).isprintable()
    with suppress(WireError):
        mail = smtp.parse_mail(command.argument, tls=bool(options & 1), future=bool(options & 2))
        _mail_again(mail)
    utf8 = bool(options & 4)
    with suppress(WireError):
        recipient, wishes = smtp.parse_rcpt(command.argument, smtputf8=utf8)
        again = smtp.parse_command(smtp_client.rcpt_command(recipient, wishes, EVERYTHING).removesuffix(b"\r\n"))
        if recipient.domain:
            found, asked = smtp.parse_rcpt(again.argument, smtputf8=utf8)
            assert found == recipient and asked.notify == wishes.notify
            assert asked.orcpt in (wishes.orcpt, "")


def _mail_again(mail: smtp.Mail) -> None:
    envelope = Envelope(mail.sender, mail.body, mail.smtputf8, mail.ret, mail.envid, mail.require_tls)
    written = smtp_client.mail_command(
        envelope, EVERYTHING, size=mail.size or 0, eight_bit=mail.body != "7BIT", utf8=mail.smtputf8
    )
    assert written.endswith(b"\r\n") and _one_line(written[:-2])
    again = smtp.parse_mail(smtp.parse_command(written[:-2]).argument, tls=True)
    assert (again.sender, again.body, again.smtputf8) == (mail.sender, mail.body, mail.smtputf8)
    assert (again.ret, again.envid, again.require_tls) == (mail.ret, mail.envid, mail.require_tls)


def smtp_reply(data: bytes) -> None:
    """What a server says, line by line, and the offers in it."""
    reader = smtp_client.ReplyReader()
    for line in data.split(b"\n"):
        try:
            reply = reader.feed(line.removesuffix(b"\r"))
        except WireError:
            return
        if reply is None:
            continue
        assert 200 <= reply.code <= 599 and _one_line(reply.text) and len(reply.text) <= smtp_client.TEXT_CHARACTERS
        assert re.fullmatch(r"[245]\.\d+\.\d+|3\.0\.0", reply.status())
        assert reply.status()[0] == str(reply.code // 100)
        offers = smtp_client.parse_offers(reply)
        assert offers.size_limit >= 0 and offers.limit("RCPTMAX") >= 0
        reader = smtp_client.ReplyReader()


def dsn(data: bytes) -> None:
    """xtext both ways (RFC 3461 4)."""
    text = data.decode("latin-1")
    with suppress(WireError):
        meant = smtp.parse_xtext(text)
        assert smtp.parse_xtext(smtp.format_xtext(meant)) == meant
        assert smtp.parse_xtext(smtp_client.xtext(meant)) == meant


def path(data: bytes) -> None:
    """Paths, mailboxes, domains: what is written is read as the same (S9, S10)."""
    text = data.decode("utf-8", "replace")
    found: list[Address | None] = []
    with suppress(WireError):
        found.append(address.parse_path(text, smtputf8=True)[0])
    with suppress(WireError):
        found.append(address.parse_mailbox(text))
    with suppress(WireError):
        domain = address.parse_domain(text)
        assert domain.isascii() and address.parse_domain(domain) == domain
    for one in found:
        if one is not None and one.domain:
            assert len(one.local.encode()) <= address.MOST_LOCAL and "@" not in one.local and _one_line(one.local)
            assert address.parse_mailbox(address.written(one)) == one
            assert address.parse_path(smtp_client.path(one), smtputf8=True)[0] == one
            stamp = queue_entry.Stamp(1e9, "", 5.0)
            entry = queue_entry.Entry("0" * 18, Envelope(one), [queue_entry.Recipient(one)], written=stamp)
            kept = queue_entry.from_json(json.loads(json.dumps(queue_entry.to_json(entry))))
            assert kept.envelope.sender == kept.recipients[0].address == one, "what is accepted stays in the queue"


def rewritten(data: bytes) -> None:
    """Senders that were rewritten find the way back, and no others (SRS)."""
    secret, day = b"s" * 32, 20_000
    text = data.decode("utf-8", "replace")
    assert srs.restore(text, [secret], day) is None, "made without the secret"
    with suppress(WireError):
        sender = address.parse_mailbox(text)
        made = srs.rewrite(sender, "ours.example", secret, day)
        if made is not None:
            back = srs.restore(made.local, [secret], day + 3)
            assert back is not None
            if sender.local[:4].upper() not in ("SRS0", "SRS1"):
                assert back == (sender, day)


# --- IMAP -------------------------------------------------------------------------------------------------------------


class _Given:
    """A socket's receiving side that has everything already, and gives it in pieces."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = iter(parts)

    def settimeout(self, seconds: float | None) -> None: ...

    def recv(self, size: int) -> bytes:
        part = next(self._parts, b"")
        if len(part) > size:
            self._parts = iter([part[size:], *self._parts])
        return part[:size]

    def sendall(self, data: bytes) -> None: ...


def _commands(parts: list[bytes]) -> Iterator[object]:
    """All commands of a connection, as the session reads them."""
    stream = Stream(_Given(parts), "fuzz")
    with suppress(StreamError, Unreadable):
        while True:
            try:
                command = read_command(stream, AFTER_LOGIN)
                if isinstance(command, imap_values.Append):
                    stream.read_exactly(min(command.literal.size, 1 << 20))
                    finish_append(stream, AFTER_LOGIN, command)
                yield command
            except WireError as error:
                assert error.offset >= 0 and _one_line(error.message)
                yield (str(error), error.tag)


def imap_command(data: bytes) -> None:
    """A connection's commands, lines and literals, do not depend on how they were cut (R38, R40)."""
    size, text = _choice(data)
    found = list(_commands([text]))
    assert found == list(_commands(_cut(text, size)))
    for command in found:
        if isinstance(command, imap_values.Fetch):
            assert command.items and (not command.uid or any(item.name == "UID" for item in command.items))  # R11
            for item in command.items:
                _item_again(item)


def _item_again(item: imap_values.FetchItem) -> None:
    """The item as a response names it is an item a client could have asked for."""
    name = imap_responses.fetch_item_name(item)
    if item.section is None or b"\r\n" in name:
        return
    name = name.partition(b"<")[0] if item.partial is not None and b'"' not in name else name
    if item.partial is None:
        (again,) = imap_commands.parse([b"a FETCH 1 " + name]).items  # type: ignore[attr-defined]
        assert again.section == item.section


def imap_strings(data: bytes) -> None:
    """Every string can be sent, and is read as it was; a nstring of ours has 7 bits (R36)."""
    for written in (imap_responses.quoted_or_literal(data), imap_responses.nstring(data)):
        assert _read_string(written) == data or b"\0" in data
    safe = structure.nstring(data.replace(b"\0", b""))
    assert safe.isascii() and _read_string(safe) is not None
    name = data.decode("utf-8", "ignore")
    coded = imap_responses.mailbox_name(name)
    if name:
        cursor = Cursor(_parts(coded))
        assert mutf7.decode(cursor.astring()) == name and cursor.at_end()


def _parts(text: bytes) -> list[Any]:
    line, crlf, rest = text.partition(b"\r\n")
    announced = line_literal(line) if crlf else None
    if announced is None:
        return [text]
    literal = imap_values.Literal(announced.size, True, False, rest[: announced.size])
    return [line, literal, rest[announced.size :]]


def _read_string(written: bytes) -> bytes | None:
    cursor = Cursor(_parts(written))
    try:
        value = cursor.nstring()
    except WireError:
        return None
    assert cursor.at_end()
    return value


def imap_set(data: bytes) -> None:
    """Sequence sets: numbers in range, `*` as None; a set of ours names the same numbers (R10)."""
    try:
        command = imap_commands.parse([b"a FETCH " + data + b" UID"])
    except WireError:
        return
    assert isinstance(command, imap_values.Fetch)
    for low, high in command.set.ranges:
        assert all(end is None or 0 < end <= 0xFFFFFFFF for end in (low, high))
    numbers = sorted({low for low, _ in command.set.ranges if low is not None})
    if numbers:
        again = imap_commands.parse([b"a FETCH " + imap_responses.number_set(numbers) + b" UID"])
        assert isinstance(again, imap_values.Fetch)
        ranges = [(low or 0, high or 0) for low, high in again.set.ranges]
        assert sum(high - low + 1 for low, high in ranges) == len(numbers)
        assert all(low in numbers and high in numbers for low, high in ranges)


def imap_date(data: bytes) -> None:
    """A date-time is told as it was given, in UTC (R51)."""
    line = b'a APPEND x "' + data + b'" {1}'
    announced = line_literal(line)
    try:
        found = imap_commands.append_head([line], announced) if announced else None
    except WireError:
        return
    assert found is not None and found.date is not None
    told = imap_responses.internal_date(found.date)
    assert len(told) == 28, told
    again = imap_commands.append_head([b"a APPEND x " + told + b" {1}"], announced) if announced else None
    assert again is not None and again.date == found.date


def mailbox_name(data: bytes) -> None:
    """Modified UTF-7: one name, one spelling (R18)."""
    with suppress(WireError):
        assert mutf7.encode(mutf7.decode(data)) == data
    name = data.decode("utf-8", "ignore")
    assert mutf7.decode(mutf7.encode(name)) == name


def sasl_exchange(data: bytes) -> None:
    """PLAIN and LOGIN, with any responses, and their base64."""
    responses = data.split(b"\n")
    for mechanism in (sasl.Plain(), sasl.Login()):
        with suppress(WireError):
            answer = mechanism.start(responses[0] or None)
            for response in responses[1:]:
                if isinstance(answer, sasl.Credentials):
                    break
                answer = mechanism.step(response)
            assert isinstance(answer, bytes | sasl.Credentials)
    with suppress(WireError):
        imap_commands.decode_base64(data)


# --- messages ---------------------------------------------------------------------------------------------------------


def header_fields(data: bytes) -> None:
    """A header is never refused: fields, dates, words, parameters, comments (B8)."""
    for name, values in header.parse_fields(data).items():
        assert name == name.lower()
        for value in values:
            text = header.decode_field(value)
            text.encode()  # it goes into the index
            assert header.day_number(value) >= 0
            main, parameters = header.parse_parameters(header.unfold(value))
            assert isinstance(main, bytes) and all(key == key.lower() for key, _ in parameters)
            for wanted in (b"name", b"filename", b"charset"):
                (header.parameter_text(parameters, wanted) or "").encode()
            assert header.encode_8bit(value).isascii()
    picked = mime.header_fields(data, frozenset({b"subject", b"from"}))
    left = mime.header_fields(data, frozenset({b"subject", b"from"}), invert=True)
    assert picked.endswith(b"\r\n") and left.endswith(b"\r\n")
    assert not {b"subject", b"from"} & set(header.parse_fields(left))


def words(data: bytes) -> None:
    """Encoded words and raw 8-bit text: what is written in 7 bits reads as the same (RFC 2047)."""
    value = header.unfold(data)
    text = header.decode_words(value)
    text.encode()
    coded = header.encode_8bit(value)
    header.decode_words(coded).encode()
    assert coded.isascii()
    with suppress(UnicodeDecodeError):
        assert b"=?" in value or header.decode_words(coded) == value.decode(), "what is UTF-8 reads as the same"


def addresses(data: bytes) -> None:
    """Address lists: any octets give a list, and a plain address in it reads as the same again (R36)."""
    found = header_addresses.parse_addresses(header.unfold(data))
    assert len(found) <= 2 * len(data) + 2
    for one in found:
        assert one.host is not None or one.name is None
        plain = all(part and re.fullmatch(rb"[A-Za-z0-9.=+-]+", part) for part in (one.mailbox, one.host))
        if plain and one.name is not None and one.route is None and not re.search(rb'["\\]', one.name):
            again = header_addresses.parse_addresses(b'"%s" <%s@%s>' % (one.name, one.mailbox, one.host))
            assert again == [one]
    draft.parse_authors(header.unfold(data))


def message(data: bytes) -> None:
    """A whole message: what the index keeps, every section, and what IMAP says of it, by its grammar (R33, R35-R37)."""
    prepared = mime.prepare(data)
    for text in prepared:
        if isinstance(text, str):
            text.encode()
    root = structure.parse(data)
    check_envelope(read_response(prepared.envelope))
    check_bodystructure(read_response(prepared.bodystructure), root, data, extended=True)
    check_bodystructure(read_response(structure.body(root, data)), root, data, extended=False)
    check_message(data, root)
    whole, body = mime.search_text(data), mime.search_body(data)
    whole.encode()
    for needle in ("", whole[3:9], whole[-9:], body[:20], "\n", "no such text"):
        assert mime.text_holds(data, needle) is (needle in whole) and mime.body_holds(data, needle) is (needle in body)


def drafts(data: bytes) -> None:
    """A message to be sent as it lies in an Outbox: who is named, and nothing of its author's in what leaves."""
    end = mime.header_end(data)
    with suppress(WireError):
        found = draft.parse_draft(data, 1e9)
        for one in (found.sender, *found.recipients):
            assert one.domain and address.parse_mailbox(address.written(one)) == one
        out = draft.ready_to_send(data, 1e9, "<1@mx.example.com>")
        fields = header.parse_fields(out[: mime.header_end(out)])
        assert b"bcc" not in fields and len(fields[b"date"]) == 1 and b"message-id" in fields
        assert out.endswith(data[end:])


def in_pieces(data: bytes) -> None:
    """What is done in pieces comes out as if it were done at once."""
    size, text = _choice(data)
    whole = pieces.find_blank(text), pieces.count_lines(text, 0, len(text)), pieces.fold(text.decode("latin-1"))
    quoted, coded = pieces.decode_quoted_printable(text), pieces.decode_base64(text)
    kept, pieces.PIECE = pieces.PIECE, 4 + 4 * (size % 16)
    try:
        again = pieces.find_blank(text)
        assert (again and again.span()) == (whole[0] and whole[0].span())
        assert pieces.count_lines(text, 0, len(text)) == whole[1] and pieces.fold(text.decode("latin-1")) == whole[2]
        pieces.decode_base64(text)
        pieces.decode_quoted_printable(text)
        if quoted == text and b"=" not in text:
            assert pieces.decode_quoted_printable(text) == quoted
        assert isinstance(coded, bytes)
    finally:
        pieces.PIECE = kept


def report(data: bytes) -> None:
    """A report of any message and any reply: nothing of theirs makes a line of ours (S23)."""
    choice, rest = _choice(data)
    reply, _, text = rest.partition(b"\n\n")
    kind: Kind = ("failed", "delayed", "delivered")[choice % 3]  # type: ignore[assignment]
    found = Outcome(
        Address("bo", "example.net"), Disposition.NEVER if kind == "failed" else Disposition.LATER, 550, "5.1.1",
        reply.decode("utf-8", "backslashreplace"), reply[:40].decode("latin-1"),
    )  # fmt: skip
    recipient = queue_entry.Recipient(found.recipient, RecipientOptions(frozenset(), "rfc822;bo@example.net"))
    recipient.note(found, 1e9)
    envelope = Envelope(Address("ann", "example.com"))
    entry = queue_entry.Entry("0" * 18, envelope, [recipient], size=len(text), arrived_at=1e9)
    letter = Bounces("mx.example.com").write(Report(kind, entry, (recipient,), lambda n: text[:n], 2e9), None)
    assert letter is not None and letter.message.isascii()
    assert max(map(len, letter.message.split(b"\r\n"))) <= LONGEST_LINE
    assert letter.message.count(b"\r") == letter.message.count(b"\n") == letter.message.count(b"\r\n")
    read = email.message_from_bytes(letter.message)
    parts = read.get_payload()
    assert read.get_content_type() == "multipart/report" and isinstance(parts, list) and len(parts) == 3


# --- files and settings -----------------------------------------------------------------------------------------------


def file_name(data: bytes) -> None:
    """Names of messages and of folders in a Maildir that other programs write, too (B11, S24)."""
    text = data.decode("utf-8", "surrogateescape")
    parsed = names.parse(text)
    assert 0 <= parsed.flags < 32 and 0 <= parsed.keywords < 1 << 26
    if ":" not in parsed.base:
        path = names.path_of(*parsed, in_new=False).removeprefix("cur/")
        again = names.parse(path)
        assert again[:3] == parsed[:3] and names.path_of(*again, in_new=False).removeprefix("cur/") == path
    names.sizes(parsed.base)
    assert names.arrival(parsed.base) >= 0
    tagged = names.with_tag(parsed.base, 7, 9, 5)
    assert names.is_text(tagged)
    assert names.tag(tagged) == (7, 9) and names.sizes(tagged)[0] == 5
    name = names.name_of(text)
    if name is not None:
        ours = names.directory(name)
        assert names.name_of(ours) == name and names.served([text, ours]) == {ours}, "one name, one folder"
    with suppress(MailboxNameInvalid):
        name = names.canonical(text)
        folder = names.directory(name)
        assert "/" not in folder and "\0" not in folder and folder not in (".", "..") and folder.isascii()
        assert names.name_of(folder) == name


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}\+00:00")


def envelope(data: bytes) -> None:
    """A queue entry's file: an entry, or what is wrong with it; and what it asks for is one line each (S23)."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        entry = queue_entry.from_json(value)
    except queue_entry.EntryDamaged as problem:
        assert _one_line(str(problem))
        return
    written = queue_entry.to_json(entry)
    text = json.dumps(written)
    again = json.dumps(queue_entry.to_json(queue_entry.from_json(json.loads(text))))
    assert _TIME.sub("", again) == _TIME.sub("", text), "but for milliseconds of years far away"
    now = queue_entry.Stamp(1e9, "", 5.0)
    assert entry.age(now) >= 0 and entry.wait(now) >= 0
    with suppress(WireError):
        command = smtp_client.mail_command(entry.envelope, EVERYTHING, size=1, eight_bit=True, utf8=True)
        assert _one_line(command[:-2])
        for one in entry.recipients:
            assert _one_line(smtp_client.rcpt_command(one.address, one.options, EVERYTHING)[:-2])


def settings(data: bytes) -> None:
    """The configuration file: settings, or all that is wrong with it, by line."""
    try:
        config.parse(data.decode("utf-8", "replace"), "mailsrv.yaml")
    except config.ConfigError as problem:
        assert problem.problems and all(one.startswith("mailsrv.yaml") for one in problem.problems)


def sts_policy(data: bytes) -> None:
    """MTA-STS policies and their records (RFC 8461)."""
    text = data.decode("utf-8", "ignore")
    id = mta_sts.parse_id(tuple(text.split("\n")))
    assert re.fullmatch("[A-Za-z0-9]{0,32}", id)
    with suppress(mta_sts.PolicyWrong):
        policy = mta_sts.parse_policy(text, id)
        assert 0 <= policy.max_age <= mta_sts.MOST_AGE
        for host in ("mx.example.net", *policy.patterns[:5]):
            policy.allows(host)
        assert not any(one == "*" for one in policy.patterns if policy.allows("mx.example.net"))


def tlsa(data: bytes) -> None:
    """TLSA records with any octets (RFC 6698 2.1): what cannot be acted upon is left out."""
    (usage, selector, matching), der = (*data[:3], 0, 0, 0)[:3], data[3:]
    records = dane.usable([(usage % 5, selector % 3, matching % 4, der)])
    if dane.is_authentic(records, [der], ["mx.example.net"]):
        assert matching % 4 == 0, "nothing is its own digest"


def web_answer(data: bytes) -> None:
    """What the web server of a policy says: a document within the limit, or FetchFailed."""
    size, answer = _choice(data)
    with suppress(FetchFailed, OSError, ValueError, http.client.HTTPException):
        assert len(_get(_Given(_cut(answer, size)), "mta-sts.example.net", "/", 1000)) <= 1000


def log_line(data: bytes) -> None:
    """One event is one line of printable ASCII, whatever strangers put in it (S22)."""
    for value in (data.decode("utf-8", "surrogateescape"), data):
        plain = log.format_logfmt(1e9, "info", "event", {"peer": value, "n": 1})
        as_json = log.format_json(1e9, "info", "event", {"peer": value, "n": 1})
        for line in (plain, as_json):
            assert line.endswith("\n") and line[:-1].isascii() and line[:-1].isprintable()
        assert plain.endswith(" n=1\n") and json.loads(as_json)["n"] == 1


TARGETS: dict[str, Target] = {
    "addresses": addresses, "dkim": dkim, "dotted": dotted, "drafts": drafts, "dsn": dsn, "envelope": envelope,
    "file_name": file_name, "header": header_fields, "imap_command": imap_command, "imap_date": imap_date,
    "imap_set": imap_set, "imap_strings": imap_strings, "log_line": log_line, "mailbox_name": mailbox_name,
    "message": message, "path": path, "pieces": in_pieces, "report": report, "rewritten": rewritten,
    "sasl": sasl_exchange, "sent": sent, "settings": settings, "smtp_command": smtp_command, "smtp_reply": smtp_reply,
    "sts_policy": sts_policy, "tlsa": tlsa, "web_answer": web_answer, "words": words,
}  # fmt: skip
