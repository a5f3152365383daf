"""Line ends on their way out: what stood alone is a whole one, however the text was cut."""

import itertools
import re

import pytest

from mailsrv.wire.lines import WholeLines


def whole(*chunks):
    lines = WholeLines()
    return b"".join([lines.feed(chunk) for chunk in chunks]) + lines.end()


@pytest.mark.parametrize(
    ("kept", "sent"),
    [
        (b"", b""), (b"a\r\n", b"a\r\n"), (b"a", b"a\r\n"), (b"a\n", b"a\r\n"), (b"a\r", b"a\r\n"), (b"\r", b"\r\n"),
        (b"\n", b"\r\n"), (b"a\nb\rc\r\nd\r\n", b"a\r\nb\r\nc\r\nd\r\n"), (b"a\r\r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\n\r\nb", b"a\r\n\r\nb\r\n"), (b"\0\xff\n", b"\0\xff\r\n"),
        (b"x\n.\nQUIT\r.\r", b"x\r\n.\r\nQUIT\r\n.\r\n"),
    ],
)  # fmt: skip
def test_s02_lone_cr_and_lf_never_leave(kept, sent):
    assert whole(kept) == sent
    for first in range(len(kept) + 1):
        for second in range(first, len(kept) + 1):
            assert whole(kept[:first], kept[first:second], kept[second:]) == sent


def test_s02_nothing_else_is_changed():
    for text in itertools.product(b"\r\na.", repeat=6):
        text = bytes(text)
        sent = whole(*(text[i : i + 1] for i in range(6)))
        assert sent == whole(text)
        assert re.fullmatch(rb"(?:[^\r\n]*\r\n)*", sent)
        assert sent.replace(b"\r\n", b"") == text.replace(b"\r", b"").replace(b"\n", b"")
        assert whole(sent) == sent
