"""The manual pages `mailsrv(8)` and `mailsrv.yaml(5)`, in the man macros that every reader of them knows.

Imports: reference.tree, config, settings.    man(7), groff_man(7).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from mailsrv import __version__, config
from mailsrv.reference.tree import Argument, Command
from mailsrv.settings import SECTIONS, SETTINGS

FILES = (
    (config.DEFAULT_PATH, "The configuration, mailsrv.yaml(5)."),
    ("/var/lib/mailsrv/accounts.sqlite3", "Domains, users, aliases."),
    ("/var/lib/mailsrv/mail/", "The mail: a Maildir for each user."),
    ("/run/mailsrv/mailsrv.pid", "The process to send signals to; locked while the server runs."),
    ("/var/log/mailsrv/mailsrv.log", "What happened, one event in a line."),
)
SIGNALS = (
    ("SIGTERM, SIGINT", "Accept no more, let sessions finish for server.shutdown_seconds, end."),
    ("SIGHUP", "Read certificates and settings again."),
    ("SIGUSR1", "Open the log file anew, after it was moved away."),
    ("SIGUSR2", "Start the program anew on the same listeners: no connection is refused."),
)
DATE = "2026-11-25"  # of this form of the pages; the words are as new as the program
EXIT = (
    ("0", "Done."),
    ("1", "Failed; the words on standard error say why and what to do."),
    ("2", "Wrong command line."),
    ("3", "status: the server does not run."),
)


def escape(text: str) -> str:
    """Text as roff prints it: no control line, no escape, hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti").replace('"', "\\(dq")
    text = "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)
    return "\\&" + text if text.startswith(".") else text


def command_page(root: Command) -> str:
    """`mailsrv(8)`."""
    lines = [_head("mailsrv", 8), ".SH NAME", "mailsrv \\- mail server: SMTP, and IMAP with instant push"]
    lines += [".SH SYNOPSIS", "\\fBmailsrv\\fP \\fICOMMAND\\fP [\\fIargument\\fP ...]"]
    lines += [".SH DESCRIPTION"]
    lines += _sentences(
        "A mail server in one program: it receives mail by SMTP, keeps it as plain Maildir, and shows it by IMAP, "
        "whose idling clients see a message as soon as it is on disk.",
        "The server is \\fBmailsrv serve\\fP; the other commands act on the same configuration and data. What they "
        "change is true at once in a running server. Data goes to standard output, words to standard error. Passwords "
        "come from a prompt or from standard input, never from the command line.",
    )
    lines += [".SH OPTIONS", "These can be given to every command."]
    config_option = next(option for verb in root.verbs for option in verb.options if "--config" in option.flags)
    lines += _item(_flags(config_option), config_option.text)
    lines += _item("\\fB\\-\\-json\\fP", "answer in JSON where something is listed or told")
    lines += _item("\\fB\\-h\\fP, \\fB\\-\\-help\\fP", "show the usage of a command")
    lines += [".SH COMMANDS"]
    for command in root.walk():
        if command.words and not command.verbs:
            lines += _command(command)
    lines += [".SH SIGNALS", "For the process in the pid file."]
    lines += _items(SIGNALS)
    lines += [".SH FILES", "As in the configuration that comes with the program."]
    for path, text in FILES:
        lines += _item(f"\\fI{escape(path)}\\fP", text)
    lines += [".SH ENVIRONMENT"]
    lines += _item(
        "\\fBMAILSRV_CONFIG\\fP", "The configuration file, unless \\fB\\-\\-config\\fP names one.", roff=True
    )
    lines += [".SH EXIT STATUS", *_items(EXIT)]
    lines += [".SH SEE ALSO", ".BR mailsrv.yaml (5)"]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """`mailsrv.yaml(5)`."""
    lines = [_head("mailsrv.yaml", 5), ".SH NAME", "mailsrv.yaml \\- configuration of mailsrv"]
    lines += [".SH DESCRIPTION"]
    lines += _sentences(
        f"\\fI{escape(config.DEFAULT_PATH)}\\fP is YAML in sections. Every setting has a default, so a file "
        "holds what differs. Unknown names and wrong values are refused, with the line and what was expected; "
        "\\fBmailsrv check\\fP says so before a running server is told to reload, \\fBmailsrv config sample\\fP "
        "prints a file with every setting."
    )
    lines += [".PP", "A file that sets three of them:", ".PP", ".RS 4", ".nf"]
    lines += [
        escape(line)
        for line in ("server:", "  hostname: mx.example.org", "tls:", "  certificate: /etc/mailsrv/tls/server.pem",
                     "  key: /etc/mailsrv/tls/server.key")
    ]  # fmt: skip
    lines += [".fi", ".RE"]
    for section, text in SECTIONS.items():
        lines += [f'.SH "SECTION {escape(section.upper())}"', *_filled(escape(text))]
        for setting in SETTINGS:
            if setting.section == section:
                default = config.yaml_value(setting.default)
                told = f"{setting.text} Expects {setting.kind.expects}. Default: {default}"
                lines += _item(f"\\fB{escape(setting.name)}\\fP", told)
    lines += [".SH FILES", f"\\fI{escape(config.DEFAULT_PATH)}\\fP", ".SH SEE ALSO", ".BR mailsrv (8)"]
    return "\n".join(lines) + "\n"


def _head(name: str, section: int) -> str:
    return (
        f'.\\" Generated by python -m mailsrv.generate.\n'
        f'.TH {escape(name.upper())} {section} "{DATE}" "mailsrv {__version__}" "mailsrv"\n.nh\n.ad l'
    )


def _sentences(*paragraphs: str) -> list[str]:
    """Paragraphs that are roff already, a sentence in a line."""
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += [".PP"] if lines else []
        lines += _filled(paragraph)
    return lines


def _filled(text: str) -> list[str]:
    """Roff text in short lines, each sentence in lines of its own, none that could be taken for a request."""
    lines = []
    for sentence in text.replace(". ", ".\n").split("\n"):
        lines += textwrap.wrap(sentence, 78, break_long_words=False, break_on_hyphens=False)
    return ["\\&" + line if line.startswith((".", "'")) else line for line in lines]


def _item(term: str, text: str, *, roff: bool = False) -> list[str]:
    """A tagged paragraph; `term` is roff."""
    words = text if roff else escape(text)
    return [".TP", term, *_filled(words[:1].upper() + words[1:])]


def _items(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [line for term, text in rows for line in _item(f"\\fB{escape(term)}\\fP", text)]


def _command(command: Command) -> list[str]:
    title = " ".join(command.words)
    usage = [f"\\fBmailsrv {escape(title)}\\fP"]
    for option in command.called():
        usage.append(_flags(option, short=True) if option.required else f"[{_flags(option, short=True)}]")
    for argument in command.arguments:
        one = f"\\fI{escape(argument.value)}\\fP" + (" ..." if argument.several else "")
        usage.append(one if argument.required else f"[{one}]")
    words = escape(command.text[:1].upper() + command.text[1:])
    lines = [f'.SS "{escape(title)}"', " ".join(usage), ".PP", *_filled(words + ("" if words.endswith(".") else "."))]
    for option in command.called():
        lines += _item(_flags(option), option.text or "see above")
    for argument in command.arguments:
        if argument.text:
            lines += _item(f"\\fI{escape(argument.value)}\\fP", argument.text)
    return lines


def _flags(option: Argument, *, short: bool = False) -> str:
    value = f" \\fI{escape(option.value)}\\fP" if option.value else ""
    flags = option.flags[-1:] if short else option.flags
    return ", ".join(f"\\fB{escape(flag)}\\fP" for flag in flags) + value
