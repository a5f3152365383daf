"""The log: one event one line, nothing forged, never waiting."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsrv import log


def lines_of(code: str, *, stderr: int = subprocess.PIPE) -> list[str]:
    """What a fresh process that runs `code` writes to standard error."""
    program = "from gevent import monkey; monkey.patch_all()\nimport os\nfrom mailsrv import log\n" + code
    done = subprocess.run([sys.executable, "-c", program], stderr=stderr, timeout=120, check=True, text=True)
    return (done.stderr or "").splitlines()


# `held(count)` logs so many events and prints how long one took, as a rule and at most.
HELD = """
def held(count, **fields):
    took = []
    for n in range(count):
        begun = time.monotonic()
        log.info('event', n=n, **fields)
        took.append(time.monotonic() - begun)
    print(sorted(took)[count * 9 // 10], max(took), flush=True)
"""


def held_nobody(printed: str) -> bool:
    """Logging waited for no output. A loaded machine may have held up the program itself now and then."""
    usual, longest = map(float, printed.split())
    return usual < 0.0003 and longest < log.PATIENCE_SECONDS / 2


def test_f24_logfmt_line():
    line = log.format_logfmt(0.123, "info", "delivered", {"mailbox": "M1-1", "uid": 7, "ms": 0.8, "none": None})
    assert line == "1970-01-01T00:00:00.123Z info delivered mailbox=M1-1 uid=7 ms=0.800\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a b", '"a b"'),
        ("", '""'),
        ("k=v", '"k=v"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("x\r\n2026 info forged", '"x\\r\\n2026 info forged"'),
        ("\x1b[31mred\x7f\0", '"\\x1b[31mred\\x7f\\x00"'),
        ("grün", '"gr\\xfcn"'),
        ("\N{SNOWMAN}\N{PILE OF POO}", '"\\u2603\\U0001f4a9"'),
        ("\ud800", '"\\ud800"'),
        (b"raw\xff\n", '"raw\\\\xff\\n"'),
        ("back\\slash", '"back\\\\slash"'),
    ],
)
def test_s22_values_are_printable_ascii_on_one_line(value, shown):
    line = log.format_logfmt(0, "info", "event", {"key": value})
    assert line == f"1970-01-01T00:00:00.000Z info event key={shown}\n"


def test_s22_values_are_capped():
    for value in ("x" * 100_000, b"x" * 100_000, "\n" * 100_000):
        assert len(log.format_logfmt(0, "info", "event", {"key": value})) < 2 * log.VALUE_LIMIT + 100
        assert len(log.format_json(0, "info", "event", {"key": value})) < 2 * log.VALUE_LIMIT + 100


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=8), st.text(max_size=8),
    st.text(' ="\\%aS=', max_size=5),
    st.sampled_from(["x" * log.VALUE_LIMIT, "x" * (log.VALUE_LIMIT + 1), "a==b", "S=1,U=2"]),
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(["id", "file", "ms", "peer"]), VALUES)),
    st.sampled_from(["event", "a 100 %s b", "é"]),
)
def test_s22_a_line_looked_at_as_a_whole_is_what_its_values_make_of_it_one_by_one(fields, event):
    """Twice: a shape is made by the first and used by the second."""
    for _ in range(2):
        line = log.format_logfmt(7.25, "info", event, dict(fields))
        assert line == log._logfmt_of_any(7.25, "info", event, dict(fields))


def test_the_lines_of_a_delivery_are_looked_at_as_a_whole(monkeypatch):
    """Else they take three times as long."""
    monkeypatch.delattr(log, "_logfmt_of_any")
    line = log.format_logfmt(0, "info", "delivered", {
        "mailbox": "M1-1", "uid": 7, "file": "new/1.M2P3Q4R5.host,S=9,U=1-7", "user": None, "ready_ms": 1.23456,
    })  # fmt: skip
    assert line.endswith(' mailbox=M1-1 uid=7 file="new/1.M2P3Q4R5.host,S=9,U=1-7" ready_ms=1.235\n')


def test_f24_json_line_reads_back():
    line = log.format_json(0, "warning", "refused", {"name": 'a"\n\x7fé', "count": 3, "ok": True, "ms": 1.50004})
    assert line.isascii()
    assert line.count("\n") == 1
    assert "\x7f" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "warning",
        "event": "refused",
        "name": 'a"\n\x7fé',
        "count": 3,
        "ok": True,
        "ms": 1.5,
    }


def test_everything_is_written_at_exit_and_levels_are_kept():
    lines = lines_of(
        "log.REPEATS = 1000\n"
        "log.configure(level='warning')\nfor n in range(500): log.warning('event', n=n); log.info('hidden')\n"
        "try: 1/0\nexcept ZeroDivisionError: log.exception('failed')"
    )
    assert [line.split(" ", 2)[2] for line in lines[:500]] == [f"event n={n}" for n in range(500)]
    assert len(lines) == 501
    assert "ZeroDivisionError" in lines[500]
    assert "\\n" in lines[500]


def test_a_flush_does_not_wait_for_more_to_come():
    lines = lines_of(
        "log.BATCH_SECONDS = 15\nimport time\nbegun = time.monotonic()\n"
        "for n in range(3): log.info('event', n=n); log.flush(20)\n"
        "assert time.monotonic() - begun < 10"
    )
    assert [line.split(" ", 2)[2] for line in lines] == [f"event n={n}" for n in range(3)]


def test_child_of_fork_logs_too():
    lines = lines_of("log.info('parent')\nif os.fork(): os.wait()\nelse: log.info('child')")
    assert sorted(line.split()[2] for line in lines) == ["child", "parent"]


def test_a_value_that_cannot_be_shown_ends_nothing():
    lines = lines_of(
        "class Bad:\n def __str__(self): raise ValueError('no')\nlog.info('bad', it=Bad())\nlog.info('after')"
    )
    assert "unprintable-event" in lines[0]
    assert lines[1].endswith("info after")


def test_b12_output_that_hangs_holds_nobody_and_drops_are_counted():
    read, write = os.pipe()  # nobody reads: full after 64 KiB
    program = (
        "from gevent import monkey; monkey.patch_all()\nimport time\nfrom mailsrv import log\n"
        "log.QUEUE_LIMIT = 1000\n"
        "for n in range(5000): log.info('event', text='x' * 400)\n"
        f"{HELD}held(1000, text='x' * 400)\n"
        "input()\nlog.info('last')\nlog.flush(20)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write, text=True
    ) as child:
        os.close(write)
        assert held_nobody(child.stdout.readline())
        child.stdin.write("\n")
        child.stdin.close()
        written = b""
        while chunk := os.read(read, 65536):  # the disk is back
            written += chunk
        os.close(read)
        assert child.wait(20) == 0
    counts = [int(line.split(b"count=")[1]) for line in written.splitlines() if b" log-events-dropped " in line]
    assert sum(counts) + written.count(b" info event ") + written.count(b" info last") == 6001
    assert sum(counts) > 0


def test_a_full_disk_loses_nothing_that_can_wait_and_counts_the_rest(tmp_path):
    """/dev/full is a disk without room; the same name becomes a file, as when the log is rotated away."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    lines = lines_of(
        f"log.PATIENCE_SECONDS, log.RETRY_SECONDS = {{0}}, 0.05\nimport time\nlog.configure(file={str(path)!r})\n"
        "def until(true):\n"
        "    end = time.monotonic() + 20\n"
        "    while not true():\n"
        "        assert time.monotonic() < end\n"
        "        time.sleep(0.01)\n"
        "log.info('early'); until(log.dropped); assert log.problem().endswith(': No space left on device')\n"
        "log.PATIENCE_SECONDS = 60; log.info('late'); time.sleep(0.1)\n"
        f"os.unlink({str(path)!r}); log.reopen(); until(lambda: not log.problem())".replace("{0}", "0")
    )
    told = [line.split(" ", 1)[1] for line in lines]
    assert told == [
        f'error log-not-written log={path} error="No space left on device"', f"warning log-written-again log={path}",
    ]  # fmt: skip
    written = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert sorted(written) == ["info late", "warning log-events-dropped count=1"]


def test_a_line_that_the_full_disk_cut_is_ended_and_written_again(tmp_path):
    """A limit on the size of files ends a write within a line, as a full disk does."""
    path = tmp_path / "log"
    lines = lines_of(
        "import resource, signal, time\nlog.RETRY_SECONDS = 0.02\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        f"log.configure(file={str(path)!r})\nfor n in range(5): log.info('event', n=n)\n"
        "end = time.monotonic() + 20\n"
        "while not log.problem(): assert time.monotonic() < end; time.sleep(0.01)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\nlog.flush(20)"
    )
    assert [line.split(" ")[2] for line in lines] == ["log-not-written", "log-written-again"]
    whole = re.findall(r"^\S+Z info event n=(\d)$", path.read_text(), re.MULTILINE)
    assert whole == list("01234")
    assert len(path.read_text().splitlines()) == 6


def test_file_is_opened_again_after_rotation(tmp_path):
    path = tmp_path / "log"
    try:
        log.configure(file=str(path), format="json")
        log.info("one")
        log.flush()
        path.rename(tmp_path / "log.1")
        log.reopen()
        log.info("two")
        log.flush()
    finally:
        log.configure()
    assert json.loads((tmp_path / "log.1").read_text())["event"] == "one"
    assert json.loads(path.read_text())["event"] == "two"


def test_listeners_hear_every_event_at_once():
    heard = []
    log.listeners.append(lambda event, fields: heard.append((event, fields)))
    try:
        log.debug("pushed", uid=7)
        assert heard == [("pushed", {"uid": 7})]
    finally:
        log.listeners.clear()


def test_logging_is_cheap():
    start = time.thread_time()
    for _ in range(2000):
        log.debug("hidden", uid=7)
    assert time.thread_time() - start < 0.2


def test_the_same_of_the_same_peer_is_counted_and_what_others_cause_is_not():
    lines = lines_of(
        "log.REPEAT_SECONDS = 60\n"
        "for n in range(200):\n"
        " log.info('refused', peer='192.0.2.1', n=n); log.info('delivered', peer='192.0.2.1', n=n)\n"
        "log.info('refused', peer='192.0.2.2', n=0)\n"
        "log.flush(); log.REPEAT_SECONDS = 0; log.info('later'); log.flush(); log.REPEAT_SECONDS = 60\n"
        "log.info('refused', peer='192.0.2.1', n=200); log.flush()\n"
        "for n in range(50): log.warning('auth failed', rip='192.0.2.1')"
    )
    refused = [line.split(" ", 2)[2] for line in lines if " refused " in line]
    assert refused[: log.REPEATS] == [f"refused peer=192.0.2.1 n={n}" for n in range(log.REPEATS)]
    assert refused[log.REPEATS :] == [
        "refused peer=192.0.2.2 n=0",
        f"refused peer=192.0.2.1 suppressed={200 - log.REPEATS}",
        "refused peer=192.0.2.1 n=200",
    ]
    assert len([line for line in lines if " delivered " in line]) == 200
    assert len([line for line in lines if "auth-failed" in line]) == 50


def test_a_flood_that_goes_on_says_how_much_of_it_is_not_shown():
    lines = lines_of(
        "log.REPEAT_SECONDS = 0.3\nimport time\n"
        "begun, count = time.monotonic(), 0\n"
        "while count < 400 or time.monotonic() < begun + 1:\n"
        " log.warning('full', what='disk'); time.sleep(0.001); count += 1\n"
        "log.warning('done', seconds=time.monotonic() - begun)"
    )
    seconds = float(lines[-1].rpartition("=")[2]) if "done" in lines[-1] else 0.0
    told = [int(line.rpartition("=")[2]) for line in lines if "suppressed=" in line]
    assert told and sum(told) > 100
    assert len(lines) < (seconds / 0.3 + 2) * (log.REPEATS + 2)


class Syslog:
    """The socket of a system's log."""

    def __init__(self, path):
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(path)
        self._sock.settimeout(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()

    def next(self):
        return self._sock.recv(4096).decode()


def test_syslog_is_written_to_and_waited_for_by_nobody(tmp_path):
    path = str(tmp_path / "log")
    program = (
        "from gevent import monkey; monkey.patch_all()\nimport time\nfrom mailsrv import log\n"
        f"log.SYSLOG_PATH = {path!r}\nlog.configure(file='syslog'); log.PATIENCE_SECONDS = 60\n"
        "log.info('delivered', to='a b'); log.error('broken'); log.flush(); print('one', flush=True); input()\n"
        "log.warning('again'); log.flush(); print('two', flush=True); input()\n"
        f"{HELD}held(3000)\n"
        "while not log.problem(): time.sleep(0.01)\n"
        "print(log.problem(), flush=True); log.flush(20)\nprint('dropped', log.dropped())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        with Syslog(path) as daemon:
            assert child.stdout.readline() == "one\n"
            line = rf'<22>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d mailsrv\[{child.pid}\]: info delivered to="a b"'
            assert re.fullmatch(line, daemon.next())
            assert daemon.next().startswith("<19>")
        os.unlink(path)  # its daemon is started again
        with Syslog(path) as daemon:
            child.stdin.write("\n")
            child.stdin.flush()
            assert daemon.next().endswith(": warning again")
            assert child.stdout.readline() == "two\n"
            child.stdin.write("\n")  # and now it hangs: nobody reads
            child.stdin.flush()
            assert held_nobody(child.stdout.readline())
            assert "nobody reads" in child.stdout.readline()
            for number in range(3000):  # it reads again: nothing was lost
                assert daemon.next().endswith(f": info event n={number}")
            assert child.stdout.readline() == "dropped 0\n"
