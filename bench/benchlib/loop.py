"""The client's event loop: sockets, and what to call when one is ready. One process drives thousands of connections."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

Handler = Callable[[int], None]


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, sock: socket.socket, handler: Handler, mask: int = select.EPOLLIN) -> None:
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), mask)

    def mask(self, sock: socket.socket, mask: int) -> None:
        self._epoll.modify(sock.fileno(), mask)

    def drop(self, sock: socket.socket) -> None:
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def once(self, timeout: float) -> None:
        for fd, events in self._epoll.poll(timeout, 512):
            handler = self._handlers.get(fd)
            if handler:
                handler(events)
