"""A large mailbox: read, searched and changed by one client.

`first`: nothing is cached yet; `cold`: the server was restarted; `warm`: again on the same connection, the median of
three. The page cache is warm throughout. What comes back is counted, and bodies are compared with what was stored.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

from targets.base import Target

from . import gen
from .imap import Imap, ImapError
from .proc import Meter
from .util import pct
from .work import U_BOX, Work

FETCH_LINE = re.compile(rb"(?m)^\* (\d+) FETCH \(")
LITERAL_HEAD = re.compile(rb"\* (\d+) FETCH \([^\r\n]*\{(\d+)\}\r\n")
HEADERS = "FETCH 1:* BODY.PEEK[HEADER.FIELDS (DATE FROM TO SUBJECT MESSAGE-ID REFERENCES)]"
READS = (
    ("flags", "FETCH 1:* (UID FLAGS)"),
    ("envelope", "FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)"),
    ("headers", HEADERS),
    ("bodystructure", "FETCH 1:* BODYSTRUCTURE"),
)


def mailbox(work: Work) -> None:
    fill(work)
    sizes: list[int] = []
    for phase in ("first", "cold", "warm"):
        if phase != "warm":
            if work.target.can_restart:
                work.target.restart()
            client = Imap(work.target.imap).login(*work.target.login(U_BOX))
        times = 3 if phase == "warm" else 1
        read_all(work, client, phase, times, sizes)
        read_some(work, client, phase)
        if phase != "first":
            read_many(work, client, phase, times)
            search(work, client, phase, times)
    work.put("mailbox.mem_after_reads_mb", work.target.mem()["pss_kb"] / 1024)
    change(work, client)
    client.close()


def read_all(work: Work, client: Imap, phase: str, times: int, sizes: list[int]) -> None:
    """SELECT, then flags, envelopes, header fields and structures of all messages."""
    n = work.sizes["box_n"]
    meter, got = timed(work.target, times, client.select)
    put_meter(work, meter, f"{phase}.select")
    work.check(got == n, f"SELECT says {got} of {n}")
    for name, command in READS:
        meter, chunks = timed(work.target, times, client.bulk, command)
        put_meter(work, meter, f"{phase}.{name}")
        data = numbered(work, chunks, n, f"{phase} {name}")
        work.put(f"mailbox.{phase}.{name}.mbps", len(data) / 1e6 / meter.wall)
        if name == "envelope":
            check_sizes(work, data, n, sizes)
        elif name == "headers":
            ids = {int(number) for number in gen.MSGID.findall(data)}
            work.check(len(ids) == n, f"headers: {len(ids)} different ids")
        elif name == "bodystructure":
            parts = re.findall(rb'(?i)"(?:plain|alternative|mixed|html)"', data)
            work.check(len(parts) >= n, "BODYSTRUCTURE parts missing")


def check_sizes(work: Work, data: bytes, n: int, sizes: list[int]) -> None:
    found = [int(size) for size in re.findall(rb"RFC822\.SIZE (\d+)", data)]
    work.check(len(found) == n, "sizes missing")
    if not sizes:
        sizes.append(sum(found))
        want = sum(len(gen.message(i)) for i in range(n))
        work.check(sizes[0] == want, f"RFC822.SIZE sum {sizes[0]}, generated {want}")
    work.check(sum(found) == sizes[0], "sizes differ")
    work.check(data.count(b"<b.") >= n, "message ids missing from ENVELOPE")


def read_some(work: Work, client: Imap, phase: str) -> None:
    """Bodies of messages picked at random, one at a time."""
    n = work.sizes["box_n"]
    answers, _ = client.cmd("UID SEARCH ALL")
    uids = numbers_of(answers, b"SEARCH")
    work.check(len(uids) == n, f"UID SEARCH ALL: {len(uids)}")
    picked = work.rng.sample(uids, min(work.sizes["box_rand"], n))
    seconds, bodies = [], []
    with Meter(work.target) as meter:
        for uid in picked:
            begun = time.perf_counter()
            answers, _ = client.cmd(f"UID FETCH {uid} BODY.PEEK[]")
            seconds.append(time.perf_counter() - begun)
            bodies.append(answers)
    check_bodies(work, bodies, f"{phase} random")
    key = f"mailbox.{phase}.rand_body"
    work.put(f"{key}.p50_ms", pct(seconds, 50) * 1e3)
    work.put(f"{key}.p99_ms", pct(seconds, 99) * 1e3)
    work.put(f"{key}.server_cpu_ms_each", meter.server * 1e3 / len(picked))
    work.put(f"{key}.client_cpu_ms_each", meter.client * 1e3 / len(picked))


def read_many(work: Work, client: Imap, phase: str, times: int) -> None:
    """Many bodies in one FETCH."""
    n = work.sizes["box_n"]
    low = n // 5 + 1
    count = min(work.sizes["box_bulk"], n - low)
    command = f"FETCH {low}:{low + count - 1} BODY.PEEK[]"
    meter, chunks = timed(work.target, times, client.bulk, command)
    put_meter(work, meter, f"{phase}.bulk_body")
    data = numbered(work, chunks, count, "bulk bodies", low)
    work.put(f"mailbox.{phase}.bulk_body.mbps", len(data) / 1e6 / meter.wall)
    check_bulk(work, data, count, phase)


def search(work: Work, client: Imap, phase: str, times: int) -> None:
    n = work.sizes["box_n"]
    unseen = sum(1 for i in range(n) if i % 3 == 0)
    for name, command, want in (
        ("search_unseen", "SEARCH UNSEEN", unseen),
        ("search_subject", f"SEARCH SUBJECT {gen.SUBJECT_WORD}", gen.expected_subject(n)),
        ("search_text", f"SEARCH TEXT {gen.TEXT_WORD}", gen.expected_text(n)),
    ):
        if name == "search_text" and phase == "cold":
            continue
        meter, (answers, _) = timed(work.target, times if name != "search_text" else 1, client.cmd, command)
        put_meter(work, meter, f"{phase}.{name}")
        got = len(numbers_of(answers, b"SEARCH"))
        work.check(got == want, f"{command}: {got} found, {want} there")
    if client.has("SORT"):
        meter, (answers, _) = timed(work.target, times, client.cmd, "SORT (SUBJECT DATE) UTF-8 ALL")
        put_meter(work, meter, f"{phase}.sort_subject")
        work.check(len(numbers_of(answers, b"SORT")) == n, "SORT count")


def change(work: Work, client: Imap) -> None:
    """Flags, copies, appends, STATUS of many mailboxes, expunges."""
    n = work.sizes["box_n"]
    count = min(work.sizes["box_mod"], n // 2)
    with Meter(work.target) as meter:
        answers, _ = client.cmd(f"STORE 1:{count} +FLAGS (\\Seen)")
    put_meter(work, meter, "store_seen")
    work.check(sum(1 for answer in answers if b"FETCH" in answer) >= count // 4, "STORE answers missing")
    answers, _ = client.cmd(f"SEARCH 1:{count} UNSEEN")
    work.check(not numbers_of(answers, b"SEARCH"), "STORE had no effect")
    for name in ("Copy", "App"):
        client.cmd(f"CREATE {name}", ok=False)
    before = client.status_messages("Copy")
    with Meter(work.target) as meter:
        client.cmd(f"COPY {n - count + 1}:{n} Copy")
    put_meter(work, meter, "copy")
    got = client.status_messages("Copy") - before
    work.check(got == count, f"COPY made {got} of {count}")
    append(work, client)
    with Meter(work.target) as meter:
        client.cmd(f"STORE 1:{count} +FLAGS.SILENT (\\Deleted)")
    put_meter(work, meter, "store_deleted")
    with Meter(work.target) as meter:
        chunks = client.bulk("EXPUNGE")
    put_meter(work, meter, "expunge")
    work.check(b"".join(chunks).count(b" EXPUNGE\r\n") == count, "EXPUNGE answers")
    work.check(client.select() == n - count, "messages left after EXPUNGE")


def append(work: Work, client: Imap) -> None:
    blobs = [gen.simple(f"app.{i}", 10240) for i in range(work.sizes["box_append"])]
    before = client.status_messages("App")
    seconds = []
    with Meter(work.target) as meter:
        for blob in blobs:
            begun = time.perf_counter()
            client.append("App", blob)
            seconds.append(time.perf_counter() - begun)
    put_meter(work, meter, "append")
    work.put("mailbox.append.p50_ms", pct(seconds, 50) * 1e3)
    work.put("mailbox.append.p99_ms", pct(seconds, 99) * 1e3)
    work.check(client.status_messages("App") - before == len(blobs), "APPEND count")
    boxes = work.sizes["box_status"]
    for i in range(boxes):
        client.cmd(f"CREATE S{i:03d}", ok=False)
        if i % 5 == 0:
            client.append(f"S{i:03d}", blobs[0])
    with Meter(work.target) as meter:
        got = sum(client.status_messages(f"S{i:03d}") for i in range(boxes))
    put_meter(work, meter, "status_boxes")
    work.check(got >= (boxes + 4) // 5, f"STATUS sum {got}")


def put_meter(work: Work, meter: Meter, name: str) -> None:
    work.put(f"mailbox.{name}.wall_s", meter.wall)
    work.put(f"mailbox.{name}.server_cpu_s", meter.server)
    work.put(f"mailbox.{name}.client_cpu_s", meter.client)


def timed(target: Target, times: int, act: Callable[..., Any], *args: str) -> tuple[Meter, Any]:
    """Runs it several times. Returns the meter of the median run (by wall time) and the last answer."""
    meters = []
    for _ in range(times):
        with Meter(target) as meter:
            answer = act(*args)
        meters.append(meter)
    meters.sort(key=lambda meter: meter.wall)
    return meters[len(meters) // 2], answer


def numbers_of(answers: list[bytes], word: bytes) -> list[int]:
    for answer in answers:
        if answer.upper().startswith(b"* " + word):
            return [int(number) for number in answer.split()[2:]]
        if answer.upper().startswith(b"* ESEARCH"):
            raise ImapError("ESEARCH answer to plain SEARCH")
    return []


def numbered(work: Work, chunks: list[bytes], n: int, what: str, low: int = 1) -> bytes:
    """The answer as one text, checked to hold each message once."""
    data = b"".join(chunks)
    seqs = FETCH_LINE.findall(data)
    right = len(seqs) == n and set(map(int, seqs)) == set(range(low, low + n))
    work.check(right, f"{what}: {len(seqs)} FETCH answers for {n}")
    return data


def check_bodies(work: Work, bodies: list[list[bytes]], what: str) -> None:
    bad = 0
    for answers in bodies:
        for answer in answers:
            head = re.match(rb"\* \d+ FETCH \(.*?\{(\d+)\}\r\n", answer)
            if head:
                bad += not stored(answer[head.end() : head.end() + int(head.group(1))])
                break
        else:
            bad += 1
    work.check(bad == 0, f"{what}: {bad} bodies missing or not as stored")


def check_bulk(work: Work, data: bytes, count: int, phase: str) -> None:
    """All are there, and every tenth is what was stored."""
    position, bad, found = 0, 0, 0
    while head := LITERAL_HEAD.search(data, position):
        position = head.end() + int(head.group(2))
        found += 1
        if found % 10 == 0:
            bad += not stored(data[head.end() : position])
    work.check(found == count and bad == 0, f"{phase} bulk bodies: {found} of {count}, {bad} wrong")


def stored(body: bytes) -> bool:
    number = gen.MSGID.search(body)
    return number is not None and gen.message(int(number.group(1))) == body


def fill(work: Work) -> None:
    """Puts the messages into the INBOX of the user: as files of its Maildir where that is allowed, else by APPEND."""
    n = work.sizes["box_n"]
    client = Imap(work.target.imap).login(*work.target.login(U_BOX))
    have = client.select()
    client.close()
    if have:
        return
    place = work.target.maildir(U_BOX)
    mode = work.sizes["box_fill"]
    if mode == "auto":
        mode = "maildir" if place else "append"
    begun = time.perf_counter()
    with Meter(work.target) as meter:
        size = fill_maildir(*place, n) if mode == "maildir" and place else fill_by_append(work, n)
    seconds = time.perf_counter() - begun
    work.say(f"filled by {mode} in {seconds:.1f} s, {size / 1e6:.0f} MB")
    work.put(f"mailbox.import_{mode}_s", seconds)
    work.put("mailbox.import_server_cpu_s", meter.server)
    work.put("mailbox.bytes_mb", size / 1e6)


def fill_maildir(path: str, uid: int, n: int) -> int:
    size, foreign = 0, uid != os.getuid()
    for sub in ("", "/new", "/cur", "/tmp"):
        os.makedirs(path + sub, exist_ok=True)
        if foreign:
            os.chown(path + sub, uid, uid)
    home = os.path.dirname(path)
    if foreign and os.stat(home).st_uid == 0:
        os.chown(home, uid, uid)
    now = int(time.time()) - n - 10
    for i in range(n):
        message = gen.message(i)
        size += len(message)
        text = message.replace(b"\r\n", b"\n")
        flags = "" if i % 3 == 0 else "S"  # every third unread
        name = f"{path}/cur/{now + i}.M{i:06d}P1.bench,S={len(text)},W={len(message)}:2,{flags}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, text)
        os.close(fd)
        if foreign:
            os.chown(name, uid, uid)
    return size


def fill_by_append(work: Work, n: int) -> int:
    size = 0
    client = Imap(work.target.imap).login(*work.target.login(U_BOX))
    step = 50 if client.has("MULTIAPPEND") else 1
    for i in range(0, n, step):
        blobs = [gen.message(j) for j in range(i, min(n, i + step))]
        size += sum(map(len, blobs))
        client.append("INBOX", *blobs)
    client.select()
    read = [str(seq) for seq in range(1, n + 1) if (seq - 1) % 3]  # as in fill_maildir
    for i in range(0, len(read), 900):
        client.cmd("STORE " + ",".join(read[i : i + 900]) + " +FLAGS.SILENT (\\Seen)")
    client.close()
    return size
