"""Generated documents are current, and say the truth about what the program announces."""

import ast
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from mailsrv import cli, config, generate
from mailsrv.imap import auth
from mailsrv.reference import tree
from mailsrv.settings import SECTIONS, SETTINGS
from mailsrv.wire import sasl

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = {setting.name for setting in SETTINGS}


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


# ------------------------------------------------------------------ what is written by hand


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(page):
    """The page without its blocks."""
    return FENCED.sub("", page.read_text())


def spans(page):
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page):
    """What GitHub and others make of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_between_documents_lead_somewhere(page):
    for target, fragment in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", prose(page)):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not fragment or fragment in anchors(there), f"{target}#{fragment}"


def test_every_page_is_in_the_list_of_pages():
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name}" not in index]
    assert missing == ["README.md"]
    assert "docs/README.md" in (ROOT / "README.md").read_text()


def typed(page):
    """The commands that a page has its reader type, as words: `# mailsrv …`, `$ bin/mailsrv …`."""
    for _, block in FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:[#$] )?(?:bin/)?mailsrv +((?!is )[^-:|].*|--?\w.*)", line)
            if found and re.match(r"[#$] |mailsrv (?:limits|audit) ", line):
                words = shlex.shlex(found[1], posix=True, punctuation_chars="|<>;&")  # comments are left out, too
                words.whitespace_split = True
                yield list(takewhile(lambda word: not set(word) <= set("|<>;&"), words))


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_every_command_that_is_shown_is_understood(page):
    for words in typed(page):
        try:
            cli.parser().parse_args(words)
        except SystemExit as left:
            if left.code:
                pytest.fail(f"mailsrv {' '.join(words)}")


def named(page):
    """The commands in running text: `mailsrv queue list`, `mailsrv setup --yes`."""
    for span in spans(page):
        if found := re.match(r"(?:bin/)?mailsrv +(?!\[)([a-z-].*)", span):
            yield found[1]


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_every_command_that_is_named_exists(page):
    root = tree.read(cli.parser())
    commands = {command.words: command for command in root.walk()}
    for text in named(page):
        if text.startswith("is "):
            continue  # what a command says: `mailsrv is running already`
        words = re.split(r" +", text)
        for first in words[0].split("|"):
            length = 1
            if commands.get((first,)) and commands[(first,)].verbs and len(words) > 1 and not words[1].startswith("-"):
                length = 2
            seconds = words[1].split("|") if length == 2 else [""]
            for second in seconds:
                path = (first, second) if second else (first,)
                assert path in commands or first.startswith("--"), f"mailsrv {text}"
                flags = {flag for option in (commands.get(path) or root).options for flag in option.flags}
                for word in words[length:]:
                    assert not re.match(r"--\w", word) or word.split("=")[0] in flags, f"mailsrv {text}"


def exists_in_code(name):
    """`smtp.session` and the like are modules."""
    return (ROOT / "mailsrv" / f"{name.replace('.', '/')}.py").exists()


FIGURES = ("performance.md", "benchmark.md")  # they name the benchmark's figures, which look like settings
WITH_SETTINGS = [page for page in PAGES if page.name not in FIGURES]


@pytest.mark.parametrize("page", WITH_SETTINGS, ids=ids(WITH_SETTINGS))
def test_every_setting_that_is_named_exists(page):
    known = NAMES | {f"{section}.*" for section in SECTIONS}
    for span in spans(page):
        found = re.match(r"([a-z]+)\.([a-z0-9_]+|\*)(?::? .*)?$", span)
        if found and found[1] in SECTIONS:
            name = f"{found[1]}.{found[2]}"
            assert name in known or exists_in_code(name) or name == "server.pem", name


def yaml_blocks():
    for page in PAGES:
        for language, block in FENCED.findall(page.read_text()):
            if language == "yaml" and re.match(rf"(?:{'|'.join(SECTIONS)}):$", block, re.MULTILINE):
                yield pytest.param(block, id=f"{page.name}: {' '.join(block.split()[:3])}")


@pytest.mark.parametrize("block", list(yaml_blocks()))
def test_every_configuration_that_is_shown_is_valid(block):
    config.parse(block)


def events():
    """What the source has the log say, as it stands in a line."""
    calls = (node for path in (ROOT / "mailsrv").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    said = (ast.unparse(call.args[0]) for call in calls if isinstance(call, ast.Call) and _logs(call))
    return {ast.literal_eval(text).replace(" ", "-") for text in said if text.startswith("'")}


def _logs(call):
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "log" and call.args


def test_every_event_that_is_explained_is_one():
    said = events()
    assert {"delivered", "auth-failed"} <= said
    for name in ("troubleshooting.md", "upgrade.md", "administration.md"):
        page = ROOT / "docs" / name
        explained = [span for span in spans(page) if re.fullmatch(r"[a-z]+(?:-[a-z]+)+", span)]
        assert not {word for word in explained if word not in said | {"mailsrv-check"}}, name
