"""Changes carried between worker processes: everything arrives, or "anything may have changed" does."""

import errno
import os
import socket

import gevent
import pytest
from gevent.event import Event

from mailsrv.mail import bus as carrier
from mailsrv.mail import following
from mailsrv.mail.bus import EVERYTHING, RECORD, Bus, tell_everything
from mailsrv.mail.following import SLOTS, Followed, Following
from mailsrv.mail.notify import Registry
from mailsrv.values import MailboxId


class Heard(Registry):
    def __init__(self):
        super().__init__()
        self.heard = []
        self.woken = Event()
        self.on_change.append(self.note)

    def note(self, mailbox):
        self.heard.append(mailbox)
        self.woken.set()

    def wait_for(self, condition):
        with gevent.Timeout(60):
            while not condition(self.heard):
                self.woken.wait()
                self.woken.clear()


@pytest.fixture
def choosy(tmp_path):
    """Three processes that follow nothing yet."""
    made = []
    for number in range(3):
        registry = Heard()
        made.append((Bus(str(tmp_path), str(number), registry), registry))
        made[-1][0].start()
    yield made
    for one, _ in made:
        one.close()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def buses(choosy, tmp_path):
    """Three that are told everything, as where there is no table."""
    for number in range(3):
        os.unlink(tmp_path / f"{number}.follows")
    return choosy


def test_f04_a_change_reaches_every_other_process(buses):
    mailbox = MailboxId(2**40, 7)
    buses[0][1].publish(mailbox)
    for _, registry in buses[1:]:
        registry.wait_for(lambda heard: mailbox in heard)
    assert buses[0][1].heard == [mailbox], "one's own is not told twice"
    buses[1][1].changed(MailboxId(1, 1))  # what was heard is not passed on
    assert buses[1][0].sent == 0


def test_f04_a_process_that_does_not_listen_yet_or_any_more_is_not_waited_for(buses, tmp_path):
    buses[2][0].close()
    buses[0][1].publish(MailboxId(1, 1))
    buses[1][1].wait_for(lambda heard: heard)
    again = Heard()
    again.follow(MailboxId(1, 2))
    bus = Bus(str(tmp_path), "2", again)
    bus.start()
    buses[0][1].publish(MailboxId(1, 2))
    again.wait_for(lambda heard: MailboxId(1, 2) in heard)
    bus.close()


def test_f04_a_process_that_comes_later_is_found(buses, tmp_path, monkeypatch):
    """As in an upgrade: sessions of the old processes must hear what the new ones do, and the other way about."""
    buses[0][1].publish(MailboxId(1, 1))
    buses[1][1].wait_for(lambda heard: heard)
    later = Heard()
    for number in (2, 4):
        later.follow(MailboxId(1, number))
    bus = Bus(str(tmp_path), "later", later)
    bus.start()
    buses[0][1].publish(MailboxId(1, 2))
    later.wait_for(lambda heard: MailboxId(1, 2) in heard)
    later.publish(MailboxId(1, 3))
    for _, registry in buses:
        registry.wait_for(lambda heard: MailboxId(1, 3) in heard)
    bus.close()
    monkeypatch.setattr(carrier, "SETTLED_NS", 0)
    buses[0][1].publish(MailboxId(1, 4))
    monkeypatch.setattr(carrier.os, "listdir", lambda path: pytest.fail("a directory that did not change is listed"))
    buses[0][1].publish(MailboxId(1, 5))
    buses[1][1].wait_for(lambda heard: MailboxId(1, 5) in heard)


def test_s_traps_a_full_socket_loses_nothing(buses, tmp_path):
    """A peer that does not read for a while is told all it missed, merged, and the sender never waits."""
    receiver = buses[1][0]
    receiver._receiver.kill()
    wanted = [MailboxId(1, number) for number in range(3000)]
    for mailbox in wanted:
        buses[0][1].publish(mailbox)
        buses[0][1].publish(mailbox)
    peer = buses[0][0]._peers[str(tmp_path / "1.bus")]
    assert peer.flushing and 0 < len(peer.pending) <= 3000
    receiver._receiver = gevent.spawn(receiver._receive)
    buses[1][1].wait_for(lambda heard: set(wanted) <= set(heard))
    with gevent.Timeout(60):
        while peer.flushing:
            gevent.sleep(0.001)
    assert not peer.pending


def test_s_traps_too_much_becomes_anything(buses, tmp_path, monkeypatch):
    monkeypatch.setattr(carrier, "MOST_PENDING", 50)
    receiver = buses[1][0]
    receiver._receiver.kill()
    for number in range(5000):
        buses[0][1].publish(MailboxId(1, number))
    peer = buses[0][0]._peers[str(tmp_path / "1.bus")]
    assert peer.everything and not peer.pending
    receiver._receiver = gevent.spawn(receiver._receive)
    buses[1][1].wait_for(lambda heard: None in heard)


