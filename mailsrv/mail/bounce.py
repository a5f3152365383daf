"""The delivery status notification: what a sender is told of a message that failed, takes long, or arrived.

Three parts: plain words, the same for machines, and the message or its header. Nothing a remote host or a sender wrote
reaches a line of ours with a CR or LF in it (S23). A report has the null sender and is never answered; one about a
message that has the null sender itself goes to the postmaster, and there it ends (S13).

Imports: store.entry, log, errors, values.    RFC 3461 (when), 3464 (what), 6522 (the parts), 6533 (UTF-8), 3834 5.
"""

from __future__ import annotations

import email.errors
import email.header
import email.utils
import os
import quopri
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mailsrv import log
from mailsrv.store.entry import Entry, Recipient
from mailsrv.values import Address

Kind = Literal["failed", "delayed", "delivered"]
HEADER_OCTETS = 64 * 1024  # of the original, at most, in a report
LINE = 900
LONGEST_LINE = 998  # RFC 5322 2.1.1
_LINE_END = re.compile(rb"\r\n|\r|\n")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ATOM = re.compile(r"[A-Za-z0-9!#$&'*+/=?^_`{|}~%.-]+")

# What a status means, for somebody who has never heard of it: the code itself, else its first two numbers. RFC 3463 3.
WORDS = {
    "5.1.1": "There is no such mailbox there. Please check the address.",
    "5.1.2": "There is no such mail domain. Please check the part of the address after the @.",
    "5.1.3": "The address is not written as an address there has to be.",
    "5.1.6": "The recipient has moved and has no new address there.",
    "5.1.10": "The domain says that it takes no mail at all.",
    "5.2.1": "The mailbox is switched off.",
    "5.2.2": "The mailbox is full.",
    "5.2.3": "The message is larger than the recipient takes.",
    "5.3.4": "The message is larger than the other server takes.",
    "5.4.4": "No server could be found that takes mail for the domain.",
    "5.4.6": "The message went round in circles between servers.",
    "5.6.7": "The other server cannot take addresses or headers with letters outside ASCII.",
    "5.7.1": "The other server refuses the message.",
    "5.7.10": "The message could not be sent with the encryption that is required.",
    "5.7.30": "The message could not be sent with the encryption that was asked for.",
    "4.4.7": "The message could not be delivered in the time that was given to it.",
    "5.1": "Something is wrong with the address.",
    "5.2": "Something is wrong with the mailbox.",
    "5.3": "The other mail system cannot take the message.",
    "5.4": "The other server could not be reached, now or ever.",
    "5.5": "The two servers did not understand each other.",
    "5.6": "The other server cannot take the contents of the message.",
    "5.7": "The other server refuses the message for reasons of security or policy.",
}
SUBJECTS: dict[Kind, str] = {"failed": "Undelivered", "delayed": "Delayed", "delivered": "Delivered"}


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be told: `recipients` of `entry`, all of one kind ("delivered" covers relayed and expanded).

    `content(n)` gives the first n octets of the message; `until` is when it will be given up.
    """

    kind: Kind
    entry: Entry
    recipients: tuple[Recipient, ...]
    content: Callable[[int], bytes]
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A finished report and where it goes. `final`: a failure of this one is told to nobody. `require_tls`: it is about
    a message that had the wish (RFC 8689 5).
    """

    recipient: Address
    message: bytes
    smtputf8: bool
    final: bool
    require_tls: bool = False


UNTOLD = "It was passed on to another address; what was said there is not shown"
REPORT, LAST_REPORT = "report", "report to postmaster"  # Origin.service of entries that are reports


