"""Carries "mailbox id changed" between the processes, over Unix datagrams in the run directory.

Each process is bound to `<directory>/<name>.bus`, and its peers are whoever else has such a socket there: also those
of a server that is being replaced and still has sessions. A peer is told of the mailboxes that it follows. A datagram
is a run of 12-octet records (account, mailbox number); the record of zeros means "anything may have changed". What a
peer's full socket does not take now is kept as a set of ids and sent when it can be, and a set that grows too large
becomes "anything": never nothing. A peer that is gone is not waited for: a process that starts has no state that could
be stale. Another carrier (a database's notifications, say) would offer the same two methods.

Imports: mail.following, mail.notify, store.files, log, values, gevent.
"""

from __future__ import annotations

import errno
import glob
import os
import socket
import struct
import time

import gevent

from mailsrv import log
from mailsrv.mail.following import Followed, Following
from mailsrv.mail.notify import Registry
from mailsrv.store.files import unlink_if_there
from mailsrv.values import AccountId, MailboxId

RECORD = struct.Struct("!QI")
EVERYTHING = RECORD.pack(0, 0)
RECORDS_PER_DATAGRAM = 512
LONGEST_DATAGRAM = RECORDS_PER_DATAGRAM * RECORD.size + 1
MOST_PENDING = 10_000
RETRY_SECONDS = 0.005
SETTLED_NS = 100_000_000  # a directory changed longer ago than this shows the next change in its time stamp
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.EWOULDBLOCK)


class _Peer:
    """Another worker: what it has not been told yet."""

    __slots__ = ("everything", "flushing", "follows", "path", "pending")

    def __init__(self, path: str) -> None:
        self.path = path
        self.follows = Followed(_table(path))
        self.pending: dict[bytes, None] = {}
        self.everything = False
        self.flushing = False


