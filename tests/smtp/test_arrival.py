"""What a message's header costs, whatever a stranger writes into it."""

import time

import pytest

from mailsrv.smtp import arrival

ALL = arrival.HEADER_OCTETS


@pytest.mark.parametrize(
    "header",
    [
        b"Delivered-To:" + b" " * (ALL - 500) + b"x" * 400,
        (b"Delivered-To:" + b" " * 900 + b"x" * 400 + b"\r\n") * (ALL // 1315),
        b"Message-ID:" + b"\r\n " * (ALL // 3 - 10),
    ],
)
def test_a_header_of_blanks_does_not_hold_the_loop(header):
    one = arrival.Arrival(arrival.Limits(ALL, 100, 0, False), lambda chunk: None, complete=False, host="mx")
    one._head = header + b"\r\n\r\n"
    begun = time.thread_time()
    assert one.problem([]) is None
    assert one.message_id == ""
    assert time.thread_time() - begun < 0.2  # of processor time: it was seconds


def test_a_message_id_in_the_text_is_not_the_message_s():
    one = arrival.Arrival(arrival.Limits(ALL, 100, 0, False), lambda chunk: None, complete=False, host="mx")
    one._head = b"Subject: hi\r\n\r\nMessage-ID: <other@example.org>\r\n"
    assert one.message_id == ""
    one._head = b"Message-ID: <own@example.org>\r\n" + one._head
    assert one.message_id == "<own@example.org>"


def test_what_has_been_here_is_found_among_blanks():
    assert arrival._DELIVERED.findall(b"A: b\r\ndelivered-to: \t ann@example.org\r\nX: y") == [b"ann@example.org"]
    assert arrival._MESSAGE_ID.search(b"Message-Id:\r\n\t <1@x>\r\n")[1] == b"<1@x>"
