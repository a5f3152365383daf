"""The memory that the soak judges is a process's own: whoever shares its pages comes and goes without moving it."""

import json
import mmap
import os
import subprocess
import sys
import time

import pytest

from tests.daemon.conftest import ROOT
from tests.soak.sampling import age_of, own_memory

MIB = 1024 * 1024

# 32 MiB, then a child that shares them, writes half of them anew, and ends.
_FAMILY = """
import json, os
from mailsrv.vitals import memory_of
from tests.soak.sampling import own_memory

def look():
    return own_memory(os.getpid()), memory_of(os.getpid())

held = bytearray(b"x" * (32 << 20))
alone = look()
(ours, theirs), (hers, mine) = os.pipe(), os.pipe()
if not (child := os.fork()):
    born = look()
    half = len(held) // 2
    held[:half] = bytes(1) * half
    del half
    os.write(theirs, json.dumps([born, look()]).encode())
    os.close(mine)
    os.read(hers, 1)
    os._exit(0)
born, written = json.loads(os.read(ours, 4096))
shared = look()
os.close(mine)
os.waitpid(child, 0)
print(json.dumps({"alone": alone, "shared": shared, "after": look(), "born": born, "written": written}))
"""


@pytest.fixture(scope="module")
def family():
    """Moment -> (own memory, PSS)."""
    done = subprocess.run(
        [sys.executable, "-c", _FAMILY], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_a_sibling_that_shares_pages_moves_pss_and_not_what_is_its_own(family):
    own, pss = ({moment: figures[which] for moment, figures in family.items()} for which in (0, 1))
    assert own["alone"] > 32 * MIB
    assert abs(own["shared"] - own["alone"]) < MIB and abs(own["after"] - own["alone"]) < MIB
    assert pss["shared"] < pss["alone"] - 6 * MIB and pss["after"] > pss["shared"] + 6 * MIB


def test_a_child_that_writes_to_what_it_shares_has_no_more_of_its_own(family):
    own, pss = ({moment: figures[which] for moment, figures in family.items()} for which in (0, 1))
    assert abs(own["born"] - own["alone"]) < MIB and abs(own["written"] - own["born"]) < MIB
    assert pss["written"] > pss["born"] + 6 * MIB


def test_a_process_that_takes_more_has_more():
    before = own_memory(os.getpid())
    with mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.write(b"x" * len(pages))
        assert own_memory(os.getpid()) >= before + 7 * MIB


def test_a_process_that_is_gone_has_none_and_one_that_runs_an_age():
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert 0 <= age_of(process.pid) + 0.02 <= time.monotonic() - began + 0.1
        process.communicate(b"\n")
        assert own_memory(process.pid) == 0


# Threads make tuples out of generators, as many a thread of the server does, while greenlets are counted.
_COUNTING = """
import sys, time
from tests.soak.watched import greenlets
import gevent
from gevent.monkey import get_original

sys.setswitchinterval(0.0001)
failed, ending, made = [], [], []

def make_tuples():
    while not ending:
        try:
            made[:] = tuple(number for number in range(300))
        except SystemError as failure:
            failed.append(failure)

for _ in range(2):
    get_original("_thread", "start_new_thread")(make_tuples, ())
time.sleep(0.001)  # there is a hub from now on
while not made:
    time.sleep(0.001)
before = greenlets()
waiting = [gevent.spawn(gevent.sleep, 60) for _ in range(10)]
counts = set()
end = time.monotonic() + 1
while time.monotonic() < end:
    counts.add(greenlets())
    time.sleep(0.001)
ending.append(True)
gevent.killall(waiting)
print(counts == {before + 10}, len(failed))
"""


def test_counting_greenlets_disturbs_no_thread():
    done = subprocess.run(
        [sys.executable, "-c", _COUNTING], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True", "0"], done.stdout + done.stderr


_LIMITS = """
from tests.soak import watched
from mailsrv import counters
from mailsrv.mail import mailbox

begun = [mailbox.LOG_LENGTH, counters.pushes._kept.maxlen, counters.Samples()._kept.maxlen]
watched.limit_histories()
limited = [mailbox.LOG_LENGTH, counters.pushes._kept.maxlen, counters.Samples()._kept.maxlen]
print(all(now < before for now, before in zip(limited, begun, strict=True)))
"""


def test_what_the_server_keeps_of_the_past_is_less_in_the_soak():
    done = subprocess.run([sys.executable, "-c", _LIMITS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr
