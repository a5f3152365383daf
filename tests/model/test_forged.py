"""The model can fail: transcripts of a server that does wrong, each in its own way, and of one that does right."""

import itertools

import pytest

from tests.model.belief import HEADER, Belief, Command
from tests.model.ledger import Act, Box, Expunge
from tests.model.responses import Fault, parse
from tests.model.steps import WEIGHTS, stream

BY_NUMBER = {"FETCH", "STORE", "SEARCH"}


class Client:
    """Plays a transcript: `C:` begins a command, `S:` is an untagged response, `.` ends the command."""

    def __init__(self, box, *, read_only=False):
        self.box, self.now = box, 10.0
        self.belief = Belief(box, read_only=read_only, now=self.now)
        self.command, self.start = Command("SELECT"), self.now

    def play(self, text):
        for line in text.strip().splitlines():
            who, _, said = line.strip().partition(" ")
            self.now += 1
            if who == "C:":
                name = said.split()[0] if not said.startswith("UID") else " ".join(said.split()[:2])
                self.command, self.start = Command(name, name in BY_NUMBER), self.now
                self.belief.answered = set()
            elif who == "S:":
                self.belief.apply(parse(said.encode() + b"\r\n"), self.command, self.now)
            else:
                if self.command.name == "NOOP":
                    self.belief.looked(self.start, self.now)
                self.command = None


def header(token):
    return f'{HEADER} "X-Model: {token}"'


def full(seq, uid, token, flags=""):
    return f"S: * {seq} FETCH (UID {uid} FLAGS ({flags}) {header(token)})"


SEEN, RECENT = "\\Seen", "\\Recent"
SELECTED = f"""
S: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft work)
S: * 3 EXISTS
S: * 0 RECENT
.
C: FETCH 1:3
{full(1, 4, "one")}
{full(2, 5, "two")}
{full(3, 9, "three", SEEN)}
.
"""


@pytest.fixture
def box():
    """One, two and three, under UIDs 4, 5 and 9; three is seen."""
    box = Box("INBOX", 77)
    for uid, token, flags in ((4, "one", ()), (5, "two", ()), (9, "three", ("\\seen",))):
        box.created(uid, token, 1.0, 2.0, frozenset(flags))
    return box


@pytest.fixture
def client(box):
    client = Client(box)
    client.play(SELECTED)
    return client


def fault(kind, play, *args):
    with pytest.raises(Fault) as caught:
        play(*args)
    assert caught.value.kind == kind, caught.value


@pytest.mark.parametrize(("kind", "transcript"), [
    ("expunge-in-numbers", "C: FETCH 1:2\nS: * 3 EXPUNGE"),
    ("expunge-in-numbers", "C: STORE 1\nS: * 3 EXPUNGE"),
    ("expunge-in-numbers", "C: SEARCH ALL\nS: * 3 EXPUNGE"),
    ("expunge-number", "C: NOOP\nS: * 4 EXPUNGE"),
    ("expunge-wrong", "C: NOOP\nS: * 1 EXPUNGE"),
    ("exists-shrank", "C: NOOP\nS: * 2 EXISTS"),
    ("fetch-unknown", "C: NOOP\nS: * 4 FETCH (FLAGS ())\nS: * 4 EXISTS"),
    ("unasked", "S: * 4 EXISTS"),
    ("unasked", "C: NOOP\nS: * SEARCH 1"),
    ("unexpected", "C: NOOP\nS: * VANISHED 5"),
    ("identity", "C: FETCH 2\nS: * 2 FETCH (UID 9 FLAGS ())"),
    ("identity", f"C: FETCH 2\nS: * 2 FETCH ({header('one')})"),
    ("identity", f"C: FETCH 3\nS: * 3 FETCH ({header('four')})\nS: * 4 EXISTS"),
    ("uid-order", "C: FETCH 3\nS: * 4 EXISTS\nS: * 4 FETCH (UID 7)"),
    ("flags", "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (\\Seen))"),
    ("flags", "C: FETCH 3\nS: * 3 FETCH (UID 9 FLAGS ())"),
    ("flags", "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (strange))"),
    ("keyword", "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (play))"),
    ("recent", "C: NOOP\nS: * 4 RECENT"),
    ("recent", "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (\\Recent))\nS: * 1 FETCH (UID 4 FLAGS ())"),
    ("grammar", "C: FETCH 1\nS: * 1 FETCH (UID 4"),
    ("grammar", "C: FETCH 1\nS: * 1 FETCH (UID)"),
])  # fmt: skip
def test_a_client_notices(client, kind, transcript):
    fault(kind, client.play, transcript)


