"""Connections counted over several processes: never over the limit, and given back when a process dies."""

import os
import signal
import time

from mailsrv.net.tally import Shared, Tally


def test_one_worker_counts_exactly():
    tally = Tally(Shared())
    assert [tally.enter("a", 2) for _ in range(3)] == [True, True, False]
    assert tally.enter("b", 2)
    tally.leave("a")
    assert tally.enter("a", 2)
    assert tally.mine == {"a": 2, "b": 1}


def test_s33_a_limit_holds_over_all_workers():
    shared = Shared(3)
    tallies = [Tally(shared, number) for number in range(3)]
    assert [tally.enter("192.0.2.7", 50) for _ in range(17) for tally in tallies] == [True] * 50 + [False]
    assert [tally.count("192.0.2.7") for tally in tallies] == [50] * 3
    assert not tallies[0].enter("192.0.2.7", 50)
    assert tallies[0].enter("192.0.2.8", 50)
    tallies[2].leave("192.0.2.7")
    assert tallies[0].enter("192.0.2.7", 50)


def test_ten_thousand_addresses_in_each_worker_do_not_look_like_one_that_has_many():
    shared = Shared(2)
    first, second = Tally(shared, 0), Tally(shared, 1)
    keys = [f"10.{number >> 8}.{number & 255}.1" for number in range(10_000)]
    assert all(first.enter(key, 1) for key in keys)
    counts = [second.count(key) for key in keys]
    assert min(counts) == 1  # never too low
    assert max(counts) <= 6
    assert sum(second.enter(f"203.0.{number >> 8}.{number & 255}", 10) for number in range(2000)) == 2000


def test_counts_are_shared_through_fork_and_a_killed_worker_gives_its_own_back():
    shared = Shared(2)
    mine = Tally(shared, 0)
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        theirs = Tally(shared, 1)
        for _ in range(3):
            theirs.enter("a", 10)
        os.write(tell, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"x"
        assert mine.count("a") == 3
        assert [mine.enter("a", 4) for _ in range(2)] == [True, False]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)
    again = Tally(shared, 1)  # the one that is started in its place
    assert mine.count("a") == again.count("a") == 1


def test_entering_costs_microseconds():
    tally = Tally(Shared(8), 3)
    best = min(_seconds(tally) for _ in range(5))
    assert best < 0.0005


def _seconds(tally):
    begun = time.perf_counter()
    for number in range(100):
        tally.enter(f"192.0.2.{number}", 50)
        tally.leave(f"192.0.2.{number}")
    return (time.perf_counter() - begun) / 100
