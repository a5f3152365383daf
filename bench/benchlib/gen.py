"""The messages of the benchmark: varied, realistic MIME (CRLF bytes), the same in every run.

`message(i)` depends on i alone. Message-ID carries i, so any message read back can be compared byte for byte.

Planted words, for exact SEARCH counts (`expected_*`): SUBJECT_WORD in the Subject of i % 503 == 11; TEXT_WORD in a
plain text part of i % 1009 == 7 and inside a base64 encoded utf-8 text part of i % 2003 == 19.
"""

import base64
import random
import re
import time

SUBJECT_WORD = "quasarfox"
TEXT_WORD = "zephyrquux"
MSGID = re.compile(rb"Message-ID: <b\.(\d+)@gen\.bench\.test>", re.I)

WORDS = """the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were her all she there would their we him been has when who will more no if out so
said what up its about into than them can only other new some could time these two may then do first
any my now such like our over man me even most made after also did many before must through back years
where much your way well down should because each just those people state year how too little meeting
project invoice budget schedule release server network message delivery customer report review please
thanks regards attached version update meeting tomorrow quarterly proposal contract office team deadline"""
FIRST_NAMES = """Anna Bruno Carla David Elena Franz Greta Hans Irina Jonas Karin Lukas Maria Nils Olga Peter Quinn Rosa
Stefan Tanja Ulrich Vera Walter Xenia Yusuf Zoe"""
LAST_NAMES = "Meyer Schulz Rossi Novak Ivanova Larsen Dubois Garcia Kowalski Smith Jones Tanaka Olsen Weber"
_W, _N, _S = WORDS.split(), FIRST_NAMES.split(), LAST_NAMES.split()
_NONASCII = [
    "Jürgen Müller",
    "François Lefèvre",
    "Søren Ågård",
    "Łukasz Wójcik",
    "Иван Петров",
    "山田太郎",
    "Zoë Çelik",
]
_SUBJ8 = ["Grüße aus München", "Réunion à préparer", "Отчёт за квартал", "会議の議事録", "Přehled týdne", "Año nuevo"]

_r = random.Random(20240607)


def _block(n: int) -> list[bytes]:
    out, size, line = [], 0, ""
    while size < n:
        w = _r.choice(_W)
        if len(line) + len(w) > 71:
            out.append(line)
            size += len(line) + 2
            line = w if _r.random() > 0.12 else ""
        else:
            line = f"{line} {w}" if line else w
    return [x.encode() for x in out]


_TEXT = _block(400_000)  # lines
_B64 = [base64.b64encode(_r.randbytes(57)) for _ in range(9000)]
_U8 = "Liebe Grüße, wir können das übermorgen besprechen; bitte prüfen Sie die Anhänge. "
_QP = [
    b"Liebe Gr=C3=BC=C3=9Fe, wir k=C3=B6nnen das =C3=BCbermorgen besprechen;=20",
    b"bitte pr=C3=BCfen Sie die Anh=C3=A4nge und melden Sie sich bei Fragen. =",
    b"Danke!",
]
_QPBLOCK = _QP * 2000