class Bounces:
    """Writes reports; messages up to `return_octets` are returned whole."""

    def __init__(self, hostname: str, return_octets: int = 50_000) -> None:
        self._hostname, self._return_octets = hostname, return_octets

    def received(self, id: str) -> str:
        """The trace line of a report."""
        return f"Received: by {self._hostname} (mailsrv) id {id};\r\n\t{email.utils.formatdate(localtime=True)}\r\n"

    def write(self, report: Report, postmaster: Address | None, *, stays: bool = False) -> Letter | None:
        """None where nobody is to be told; the postmaster is, of what has no sender. For a thread.

        `stays`: the letter goes no further than a mailbox here. Any other is 7-bit, so that every host takes it.
        """
        entry = report.entry
        sender, final = entry.envelope.sender, False
        if sender is None:
            if report.kind != "failed" or entry.origin.service == LAST_REPORT:
                log.warning("report to nobody", id=entry.id, kind=report.kind)
                return None
            sender, final = postmaster, True
        if sender is None:
            log.error("no postmaster to tell", id=entry.id)
            return None
        if not final and _is_passed_on(entry):
            report = replace(report, recipients=_as_written_to(report.recipients))
        author = postmaster or Address("postmaster", self._hostname)
        if not str(author).isascii():
            author = Address("postmaster", self._hostname)
        # Who has an address with other letters is on a host that takes 8-bit text with it (RFC 6531 3.1).
        seven_bit = str(sender).isascii() and not stays
        utf8 = not seven_bit and not all(
            str(one).isascii() for one in (sender, *(r.address for r in report.recipients))
        )
        message = self._message(report, author, sender, utf8=utf8, seven_bit=seven_bit, final=final)
        return Letter(sender, message, utf8, final, entry.envelope.require_tls)

    def undeliverable(self, letter: Letter, postmaster: Address | None) -> Letter | None:
        """The sender cannot be told, for good: the postmaster is given the report instead."""
        if letter.final or postmaster is None or postmaster == letter.recipient:
            return None
        return replace(letter, recipient=postmaster, final=True)

    def _message(
        self, report: Report, author: Address, to: Address, *, utf8: bool, seven_bit: bool, final: bool
    ) -> bytes:
        entry = report.entry
        wanted = entry.envelope.ret != "HDRS" and not entry.envelope.require_tls  # RFC 3461 4.3, RFC 8689 5
        asked = report.kind == "failed" and wanted
        full = asked and entry.size <= self._return_octets and (final or not _is_passed_on(entry))
        content = report.content(entry.size if full else HEADER_OCTETS + 4)
        header = _header_of(content)
        boundary = f"report-{os.urandom(12).hex()}"
        head = [
            f'From: "Mail system of {self._hostname}" <{quoted(author)}>',
            f"To: <{quoted(to)}>",
            f"Subject: {_subject(report.kind, _field(header, b'subject'), final=final)}",
            f"Date: {email.utils.formatdate(localtime=True)}",
            f"Message-ID: <{os.urandom(12).hex()}@{self._hostname}>",
            "Auto-Submitted: auto-replied",
            "MIME-Version: 1.0",
            f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"',
        ]
        answers = _CONTROLS.sub(" ", _field(header, b"message-id")).strip()
        if re.fullmatch(r"<[!-;=?-~]{1,250}>", answers):
            head += [f"In-Reply-To: {answers}", f"References: {answers}"]
        parts = [self._words(report, header, final=final), self._status(report, utf8=utf8)]
        parts.append(_original(content, full=full, utf8=utf8, seven_bit=seven_bit))
        lines = [*head, "", "This is a report in MIME format.", ""]
        message = "\r\n".join(lines).encode()
        for part in parts:
            message += b"--%b\r\n%b\r\n" % (boundary.encode(), part)
        return message + b"--%b--\r\n" % boundary.encode()

    # -------------------------------------------------------------- plain words

    def _words(self, report: Report, header: bytes, *, final: bool) -> bytes:
        entry = report.entry
        lines = [f"This is the mail system at {self._hostname}.", ""]
        if final:
            lines += ["The sender of this message cannot be told, so you are, as postmaster.", ""]
        if report.kind == "failed":
            lines.append("A message could not be delivered to:" if final else "Your message could not be delivered to:")
        elif report.kind == "delayed":
            lines += ["Your message has not been delivered yet. There is nothing you need to do: it is tried",
                      f"again and again until {_readable(report.until)}. It still waits for:"]  # fmt: skip
        else:
            lines.append("You asked to be told. Your message was taken over for:")
        for one in report.recipients:
            lines += ["", *_about(one, report.kind)]
        lines += ["", "About the message:"]
        for label, value in (
            ("Subject", _decoded(_field(header, b"subject"))),
            ("To", _decoded(_field(header, b"to"))),
            ("Sent", _decoded(_field(header, b"date"))),
            ("Taken here", f"{_readable(entry.arrived_at)} as {entry.id}"),
        ):
            if value:
                lines += _wrapped(f"  {label}: {value[:300]}", "    ")
        lines.append("")
        text = "\r\n".join(lines)
        if text.isascii():
            return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + text.encode()
        kind = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        return kind + _quoted_printable(text.encode())

    # -------------------------------------------------------------- for machines

    def _status(self, report: Report, *, utf8: bool) -> bytes:
        entry = report.entry
        fields = [f"Reporting-MTA: dns; {self._hostname}"]
        if entry.envelope.envid:
            fields.append(f"Original-Envelope-Id: {_clean(entry.envelope.envid)}")
        fields.append(f"Arrival-Date: {email.utils.formatdate(entry.arrived_at, localtime=True)}")
        if entry.envelope.release:
            fields.append(f"Future-Release-Request: {_clean(entry.envelope.release)}")  # RFC 4865
        for one in report.recipients:
            fields += ["", *_recipient_fields(one, report, utf8=utf8)]
        kind = b"message/global-delivery-status" if utf8 else b"message/delivery-status"
        encoding = b"Content-Transfer-Encoding: 8bit\r\n" if utf8 else b""
        text = "\r\n".join(fields) + "\r\n"
        return b"Content-Type: %b\r\n%b\r\n%b" % (kind, encoding, text.encode("utf-8" if utf8 else "ascii", "replace"))


