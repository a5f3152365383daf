"""A server's responses as values, read from a socket: a grammar of its own, so that ours cannot vouch for itself.

RFC 3501 7 and 9. What cannot be read is a Fault, like everything else that a server must not say.
"""

import re
import select
import socket
from dataclasses import dataclass, field

_LITERAL = re.compile(rb"\{(\d+)\}\r\n")
_LITERAL_ENDS = re.compile(rb"\{(\d+)\}\r\n\Z")
_ATOM = re.compile(rb'[^\s()"{\[]*(?:\[[^\]]*\](?:<\d+>)?)?')
_NUMBERED = re.compile(rb"\* (\d+) (EXISTS|RECENT|EXPUNGE|FETCH)(?: |\r\n)")
_STATE = re.compile(rb"(\S+) (OK|NO|BAD|BYE|PREAUTH)(?: \[([^\] ]+)(?: ([^\]]*))?\])? ?(.*)\r\n", re.DOTALL)


class Fault(AssertionError):
    """Something a server must not do. `kind` names the class of fault."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Response:
    raw: bytes
    kind: str  # EXISTS, EXPUNGE, RECENT, FETCH, FLAGS, SEARCH, STATUS, LIST, OK, NO, BAD, BYE, + or another word
    tag: str = "*"
    number: int = 0
    items: dict = field(default_factory=dict)  # of FETCH and STATUS, names in capitals
    values: tuple = ()  # of FLAGS and SEARCH
    code: str = ""
    argument: str = ""  # of the code
    text: str = ""


def value(data, at):
    """(the value that begins at `at`: bytes, or a list of values; where it ends)."""
    start = data[at : at + 1]
    if start == b"(":
        found, at = [], at + 1
        while data[at : at + 1] != b")":
            if data[at : at + 1] == b" ":
                at += 1
                continue
            if at >= len(data):
                raise Fault("grammar", f"a list does not end: {data[:200]!r}")
            one, at = value(data, at)
            found.append(one)
        return found, at + 1
    if start == b'"':
        end = at + 1
        while data[end : end + 1] != b'"':
            if end >= len(data):
                raise Fault("grammar", f"a string does not end: {data[:200]!r}")
            end += 2 if data[end : end + 1] == b"\\" else 1
        return re.sub(rb"\\(.)", rb"\1", data[at + 1 : end]), end + 1
    if literal := _LITERAL.match(data, at):
        end = literal.end() + int(literal[1])
        return data[literal.end() : end], end
    atom = _ATOM.match(data, at)
    if atom.end() == at:
        raise Fault("grammar", f"no value at {at}: {data[:200]!r}")
    return atom[0], atom.end()


def values(data):
    found, at = [], 0
    while at < len(data):
        if data[at : at + 1] == b" ":
            at += 1
            continue
        one, at = value(data, at)
        found.append(one)
    return found


def pairs(listed):
    if not isinstance(listed, list) or len(listed) % 2:
        raise Fault("grammar", f"not a list of pairs: {listed!r}")
    return {name.decode().upper(): one for name, one in zip(listed[::2], listed[1::2], strict=True)}


def parse(raw):
    """One response with its literals, as it came, CRLF and all."""
    if raw.startswith(b"+"):
        return Response(raw, "+", text=raw[2:].decode())
    if numbered := _NUMBERED.match(raw):
        number, kind = int(numbered[1]), numbered[2].decode()
        if kind != "FETCH":
            return Response(raw, kind, number=number)
        listed, end = value(raw, numbered.end())
        if raw[end:] != b"\r\n":
            raise Fault("grammar", f"more after a FETCH: {raw[end:][:80]!r}")
        return Response(raw, kind, number=number, items=pairs(listed))
    if state := _STATE.fullmatch(raw):
        tag, kind, code, argument, text = state.groups(b"")
        return Response(
            raw, kind.decode(), tag.decode(), code=code.decode().upper(), argument=argument.decode(), text=text.decode()
        )
    if not raw.startswith(b"* ") or not raw.endswith(b"\r\n"):
        raise Fault("grammar", f"not a response: {raw[:200]!r}")
    word, *rest = values(raw[2:-2])
    kind = word.decode().upper()
    if kind == "STATUS":
        return Response(raw, kind, items=pairs(rest[1]), text=rest[0].decode())
    if kind == "FLAGS":
        return Response(raw, kind, values=tuple(one.decode() for one in rest[0]))
    if kind == "SEARCH":
        return Response(raw, kind, values=tuple(int(one) for one in rest))
    return Response(raw, kind, values=tuple(one for one in rest if isinstance(one, bytes)))


def numbers(text):
    """A set such as 3,7:9 as a list, in its order."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        found += range(int(first), int(last or first) + 1)
    return found


class Wire:
    """A connection: lines out, responses in."""

    def __init__(self, sock):
        self._sock = sock
        self._data = b""

    def send(self, data):
        self._sock.sendall(data)

    def response(self):
        """The next response, waited for; a Fault when it does not come."""
        raw = b""
        while True:
            raw += self._line()
            literal = _LITERAL_ENDS.search(raw)
            if not literal:
                return parse(raw)
            raw += self._exactly(int(literal[1]))

    def _line(self):
        while (end := self._data.find(b"\n")) < 0:
            self._more()
        line, self._data = self._data[: end + 1], self._data[end + 1 :]
        return line

    def _exactly(self, count):
        while len(self._data) < count:
            self._more()
        text, self._data = self._data[:count], self._data[count:]
        return text

    def _more(self):
        try:
            got = self._sock.recv(65536)
        except TimeoutError:
            raise Fault("connection", f"no answer in time; so far {self._data[:200]!r}") from None
        except OSError as failure:
            raise Fault("connection", str(failure)) from None
        if not got:
            raise Fault("connection", f"the server closed the connection; last {self._data[:200]!r}")
        self._data += got

    def waiting(self, seconds=0):
        """Whether something has come that was not read; waits so long for it."""
        return bool(self._data or select.select([self._sock], [], [], seconds)[0])

    def close(self):
        self._sock.close()


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Wire(sock)