def test_what_is_right_passes(client, box):
    box.instances[5].taken = 20.0
    box.delivery("four", 20.0).end = 21.0
    client.now = 21.0
    box.instances[4].acts.append(Act("+", frozenset({"\\flagged"}), 20.0, 21.0))
    client.now = 30.0
    client.play(f"""
        C: FETCH 1:3
        S: * 1 FETCH (FLAGS (\\Flagged))
        S: * 4 EXISTS
        .
        C: NOOP
        S: * 2 EXPUNGE
        S: * 1 RECENT
        .
        C: FETCH 3
        {full(3, 10, "four", RECENT)}
        .
    """)
    truth = {4: ("one", frozenset({"\\flagged"})), 9: ("three", frozenset({"\\seen"})), 10: ("four", frozenset())}
    assert client.belief.differs(truth) == ""
    box.rest(truth, 50.0)


def test_news_that_noop_does_not_tell(client, box):
    delivery = box.delivery("four", 20.0)
    client.play("C: NOOP\n.")
    delivery.end = client.now
    fault("count", client.play, "C: NOOP\n.")


def test_an_expunge_that_noop_does_not_tell(client, box):
    box.instances[5].taken = box.instances[5].gone = client.now
    fault("count", client.play, "C: NOOP\n.")
    box.delivery("four", 1.0).end = 2.0  # one came, one went, and the number of messages is right
    fault("expunge-untold", client.play, "C: NOOP\n.")


def test_a_message_that_was_expunged_comes_back(client, box):
    box.instances[5].taken = box.instances[5].gone = 11.0
    client.belief.fresh = 12.0
    fault("reappeared", client.play, "C: FETCH 2\nS: * 2 FETCH (UID 5 FLAGS ())")


def test_a_message_that_is_not_answered_for_has_to_go(client):
    client.belief.owed.append(client.belief.entries[1])
    fault("owed", client.play, "C: NOOP\n.")


def test_a_uid_that_was_another_message(box):
    other = Client(box)
    fault("uid-content", other.play, f"S: * FLAGS ()\nS: * 3 EXISTS\n.\nC: FETCH 1\n{full(1, 4, 'two')}")


def test_recent_to_two_sessions(client, box):
    other = Client(box)
    other.play(SELECTED)
    client.play("C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (\\Recent))\n.")
    fault("recent", other.play, "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS (\\Recent))")
    looker = Client(box, read_only=True)
    fault("recent", looker.play, SELECTED + "C: FETCH 2\nS: * 2 FETCH (UID 5 FLAGS (\\Recent))")


def test_a_flag_that_was_told_and_is_forgotten(client, box):
    """The change is older than the last NOOP: its value before is not to be told any more."""
    box.instances[4].acts.append(Act("+", frozenset({"\\flagged"}), client.now, client.now + 1))
    client.now += 2
    client.play("C: NOOP\nS: * 1 FETCH (FLAGS (\\Flagged))\n.")
    fault("flags", client.play, "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS ())")


def test_a_change_of_flags_that_noop_does_not_tell(client, box):
    box.instances[4].acts.append(Act("+", frozenset({"\\flagged"}), client.now, client.now + 1))
    client.now += 2
    fault("flags-untold", client.play, "C: NOOP\n.")


def test_a_flag_may_be_either_while_it_is_changed(client, box):
    act = Act("+", frozenset({"\\flagged"}), client.now)
    box.instances[4].acts.append(act)
    client.play("C: NOOP\nS: * 1 FETCH (FLAGS (\\Flagged))\n.\nC: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS ())\n.")
    act.end = client.now
    client.now += 1
    client.play("C: NOOP\nS: * 1 FETCH (FLAGS (\\Flagged))\n.")
    fault("flags", client.play, "C: FETCH 1\nS: * 1 FETCH (UID 4 FLAGS ())")


