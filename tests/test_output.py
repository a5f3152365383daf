"""What commands print: nothing that strangers wrote commands a terminal."""

import argparse
import json
import subprocess
import sys

import pytest

from mailsrv import cli
from mailsrv.cli import common
from tests.conftest import configuration

NAME = "\x1b[31mred\x07 \x9b2J \u202eevil \u00e4"
SHOWN = r"\x1b[31mred\x07 \x9b2J \u202eevil \xe4".replace(r"\xe4", "\u00e4")


def test_tables_are_printable(capsys):
    common.table(argparse.Namespace(json=False), [{"client": NAME}], ["client"])
    assert capsys.readouterr().out.splitlines() == ["CLIENT", SHOWN]
    common.table(argparse.Namespace(json=True), [{"client": NAME}], ["client"])
    assert json.loads(capsys.readouterr().out) == [{"client": NAME}]


def test_progress_of_an_unknown_total_is_for_terminals(capsys, monkeypatch):
    silent = common.Progress("mailbox", 0)
    silent.step("INBOX")
    silent.end()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = common.Progress("mailbox", 0)
    shown.step(NAME)
    shown.end()
    assert capsys.readouterr().err == f"\r\033[Kmailbox 1 {SHOWN}\r\033[K"


def test_doctor_beside_a_pipe_is_silent_about_its_progress(tmp_path):
    settings = configuration(tmp_path, None, {})
    words = [sys.executable, "-m", "mailsrv", "doctor", "--no-dns", "--config", settings.path]
    assert subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stderr == ""


def test_the_nearest_command_is_named(capsys):
    for words, says in (
        (["usr", "list"], "mailsrv: error: there is no mailsrv usr; did you mean user?"),
        (["queue", "lst"], "mailsrv queue: error: there is no mailsrv queue lst; did you mean list?"),
        (["frobnicate"], "mailsrv: error: there is no mailsrv frobnicate; see mailsrv --help"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == says
    assert cli.main([]) == 2
    assert "quickstart" in capsys.readouterr().err
