"""The structure of a message is found in linear time, and is the one that Python's email package finds."""

from __future__ import annotations

import email
import email.policy
import random
import time
from collections.abc import Callable
from email.message import EmailMessage

import pytest

from mailsrv.wire.structure import bodystructure, envelope, parse


def nested_multiparts(depth: int) -> bytes:
    opening = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n"
    return b"".join(opening % (level, level) for level in range(depth)) + b"\r\ndeep\r\n"


GROWING: dict[str, Callable[[int], bytes]] = {
    "parts": lambda n: b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * (n // 10),
    "boundary lines of nobody": lambda n: nested_multiparts(90) + b"\r\n--x" * (n // 5),
    "no blank line": lambda n: b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\nA: b\r\n" * (n // 11),
    "one long boundary line": lambda n: b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--" + b"-" * n,
    "nested messages": lambda n: b"Content-Type: message/rfc822\r\n\r\n" * 90 + b"\r\n" + b"x\r\n" * (n // 3),
    "one field": lambda n: b"Content-Type: " + b";" * n,
    "parameters": lambda n: b"Content-Type: a/b" + b";(" * n + b";a=b" * n,
    "sections": lambda n: b"Content-Type: a/b" + b"".join(b";a*%d*=b" % (i % 9999) for i in range(n // 8)),
    "header fields": lambda n: b"To: a@b\r\n" * (n // 9),
    "continuation lines": lambda n: b"To: a\r\n" + b" ,\r\n" * (n // 4),
    "line without a colon": lambda n: b"x" * n,
    "at signs": lambda n: b"To: " + b"a@" * (n // 2),
    "angles": lambda n: b"To: " + b"<@a," * (n // 4),
    "comments": lambda n: b"To: " + b"(" * n,
    "quotes": lambda n: b'To: "' + b'\\"' * (n // 2),
    "encoded words": lambda n: b"Subject: " + b"=?a?q?" * (n // 6),
    "8-bit words": lambda n: b"Subject: " + b"\xff a " * (n // 4),
    "white space": lambda n: b"Subject" + b" " * n + b"\r\nContent-Type: text/plain" + b" " * n,
}


@pytest.mark.parametrize("name", GROWING)
def test_s29_ten_times_the_input_takes_about_ten_times_as_long(name: str) -> None:
    def seconds(raw: bytes) -> float:
        best = 9.0
        for _ in range(2):
            start = time.process_time()
            root = parse(raw)
            bodystructure(root, raw)
            envelope(raw[: root.body_start])
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(GROWING[name](20_000)), seconds(GROWING[name](200_000))
    assert large < max(40 * small, 0.02)
    assert large < 1


# --- against Python's email package -----------------------------------------------------------------------------------


def well_formed(number: int) -> bytes:
    """A message as Python's email package writes it."""
    chance = random.Random(number)

    def leaf() -> EmailMessage:
        message = EmailMessage()
        message.set_content("Zeile – ü\n" * chance.randrange(1, 9) if chance.random() < 0.5 else "plain\n\ntext\n")
        return message

    def tree(depth: int) -> EmailMessage:
        message = leaf()
        for _ in range(chance.randrange(3) if depth < 3 else 0):
            kind = chance.randrange(4)
            if kind == 0 and message.get_content_type() != "multipart/mixed":
                message.add_alternative("<p>ü</p>", subtype="html")
            elif kind == 1:
                inner = tree(depth + 1)
                inner["Subject"] = f"inner {chance.random()}"
                inner["From"] = "Jürgen <j@example.com>"
                message.add_attachment(inner)
            else:
                message.add_attachment(chance.randbytes(chance.randrange(200)), "image", "png", filename="grüße, 1.png")
        return message

    message = tree(0)
    message["Subject"] = "Grüße aus der Ferne, " * chance.randrange(1, 9)
    message["From"] = '"Meyer, Hans" <hans@example.com>'
    message["To"] = "ann@example.com, Friends: Bo B. <bo@example.com>, zoe@example.com;"
    return message.as_bytes(policy=email.policy.SMTP)


def test_r35_the_same_parts_as_python_finds() -> None:
    for number in range(60):
        raw = well_formed(number)
        root = parse(raw)
        theirs = email.message_from_bytes(raw, policy=email.policy.SMTP)
        ours = list(root.walk())
        assert [f"{part.type.decode()}/{part.subtype.decode()}" for part in ours] == [
            part.get_content_type() for part in theirs.walk()
        ]
        for part, their in zip(ours, theirs.walk(), strict=True):
            if not part.children:
                plain = part.fields.get(b"content-transfer-encoding", [b""])[0].strip() in (b"7bit", b"8bit")
                payload = their.get_payload(decode=True) if plain else their.get_payload()
                written = payload.encode("ascii") if isinstance(payload, str) else payload
                assert raw[part.body_start : part.end] == written
