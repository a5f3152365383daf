"""Failed logins: who has to wait, for how long, and who never has to."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import gevent
import pytest

from mailsrv.errors import AuthenticationFailed, LoginThrottled
from mailsrv.mail import throttle as module
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.passwords import Caller, Passwords
from mailsrv.mail.throttle import Limits, Throttle
from mailsrv.networks import Networks, address_of, network_of
from mailsrv.settings import NETWORKS

ANN = "ann@example.com"
HOME, OFFICE, FOE = "198.51.100.20", "203.0.113.5", "192.0.2.66"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    """`make()`: the throttle of one more worker, on the same state and with the same secret."""
    made = []

    def start(limits=None, secret=b"x" * 32):
        made.append(Throttle(str(tmp_path / "throttle.sqlite3"), limits or Limits(), secret, clock=clock))
        return made[-1]

    yield start
    for one in made:
        one.close()


def wait(throttle, user=ANN, peer=FOE):
    """Seconds until an attempt is looked at."""
    try:
        throttle.check(user, peer)
    except LoginThrottled as throttled:
        return throttled.wait_seconds
    return 0.0


def fail(throttle, count, user=ANN, peer=FOE, start=0):
    return [throttle.failed(user, peer, f"guess {start + number}") for number in range(count)]


def test_s20_pauses_double_after_three_failures_and_have_an_end(make, clock):
    throttle = make()
    seen = []
    for number in range(15):
        fail(throttle, 1, start=number)
        seen.append(round(wait(throttle)))
        clock.now += 0.01
    assert seen[:9] == [0, 0, 0, 1, 2, 4, 8, 16, 32]
    assert seen[-2:] == [900, 900]
    clock.now += 901
    assert wait(throttle) == 0
    clock.now += 15 * module.FORGOTTEN_SECONDS
    fail(throttle, 3, start=100)
    assert wait(throttle) == 0  # long ago is forgotten
    fail(throttle, 1, start=200)
    assert 0.9 < wait(throttle) <= 1


def test_s20_the_same_wrong_password_is_counted_once(make, clock):
    """fail2ban#779, docker-mailserver#1937: a telephone with an old password repeats it all day."""
    throttle = make()
    assert [throttle.failed(ANN, OFFICE, "old password") for _ in range(200)] == [False] + [True] * 199
    assert wait(throttle, ANN, OFFICE) == wait(throttle, "bo@example.com", OFFICE) == 0
    clock.now += module.MARK_SECONDS + 1
    assert throttle.failed(ANN, OFFICE, "old password") is False
    assert throttle.failed("bo@example.com", OFFICE, "old password") is False  # one password tried on many users counts


def test_s20_a_repeated_password_is_known_to_all_workers_and_to_no_file(make, tmp_path):
    first, second = make(), make()
    assert first.failed(ANN, OFFICE, "a secret nearly right") is False
    assert second.failed(ANN, OFFICE, "a secret nearly right") is True
    assert make(secret=b"y" * 32).failed(ANN, OFFICE, "a secret nearly right") is False  # after a restart
    first.close(), second.close()
    for path in tmp_path.iterdir():
        assert b"nearly right" not in path.read_bytes()


def test_s20_network_and_user_are_counted_each(make):
    throttle = make()
    for number in range(6):
        throttle.failed(f"user{number}@example.com", f"192.0.2.{number}", "guess")
    assert 3 < wait(throttle, ANN, "192.0.2.99") <= 4  # the whole /24
    assert wait(throttle, ANN, HOME) == 0
    for number in range(6):
        throttle.failed("bo@example.com", f"10.{number}.0.1", f"guess {number}")
    assert 3 < wait(throttle, "bo@example.com", HOME) <= 4
    for number in range(6):
        throttle.failed("cy@example.com", f"2001:db8:0:1::{number}", f"guess {number}")
    assert wait(throttle, ANN, "2001:db8:0:1:ffff::1") > 3
    assert wait(throttle, ANN, "2001:db8:0:2::1") == 0


def test_s20_what_is_counted_by_one_worker_holds_for_all_and_after_a_restart(make):
    first, second = make(), make()
    fail(first, 6)
    assert wait(second) > 3
    first.close(), second.close()
    assert wait(make()) > 3


def test_s20_the_users_own_address_never_waits(make, clock):
    throttle = make()
    throttle.succeeded(ANN, HOME)
    clock.now += 20 * 86400
    neighbour = "198.51.100.99"
    for number in range(10):
        fail(throttle, 1, "bo@example.com", neighbour, number)
        fail(throttle, 1, ANN, FOE, number)
        fail(throttle, 1, ANN, HOME, 100 + number)
    assert wait(throttle, "bo@example.com", HOME) > 100  # the network waits
    assert wait(throttle, ANN, FOE) > 100  # so does the user elsewhere
    assert wait(throttle, ANN, HOME) == 0
    assert wait(throttle, ANN, neighbour) > 100  # near by is not the same address
    clock.now += 11 * 86400
    fail(throttle, 8, ANN, HOME, 500)
    assert wait(throttle, ANN, HOME) > 3  # nobody was seen there for a month


