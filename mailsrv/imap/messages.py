"""Handlers that act on messages: APPEND, SEARCH, STORE, COPY, MOVE, EXPUNGE.

Imports: imap.context, imap.reader, imap.search, imap.view, mail, wire, log, errors.    RFC 3501 6.3.11, 6.4; RFC
4315, 6851, 7888, 7889.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mailsrv import log
from mailsrv.errors import MailboxNameInvalid, MailboxNotFound, MessageTooLarge, OverQuota
from mailsrv.imap.context import Bye, Refused
from mailsrv.imap.reader import AFTER_LOGIN, finish_append
from mailsrv.imap.responses import refusal
from mailsrv.imap.search import search as evaluate
from mailsrv.imap.view import View
from mailsrv.values import Copied
from mailsrv.wire import imap_values as v
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_responses import number_set

if TYPE_CHECKING:
    from mailsrv.imap.session import Session

NUMBERS_PER_LINE = 10_000
MANY_FOUND = 10_000  # 2 ms to write them down
LINES_PER_TURN = 1_000  # 2 ms


def resolve(view: View, command: v.Fetch | v.Store | v.Copy | v.Move) -> list[int]:
    """The UIDs a command means, by this client's numbers or by UID."""
    if command.uid:
        view.uses_uid = True
        return view.known_uids_of(command.set)
    return view.uids_of(command.set)


def refuse_expunged(view: View, command: v.Fetch | v.Store, gone: bool) -> None:
    """Messages the client can still number were removed by somebody else: say so, never touch a neighbour (R6)."""
    if gone and not command.uid:
        raise Refused("[EXPUNGEISSUED] Some of the messages were expunged by another session")


# ------------------------------------------------------------------ APPEND


def append(session: Session, command: v.Command) -> str:
    """Streams the message to the store; refuses before the client sends it where it can (R24, R25)."""
    assert isinstance(command, v.Append)
    literal, stream = command.literal, session.stream
    failure = _append_refusal(session, command)
    if failure is not None and literal.sync:
        raise failure
    most = session.settings.message_bytes
    if literal.size > 2 * most + 1024 * 1024:
        raise Bye("The message is too large to be read and refused")
    if literal.sync:
        stream.write(b"+ OK\r\n")
    mail = session.mail()
    incoming = mail.incoming()
    try:
        nul = False
        for chunk in stream.read_chunks(literal.size):
            if failure is None:
                nul = nul or b"\0" in chunk
                if incoming.write(chunk):
                    mail.run(incoming.spill)
        finish_append(stream, AFTER_LOGIN, command)
        if failure is not None:
            raise failure
        if nul and not literal.binary:
            raise Refused("A message cannot hold NUL octets", "BAD")
        if not literal.size:
            raise Refused("An empty message was not appended")  # RFC 3501 6.3.11: zero octets mean an aborted APPEND
        appended = mail.append(
            command.mailbox, incoming, flags=command.flags.system, keywords=command.flags.keywords,
            internal_date=command.date,
        )  # fmt: skip
    except MailboxNotFound as missing:
        raise Refused(refusal(missing, "TRYCREATE")) from None
    finally:
        incoming.close()
    log.info(
        "appended", session=session.id, user=str(mail.account.address), mailbox=str(appended.mailbox),
        name=command.mailbox, uid=appended.uid, size=appended.size, file=appended.path,
    )  # fmt: skip
    return f"[APPENDUID {appended.uidvalidity} {appended.uid}] APPEND completed"


def _append_refusal(session: Session, command: v.Append) -> Refused | None:
    """Why the message will not be taken, known before it is sent."""
    size, account = command.literal.size, session.mail().account
    if size > session.settings.message_bytes:
        error = MessageTooLarge(f"A message may have {session.settings.message_bytes} octets")
        return Refused(refusal(error))
    try:
        session.mail().find(command.mailbox)
    except (MailboxNotFound, MailboxNameInvalid) as missing:
        return Refused(refusal(missing, "TRYCREATE" if isinstance(missing, MailboxNotFound) else None))
    if account.quota_bytes and session.mail().usage() + size > account.quota_bytes:
        return Refused(refusal(OverQuota("The mailbox is full")))
    return None


# ------------------------------------------------------------------ SEARCH


