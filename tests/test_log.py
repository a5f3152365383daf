"""The log: one event one line, nothing forged, never waiting."""

import json
import os
import subprocess
import sys
import time

import pytest

from mailsrv import log


def lines_of(code: str, *, stderr: int = subprocess.PIPE) -> list[str]:
    """What a fresh process that runs `code` writes to standard error."""
    program = "from gevent import monkey; monkey.patch_all()\nimport os\nfrom mailsrv import log\n" + code
    done = subprocess.run([sys.executable, "-c", program], stderr=stderr, timeout=30, check=True, text=True)
    return (done.stderr or "").splitlines()


def test_logfmt_line():
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


def test_json_line_reads_back():
    line = log.format_json(0, "warning", "refused", {"name": 'a"\n\x7fé', "count": 3, "ok": True, "ms": 1.5})
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
        "log.configure(level='warning')\nfor n in range(500): log.warning('event', n=n); log.info('hidden')\n"
        "try: 1/0\nexcept ZeroDivisionError: log.exception('failed')"
    )
    assert [line.split(" ", 2)[2] for line in lines[:500]] == [f"event n={n}" for n in range(500)]
    assert len(lines) == 501
    assert "ZeroDivisionError" in lines[500]
    assert "\\n" in lines[500]


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
        "start = time.monotonic()\n"
        "for n in range(1000): log.info('event', text='x' * 400)\n"
        "print('held', time.monotonic() - start, flush=True)\n"
        "input()\nlog.info('last')\nlog.flush(20)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write, text=True
    ) as child:
        os.close(write)
        word, seconds = child.stdout.readline().split()
        assert word == "held"
        assert float(seconds) < 1
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
    start = time.perf_counter()
    for _ in range(2000):
        log.debug("hidden", uid=7)
    assert time.perf_counter() - start < 0.2