def test_s20_what_others_try_on_an_account_does_not_reach_its_owners_networks(make):
    throttle = make()
    throttle.succeeded(ANN, "198.51.100.20")
    throttle.succeeded(ANN, "2001:db8:5:5::1")
    fail(throttle, 10)
    assert wait(throttle, ANN, "198.51.100.77") == 0  # the same provider gave another address
    assert wait(throttle, ANN, "2001:db8:5:5:abcd::9") == 0
    assert wait(throttle, ANN, "198.51.101.1") > 60


def test_a_login_forgives_the_user_and_not_the_network(make):
    throttle = make()
    fail(throttle, 5, ANN, FOE)
    assert throttle.news(ANN, FOE)
    throttle.succeeded(ANN, FOE)
    assert wait(throttle, ANN, HOME) == 0
    assert wait(throttle, "bo@example.com", FOE) > 1


def test_a_login_is_written_down_once_an_hour(make, clock):
    throttle = make()
    assert throttle.news(ANN, HOME)
    throttle.succeeded(ANN, HOME)
    assert not throttle.news(ANN, HOME)
    assert throttle.news(ANN, OFFICE)
    fail(throttle, 1, ANN, FOE)
    throttle.check(ANN, HOME)
    assert throttle.news(ANN, HOME)  # there is something to forgive
    throttle.succeeded(ANN, HOME)
    assert not throttle.news(ANN, HOME)
    clock.now += module.NOTED_SECONDS + 1
    assert throttle.news(ANN, HOME)


def test_users_behind_a_trusted_proxy_do_not_lock_each_other_out(make):
    throttle = make(Limits(trusted=Networks(NETWORKS.read(["127.0.0.0/8", "::1/128"]))))
    for number in range(50):
        throttle.failed(f"user{number}@example.com", "127.0.0.1", "guess")
    assert wait(throttle, ANN, "127.0.0.1") == 0
    throttle.succeeded(ANN, "127.0.0.1")
    fail(throttle, 6, ANN, "127.0.0.1")
    assert wait(throttle, ANN, "127.0.0.1") > 3  # guessing at one user is slowed there too: everybody is known there
    assert wait(throttle, ANN, HOME) > 3


def test_clear_forgives_at_once_in_every_worker(make):
    first, second = make(), make()
    fail(first, 6)
    assert [entry.who for entry in second.entries()] == ["192.0.2.0/24", ANN]
    assert second.clear("ANN@example.com") == 1
    assert wait(first) > 3
    assert second.clear(FOE) == 1  # any address of the network
    assert wait(first) == 0
    fail(first, 6, start=50)
    assert second.clear(None) == 2
    assert wait(first) == 0
    assert second.entries() == []


