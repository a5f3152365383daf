"""The runner's process runs behind the workers while there is room, and takes its share where there is none."""

import os
import re
import resource
import subprocess
import sys

import pytest

from mailsrv import behind, schedstat
from mailsrv.behind import Behind

SPIN = "while True: pass"
KEEP = """
import gevent, os, resource, sys, time
from mailsrv import behind, log
log.configure(level="debug")
gevent.get_hub()
behind.SHARE_SECONDS = 1.0
{before}
place = behind.Behind()
def work():
    # Only while it is behind: other programs of a busy machine would else keep it from going there.
    while True:
        until = time.monotonic() + 0.02
        while place.behind and time.monotonic() < until:
            pass
        gevent.sleep(0.005)
gevent.spawn(work)
print("begins", os.sched_getscheduler(0), flush=True)
place.keep()
print("ends", os.sched_getscheduler(0), flush=True)
"""


@pytest.fixture
def moves(monkeypatch):
    made = []
    monkeypatch.setattr(behind, "_move", lambda policy: not made.append(policy))
    return made


class Hour:
    """A clock, and what the process did until then."""

    def __init__(self):
        self.now = self.worked = self.waited = 0.0
        self.place = Behind(lambda: (self.worked, self.waited), lambda: self.now)

    def second(self, worked, waited):
        self.now, self.worked, self.waited = self.now + 1, self.worked + worked, self.waited + waited
        self.place.look()
        return self.place.behind


def test_begins_beside_the_others_and_steps_behind_them_where_there_is_room(moves):
    hour = Hour()
    assert moves == [os.SCHED_BATCH]
    assert not hour.second(worked=0.4, waited=0.3)
    assert hour.second(worked=0.4, waited=0.2)
    assert moves == [os.SCHED_BATCH, os.SCHED_IDLE]


def test_takes_its_share_where_it_waits_longer_than_it_works_and_keeps_it_for_a_while(moves):
    hour = Hour()
    assert hour.second(worked=0.0, waited=0.0)
    assert hour.second(worked=0.4, waited=0.4)
    assert not hour.second(worked=0.01, waited=0.9)
    assert [hour.second(worked=0.5, waited=0.0) for _ in range(10)] == [False] * 9 + [True]
    assert moves == [os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_BATCH, os.SCHED_IDLE]


def test_the_waits_of_who_does_hardly_anything_move_nobody(moves):
    hour = Hour()
    assert [hour.second(worked=0.001, waited=0.09) for _ in range(20)] == [True] * 20
    assert len(moves) == 2


def test_a_system_that_tells_nothing_of_waiting_leaves_it_beside_the_others(moves, monkeypatch, tmp_path):
    for told in (None, "0 0 0\n"):
        path = tmp_path / "schedstat"
        if told is not None:
            path.write_text(told)
        monkeypatch.setattr(schedstat, "PATH", str(path))
        place = Behind()
        for _ in range(3):
            place.look()
        assert not place.behind
    assert set(moves) == {os.SCHED_BATCH}


def test_a_system_without_proc_is_no_reason_not_to_start(monkeypatch):
    def nothing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", nothing)
    place = Behind(lambda: (0.0, 0.0))
    place.look()
    assert not place.behind


def test_whether_there_is_a_way_back_is_found_out_without_leaving_anything_open():
    before = """
from gevent import monkey
monkey.patch_all()
place = behind.Behind()
gevent.sleep(0.01)
had = len(os.listdir("/proc/self/fd"))
behind._can_return()
print("left", len(os.listdir("/proc/self/fd")) - had, flush=True)
os._exit(0)
"""
    with run(before) as process:
        out, err = process.communicate(timeout=50)
    assert out.splitlines() == ["left 0"], err


def test_who_has_no_descriptors_left_comes_back_when_there_are_some():
    """The threads are listed in a directory, which has to be opened."""
    before = """
behind.LOOK_SECONDS = 0.01
starved, looks = [], []
def worked():
    looks.append(1)
    return 0.0, 5.0 * len(looks) if starved else 0.0
place = behind.Behind(worked)
keeping = gevent.spawn(place.keep)
def until(reached):
    while not (keeping.dead or reached()):
        gevent.sleep(0.001)
until(lambda: place.behind)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
starved.append(1)
seen = len(looks)
until(lambda: len(looks) > seen + 3)
print("without", os.sched_getscheduler(0), flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
until(lambda: not place.behind)
print("with", os.sched_getscheduler(0), flush=True)
os._exit(0)
"""
    with run(before) as process:
        out, err = process.communicate(timeout=50)
    assert out.splitlines() == [f"without {os.SCHED_IDLE}", f"with {os.SCHED_BATCH}"], err


def test_who_has_to_end_does_so_beside_the_others(moves):
    hour = Hour()
    assert hour.second(worked=0.0, waited=0.0)
    hour.place.stay_beside()
    assert [hour.second(worked=0.5, waited=0.0) for _ in range(20)] == [False] * 20
    hour.place.stay_beside()
    assert moves == [os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_BATCH]


def run(before="", **more):
    words = [sys.executable, "-c", KEEP.format(before=before)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def end(process):
    process.kill()
    process.wait()


def lines_until(stream, word):
    for line in stream:
        if word in line:
            return line
    raise AssertionError(f"ended before {word!r}")


@pytest.mark.timeout(120)
def test_a_process_that_is_starved_behind_the_others_takes_its_share_until_they_rest():
    """With four others for each processor. They are of one session: sessions have their shares of the machine."""
    spinning = []
    with run() as process:
        try:
            lines_until(process.stderr, "to=behind")
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
            spinning += [
                subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(4 * len(os.sched_getaffinity(0)))
            ]
            lines_until(process.stderr, "to=beside")
            assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
            while spinning:
                end(spinning.pop())
            lines_until(process.stderr, "to=behind")
        finally:
            for one in [*spinning, process]:
                end(one)


def test_nobody_steps_behind_who_could_not_come_back():
    before = """
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
"""
    with run(before) as process:
        out, err = process.communicate(timeout=50)
    assert out.splitlines() == [f"begins {os.SCHED_BATCH}", f"ends {os.SCHED_BATCH}"], err
    assert "stays-beside" in err and "LimitNICE" in err


def test_what_root_could_allow_before_it_was_left_behind_decides():
    before = """
behind.allow_return()
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
"""
    with run(before) as process:
        try:
            process.stdout.readline()
            with open(f"/proc/{process.pid}/limits") as limits:
                limit = re.search(r"(?m)^Max nice priority +(\w+)", limits.read())[1]
            allowed = limit == "unlimited" or int(limit) >= 20
            assert lines_until(process.stderr, "to=behind" if allowed else "stays-beside")
        finally:
            end(process)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ((0, 0), [(20, 20)]),
        ((0, 40), [(20, 40)]),
        ((0, resource.RLIM_INFINITY), [(20, resource.RLIM_INFINITY)]),
        ((20, 20), []),
        ((40, 40), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_coming_back_needs_a_limit_of_twenty(monkeypatch, limits, asked):
    seen = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: seen.append(values))
    behind.allow_return()
    assert seen == asked
