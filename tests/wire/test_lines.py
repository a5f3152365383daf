"""Line ends on their way out: what stood alone is a whole one, however the text was cut."""

import itertools
import re

import pytest

from mailsrv.wire.lines import DotStuffer, Survey, WholeLines, dot_stuffed


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


def test_dots_are_stuffed_however_the_text_is_cut():
    text = b".a\r\n..b\r\nc.\r\n.\r\n\r\n."
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            stuffer = DotStuffer()
            pieces = [stuffer.feed(piece) for piece in (text[:first], text[first:second], text[second:])]
            assert b"".join(pieces) + stuffer.finish() == dot_stuffed(text)


def test_a_survey_finds_what_a_server_must_take_however_the_text_is_cut():
    for text, expected in (
        (b"A: b\r\n\r\nxyz\r\n", (13, False, False, True)),
        ("A: \u00e4\r\n\r\nx\r\n".encode(), (12, True, True, True)),
        (b"A: \xe4\r\n\r\nlonger\r\n", (16, True, True, False)),
        ("A: b\r\n\r\n\u00e4\r\n".encode(), (12, True, False, True)),
        (b"", (0, False, False, True)),
        (b"no end", (6, False, False, True)),
    ):
        for cut in range(len(text) + 1):
            if text[cut - 1 : cut] == b"\r":
                continue  # whole lines are never cut there
            survey = Survey()
            survey.feed(text[:cut])
            survey.feed(text[cut:])
            found = survey.size, survey.eight_bit, survey.header_eight_bit, survey.header_utf8
            assert found == expected and not survey.long_line, (text, cut)


@pytest.mark.parametrize(
    ("lines", "too_long"),
    [
        ([998], False), ([999], True), ([998, 998, 998], False), ([1, 998, 999, 1], True), ([0] * 3000, False),
        ([998] * 50 + [999], True), ([999] + [10] * 50, True), ([500] * 7 + [998] * 3 + [1], False), ([5000], True),
    ],
)  # fmt: skip
def test_s04_a_line_that_is_too_long_is_found_wherever_it_is(lines, too_long):
    for end in (b"\r\n", b""):
        text = b"\r\n".join(b"x" * length for length in lines) + end
        for step in (1, 7, 333, 1000, 1001, len(text) + 1):
            whole, survey = WholeLines(), Survey()
            for start in range(0, len(text), step):
                survey.feed(whole.feed(text[start : start + step]))
            survey.feed(whole.end())
            assert survey.long_line is too_long, (end, step)