def _is_passed_on(entry: Entry) -> bool:
    """Whether somebody outside wrote to an address of ours that leads out. Who that was is not sure: a stranger whose
    name was used is not sent what another one wrote.
    """
    return not entry.origin.account and any(one.via is not None for one in entry.recipients)


def _as_written_to(recipients: tuple[Recipient, ...]) -> tuple[Recipient, ...]:
    """The recipients by the addresses that the sender knows. Host and words of the other server are left out: they tell
    where an alias leads. docs/decisions/0036-where-an-alias-leads.md
    """
    shown: dict[tuple[Address, str], Recipient] = {}
    for one in recipients:
        if one.via is not None:
            history = [replace(last, code=0, text=UNTOLD, host="") for last in one.history[-1:]]
            one = replace(one, address=one.via, via=None, history=history)
        shown.setdefault((one.address, one.report), one)
    return tuple(shown.values())


def _recipient_fields(one: Recipient, report: Report, *, utf8: bool) -> list[str]:
    """RFC 3464 2.3."""
    fields = []
    if one.options.orcpt:  # and only then: RFC 3464 2.3.1, RFC 3461 6.3 (d)
        fields.append(f"Original-Recipient: {_spelt(_clean(one.options.orcpt), utf8=utf8)}")
    kind = "rfc822" if str(one.address).isascii() else "utf-8"
    fields.append(f"Final-Recipient: {_spelt(f'{kind}; {_clean(quoted(one.address))}', utf8=utf8)}")
    action = one.report if report.kind == "delivered" and one.report else report.kind
    fields += [f"Action: {action}", f"Status: {_status_of(one, report.kind)}"]
    last = one.last
    if last is None:
        return fields
    host = last.host.partition("[")[0].partition(":")[0]
    if host and len(host) <= 255 and _ATOM.fullmatch(host):
        fields.append(f"Remote-MTA: dns; {host}")
    if last.code:
        words = f"{last.code} {last.enhanced} {last.text}" if last.enhanced else f"{last.code} {last.text}"
        fields.append(f"Diagnostic-Code: smtp; {_clean(words)}")
    elif last.text:
        fields.append(f"Diagnostic-Code: x-mailsrv; {_clean(last.text)}")
    fields.append(f"Last-Attempt-Date: {email.utils.formatdate(last.at, localtime=True)}")
    if report.kind == "delayed":
        fields.append(f"Will-Retry-Until: {email.utils.formatdate(report.until, localtime=True)}")
    return [field if utf8 else field.encode("ascii", "replace").decode() for field in fields]


def _spelt(typed: str, *, utf8: bool) -> str:
    """An address with its type; in ASCII one of type utf-8 is written as utf-8-addr-xtext. RFC 6533 3."""
    kind, semicolon, address = typed.partition(";")
    if utf8 or kind.lower() != "utf-8" or typed.isascii():
        return typed
    start = f"{kind}{semicolon}{' ' if address.startswith(' ') else ''}"
    pieces = [c if c.isascii() and c not in " \\+=" else f"\\x{{{ord(c):02X}}}" for c in address.strip()]
    while len(start) + sum(map(len, pieces)) > LINE:
        pieces.pop()
    return start + "".join(pieces)


def _status_of(one: Recipient, kind: Kind) -> str:
    """The enhanced code, of the class that the action has (RFC 3464 2.3.4): permanence never comes from words."""
    code = one.last.enhanced if one.last is not None else ""
    if kind == "delivered":
        return code if _STATUS.fullmatch(code) and code[0] == "2" else "2.0.0"
    if kind == "delayed":
        return code if _STATUS.fullmatch(code) and code[0] == "4" else "4.0.0"
    if not _STATUS.fullmatch(code) or code[0] == "2":
        return "5.0.0"
    return code