def search(session: Session, command: v.Command) -> None:
    """Always one result line, empty or not (R42)."""
    assert isinstance(command, v.Search)
    view = session.selected()
    if command.uid:
        view.uses_uid = True
    found = evaluate(view.mailbox, view, command.key)
    if len(found) > MANY_FOUND:
        line = view.mailbox.offload(_search_line, view, found, command.uid)
    else:
        line = _search_line(view, found, command.uid)
    session.stream.queue(line)


def _search_line(view: View, found: list[int], by_uid: bool) -> bytes:
    numbers = found if by_uid else view.seqs(found)
    # A list that is made step by step, so that a thread which makes it can be interrupted.
    return " ".join(["* SEARCH", *[str(number) for number in numbers]]).encode() + b"\r\n"


# ------------------------------------------------------------------ STORE


def store(session: Session, command: v.Command) -> None:
    """The client's own change comes back by the same road as everybody's, unless it asked for silence (R29)."""
    assert isinstance(command, v.Store)
    view = session.selected()
    if command.flags.recent:
        raise WireError("\\Recent cannot be stored")  # R12
    uids = resolve(view, command)
    if not uids:
        return
    # What others changed before is told as theirs.
    stored = view.mailbox.store_flags(uids, command.op, command.flags.system, command.flags.keywords)
    if command.silent:
        # What somebody else changed before, and the client does not know yet, is not hidden with it (R29).
        own = [uid for uid, previous in zip(stored.changed, stored.previous, strict=True) if previous <= view.cursor]
        view.silence(own, stored.modseq)
    view.mailbox.refresh()
    told: set[int] = set()
    if lines := view.tell(expunges=command.uid, told=told):
        session.stream.queue(b"".join(lines))
    if not command.silent:
        _tell_unchanged(session, view, [uid for uid in uids if uid not in told])
    refuse_expunged(view, command, bool(stored.gone))


def _tell_unchanged(session: Session, view: View, uids: list[int]) -> None:
    """Messages that had the flags already are answered too (RFC 3501 6.4.6)."""
    for start in range(0, len(uids), LINES_PER_TURN):
        if start:
            time.sleep(0)
        lines = []
        for uid in uids[start : start + LINES_PER_TURN]:
            position, seq = view.mailbox.position(uid), view.seq(uid)
            if position is not None and seq is not None:
                lines.append(view.flags_line(seq, uid, position, with_uid=view.uses_uid))
        session.stream.queue(view.new_keywords() + b"".join(lines))


# ------------------------------------------------------------------ COPY, MOVE, EXPUNGE


def copy(session: Session, command: v.Command) -> str | None:
    assert isinstance(command, v.Copy)
    view = session.selected()
    uids = resolve(view, command)
    if not uids:
        return None
    copied = _transfer(view, command, uids)
    session.acted("copied", copied.source_uids, command.mailbox)
    return f"[{_copyuid(copied)}] COPY completed" if copied.source_uids else None


def move(session: Session, command: v.Command) -> str | None:
    """COPYUID goes first, in an untagged OK, then the EXPUNGEs (R27)."""
    assert isinstance(command, v.Move)
    view = session.selected()
    uids = resolve(view, command)
    if not uids:
        return None
    moved = _transfer(view, command, uids)
    session.acted("moved", moved.source_uids, command.mailbox)
    if moved.source_uids:
        session.stream.queue(b"* OK [%b] Moved\r\n" % _copyuid(moved).encode())
    return None


def _transfer(view: View, command: v.Copy | v.Move, uids: list[int]) -> Copied:
    """By number all or none: a NO must not leave a part behind (R26, R6). UIDs that are gone are ignored (R9)."""
    try:
        operation = view.mailbox.move if isinstance(command, v.Move) else view.mailbox.copy
        return operation(uids, command.mailbox, whole=not command.uid)
    except MailboxNotFound as missing:
        raise Refused(refusal(missing, "TRYCREATE")) from None


def _copyuid(copied: Copied) -> str:
    source, target = number_set(copied.source_uids).decode(), number_set(copied.target_uids).decode()
    return f"COPYUID {copied.uidvalidity} {source} {target}"


def expunge(session: Session, command: v.Command) -> None:
    """Only messages marked deleted, and for UID EXPUNGE only those in the set (R28)."""
    assert isinstance(command, v.Expunge)
    view = session.selected()
    if command.uids is not None:
        view.uses_uid = True
        gone = view.mailbox.expunge(view.known_uids_of(command.uids))
    else:
        gone = view.mailbox.expunge()
    session.acted("expunged", gone)
