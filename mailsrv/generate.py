"""Writes the documents that are made from declarations: the sample configuration, the settings, the RFCs, the manual
pages, completion for shells.

Run `python -m mailsrv.generate` after changing a setting, a command or the table below; `tox -e docs` fails on a
difference.

Imports: cli, config, metrics, reference.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from mailsrv import cli, config, metrics
from mailsrv.reference import completion, manual, tree


class Rfc(NamedTuple):
    """What is done of an RFC and where; `names` are the capabilities it is announced by."""

    number: int
    title: str
    state: str  # yes, partly
    where: str
    names: tuple[str, ...] = ()
    note: str = ""


IMAP = (
    Rfc(2177, "IDLE", "yes", "imap/idle.py", ("IDLE",)),
    Rfc(2342, "NAMESPACE", "yes", "imap/mailboxes.py", ("NAMESPACE",)),
    Rfc(2971, "ID", "yes", "imap/auth.py", ("ID",)),
    Rfc(3348, "CHILDREN", "yes", "imap/mailboxes.py", ("CHILDREN",)),
    Rfc(3501, "IMAP4rev1", "yes", "imap/, wire/imap_commands.py", ("IMAP4rev1", "STARTTLS", "LOGINDISABLED")),
    Rfc(3516, "BINARY", "partly", "imap/reader.py", (), "literal8 is read where a literal is; no BINARY sections"),
    Rfc(3691, "UNSELECT", "yes", "imap/mailboxes.py", ("UNSELECT",)),
    Rfc(4314, "ACL", "partly", "imap/responses.py", (), "NOPERM only: there are no shared mailboxes"),
    Rfc(4315, "UIDPLUS", "yes", "imap/messages.py", ("UIDPLUS",)),
    Rfc(4616, "SASL PLAIN", "yes", "wire/sasl.py", ("AUTH=PLAIN",)),
    Rfc(4959, "SASL initial response", "yes", "imap/auth.py", ("SASL-IR",)),
    Rfc(5161, "ENABLE", "yes", "imap/auth.py", ("ENABLE",)),
    Rfc(5258, "LIST extensions", "partly", "imap/mailboxes.py", (), "selection and return options are understood"),
    Rfc(5530, "Response codes", "yes", "imap/responses.py"),
    Rfc(6154, "SPECIAL-USE", "yes", "imap/mailboxes.py", ("SPECIAL-USE", "CREATE-SPECIAL-USE")),
    Rfc(6851, "MOVE", "yes", "imap/messages.py", ("MOVE",)),
    Rfc(7162, "CONDSTORE, QRESYNC", "partly", "store/account.py", (), "journal and modseq exist; not announced yet"),
    Rfc(7888, "Literals without waiting", "yes", "imap/reader.py", ("LITERAL+",)),
    Rfc(7889, "APPENDLIMIT", "partly", "imap/messages.py", (), "TOOBIG before the message is sent; not announced"),
    Rfc(8314, "TLS from the first octet", "yes", "net/listener.py"),
    Rfc(8474, "OBJECTID", "partly", "values.py", (), "ids exist; not announced yet"),
    Rfc(9208, "QUOTA", "partly", "imap/messages.py", (), "limits are kept; no commands to ask for them"),
)
SMTP = (
    Rfc(1870, "SIZE", "yes", "smtp/session.py, smtp/client.py", ("SIZE",)),
    Rfc(2033, "LMTP", "partly", "smtp/client.py", (), "sending, by a route"),
    Rfc(2034, "Enhanced status codes", "yes", "smtp/replies.py", ("ENHANCEDSTATUSCODES",)),
    Rfc(2920, "PIPELINING", "yes", "smtp/session.py, smtp/client.py", ("PIPELINING",)),
    Rfc(3030, "CHUNKING", "partly", "smtp/client.py", (), "used where it is offered; no BINARYMIME"),
    Rfc(3207, "STARTTLS", "yes", "smtp/session.py, smtp/client.py", ("STARTTLS",)),
    Rfc(3461, "DSN", "yes", "wire/smtp.py, mail/bounce.py, mail/queue.py", ("DSN",)),
    Rfc(3463, "Enhanced status codes: the list", "yes", "smtp/replies.py"),
    Rfc(3464, "Delivery status notifications", "yes", "mail/bounce.py"),
    Rfc(
        3834, "Automatic responses", "yes", "mail/bounce.py", (), "reports are marked; a null sender is never answered"
    ),
    Rfc(3848, "Transmission types in Received", "yes", "smtp/session.py"),
    Rfc(4865, "FUTURERELEASE", "yes", "smtp/session.py, wire/smtp.py", ("FUTURERELEASE",)),
    Rfc(4954, "AUTH", "yes", "smtp/session.py, smtp/client.py", ("AUTH",)),
    Rfc(5233, "Subaddresses (ann+lists)", "yes", "mail/accounts.py"),
    Rfc(5321, "SMTP", "yes", "smtp/, wire/smtp.py, wire/smtp_client.py"),
    Rfc(6152, "8BITMIME", "yes", "smtp/session.py, smtp/client.py", ("8BITMIME",)),
    Rfc(6186, "SRV records for mail programs", "yes", "dns_records.py, dns_check.py", (), "generated and checked"),
    Rfc(6376, "DKIM", "partly", "mail/signing.py, mail/dkim.py", (), "signing; what arrives is not verified yet"),
    Rfc(6409, "Submission", "yes", "smtp/session.py"),
    Rfc(6522, "multipart/report", "yes", "mail/bounce.py"),
    Rfc(6531, "SMTPUTF8", "yes", "wire/smtp.py, smtp/client.py", ("SMTPUTF8",)),
    Rfc(6533, "Reports with UTF-8", "partly", "mail/bounce.py", (), "written where an address needs it"),
    Rfc(7208, "SPF", "partly", "spf.py, dns_check.py", (), "our own records only; what arrives is not checked yet"),
    Rfc(7489, "DMARC", "partly", "dns_records.py, dns_check.py", (), "our own records only"),
    Rfc(7505, "Null MX", "yes", "smtp/next_hops.py"),
    Rfc(7672, "DANE for SMTP", "yes", "smtp/dane.py, smtp/tls_policy.py", (), "with a validating resolver on loopback"),
    Rfc(8301, "DKIM: algorithms and key sizes", "yes", "mail/dkim.py"),
    Rfc(8305, "Happy Eyeballs", "partly", "net/dial.py", (), "both families of a host race"),
    Rfc(8460, "TLS-RPT", "partly", "dns_records.py, dns_check.py", (), "our own records; no reports are sent"),
    Rfc(
        8461, "MTA-STS", "yes", "smtp/mta_sts.py", (), "of other domains; our own is generated and checked, not served"
    ),
    Rfc(8463, "DKIM: Ed25519", "yes", "mail/signing.py, mail/dkim.py"),
    Rfc(
        8689,
        "REQUIRETLS",
        "partly",
        "smtp/session.py, smtp/tls_policy.py",
        ("REQUIRETLS",),
        "waits before it is returned; no TLS-Required field",
    ),
    Rfc(9422, "LIMITS", "partly", "smtp/client.py", (), "kept to where a server states them"),
)
MESSAGES = (
    Rfc(2045, "MIME", "yes", "wire/structure.py"),
    Rfc(2047, "Encoded words", "yes", "wire/header.py"),
    Rfc(2231, "Parameter continuations", "yes", "wire/header.py"),
    Rfc(5322, "Message format", "yes", "wire/header.py, wire/header_addresses.py"),
    Rfc(6532, "UTF-8 in headers", "yes", "wire/header.py"),
    Rfc(9106, "argon2id", "yes", "mail/passwords.py"),
)
GROUPS = {"IMAP": IMAP, "SMTP": SMTP, "Messages and the rest": MESSAGES}


def rfc_table() -> str:
    """`docs/rfc.md`."""
    lines = ["# RFCs", "", "Generated by `python -m mailsrv.generate`. What is not in the list is not done.", ""]
    for title, group in GROUPS.items():
        lines += [
            f"## {title}",
            "",
            "| RFC | title | done | announced as | where | note |",
            "|---|---|---|---|---|---|",
        ]
        for rfc in group:
            names = ", ".join(f"`{name}`" for name in rfc.names)
            where = ", ".join(f"`{path.strip()}`" for path in rfc.where.split(","))
            lines.append(f"| {rfc.number} | {rfc.title} | {rfc.state} | {names} | {where} | {rfc.note} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def documents() -> dict[str, str]:
    """Path in the source tree -> text."""
    commands = tree.read(cli.parser())
    return {
        "etc/mailsrv.yaml": config.sample(),
        "etc/man/mailsrv.8": manual.command_page(commands),
        "etc/man/mailsrv.yaml.5": manual.settings_page(),
        "etc/completion/mailsrv.bash": completion.bash(commands),
        "etc/completion/_mailsrv": completion.zsh(commands),
        "docs/settings.md": config.reference(),
        "docs/rfc.md": rfc_table(),
        "docs/metrics.md": metrics.reference(),
    }


def main() -> None:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path, text in documents().items():
        os.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
        with open(f"{root}/{path}", "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
