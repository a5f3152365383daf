"""The configuration: what is wrong is told at once, with file, line, expectation and the nearest name."""

import builtins
import errno
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailsrv import config
from mailsrv.config import ConfigError, parse
from mailsrv.settings import SETTINGS, parse_listen


def problems(text):
    with pytest.raises(ConfigError) as failure:
        parse(text, "x.yaml")
    return failure.value.problems


def test_nothing_means_the_defaults():
    values = parse("")
    for setting in SETTINGS:
        assert values[setting.name] == setting.kind.read(setting.default)
    assert values["smtp.listen"] == (("0.0.0.0", 25),)
    assert values.accounts_path == "/var/lib/mailsrv/accounts.sqlite3" and values.mail_root == "/var/lib/mailsrv/mail"


def test_the_sample_says_what_holds_without_it():
    values = parse(config.sample())
    assert all(values[setting.name] == parse("")[setting.name] for setting in SETTINGS)
    assert set(yaml.safe_load(config.sample())) == set(config.SECTIONS)


def test_values_are_read_in_their_kind():
    values = parse(
        "server: {hostname: MX.Example.org, data_dir: /srv//mail/, workers: 3, shutdown_seconds: 1.5}\n"
        'imap:\n  listen: ["127.0.0.1:1143", "[::1]:1143"]\n  allow_plaintext_login: true\nlog: {level: debug}\n'
    )
    assert values["server.hostname"] == "mx.example.org" and values["server.data_dir"] == "/srv/mail"
    assert values["server.workers"] == 3 and values["server.shutdown_seconds"] == 1.5
    assert values["imap.listen"] == (("127.0.0.1", 1143), ("::1", 1143))
    assert values["imap.allow_plaintext_login"] is True and values["log.level"] == "debug"


def test_all_that_is_wrong_is_told_with_its_line():
    told = problems(
        "server:\n  workers: many\n  data_dri: /srv\nsmpt:\n  listen: []\nsmtp:\n  hops: 5\n  hops: 50\n"
        "imap:\n  listen: 143\nlog:\n  level: loud\ntls:\n  certificate: /x\n"
    )
    assert told == [
        "x.yaml:2: server.workers: expected auto, or a whole number from 1 to 64, found 'many'",
        "x.yaml:3: unknown setting server.data_dri; did you mean server.data_dir?",
        "x.yaml:4: unknown section smpt; did you mean smtp?",
        "x.yaml:7: smtp.hops: expected a whole number from 20 to 1000, found 5",
        "x.yaml:8: smtp.hops was set in line 7 already",
        'x.yaml:10: imap.listen: expected a list of "host:port", such as ["0.0.0.0:25", "[::]:25"], found 143',
        "x.yaml:12: log.level: expected one of debug, info, warning, error, found 'loud'",
        "x.yaml:14: tls.certificate and tls.key are set together, or neither",
    ]


@pytest.mark.parametrize(
    "text,start",
    [
        ("a: [", "x.yaml:1: not YAML"),
        ("x: 'y\n", "x.yaml:"),
        ("- a\n", "x.yaml:1: expected sections"),
        ("just text", "x.yaml:1: expected sections"),
        ("smtp: yes", "x.yaml:1: expected settings below smtp:"),
        ("smtp: {hops: !!python/object/apply:os.getpid []}", "x.yaml:1: smtp.hops: expected"),
        ("a: &x [*x]", "x.yaml:1: "),
        ("log: {level: !!binary x}", "x.yaml:1: log.level"),
        ("smtp: {listen: ['x:99999']}", "x.yaml:1: smtp.listen"),
        ("server: {hostname: -x-}", "x.yaml:1: server.hostname"),
        ("server: {data_dir: relative}", "x.yaml:1: server.data_dir"),
        ("server: {workers: true}", "x.yaml:1: server.workers"),
        ("log: {file: \"a\\0b\"}", "x.yaml:1: log.file"),
        ("imap: {listen: ['0.0.0.0:25']}", "x.yaml:1: imap.listen: 0.0.0.0:25 is smtp.listen's already"),
        (f"server: {{run_dir: /{'x' * 100}}}", "x.yaml:1: server.run_dir: a path of at most"),
    ],
)  # fmt: skip
def test_what_cannot_be(text, start):
    assert any(problem.startswith(start) for problem in problems(text)), problems(text)


def test_a_file_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="quickstart"):
        config.load(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(str(tmp_path / "binary.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(str(tmp_path))


def test_a_file_that_may_not_be_read_says_who_may(monkeypatch):
    def refuse(*args, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/mailsrv/mailsrv.yaml")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(ConfigError) as refused:
        config.load("/etc/mailsrv/mailsrv.yaml")
    assert refused.value.problems == ["/etc/mailsrv/mailsrv.yaml: cannot be read: Permission denied; do it as root"]


@pytest.mark.parametrize(
    "text,address",
    [("127.0.0.1:25", ("127.0.0.1", 25)), (":25", ("0.0.0.0", 25)), ("[::]:993", ("::", 993)), ("mx:1", ("mx", 1))],
)
def test_addresses(text, address):
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "x", "x:", "x:0", "x:65536", "x:-1", "::1:25", "x:²", "x:1x"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        parse_listen(text)


@given(st.text(max_size=80) | st.lists(st.sampled_from(
    ["smtp:", "\n", "  ", "listen:", "- ", "[", "]", "{", "}", "a", "1", "&x ", "*x", "!!set ", "?", "|", ">", '"', "#"]
), max_size=25).map("".join))  # fmt: skip
def test_any_text_is_a_configuration_or_told_as_wrong(text):
    try:
        parse(text)
    except ConfigError as failure:
        assert failure.problems
