"""Subscriptions to mailboxes: who wants to hear that one changed.

A session subscribes before it first reads the mailbox, so no change falls between. Publishing never waits and
carries no data: it sets each subscriber's Event and returns. What changed is asked of the mailbox. The other processes
are told of a mailbox if they follow it.

Imports: mail.turns, values, gevent.event.    RFC 2177 (IDLE), RFC 9051 5.2 (updates).
"""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

from mailsrv.mail.turns import Turns
from mailsrv.values import MailboxId


class Subscription:
    """One session's interest in one mailbox; `close` ends it and may be called twice."""

    __slots__ = ("_registry", "event", "mailbox")

    def __init__(self, registry: Registry, mailbox: MailboxId, event: Event) -> None:
        self._registry: Registry | None = registry
        self.mailbox, self.event = mailbox, event

    def close(self) -> None:
        if self._registry is not None:
            self._registry._forget(self)
            self._registry = None


class Registry:
    """The subscriptions of this process. `on_change` hooks hear of every change that this process makes or is told of,
    `on_publish` ones (called with whether every process shall know) of our own only.

    Who accepts mail takes `turns`, so that who is about to hear goes first.
    """

    def __init__(self) -> None:
        self.turns = Turns()
        self._subscriptions: dict[MailboxId, list[Subscription]] = {}
        self._followed: dict[MailboxId, int] = {}
        self.on_change: list[Callable[[MailboxId | None], None]] = []
        self.on_publish: list[Callable[[MailboxId, bool], None]] = []
        self.on_follow: list[Callable[[MailboxId, bool], None]] = []

    def follow(self, mailbox: MailboxId) -> None:
        """Have this process told what others do to the mailbox; before the first look at it. `unfollow` as often."""
        count = self._followed.get(mailbox, 0)
        self._followed[mailbox] = count + 1
        if not count:
            for hook in self.on_follow:
                hook(mailbox, True)

    def unfollow(self, mailbox: MailboxId) -> None:
        self._followed[mailbox] -= 1
        if not self._followed[mailbox]:
            del self._followed[mailbox]
            for hook in self.on_follow:
                hook(mailbox, False)

    @property
    def followed(self) -> list[MailboxId]:
        return list(self._followed)

    def subscribe(self, mailbox: MailboxId, event: Event) -> Subscription:
        subscription = Subscription(self, mailbox, event)
        self._subscriptions.setdefault(mailbox, []).append(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        watching = self._subscriptions[subscription.mailbox]
        watching.remove(subscription)
        if not watching:
            del self._subscriptions[subscription.mailbox]

    def watchers(self, mailbox: MailboxId) -> int:
        return len(self._subscriptions.get(mailbox, ()))

    def publish(self, mailbox: MailboxId, *, known: bool = False, everyone: bool = False) -> None:
        """The mailbox changed, by this process: wake who watches it here, and tell the processes that follow it.

        `known`: the mailbox's state here has the change already, so nothing is stale. `everyone`: it is new or has a
        new name, so whoever waits for one of that name cannot follow it yet.
        """
        if known:
            self._wake(mailbox)
        else:
            self.changed(mailbox)
        for hook in self.on_publish:
            hook(mailbox, everyone)

    def changed(self, mailbox: MailboxId) -> None:
        """The mailbox changed, wherever: wake who watches it in this process."""
        for hook in self.on_change:
            hook(mailbox)
        self._wake(mailbox)

    def _wake(self, mailbox: MailboxId) -> None:
        # No switch here: Event.set only schedules the greenlets that wait.
        watching = self._subscriptions.get(mailbox)
        if watching:
            self.turns.news()
            for subscription in watching:
                subscription.event.set()

    def changed_everything(self) -> None:
        """Somebody could not tell which: every open mailbox is to be looked at."""
        for hook in self.on_change:
            hook(None)
        for watching in self._subscriptions.values():
            for subscription in watching:
                subscription.event.set()
