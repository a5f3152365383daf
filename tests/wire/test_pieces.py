"""What is done in pieces comes out as if it were done at once, wherever the cuts fall."""

import base64
import quopri
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsrv.wire import pieces
from mailsrv.wire.header import _CHARSETS


@pytest.fixture(autouse=True, scope="module", params=[1, 4, 7])
def short_pieces(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", request.param * 4)
        yield


LINES = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"x", b"xy", b"--b"]), max_size=60).map(b"".join)


@given(LINES, st.integers(0, 20))
def test_the_first_empty_line(raw, start):
    found, whole = pieces.find_blank(raw, start), re.compile(rb"\n\r?\n").search(raw, start)
    assert (found and found.span()) == (whole and whole.span())


@given(LINES, st.integers(0, 20))
def test_lines_are_counted(raw, start):
    assert pieces.count_lines(raw, start, len(raw)) == raw.count(b"\n", start, len(raw))


@given(st.text(alphabet="aAßÄİΣσςﬁ\u0345\u1fb3 ", max_size=80))
def test_case_is_folded(text):
    assert pieces.fold(text) == text.casefold()


@pytest.mark.parametrize("codec", ["utf-8", "latin-1", "gb18030", "iso2022_jp", "shift_jis", "utf_16", "cp1251"])
@given(st.binary(max_size=100))
def test_octets_become_text(codec, data):
    try:
        whole = data.decode(codec, "replace")
    except UnicodeError as error:
        with pytest.raises(type(error)):
            pieces.decode(data, codec, "replace")
    else:
        assert pieces.decode(data, codec, "replace").replace("\ufffd", "") == whole.replace("\ufffd", "")


@given(st.text(max_size=80))
def test_sound_text_is_the_same(text):
    for codec in ("utf-8", "utf_16", "gb18030", "utf_7"):
        data = text.encode(codec, "ignore")
        assert pieces.decode(data, codec) == data.decode(codec)


def test_every_charset_can_be_decoded_in_pieces():
    for codec in set(_CHARSETS.values()):
        assert pieces.decode(b"a" * 100, codec, "replace") == (b"a" * 100).decode(codec, "replace")


@given(st.binary(max_size=200), st.integers(1, 30), st.sampled_from([b"\n", b"\r\n", b""]))
def test_base64_with_lines_of_any_length(data, width, end):
    coded = base64.b64encode(data)
    coded = end.join([coded[at : at + width] for at in range(0, len(coded), width)])
    assert pieces.decode_base64(coded) == data


@given(st.binary(max_size=200))
def test_anything_is_taken_for_base64(data):
    assert isinstance(pieces.decode_base64(data), bytes)


@given(st.binary(max_size=300))
def test_quoted_printable(data):
    coded = quopri.encodestring(data)
    assert pieces.decode_quoted_printable(coded) == quopri.decodestring(coded)