def _text(r: random.Random, n: int, word: str | None = None) -> bytes:
    """About n bytes of text lines."""
    k = max(1, n // 66)
    o = r.randrange(0, max(1, len(_TEXT) - k))
    lines = _TEXT[o : o + k]
    if word:
        lines = [*lines[: k // 2], b"this line holds the word " + word.encode() + b" for searching", *lines[k // 2 :]]
    return b"\r\n".join(lines) + b"\r\n"


def _b64(r: random.Random, n: int) -> bytes:
    k = max(1, n // 78)
    o = r.randrange(0, max(1, len(_B64) - k))
    return b"\r\n".join(_B64[o : o + k]) + b"\r\n"


def _enc(s: str) -> str:
    return "=?utf-8?B?" + base64.b64encode(s.encode()).decode() + "?="


def _encq(s: str) -> str:
    return (
        "=?utf-8?Q?"
        + "".join(c if c.isascii() and c.isalnum() else "".join(f"={b:02X}" for b in c.encode()) for c in s)
        + "?="
    )


def _addr(r: random.Random, nonascii: bool) -> str:
    if nonascii and r.random() < 0.7:
        name = r.choice(_NONASCII)
        return f"{_enc(name) if r.random() < 0.5 else _encq(name)} <p{r.randrange(400)}@gen.bench.test>"
    f, s = r.choice(_N), r.choice(_S)
    x = r.random()
    if x < 0.6:
        return f"{f} {s} <{f.lower()}.{s.lower()}@gen.bench.test>"
    if x < 0.8:
        return f'"{s}, {f}" <{f.lower()}@mail{r.randrange(9)}.bench.test>'
    return f"{f.lower()}.{s.lower()}@gen.bench.test"


def _headers(r: random.Random, i: int, nonascii: bool, base: int = 1_500_000_000) -> list[str]:
    t = base + i * 613 + r.randrange(600)
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(t))
    subj = (
        _enc(r.choice(_SUBJ8))
        if nonascii and r.random() < 0.7
        else ("Re: " if r.random() < 0.4 else "")
        + " ".join(r.choice(_W) for _ in range(r.randrange(2, 9))).capitalize()
    )
    if i % 503 == 11:
        subj += " " + SUBJECT_WORD
    h = [
        f"Return-Path: <bounce{i % 97}@gen.bench.test>",
        (
            f"Received: from mx{i % 5}.bench.test (mx{i % 5}.bench.test [192.0.2.{i % 250}])\r\n"
            f"\tby in.bench.test with ESMTPS id {i:08x}\r\n\tfor <user@bench.test>; {date}"
        ),
        f"Date: {date}",
        f"From: {_addr(r, nonascii)}",
        f"To: {_addr(r, nonascii)}",
    ]
    if r.random() < 0.3:
        h[-1] += ",\r\n\t" + ",\r\n\t".join(_addr(r, False) for _ in range(r.randrange(1, 4)))
    if r.random() < 0.25:
        h.append("Cc: " + _addr(r, nonascii))
    h.append(f"Subject: {subj}")
    h.append(f"Message-ID: <b.{i}@gen.bench.test>")
    if i > 20 and r.random() < 0.45:
        refs = [f"<b.{i - r.randrange(1, 20)}@gen.bench.test>" for _ in range(r.randrange(1, 5))]
        h.append("References: " + "\r\n ".join(refs))
        h.append("In-Reply-To: " + refs[-1])
    h.append("MIME-Version: 1.0")
    if r.random() < 0.5:
        h.append(f"X-Mailer: BenchMail {r.randrange(1, 9)}.{r.randrange(10)}")
    return h


def _part(ctype: bytes, body: bytes, *extra: bytes) -> bytes:
    return b"\r\n".join([b"Content-Type: " + ctype, *extra, b"", body])


def _multi(bnd: bytes, parts: list[bytes]) -> bytes:
    b = b"--" + bnd
    return b"".join(b + b"\r\n" + p + b"\r\n" for p in parts) + b + b"--\r\n"


def message(i: int, lo: int = 1000, hi: int = 50000) -> bytes:
    r = random.Random(i * 2654435761 % (1 << 32))
    size = int(lo * (hi / lo) ** r.random())
    kind = r.random()
    word = TEXT_WORD if i % 1009 == 7 else None
    bnd = b"=_b%08x.%d" % (r.randrange(1 << 32), i)
    room = max(100, size - 800)
    if i % 2003 == 19:
        h = _headers(r, i, True)
        txt = (_U8 * (room // 110 + 1) + TEXT_WORD + " Ende.").encode()
        e = base64.encodebytes(txt).replace(b"\n", b"\r\n")
        h += ["Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: base64"]
        body = e
    elif kind < 0.45:
        h = _headers(r, i, False)
        h += ["Content-Type: text/plain; charset=us-ascii"]
        body = _text(r, room, word)
    elif kind < 0.57:
        h = _headers(r, i, True)
        h += ["Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable"]
        k = max(1, room // 56)
        body = b"\r\n".join(_QPBLOCK[:k]) + b"\r\n"
        if word:
            body += b"word " + word.encode() + b"\r\n"
    elif kind < 0.80:
        h = _headers(r, i, r.random() < 0.3)
        h += [f'Content-Type: multipart/alternative; boundary="{bnd.decode()}"']
        t = _text(r, room // 3, word)
        html = b"<html><body><p>" + _text(r, room * 2 // 3).replace(b"\r\n\r\n", b"</p>\r\n<p>") + b"</p></body></html>"
        body = b"This is a multi-part message in MIME format.\r\n" + _multi(
            bnd, [_part(b"text/plain; charset=utf-8", t), _part(b"text/html; charset=utf-8", html)]
        )
    elif kind < 0.94:
        h = _headers(r, i, r.random() < 0.3)
        h += [f'Content-Type: multipart/mixed; boundary="{bnd.decode()}"']
        t = _text(r, min(1500, room // 4), word)
        n = r.randrange(1, 4)
        fn = b"filename=report%d.pdf" % i
        parts = [_part(b"text/plain; charset=us-ascii", t)]
        for j in range(n):
            parts.append(
                _part(
                    b"application/pdf; name=report%d-%d.pdf" % (i, j),
                    _b64(r, room * 3 // 4 // n),
                    b"Content-Disposition: attachment; " + fn,
                    b"Content-Transfer-Encoding: base64",
                )
            )
        body = _multi(bnd, parts)
    else:
        h = _headers(r, i, False)
        h += [f'Content-Type: multipart/mixed; boundary="{bnd.decode()}"']
        inner_b = b"=_in" + bnd[3:]
        ih = [x for x in _headers(r, i, True) if not x.startswith("Message-ID")]
        ih = [x.replace(SUBJECT_WORD, "fwd") for x in ih]
        ih += [
            f"Message-ID: <inner.{i}@gen.bench.test>",
            f'Content-Type: multipart/alternative; boundary="{inner_b.decode()}"',
        ]
        inner = (
            "\r\n".join(ih).encode()
            + b"\r\n\r\n"
            + _multi(
                inner_b,
                [
                    _part(b"text/plain; charset=us-ascii", _text(r, room // 3)),
                    _part(b"text/html; charset=us-ascii", b"<p>" + _text(r, room // 3) + b"</p>"),
                ],
            )
        )
        body = _multi(
            bnd,
            [
                _part(b"text/plain; charset=us-ascii", _text(r, room // 4, word)),
                _part(b"message/rfc822", inner, b"Content-Disposition: inline"),
            ],
        )
    return "\r\n".join(h).encode() + b"\r\n\r\n" + body


def expected_subject(n: int) -> int:
    return sum(1 for i in range(n) if i % 503 == 11)


def expected_text(n: int) -> int:
    return sum(1 for i in range(n) if i % 1009 == 7 or i % 2003 == 19)


_SIMPLE: dict[int, bytes] = {}


def simple(seq: str, size: int) -> bytes:
    """A plain ~size byte message for delivery runs; unique headers, shared body."""
    body = _SIMPLE.get(size)
    if body is None:
        body = _SIMPLE[size] = (
            _text(random.Random(size), max(60, size - 330))
            if size < 300_000
            else b"".join(_text(random.Random(size + k), 60_000) for k in range(size // 61_000 + 1))[
                : size - 330
            ].rsplit(b"\r\n", 1)[0]
            + b"\r\n"
        )
    return (
        f"Date: Mon, 06 May 2024 10:00:00 +0000\r\nFrom: Sender <sender@gen.bench.test>\r\n"
        f"To: user@bench.test\r\nSubject: delivery {seq}\r\nMessage-ID: <d.{seq}@gen.bench.test>\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
    ).encode() + body