class Bus:
    """`name` is this process's own among those that run, such as its pid."""

    def __init__(self, directory: str, name: str, registry: Registry) -> None:
        self._directory, self._path = directory, f"{directory}/{name}.bus"
        self._peers: dict[str, _Peer] = {}  # by path
        self._listed = 0  # the directory's time stamp when the peers were listed; 0 if it may not show the next change
        self._registry = registry
        self._following = Following(_table(self._path))
        self._socket: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._receiver: gevent.Greenlet | None = None
        self.sent = self.received = 0

    def start(self) -> None:
        """Listen, then forward what this process publishes. Before any mailbox is opened."""
        unlink_if_there(self._path)  # of a process that was killed
        self._following.open()  # before others find the socket
        for mailbox in self._registry.followed:
            self._following.add(mailbox)
        self._registry.on_follow.append(self._follow)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        os.chmod(self._path, 0o600)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)  # MSG_DONTWAIT is not enough: a cooperative socket would wait for room
        self._receiver = gevent.spawn(self._receive)
        self._registry.turns.listen = self.listen
        self._registry.on_publish.append(self.forward)

    def _follow(self, mailbox: MailboxId, begins: bool) -> None:
        (self._following.add if begins else self._following.remove)(mailbox)

    def close(self) -> None:
        if self._socket is not None:
            self._registry.on_publish.remove(self.forward)
            self._registry.on_follow.remove(self._follow)
            if self._receiver is not None:
                self._receiver.kill()
            self._socket.close()
            self._socket = None
            if self._sender is not None:
                self._sender.close()
                self._sender = None
            unlink_if_there(self._path)
            self._following.close()

    def _find_peers(self) -> None:
        """A look at the directory's time stamp, and at its names when it changed: a peer is known once it listens."""
        try:
            stamp = os.stat(self._directory).st_mtime_ns
            if stamp == self._listed:
                return
            found = [f"{self._directory}/{name}" for name in os.listdir(self._directory) if name.endswith(".bus")]
        except OSError as failure:
            log.warning("bus directory not listed", path=self._directory, error=str(failure))
            return
        self._listed = stamp if abs(time.time_ns() - stamp) > SETTLED_NS else 0
        there = [path for path in found if path != self._path and _is_there(path)]
        self._peers = {path: self._peers.get(path) or _Peer(path) for path in there}
        for peer in self._peers.values():
            peer.follows.look()

    def forward(self, mailbox: MailboxId, everyone: bool = False) -> None:
        """Tell the peers that follow the mailbox, or all; does not wait. After the change was committed."""
        self._find_peers()
        record = RECORD.pack(mailbox.account, mailbox.number)
        for peer in self._peers.values():
            if not everyone and mailbox not in peer.follows:
                continue
            if peer.flushing:
                self._keep(peer, record)
            elif not self._send(peer, record):
                self._keep(peer, record)
                peer.flushing = True
                gevent.spawn(self._flush, peer)

    def _keep(self, peer: _Peer, record: bytes) -> None:
        if peer.everything:
            return
        peer.pending[record] = None
        if len(peer.pending) > MOST_PENDING:
            peer.pending.clear()
            peer.everything = True

    def _send(self, peer: _Peer, datagram: bytes) -> bool:
        """False if the peer's socket is full. A peer that is not there needs nothing."""
        if self._sender is None:
            return True
        try:
            self._sender.sendto(datagram, peer.path)
            self.sent += 1
        except OSError as failure:
            if failure.errno in _FULL:
                return False
            if failure.errno == errno.ECONNREFUSED:
                _clear(peer.path)
            elif failure.errno != errno.ENOENT:
                log.warning("bus send failed", peer=peer.path, error=str(failure))
        return True

    def _flush(self, peer: _Peer) -> None:
        while peer.everything or peer.pending:
            if peer.everything:
                datagram, taken = EVERYTHING, []
            else:
                taken = list(peer.pending)[:RECORDS_PER_DATAGRAM]
                datagram = b"".join(taken)
            if self._send(peer, datagram):
                # No switch between sending and forgetting.
                if peer.everything:
                    peer.everything = False
                for record in taken:
                    peer.pending.pop(record, None)
            else:
                gevent.sleep(RETRY_SECONDS)
        peer.flushing = False

    def _receive(self) -> None:
        assert self._socket is not None
        while True:
            try:
                datagram = self._socket.recv(LONGEST_DATAGRAM)
            except OSError:
                return  # closed
            self._registry_told(datagram)

    def listen(self) -> None:
        """Hear what has come and was not received yet, without a wait. The socket is a cooperative one, so its
        descriptor never blocks.
        """
        try:
            while self._socket is not None:
                self._registry_told(os.read(self._socket.fileno(), LONGEST_DATAGRAM))
        except OSError:
            pass  # that was all

    def _registry_told(self, datagram: bytes) -> None:
        self.received += 1
        if not datagram or len(datagram) % RECORD.size:
            log.warning("bus datagram not understood", octets=len(datagram))
            return
        for account, number in RECORD.iter_unpack(datagram):
            if account == number == 0:
                self._registry.changed_everything()
            else:
                self._registry.changed(MailboxId(AccountId(account), number))


def _table(path: str) -> str:
    return path.removesuffix(".bus") + ".follows"


def _is_there(path: str) -> bool:
    """Whether a process listens; what one that was killed has left is removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _clear(path)
            return False
        except OSError:
            return os.path.exists(path)
    return True


def _clear(path: str) -> None:
    """Of a process that was killed."""
    unlink_if_there(path)
    unlink_if_there(_table(path))


def tell_everything(directory: str) -> int:
    """From outside the server: every worker is to look at all its open mailboxes. How many were told."""
    told = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for path in sorted(glob.glob(f"{glob.escape(directory)}/*.bus")):
            try:
                sock.sendto(EVERYTHING, path)
                told += 1
            except OSError as failure:  # of a worker that was killed
                log.debug("worker not told", path=path, error=str(failure))
    return told