def test_tables_have_a_bound_and_what_is_new_stays(make, clock, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    monkeypatch.setattr(module, "SWEEP_WRITES", 50)
    throttle = make()
    for number in range(400):
        clock.now += 0.01
        throttle.failed(f"{number}@example.com", f"10.{number}.0.1", "guess")
        throttle.succeeded(f"{number}@example.com", f"10.{number}.0.1")
    with closing(sqlite3.connect(throttle._path)) as db:
        sizes = [db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("strikes", "marks", "known")]
    assert all(size <= 150 for size in sizes), sizes
    assert throttle.failed("399@example.com", "10.9.9.9", "guess") is True


def test_a_clock_that_was_set_back_locks_nobody_out_for_long(make, clock):
    throttle = make()
    fail(throttle, 20)
    clock.now -= 365 * 86400
    assert wait(throttle) <= 900


@pytest.mark.parametrize("damage", [b"no database at all, this is text\n" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_damaged_state_is_thrown_away(make, tmp_path, damage):
    (tmp_path / "throttle.sqlite3").write_bytes(damage)
    throttle = make()
    assert wait(throttle) == 0
    fail(throttle, 6)
    assert wait(throttle) > 3


def test_without_room_for_its_state_people_log_in_all_the_same(tmp_path, events):
    throttle = Throttle(str(tmp_path / "missing" / "throttle.sqlite3"), Limits())
    assert wait(throttle) == 0
    assert throttle.failed(ANN, FOE, "guess") is False
    throttle.succeeded(ANN, FOE)
    assert "throttle state not usable" in [event for event, _ in events]


def test_checking_costs_microseconds(make):
    throttle = make()
    for number in range(2000):
        throttle.failed(f"{number}@example.com", f"10.{number >> 8}.{number & 255}.1", "guess")
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for number in range(200):
            throttle.check(f"{number}@example.com", HOME)
        best = min(best, (time.perf_counter() - begun) / 200)
    assert best < 0.001


# ------------------------------------------------------------------ unknown recipients


def test_s19_who_asks_for_many_unknown_recipients_gets_no_answers(make, clock):
    throttle = make(Limits(probes=20))
    for number in range(20):
        throttle.probed(FOE, f"{number}@example.com")
        throttle.probed(FOE, f"{number}@example.com")  # a list with an old address in it
    assert throttle.probe_refusal(FOE) is None
    throttle.probed(FOE, "another@example.com")
    assert "Wait 6 minutes" in throttle.probe_refusal(FOE)
    assert make(Limits(probes=20)).probe_refusal(FOE)
    assert throttle.probe_refusal("192.0.2.67") is None
    assert throttle.entries()[0].kind == "sender"
    clock.now += 361
    assert throttle.probe_refusal(FOE) is None
    throttle.probed(FOE, "one more@example.com")
    assert throttle.probe_refusal(FOE) is None
    clock.now += 10
    for number in range(2):
        throttle.probed(FOE, f"again {number}@example.com")
    assert throttle.probe_refusal(FOE)
    throttle.clear(FOE)
    assert throttle.probe_refusal(FOE) is None


# ------------------------------------------------------------------ together with passwords


@pytest.fixture
def accounts(tmp_path, password_hash):
    with closing(Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))) as made:
        made.add_domain("example.com")
        made.add_user(ANN, password_hash)
        made.add_user("bo@example.com", password_hash)
        yield made


def test_s20_the_right_password_waits_too_and_is_not_betrayed(accounts, make, clock):
    who = Passwords(accounts, make())
    who.authenticate(ANN, "correct horse", Caller("10.0.0.1"))  # remembered from here on
    for number in range(4):
        with pytest.raises(AuthenticationFailed):
            who.authenticate("ann", f"guess {number}", Caller(FOE))
    before = who.verifications
    for password in ("correct horse", "guess 1", "guess 9"):
        with pytest.raises(LoginThrottled, match="Wait 1 second before"):
            who.authenticate(ANN, password, Caller(FOE))
    assert who.verifications == before  # nothing was looked at
    assert who.authenticate(ANN, "correct horse", Caller("10.0.0.1")).address.local == "ann"
    clock.now += 1.1
    assert who.authenticate(ANN, "correct horse", Caller(FOE)).address.local == "ann"


def test_s19_users_that_do_not_exist_are_made_to_wait_alike(accounts, make):
    who = Passwords(accounts, make())
    said = []
    for name, net in ((ANN, 1), ("nobody@example.com", 2)):
        for number in range(4):
            with pytest.raises(AuthenticationFailed):
                who.authenticate(name, f"guess {number}", Caller(f"10.{net}.{number}.1"))
        with pytest.raises(LoginThrottled) as throttled:
            who.authenticate(name, "guess 9", Caller("10.9.9.9"))
        said.append(str(throttled.value))
    assert said[0] == said[1] == "Too many wrong passwords for this user. Wait 1 second before you try again"


def test_s20_many_guesses_at_once_are_no_way_round(accounts, make):
    who = Passwords(accounts, make(Limits(longest_seconds=900)))
    guesses = [gevent.spawn(who.authenticate, ANN, f"guess {number}", Caller(FOE)) for number in range(40)]
    gevent.joinall(guesses, timeout=60)
    tried = sum(isinstance(one.exception, AuthenticationFailed) for one in guesses)
    assert all(isinstance(one.exception, AuthenticationFailed | LoginThrottled) for one in guesses)
    assert 4 <= tried <= 6  # three are free, and two are verified at a time


def test_networks_and_addresses():
    assert network_of("192.0.2.7") == "192.0.2.0/24"
    assert network_of("2001:db8::7") == address_of("2001:db8::7") == "2001:db8::/64"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("nonsense") == "nonsense"
    assert address_of("192.0.2.7") == "192.0.2.7"
    some = Networks(NETWORKS.read(["10.0.0.0/8", "2001:db8::/32"]))
    assert [peer in some for peer in ("10.9.9.9", "11.0.0.1", "2001:db8:1::1", "::1", "nonsense")] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert "10.0.0.1" not in Networks()


def test_s20_a_command_that_ends_does_not_take_the_state_from_a_running_worker(tmp_path, make, clock):
    """Closing a descriptor of a database drops a process's locks on it: the next one to leave would remove the log."""
    worker = make()
    worker.check(ANN, FOE)  # a connection that reads
    worker.failed(ANN, FOE, "guess")  # and one that writes
    assert (tmp_path / "throttle.sqlite3-wal").exists()
    command = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        "db.execute('SELECT * FROM strikes').fetchall(); db.close()"
    )
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "throttle.sqlite3")], check=True, timeout=120)
    assert (tmp_path / "throttle.sqlite3-wal").exists()  # still the worker's
    other = make()
    for number in range(9):
        other.failed(ANN, FOE, f"guess {number}")
    with pytest.raises(LoginThrottled):
        worker.check("somebody else", FOE)
