"""Manual pages render without a warning, completion completes, and both know every command and every setting."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from mailsrv import cli, config
from mailsrv.reference import completion, manual, tree
from mailsrv.settings import SETTINGS

ROOT = Path(__file__).parent.parent.parent
PAGES = ("etc/man/mailsrv.8", "etc/man/mailsrv.yaml.5")


def ran(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", PAGES)
def test_pages_render_without_warnings(path):
    assert ran("groff", "-man", "-Tutf8", "-ww", "-z", path) == ""
    assert ran("mandoc", "-Tlint", "-Wstyle", path) == ""


def test_the_command_page_names_every_command_and_option():
    commands = [command for command in tree.read(cli.parser()).walk() if command.words and not command.verbs]
    assert {("serve",), ("user", "add"), ("config", "sample")} <= {command.words for command in commands}
    page = manual.command_page(tree.read(cli.parser()))
    for command in commands:
        assert f'.SS "{manual.escape(" ".join(command.words))}"' in page
        for option in command.called():
            assert manual.escape(option.flags[-1]) in page


def test_the_settings_page_names_every_setting_and_its_default():
    page = manual.settings_page()
    for setting in SETTINGS:
        part = page.split(f"\\fB{manual.escape(setting.name)}\\fP")[1].split(".TP")[0].replace("\n", " ")
        assert f"Default: {manual.escape(config.yaml_value(setting.default))}" in part, setting.name


@pytest.mark.parametrize("text", [".begins like a request", "'so does this", "a\\b", '`quoted\' "words" ~ ^ -x'])
def test_text_is_printed_as_it_is(text):
    page = f".TH X 1\n.SH A\n{manual.escape(text)}\n"
    assert text in ran("groff", "-man", "-Tascii", "-P-c", text=page)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["mailsrv", "use"], {"user"}),
        (["mailsrv", "user", "a"], {"add"}),
        (["mailsrv", "user", "add", "--pass"], {"--password-stdin"}),
        (["mailsrv", "domain", ""], {"add", "list", "remove", "catch-all", "-h", "--help", "-c", "--config", "--json"}),
        (["mailsrv", "user", "add", "--quota", ""], set()),
        (["mailsrv", "--config", "setup.c"], {"setup.cfg"}),
        (["mailsrv", "user", "import", "setup.c"], {"setup.cfg"}),
    ],
)  # fmt: skip
def test_bash_completes(typed, expected):
    words = " ".join(f"'{word}'" for word in typed)
    script = f"""
        source etc/completion/mailsrv.bash
        COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
        _mailsrv
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    answer = set(ran("bash", "-c", script).split())
    assert answer == expected if typed[1] != "domain" else answer >= expected


def test_zsh_reads_its_completion():
    ran("zsh", "-n", "etc/completion/_mailsrv")
    # The functions are called where the shell expects them: one for each command.
    text = completion.zsh(tree.read(cli.parser()))
    for command in tree.read(cli.parser()).walk():
        name = "_".join(("_mailsrv", *(word.replace("-", "_") for word in command.words)))
        assert f"\n{name}() {{\n" in text
        assert text.count(name) >= 2


def test_zsh_completes(tmp_path):
    """In a real interactive shell, on a terminal."""
    script = ROOT / "tests/installation/zsh_completes.zsh"
    done = subprocess.run(
        ["zsh", "-f", str(script), str(ROOT / "etc/completion"), "mailsrv user ", "remove"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path), "TERM": "vt100"},
    )  # fmt: skip
    offered = set(re.findall(r"([\w-]+)\s+-- ", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", done.stdout)))
    assert {"add", "passwd", "list", "import"} <= offered, done.stdout + done.stderr
