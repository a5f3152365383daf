"""A connection as whole lines and counted octets: however they arrive, within limits, in time, and nothing kept."""

import socket
import ssl
import time
from contextlib import suppress

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.net import stream as stream_module
from mailsrv.net.stream import ConnectionLost, DeadlineExceeded, LimitExceeded, Stream, handshake
from mailsrv.wire.errors import WireError
from mailsrv.wire.lines import DotDecoder


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)
    yield Stream(ours, "peer", read_seconds=10, write_seconds=10), theirs
    ours.close()
    theirs.close()


def test_lines_however_they_arrive(pair):
    stream, peer = pair
    reader = gevent.spawn(lambda: [stream.read_line(100) for _ in range(4)])
    for piece in (b"a", b" NOOP\r", b"\nb\r\n\r\nlong", b" " * 50, b"\r", b"\n"):
        peer.sendall(piece)
        gevent.sleep(0)
    assert reader.get(timeout=60) == [b"a NOOP", b"b", b"", b"long" + b" " * 50]
    assert not stream.pending and stream._buffer == b"", "an idle stream keeps nothing"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=30).filter(lambda line: not set(line) & {10, 13}), max_size=10), st.data())
def test_lines_and_counted_octets_cut_anywhere(lines, data):
    wire = b"".join(line + b"\r\n" for line in lines) + b"0123456789rest\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    ours, theirs = socket.socketpair()
    stream = Stream(ours, "peer", read_seconds=10)

    def write():
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
            theirs.sendall(wire[start:end])
            gevent.sleep(0)

    writer = gevent.spawn(write)
    assert [stream.read_line(1000) for _ in lines] == lines
    assert stream.read_exactly(10) == b"0123456789"
    assert stream.read_line(1000) == b"rest"
    writer.join()
    theirs.close()
    with pytest.raises(ConnectionLost):
        stream.read_line(1000)
    ours.close()


def test_s05_bare_line_ends_are_told_and_the_next_line_is_read(pair):
    stream, peer = pair
    peer.sendall(b"a\nb\rc\r\nfine\r\n")
    with pytest.raises(WireError, match="LF"):
        stream.read_line(100)
    with pytest.raises(WireError, match="CR"):
        stream.read_line(100)
    assert stream.read_line(100) == b"fine"


@pytest.mark.parametrize("size", [101, 5000, 1_000_000])
def test_s20_long_lines_are_refused_early_and_skipped_whole(pair, size):
    stream, peer = pair
    writer = gevent.spawn(peer.sendall, b"x" * size + b"\r\nnext\r\n")
    with pytest.raises(LimitExceeded):
        stream.read_line(100)
    assert len(stream._buffer) <= 100 + 16 * 1024
    stream.discard_line(2_000_000)
    assert stream.read_line(100) == b"next"
    writer.join()


def test_a_line_of_just_the_limit_is_taken(pair):
    stream, peer = pair
    peer.sendall(b"x" * 100 + b"\r\n")
    assert stream.read_line(100) == b"x" * 100


def test_s20_a_line_without_end_is_given_up(pair):
    stream, peer = pair
    writer = gevent.spawn(peer.sendall, b"x" * 500_000)
    with pytest.raises(LimitExceeded):
        stream.read_line(100)
    with pytest.raises(LimitExceeded):
        stream.discard_line(100_000)
    stream.close()
    writer.join()
    assert isinstance(writer.exception, OSError)


def test_r46_a_peer_that_says_nothing(pair):
    stream, _ = pair
    stream.read_seconds = 0.01
    with pytest.raises(DeadlineExceeded):
        stream.read_line(100)


def test_r46_a_peer_that_says_a_little_all_the_time_is_held_to_the_whole(pair):
    stream, peer = pair
    stream.set_deadline(0.1)
    dripping = gevent.spawn(lambda: [(peer.send(b"x"), gevent.sleep(0.01)) for _ in range(1000)])
    with pytest.raises(DeadlineExceeded):
        stream.read_line(10_000)
    dripping.kill()
    stream.set_deadline(None)
    peer.sendall(b"\r\n")
    assert set(stream.read_line(10_000)) == {ord("x")}


def test_r46_a_peer_that_never_reads(pair):
    stream, _ = pair
    stream.write_seconds = 0.05
    with pytest.raises(DeadlineExceeded):
        stream.write(b"x" * 10_000_000)


def test_replies_of_one_turn_are_one_write(pair):
    stream, peer = pair
    stream.queue(b"a\r\n")
    stream.queue(b"b\r\n")
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(10)
    stream.write(b"c\r\n")
    assert peer.recv(100) == b"a\r\nb\r\nc\r\n"
    stream.flush()
    with pytest.raises(BlockingIOError):
        peer.recv(10)


def test_s01_text_until_the_dot_and_what_comes_after(pair):
    stream, peer = pair
    peer.sendall(b"one\r\n..two\r\n.\r\nQUIT\r\n")
    assert b"".join(stream.read_dotted(DotDecoder())) == b"one\r\n.two\r\n"
    assert stream.read_line(100) == b"QUIT"


