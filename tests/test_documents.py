"""Generated documents are current, and say the truth about what the program announces."""

import re
from pathlib import Path

import pytest

from mailsrv import generate
from mailsrv.imap import auth
from mailsrv.wire import sasl

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted(generate.documents()))
def test_generated_documents_are_current(path):
    assert (ROOT / path).read_text() == generate.documents()[path], "run: python -m mailsrv.generate"


def test_rfc_table_names_every_capability_and_every_place_exists():
    announced = {name for rfc in generate.IMAP for name in rfc.names}
    given = {*auth.AFTER_LOGIN, *auth.BASE, "STARTTLS", "LOGINDISABLED"}
    assert announced >= given
    assert announced - given == {"AUTH=PLAIN"}
    assert "PLAIN" in sasl.MECHANISMS
    for group in generate.GROUPS.values():
        numbers = [rfc.number for rfc in group]
        assert numbers == sorted(set(numbers))
        for rfc in group:
            for place in rfc.where.split(","):
                assert (ROOT / "mailsrv" / place.strip()).exists(), place


def test_rfc_table_names_every_smtp_extension(serving):
    with serving.connect("submission") as sock:
        sock.recv(4096)
        sock.sendall(b"EHLO client.test\r\n")
        lines = sock.recv(4096).decode().splitlines()[1:]
    keywords = {line[4:].split()[0] for line in lines}
    assert keywords | {"AUTH", "REQUIRETLS"} == {name for rfc in generate.SMTP for name in rfc.names}


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