def test_datagrams_of_others_do_no_harm(buses, tmp_path, events):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for datagram in (b"", b"x", os.urandom(100), b"\xff" * 6000, RECORD.pack(1, 2) + b"x"):
            stranger.sendto(datagram, str(tmp_path / "1.bus"))
        stranger.sendto(RECORD.pack(5, 6) + EVERYTHING, str(tmp_path / "1.bus"))
    buses[1][1].wait_for(lambda heard: None in heard)
    assert MailboxId(5, 6) in buses[1][1].heard
    assert [event for event, _ in events].count("bus datagram not understood") >= 4
    assert os.stat(tmp_path / "1.bus").st_mode & 0o777 == 0o600


def test_the_command_line_can_tell_all_workers(buses, tmp_path):
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / "9.bus"))
    dead.close()
    assert tell_everything(str(tmp_path)) == 3
    for _, registry in buses:
        registry.wait_for(lambda heard: None in heard)
    os.unlink(tmp_path / "9.bus")


def kill(bus, registry):
    """The bus of a process that was killed: nobody listens, and its files stay."""
    bus._receiver.kill()
    for one in (bus._socket, bus._sender):
        one.close()
    registry.on_publish.clear()
    registry.on_follow.clear()
    bus._socket = None


A, B = MailboxId(1, 1), MailboxId(2, 1)


def test_f04_only_who_follows_a_mailbox_is_told(choosy):
    (one, here), (two, there), (three, elsewhere) = choosy
    there.follow(A)
    here.publish(B)
    here.publish(A)
    there.wait_for(lambda heard: A in heard)
    assert there.heard == [A] and (one.sent, two.received, three.received) == (1, 1, 0)
    there.follow(A)
    there.unfollow(A)
    here.publish(A)
    there.wait_for(lambda heard: heard.count(A) == 2)
    there.unfollow(A)
    here.publish(A)
    assert one.sent == 2 and not elsewhere.heard


def test_f04_everyone_is_told_of_a_mailbox_that_nobody_can_follow_yet(choosy):
    choosy[0][1].publish(A, everyone=True)
    for _, registry in choosy[1:]:
        registry.wait_for(lambda heard: A in heard)


def test_f04_what_a_process_follows_before_it_listens_is_in_its_table(choosy, tmp_path):
    later = Heard()
    later.follow(A)
    bus = Bus(str(tmp_path), "later", later)
    bus.start()
    choosy[0][1].publish(A)
    later.wait_for(lambda heard: A in heard)
    bus.close()


def test_f04_a_process_with_the_name_of_a_killed_one_is_told_by_its_own_table(choosy, tmp_path):
    """Process numbers come again; the table that others have mapped is then nobody's."""
    choosy[0][1].publish(A, everyone=True)
    kill(*choosy[1])
    again = Heard()
    again.follow(B)
    bus = Bus(str(tmp_path), "1", again)
    bus.start()
    choosy[0][1].publish(B)
    again.wait_for(lambda heard: B in heard)
    bus.close()


def test_what_a_killed_process_left_is_removed(choosy, tmp_path):
    kill(*choosy[1])
    choosy[0][1].publish(A)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("1.")]


def test_f04_without_room_for_a_table_everything_is_told(choosy, tmp_path, monkeypatch, events):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(following.os, "posix_fallocate", full)
    poor = Heard()
    bus = Bus(str(tmp_path), "poor", poor)
    bus.start()
    poor.follow(B)
    choosy[0][1].publish(A)
    poor.wait_for(lambda heard: A in heard)
    poor.unfollow(B)
    bus.close()
    assert "no table of followed mailboxes" in [event for event, _ in events]


def test_mailboxes_that_share_an_octet_are_counted(tmp_path):
    """A process may be told of what it does not follow, and is always told of what it does."""
    mine, theirs = Following(str(tmp_path / "x")), Followed(str(tmp_path / "x"))
    mine.open()
    theirs.look()
    same = MailboxId(1, 1 + SLOTS)
    mine.add(A)
    mine.add(same)
    mine.remove(same)
    assert A in theirs and same in theirs and B not in theirs
    mine.remove(A)
    assert A not in theirs
    mine.close()


def test_what_another_process_told_is_heard_by_the_first_who_takes_a_turn(buses):
    (ours, _), (_, registry) = buses[:2]
    mailbox = MailboxId(5, 6)
    ours.forward(mailbox, True)
    registry.turns.take()  # nobody watches: no switch here
    assert registry.heard == [mailbox]