def test_s19_a_message_that_drips_is_cut_off(pair):
    stream, peer = pair
    dripping = gevent.spawn(lambda: [(peer.send(b"x"), gevent.sleep(0.01)) for _ in range(1000)])
    with pytest.raises(DeadlineExceeded):
        list(stream.read_dotted(DotDecoder(), least_rate=10_000, grace_seconds=0.05))
    dripping.kill()


def test_s04_nothing_said_in_clear_is_heard_after_starttls(pair, authority, certificate):
    stream, peer = pair
    peer.sendall(b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\n")
    assert stream.read_line(100) == b"STARTTLS"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with pytest.raises(WireError, match="before TLS"):
        stream.start_tls(context)
    assert not stream.pending


def test_tls_handshake_in_time_or_not_at_all(authority, certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    silent, other, half = b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01"
    for said, error in ((silent, DeadlineExceeded), (other, ConnectionLost), (half, DeadlineExceeded)):
        ours, theirs = socket.socketpair()
        theirs.sendall(said)
        with pytest.raises(error):
            handshake(ours, context, 0.05)
        try:
            while theirs.recv(100):  # perhaps an alert
                pass
        except ConnectionResetError:
            pass  # closed either way
        theirs.close()
        ours.close()


def test_hang_up_from_another_greenlet_ends_the_reader(pair):
    stream, _ = pair
    reader = gevent.spawn(stream.read_line, 100)
    gevent.sleep(0)
    stream.hang_up()
    reader.join(timeout=60)
    assert isinstance(reader.exception, ConnectionLost)
    stream.close()
    stream.close()
    with pytest.raises(ConnectionLost):
        stream.write(b"x")


def test_watch_fires_once_for_data_and_for_the_end(pair):
    stream, peer = pair
    fired = []
    watch = stream.watch_readable(lambda: fired.append(1))
    gevent.sleep(0)
    assert fired == [] and not watch.fired
    peer.sendall(b"x\r\ny\r\n")
    with gevent.Timeout(60):
        while not watch.fired:
            gevent.sleep(0)
    gevent.sleep(0)
    watch.stop()
    watch.stop()
    assert fired == [1]
    assert stream.read_line(10) == b"x" and stream.pending


# ------------------------------------------------------------------ last words


@pytest.fixture(params=["clear", "tls"])
def connect(request, authority, certificate):
    """Pairs of a stream and the client's socket, over TCP."""
    listening = socket.create_server(("127.0.0.1", 0))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server.load_cert_chain(*certificate)
    authority.configure_trust(client)
    made = []

    def make():
        theirs = socket.create_connection(listening.getsockname(), timeout=60)
        ours, _ = listening.accept()
        if request.param == "tls":
            secured = gevent.spawn(handshake, ours, server)
            theirs = client.wrap_socket(theirs, server_hostname="localhost")
            ours = secured.get()
        made.extend((ours, theirs))
        return Stream(ours, "peer", read_seconds=10, write_seconds=10), theirs

    yield make
    for sock in (*made, listening):
        sock.close()


def test_last_words_reach_a_peer_that_still_talks(connect, told_the_end):
    for number in range(30):
        stream, peer = connect()
        peer.sendall(b"x\r\n" * 1000)
        assert stream.read_line(100) == b"x"
        stream.write_last(b"bye %d\r\n" % number)
        ending = gevent.spawn(stream.close)
        peer.sendall(b"y\r\n" * 30_000)  # 90 KB more before it reads
        told_the_end(peer)
        assert peer.makefile("rb").read() == b"bye %d\r\n" % number
        peer.close()
        ending.join(1)
        assert ending.dead, "the stream lingers although the peer has gone"


def test_last_words_that_were_asked_for_wait_for_nobody(connect):
    stream, peer = connect()
    peer.sendall(b"QUIT\r\n")
    stream.read_line(100)
    stream.write_last(b"bye\r\n", expected=True)
    begun = time.monotonic()
    stream.close()  # while the peer is still there
    assert time.monotonic() - begun < stream_module.LINGER_SECONDS / 2
    assert peer.makefile("rb").read() == b"bye\r\n"


@pytest.mark.parametrize("talks", [True, False])
def test_lingering_is_bounded_in_time_and_octets(connect, monkeypatch, talks):
    monkeypatch.setattr(stream_module, "LINGER_SECONDS", 30.0 if talks else 0.2)
    stream, peer = connect()
    stream.write_last(b"bye\r\n")

    def talk():
        with suppress(OSError):
            while True:
                peer.sendall(b"x" * 65536)

    talking = gevent.spawn(talk) if talks else None
    begun = time.monotonic()
    stream.close()
    assert time.monotonic() - begun < 15
    if talking is not None:
        talking.join(10)
        assert talking.dead


def test_hanging_up_ends_lingering(connect):
    stream, peer = connect()
    stream.write_last(b"bye\r\n")
    ending = gevent.spawn(stream.close)
    gevent.sleep(0)
    stream.hang_up()
    ending.join(stream_module.LINGER_SECONDS / 2)
    assert ending.dead
    assert peer.makefile("rb").read() == b"bye\r\n"
