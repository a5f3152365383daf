"""Whatever a client sends, in whatever order and pieces: whole replies, no failed session, no message but those that
were answered with 250.
"""

import random
import re
import socket
from contextlib import suppress

import gevent
import pytest

LINES = [
    b"EHLO c\r\n", b"HELO c\r\n", b"MAIL FROM:<x@elsewhere.org>\r\n", b"MAIL FROM:<> SIZE=10\r\n",
    b"RCPT TO:<ann@example.com>\r\n", b"RCPT TO:<nobody@example.com>\r\n", b"RCPT TO:<bo+x@example.com>\r\n",
    b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY x\r\n", b"HELP\r\n", b"EXPN x\r\n", b"AUTH PLAIN\r\n",
    b"AUTH PLAIN AGFubkBleGFtcGxlLmNvbQBjb3JyZWN0IGhvcnNl\r\n", b"AUTH LOGIN\r\n", b"*\r\n", b"STARTTLS\r\n",
    b"MAIL FROM:<ann@example.com>\r\n", b"Subject: x\r\n", b"\r\n", b".\r\n", b"..\r\n", b".\r\n", b"\n", b"\r",
    b"\0\r\n", b"\xff\xfe\r\n", b"BDAT 10 LAST\r\n", b"MAIL FROM:<\"\\\r\n", b"RCPT TO:<@a,@b:c@d>\r\n",
    b"x" * 600 + b"\r\n",
]  # fmt: skip
REPLY = re.compile(rb"(?:[2-5]\d\d-[^\r\n]*\r\n)*[2-5]\d\d [^\r\n]*\r\n")


def _mutated(random_, line):
    if random_.random() < 0.8 or not line:
        return line
    changed = bytearray(line)
    for _ in range(random_.randrange(1, 4)):
        changed[random_.randrange(len(changed))] = random_.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("submission", [False, True], ids=["port 25", "submission"])
@pytest.mark.parametrize("seed", range(4))
def test_s05_garbage(serving, pair, events, traces, seed, submission):
    random_ = random.Random(seed)
    accepted = 0
    for _ in range(30):
        client, _ = pair(serving, submission=submission, errors=30, login_failures=3, message_bytes=5000)
        lines = [_mutated(random_, random_.choice(LINES)) for _ in range(40)]
        assert client.reply().startswith(b"220 ")
        if random_.random() < 0.7:  # so that some dialogues come to something
            client.say("EHLO c")
            if submission:
                client.login("ann")
            client.begin("ann@example.com", sender="ann@example.com")
            lines[:0] = [line for line in random_.choices(LINES, k=5) if line.endswith(b"\r\n")]
        for line in lines:
            try:
                client.send(line)
            except OSError:
                break
            gevent.sleep(0 if random_.random() < 0.7 else 0.002)
        with suppress(OSError):
            client.send(b"\r\n.\r\n")
            gevent.sleep(0.002)
            client.send(b"QUIT\r\n")
            client.sock.shutdown(socket.SHUT_WR)
        data = client.rest()
        assert re.fullmatch(rb"(?:%b)*" % REPLY.pattern, data), data
        accepted += len(re.findall(rb"(?m)^250 2\.0\.0 Accepted as ", data))
    assert "session failed" not in [event for event, _ in events]
    delivered = [fields for event, fields in events if event == "delivered"]
    assert len({fields["id"] for fields in delivered}) == accepted
    assert len(traces(serving)) == len(delivered)
    assert accepted > 0