def test_only_marked_messages_may_go(client, box):
    box.expunges.append(Expunge(client.now, None))
    fault("expunge-wrong", client.play, "C: NOOP\nS: * 2 EXPUNGE")
    box.instances[4].acts.append(Act("+", frozenset({"\\deleted"}), client.now, client.now))
    client.play("C: NOOP\nS: * 1 EXPUNGE")


def test_uids_are_given_once_and_grow(box):
    fault("uid-order", box.created, 9, "four", 20.0, 21.0)
    box = Box("INBOX", 77)
    box.created(4, "one", 1.0, 2.0)
    fault("uid-order", box.created, 3, "two", 3.0, 4.0)
    box.next_told(9, 5.0, 6.0)
    fault("uid-order", box.created, 8, "three", 7.0, 8.0)
    fault("uidnext", box.next_told, 8, 9.0, 10.0)


EMPTY = frozenset()


@pytest.mark.parametrize(("kind", "truth"), [
    ("lost", {4: ("one", EMPTY), 9: ("three", {"\\seen"})}),
    ("lost", {4: ("one", EMPTY), 5: ("two", EMPTY), 9: ("three", {"\\seen"}), 11: ("sent", EMPTY)}),
    ("duplicate", {4: ("one", EMPTY), 5: ("two", EMPTY), 9: ("three", {"\\seen"}), 11: ("sent", EMPTY),
                   12: ("sent", EMPTY), 13: ("drop", EMPTY)}),
    ("uid-content", {4: ("two", EMPTY), 5: ("two", EMPTY), 9: ("three", {"\\seen"})}),
    ("flags", {4: ("one", {"\\seen"}), 5: ("two", EMPTY), 9: ("three", {"\\seen"})}),
])  # fmt: skip
def test_at_rest_each_message_is_there_once(box, kind, truth):
    for token in ("sent", "drop"):
        box.delivery(token, 3.0).end = 4.0
    fault(kind, box.rest, truth, 50.0)


def test_a_uid_of_an_earlier_phase_is_not_given_again(box):
    box.instances[5].taken = box.instances[5].gone = 3.0
    box.rest({4: ("one", EMPTY), 9: ("three", {"\\seen"})}, 50.0)
    fault("uid-reused", box.saw, 5, "new", 60.0)


def test_pictures_that_differ_are_named(client):
    right = {4: ("one", EMPTY), 5: ("two", EMPTY), 9: ("three", frozenset({"\\seen"}))}
    assert client.belief.differs(right) == ""
    assert "3 messages told, 2 there" in client.belief.differs({4: right[4], 5: right[5]})
    assert "number 2" in client.belief.differs({4: right[4], 6: right[5], 9: right[9]})
    assert "UID 9 is told as" in client.belief.differs({**right, 9: ("three", EMPTY)})


def test_responses_with_literals_and_quotes_are_read():
    read = parse(
        b'* 2 FETCH (BODY[HEADER.FIELDS (X-MODEL)] {3}\r\na)( FLAGS (\\Seen work) ENVELOPE ("a \\"b\\"" NIL) UID 7)\r\n'
    )
    assert read.items == {
        HEADER: b"a)(", "FLAGS": [b"\\Seen", b"work"], "ENVELOPE": [b'a "b"', b"NIL"], "UID": b"7"
    }  # fmt: skip
    assert parse(b"a1 OK [COPYUID 7 1:2 3:4] done\r\n").argument == "7 1:2 3:4"
    assert parse(b"* SEARCH\r\n").values == () and parse(b"* SEARCH 3 1\r\n").values == (3, 1)


def test_the_seed_decides_the_steps():
    first, again, other = (list(itertools.islice(stream(seed, "C1", WEIGHTS), 200)) for seed in (1, 1, 2))
    assert first == again != other
    assert {step.kind for step in first} > {"store", "move", "idle", "append"}
