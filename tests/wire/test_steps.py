"""No single step over a message is longer than a few pieces, however long the message is: each holds the interpreter.

What is looked at is `Watched`, octets that note how many of them every operation was given; a regular expression notes
how far it may look. Limits that are there anyway (HEADER_LIMIT and the like) are made small with the piece.
"""

import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.wire import header, mime, pieces, structure

SMALL = 1 << 10
MOST = 4 * SMALL  # octets of one step
steps: list[tuple[int, str]] = []


def _noting(name):
    plain = getattr(bytes, name)

    def noted(self, *arguments):
        start, end = len(self), len(self)
        if name in ("find", "rfind", "index", "count"):
            start, end, _ = slice(*(*arguments[1:], None, None)[:2]).indices(len(self))
            steps.append((end - start, name))
        elif name not in ("startswith", "endswith"):
            steps.append((len(self), name))
        result = plain(self, *arguments)
        return Watched(result) if type(result) is bytes else result

    return noted


class Watched(bytes):
    def __getitem__(self, key):
        result = bytes.__getitem__(self, key)
        if isinstance(result, bytes):
            steps.append((len(result), "slice"))
            return Watched(result)
        return result

    __hash__ = bytes.__hash__


for _name in ("find", "rfind", "index", "count", "replace", "translate", "split", "strip", "rstrip", "lower", "isascii",
              "decode", "partition", "startswith", "endswith"):  # fmt: skip
    setattr(Watched, _name, _noting(_name))


class Noting:
    """A compiled pattern that notes how far each call may look."""

    def __init__(self, pattern: re.Pattern) -> None:
        self.pattern = pattern

    def _note(self, name, text, start=0, end=None):
        end = len(text) if end is None else min(end, len(text))
        steps.append((end - start, f"{name} {self.pattern.pattern[:20]!r}"))
        return getattr(self.pattern, name)(text, start, end)

    def search(self, *arguments):
        return self._note("search", *arguments)

    def findall(self, *arguments):
        return self._note("findall", *arguments)

    def finditer(self, *arguments):
        return self._note("finditer", *arguments)


@pytest.fixture
def small(monkeypatch):
    steps.clear()
    for module in (pieces, header, mime):
        monkeypatch.setattr(module, "PIECE", SMALL)
    for module in (header, mime, structure):
        monkeypatch.setattr(module, "HEADER_LIMIT", 2 * SMALL)
    monkeypatch.setattr(header, "FIELD_LIMIT", SMALL)
    monkeypatch.setattr(structure, "LINE_LIMIT", SMALL)
    monkeypatch.setattr(pieces, "RUN_LIMIT", SMALL)
    monkeypatch.setattr(structure, "_DASHES", Noting(structure._DASHES))
    monkeypatch.setattr(pieces, "_BLANK", Noting(pieces._BLANK))


N = 100 * SMALL
MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def text(charset: str, encoding: str, data: bytes) -> bytes:
    return (
        f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + data
    )


HOSTILE = {
    "lines with dashes": MIXED + b"--x\r\n" * (N // 5),
    "almost dashes": MIXED + b"\n-" * (N // 2),
    "one line with dashes": MIXED + b"--" + b"-" * N,
    "one boundary and white space": MIXED + b"--b" + b" " * N,
    "boundaries and one line": MIXED + b"--x\r\n" * 40 + b"--" + b"x" * N + b"\r\n--b\r\n\r\nx\r\n--b--\r\n",
    "a line without end": MIXED + b"x" * N,
    "header without end": b"a: b\r\n" * (N // 6),
    "one field": b"Subject: " + b"x" * N,
    "line ends": MIXED + b"\r\n" * (N // 2),
    "nested messages": b"Content-Type: message/rfc822\r\n\r\n" * 20 + b"\r\n" * (N // 2),
    "header in a part": MIXED + b"--b\r\n" + b"a: b\r\n" * (N // 6),
    "base64 in lines": text("utf-8", "base64", base64.encodebytes(b"text \xc3\xbc" * (N // 10))),
    "base64 in one line": text("utf-8", "base64", base64.b64encode(b"text \xc3\xbc" * (N // 10))),
    "wrong base64": text("utf-8", "base64", b"A=B!" * (N // 4)),
    "quoted-printable": text("iso-8859-1", "quoted-printable", b"=E4b=\r\n" * (N // 7)),
    "quoted-printable in one line": text("utf-8", "quoted-printable", b"=C3=BC" * (N // 6)),
    "UTF-8": text("utf-8", "8bit", "ü😀".encode() * (N // 6)),
    "no UTF-8 at its end": text("utf-8", "8bit", "ü".encode() * (N // 2) + b"\xff"),
    "UTF-7 in one run": text("utf-7", "7bit", b"+" + b"AOQA" * (N // 4)),
    "UTF-16": text("utf-16", "base64", base64.b64encode("üb".encode("utf-16") * (N // 8))),
    "unknown charset": text("x-none", "8bit", b"\xe4\r\n" * (N // 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_s29_no_step_over_a_message_is_longer_than_a_few_pieces(small, name):
    raw = Watched(HOSTILE[name])
    mime.prepare(raw)
    for holds in (mime.text_holds, mime.body_holds):
        assert not holds(raw, "not in any of them")
    assert steps and max(steps) <= (MOST, ""), max(steps)


@pytest.mark.parametrize("name", HOSTILE)
def test_s29_texts_come_in_pieces(small, name):
    root = structure.parse(HOSTILE[name])
    lengths = [len(piece) for piece in mime._body_texts(HOSTILE[name], root)]
    assert max(lengths, default=0) <= MOST


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_found_in_pieces_is_what_is_found_at_once(small, name):
    """But for what the limits leave out, which are small here as well."""
    raw = HOSTILE[name]
    whole = mime.search_text(raw)
    for needle in (whole[-40:], whole[len(whole) // 2 :][: 3 * SMALL], whole[SMALL - 20 : SMALL + 20], ""):
        assert mime.text_holds(raw, needle)
    assert not mime.text_holds(raw, whole[-40:] + "¿")


WORDS = [MIXED, b"--b", b"--b--", b"\n", b"\r\n", b"--", b"-", b" ", b"x" * 7, b"Content-Type: message/rfc822\r\n\r\n"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=80).map(b"".join), st.integers(4, 40), st.integers(0, 40))
def test_the_structure_does_not_depend_on_the_pieces(raw, piece, dashes):
    raw = MIXED + b"--x\r\n" * dashes + raw  # beyond 32 the search goes another way
    whole = structure.bodystructure(structure.parse(raw), raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        assert structure.bodystructure(structure.parse(raw), raw) == whole