def _about(one: Recipient, kind: Kind) -> list[str]:
    """A recipient in plain words."""
    through = f" (through {one.via})" if one.via is not None else ""
    lines = _wrapped(f"  {_CONTROLS.sub(' ', str(one.address))}{through}", "    ")
    last = one.last
    if kind == "delivered":
        what = {
            "relayed": "Handed to a server that gives no reports itself.",
            "expanded": "The address stands for several others, which it was sent to.",
        }.get(one.report, "Delivered to the mailbox.")
        return [*lines, f"    {what}"]
    if last is None:
        return lines
    code = _status_of(one, kind)
    meaning = WORDS.get(code) or WORDS.get(code.rpartition(".")[0])
    if meaning:
        lines += _wrapped(f"    {meaning}", "    ")
    said = _CONTROLS.sub(" ", f"{last.code} {last.enhanced} {last.text}" if last.code else last.text).strip()
    whose = f"The server {last.host} said: " if last.host and last.code else "The reason: "
    return [*lines, *_wrapped(f"    {whose}{said[:LINE]}", "      ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, 78, subsequent_indent=indent, break_long_words=len(text) > LINE, break_on_hyphens=False
    ) or [""]  # fmt: skip


def _readable(at: float) -> str:
    return email.utils.formatdate(at, localtime=True)


# ------------------------------------------------------------------ the original


def _header_of(content: bytes) -> bytes:
    end = re.search(rb"\r?\n\r?\n", content)
    return content[: end.start()] if end else content[:HEADER_OCTETS]


def _original(content: bytes, *, full: bool, utf8: bool, seven_bit: bool) -> bytes:
    """The last part. A report that another server refuses for its lines or its octets would never arrive: of a message
    with such lines, or with 8-bit octets where they may not be, only the header is returned (message/rfc822 may not be
    encoded, RFC 2046 5.2.1), and of its header what fits.
    """
    text = _LINE_END.sub(b"\r\n", content if full else _header_of(content))
    if full and (max(map(len, text.split(b"\r\n"))) > LONGEST_LINE or (seven_bit and not text.isascii())):
        full, text = False, _LINE_END.sub(b"\r\n", _header_of(content))
    if full:
        kind = b"message/global" if utf8 else b"message/rfc822"
    else:
        kind = b"message/global-headers" if utf8 else b"text/rfc822-headers"
        text = b"\r\n".join(line[:LONGEST_LINE] for line in text.split(b"\r\n"))
        if len(text) >= HEADER_OCTETS:
            text = text[: max(text.rfind(b"\n", 0, HEADER_OCTETS) + 1, 0)]
    if not text.endswith(b"\r\n"):
        text += b"\r\n"
    encoding = b"" if text.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    if seven_bit and encoding:  # RFC 6522 4 has it for broken headers
        encoding, text = b"Content-Transfer-Encoding: quoted-printable\r\n", _quoted_printable(text)
    return b"Content-Type: %b\r\n%b\r\n%b" % (kind, encoding, text)


def _quoted_printable(text: bytes) -> bytes:
    return quopri.encodestring(text.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")


def _field(header: bytes, name: bytes) -> str:
    """A field's value, unfolded; "" without one."""
    found = re.search(rb"(?im)^" + re.escape(name) + rb"[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", header[:HEADER_OCTETS])
    if found is None:
        return ""
    return _CONTROLS.sub(" ", found[1].decode("utf-8", "replace")).strip()[:2000]


def _decoded(text: str) -> str:
    """Encoded words read; a text that cannot be is shown as it is."""
    try:
        text = str(email.header.make_header(email.header.decode_header(text)))
    except (email.errors.MessageError, LookupError, ValueError):
        pass
    return _CONTROLS.sub(" ", text).strip()


def _subject(kind: Kind, original: str, *, final: bool) -> str:
    words = ("Undeliverable report" if final else SUBJECTS[kind]) + (
        f": {_decoded(original)[:200]}" if original else " message"
    )
    if words.isascii():
        return "\r\n\t".join(textwrap.wrap(words, 70, break_on_hyphens=False))
    return email.header.Header(words, "utf-8", header_name="Subject").encode(linesep="\r\n")


def _clean(text: str) -> str:
    """One line, whatever it was."""
    return _CONTROLS.sub(" ", text).strip()[:LINE]


def quoted(address: Address) -> str:
    """The address as a field has it: a local part that is no atom is quoted again (RFC 5322 3.4.1)."""
    local = _CONTROLS.sub("", address.local)
    dots = local.startswith(".") or local.endswith(".") or ".." in local
    if dots or (local.isascii() and not _ATOM.fullmatch(local)) or any(c in ' "\\<>@,;:()[]' for c in local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}@{address.domain}" if address.domain else local
