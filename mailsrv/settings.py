"""Every setting, declared once: from these lines come the defaults, the checks, the sample file and the reference.

A `Setting` has a name (`section.key`), a kind, a default and a text; a `Kind` says what it expects and reads a value.

Imports: route_settings, smtp.routes, gevent.monkey.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gevent.monkey import get_original

from mailsrv.route_settings import read_routes
from mailsrv.smtp.routes import Route


class Wrong(Exception):
    """A value is not what its setting takes; the text says what would be."""


# ------------------------------------------------------------------ kinds of values


@dataclass(frozen=True, slots=True)
class Kind:
    """`expects` completes "expected …"; `read` gives the value or raises Wrong."""

    expects: str
    read: Callable[[Any], Any]


def _whole(least: int, most: int, unit: str) -> Kind:
    expects = f"a whole number of {unit} from {least} to {most}" if unit else f"a whole number from {least} to {most}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Wrong(expects)
        return value

    return Kind(expects, read)


def _number(least: float, most: float, unit: str) -> Kind:
    expects = f"a number of {unit} from {least:g} to {most:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Wrong(expects)
        return float(value)

    return Kind(expects, read)


def _numbers(least: float, most: float, unit: str) -> Kind:
    expects = f"a list of numbers of {unit} from {least:g} to {most:g}, such as [300, 900]"

    def read(value: Any) -> tuple[float, ...]:
        if not isinstance(value, list) or not 0 < len(value) <= 100:
            raise Wrong(expects)
        for one in value:
            if isinstance(one, bool) or not isinstance(one, int | float) or not least <= one <= most:
                raise Wrong(expects)
        return tuple(float(one) for one in value)

    return Kind(expects, read)


def _choice(*words: str) -> Kind:
    expects = "one of " + ", ".join(words)

    def read(value: Any) -> str:
        if value not in words:
            raise Wrong(expects)
        return str(value)

    return Kind(expects, read)


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(FLAG.expects)
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or any(ord(char) < 32 for char in value):
        raise Wrong(TEXT.expects)
    return value


def _read_mailbox(value: Any) -> str:
    if value in (None, ""):
        return ""
    parts = value.split("/") if isinstance(value, str) and value.isprintable() and len(value) <= 50 else [""]
    if not all(parts) or parts[0].lower() in TAKEN_MAILBOXES:
        raise Wrong(MAILBOX.expects)
    return str(value)


def _read_path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise Wrong(PATH.expects)
    return os.path.normpath(value)


def _read_optional_path(value: Any) -> str:
    if value in (None, ""):
        return ""
    return _read_path(value)


def _read_address(value: Any) -> str:
    if value in (None, ""):
        return ""
    local, at, domain = value.rpartition("@") if isinstance(value, str) else ("", "", "")
    if not at or not local or not all(_is_label(label) for label in domain.split(".")) or not value.isprintable():
        raise Wrong(ADDRESS.expects)
    return f"{local}@{domain.lower()}"


def _read_optional_host(value: Any) -> str:
    if value in (None, ""):
        return ""
    return _read_host(value)


def _read_ip(version: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value in (None, ""):
            return ""
        try:
            address = ipaddress.ip_address(value) if isinstance(value, str) else None
        except ValueError:
            address = None
        if address is None or address.version != version:
            raise Wrong(f"an IPv{version} address, or nothing")
        return str(address)

    return read


def _read_ips(value: Any) -> tuple[str, ...]:
    try:
        if isinstance(value, list):
            return tuple(str(ipaddress.ip_address(str(item))) for item in value)
    except ValueError:
        pass
    raise Wrong(IPS.expects)


def _read_routes(value: Any) -> tuple[Route, ...]:
    try:
        return read_routes(value)
    except ValueError as wrong:
        raise Wrong(f"{ROUTES.expects} ({wrong})") from None


def _read_log_file(value: Any) -> str:
    try:
        return "syslog" if value == "syslog" else _read_optional_path(value)
    except Wrong:
        raise Wrong(LOG_FILE.expects) from None


def _read_host(value: Any) -> str:
    if value in (None, ""):
        return _own_name()
    if not isinstance(value, str) or len(value) > 253 or not all(_is_label(label) for label in value.split(".")):
        raise Wrong(HOST.expects)
    return value.lower()


def _own_name() -> str:
    """The full name of this machine, as far as it knows."""
    name = os.uname().nodename
    if "." not in name:
        # The resolver itself, not gevent's: that would start threads, and a supervisor forks after this.
        try:
            name = get_original("socket", "getaddrinfo")(name, None, flags=socket.AI_CANONNAME)[0][3] or name
        except OSError:
            pass
    return name.lower()


def _is_label(label: str) -> bool:
    return 0 < len(label) < 64 and label.isascii() and label.replace("-", "a").isalnum() and label.strip("-") == label


def parse_listen(value: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`; ValueError otherwise."""
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(value)
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(value)
    return host or "0.0.0.0", int(port)


def _read_listen(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list):
        raise Wrong(LISTEN.expects)
    try:
        return tuple(parse_listen(item) for item in value)
    except (ValueError, AttributeError, TypeError):
        raise Wrong(LISTEN.expects) from None


def _read_networks(value: Any) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Wrong(NETWORKS.expects)
    try:
        return tuple(ipaddress.ip_network(item) for item in value)
    except ValueError as wrong:
        raise Wrong(f"{NETWORKS.expects} ({wrong})") from None


def _read_workers(value: Any) -> int:
    if value == "auto":
        return min(os.cpu_count() or 1, 64)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise Wrong(WORKERS.expects)
    return value


def _read_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise Wrong(PAIRS.expects)
    pairs = []
    for item in value:
        if not isinstance(item, dict) or set(item) != {"certificate", "key"}:
            raise Wrong(PAIRS.expects)
        pairs.append((_read_path(item["certificate"]), _read_path(item["key"])))
    return tuple(pairs)


FLAG = Kind("true or false", _read_flag)
MAILBOX = Kind("the name of a mailbox of its own, such as Scheduled, or nothing", _read_mailbox)
TEXT = Kind("a text", _read_text)
PATH = Kind("an absolute path", _read_path)
OPTIONAL_PATH = Kind("an absolute path, or nothing", _read_optional_path)
ADDRESS = Kind("an address such as postmaster@example.org, or nothing", _read_address)
LOG_FILE = Kind("an absolute path, syslog, or nothing", _read_log_file)
HOST = Kind("a host name such as mx.example.org", _read_host)
OPTIONAL_HOST = Kind("a host name such as mx.example.org, or nothing", _read_optional_host)
IPV4, IPV6 = (Kind(f"an IPv{version} address, or nothing", _read_ip(version)) for version in (4, 6))
IPS = Kind('a list of IP addresses, such as ["192.0.2.1", "2001:db8::1"]', _read_ips)
ROUTES = Kind("a list of routes, as docs/sending.md shows them", _read_routes)
LISTEN = Kind('a list of "host:port", such as ["0.0.0.0:25", "[::]:25"]', _read_listen)
NETWORKS = Kind('a list of networks, such as ["127.0.0.0/8", "2001:db8::/48"]', _read_networks)
PAIRS = Kind("a list of {certificate: /path, key: /path}", _read_pairs)
WORKERS = Kind("auto, or a whole number from 1 to 64", _read_workers)

TAKEN_MAILBOXES = frozenset({"inbox", "drafts", "sent", "junk", "trash", "archive", "outbox"})  # for something else
MIB = 1024 * 1024
MOST_SOCKET_PATH = 90  # of 107 that the system allows, without the name in the directory; unix(7)


@dataclass(frozen=True, slots=True)
class Setting:
    """`name` is `section.key`; `default` as it stands in the file; `live`: SIGHUP is enough to change it."""

    name: str
    kind: Kind
    default: Any
    text: str
    live: bool = True

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        return self.name.partition(".")[2]


SECTIONS = {
    "server": "The program as a whole.",
    "tls": "Certificate and key, used by every service.",
    "smtp": "Mail from other servers, and limits of everything that receives mail.",
    "submission": "Mail from our own users, with STARTTLS. Authentication is required.",
    "submissions": "Mail from our own users, with TLS from the first octet. Authentication is required.",
    "imap": "Reading mail, with STARTTLS.",
    "imaps": "Reading mail, with TLS from the first octet.",
    "forwarding": "Mail that an alias or a catch-all leads to other servers.",
    "queue": "Mail on its way to other servers: when it is tried, and when it is given up.",
    "relay": "How mail leaves for other servers: docs/sending.md.",
    "dns": "Where names are looked up.",
    "limits": "What one client may ask for. Who has to wait now: mailsrv limits list.",
    "metrics": "Figures for Prometheus and the answer to whether the server is well, by HTTP.",
    "canary": "A message to ourselves now and then, to know that mail is stored and pushed.",
    "audit": "What administrators did and who logged in: mailsrv audit list.",
    "log": "One event, one line.",
}

SETTINGS = (
    Setting("server.hostname", HOST, "", "Name of this server in greetings, Received lines and file names. "
            "Nothing: the name the system gives.", live=False),
    Setting("server.data_dir", PATH, "/var/lib/mailsrv", "Where mail and accounts are kept.", live=False),
    Setting("server.run_dir", PATH, "/run/mailsrv", "Pid file and sockets between the processes.", live=False),
    Setting("server.workers", WORKERS, "auto", "Processes that serve connections; auto is one for each core. "
            "With 1 everything runs in one process.", live=False),
    Setting("server.user", TEXT, "", "User to become when the ports are bound and the keys are read. Nothing: "
            "whoever starts it, which should not be root.", live=False),
    Setting("server.group", TEXT, "", "Group to take on with that. Nothing: the user's own.", live=False),
    Setting("server.shutdown_seconds", _number(0, 3600, "seconds"), 30, "How long sessions may finish what they do "
            "after SIGTERM."),
    Setting("server.goodbye_seconds", _number(0, 600, "seconds"), 5, "IMAP clients are sent away over so long at a "
            "stop, not all at once. When a new server takes over, everybody has at least so long to end by himself."),
    Setting("server.hang_seconds", _number(1, 3600, "seconds"), 30, "A process whose event loop gave no sign of life "
            "for so long is killed and started again."),
    Setting("tls.certificate", OPTIONAL_PATH, "", "PEM file with the certificate chain, the server's own first."),
    Setting("tls.key", OPTIONAL_PATH, "", "PEM file with the private key."),
    Setting("tls.certificates", PAIRS, [], "Further certificates, each for the names in it (SNI). The first of all is "
            "for clients that ask for another name, or for none."),
    Setting("tls.self_signed", FLAG, True, "Without any certificate, make one: mail programs warn of it, but passwords "
            "are not sent in clear. If this is false too, nobody can log in.", live=False),
    Setting("smtp.listen", LISTEN, ["0.0.0.0:25"], "Addresses for mail from other servers.", live=False),
    Setting("smtp.message_bytes", _whole(1024, 1024 * MIB, "octets"), 50 * MIB, "Largest message. RFC 1870."),
    Setting("smtp.recipients", _whole(100, 100_000, ""), 1000, "Recipients of one message. RFC 5321 4.5.3.1.8 asks for "
            "100 at least."),
    Setting("smtp.command_seconds", _number(10, 3600, "seconds"), 300, "How long a client may think between commands. "
            "RFC 5321 4.5.3.2.7."),
    Setting("smtp.data_seconds", _number(60, 86400, "seconds"), 3600, "How long one message may take in all."),
    Setting("smtp.bytes_per_second", _number(0, 1_000_000, "octets per second"), 500, "A client that sends a message "
            "more slowly than this for over a minute is cut off."),
    Setting("smtp.bare_newline", _choice("reject", "normalize"), "reject", "What becomes of a message with lone CR or "
            "LF. They never end a message either way."),
    Setting("smtp.hops", _whole(20, 1000, ""), 100, "Received lines after which a message is taken to be in a loop. "
            "RFC 5321 6.3."),
    Setting("submission.listen", LISTEN, ["0.0.0.0:587"], "Addresses. RFC 6409.", live=False),
    Setting("submission.save_sent", FLAG, False, "File a copy of each submitted message in the sender's Sent mailbox, "
            "for programs that do not do so themselves."),
    Setting("submission.undo_seconds", _number(0, 3600, "seconds"), 0, "How long a submitted message waits in the "
            "sender's Outbox, where deleting it takes it back. 0: it leaves at once."),
    Setting("submission.future_seconds", _whole(0, 366 * 86400, "seconds"), 30 * 86400, "How far ahead a client may "
            "have a message sent. RFC 4865. 0: not offered."),
    Setting("submission.scheduled_mailbox", MAILBOX, "", "Mailbox whose messages are sent later, such as Scheduled: "
            "docs/queue.md. Nothing: there is none. What users already have in a mailbox of that name is sent too."),
    Setting("submission.scheduled_hour", _whole(0, 23, ""), 8, "When messages in that mailbox leave that name no time, "
            "by the clock here."),
    Setting("submissions.listen", LISTEN, ["0.0.0.0:465"], "Addresses. RFC 8314.", live=False),
    Setting("imap.listen", LISTEN, ["0.0.0.0:143"], "Addresses.", live=False),
    Setting("imap.heartbeat_seconds", _number(1, 1740, "seconds"), 120, "How often an idling client is sent a sign of "
            "life, so that networks on the way keep the connection."),
    Setting("imap.idle_seconds", _number(1800, 86400, "seconds"), 1800, "How long a logged-in client may say nothing. "
            "RFC 3501 5.4 asks for 30 minutes at least."),
    Setting("imap.login_seconds", _number(5, 600, "seconds"), 60, "How long a client may take to log in."),
    Setting("imap.allow_plaintext_login", FLAG, False, "Let clients on this machine's loopback address log in without "
            "TLS. Others never can."),
    Setting("imaps.listen", LISTEN, ["0.0.0.0:993"], "Addresses. RFC 8314.", live=False),
    Setting("forwarding.srs", FLAG, True, "Give forwarded mail from other domains an envelope sender of ours (SRS), "
            "without which servers that check SPF refuse it. Reports to it are passed on for 21 days.", live=False),
    Setting("queue.retry_seconds", _numbers(1, 86400, "seconds"), [300, 900, 1800, 3600, 7200, 14400], "Pauses after "
            "the first, second, ... attempt that did not work; the last one is repeated. Each is varied by a tenth. "
            "RFC 5321 4.5.4.1."),
    Setting("queue.expire_days", _number(0.001, 60, "days"), 5, "When mail that could not be delivered is returned to "
            "its sender. RFC 5321 4.5.4.1 asks for 4 to 5 days at least."),
    Setting("queue.notice_hours", _number(0, 1440, "hours"), 4, "When the sender is told, once, that it takes long. "
            "0: never."),
    Setting("queue.attempts", _whole(1, 10_000, ""), 200, "Attempts at once, to all servers together."),
    Setting("queue.attempts_per_destination", _whole(1, 1000, ""), 20, "Attempts at once to one destination that takes "
            "them well; each begins with 4."),
    Setting("queue.outbox", FLAG, True, "Show users what of their mail still waits, in a mailbox Outbox; deleting a "
            "message there cancels it."),
    Setting("queue.postmaster", ADDRESS, "", "Who hears of reports that cannot be delivered. Nothing: postmaster of "
            "the domain that server.hostname belongs to, else of the first.", live=False),
    Setting("queue.return_bytes", _whole(0, 100 * MIB, "octets"), 50_000, "Messages up to this size are returned whole "
            "when they cannot be delivered, of others the header.", live=False),
    Setting("relay.routes", ROUTES, [], "Mail that goes to a certain host instead of those in the DNS, by sender or by "
            "recipient; the first route that fits counts. Local mail never leaves, whatever is here.", live=False),
    Setting("relay.tls", _choice("none", "opportunistic", "required", "verified"), "opportunistic", "What is done "
            "where no route and no policy of the other side says more: clear text; TLS where offered; TLS or waiting; "
            "TLS with a certificate that the system trusts, or waiting.", live=False),
    Setting("relay.dane", FLAG, True, "Keep to TLSA records. Needs a validating resolver on this machine. RFC 7672.",
            live=False),
    Setting("relay.mta_sts", FLAG, True, "Keep to the MTA-STS policies of other domains. RFC 8461.", live=False),
    Setting("relay.ca_file", OPTIONAL_PATH, "", "PEM file with the certificate authorities to trust. Nothing: the "
            "system's.", live=False),
    Setting("relay.helo", OPTIONAL_HOST, "", "The name we greet with; it should lead back to the address we send from. "
            "Nothing: server.hostname.", live=False),
    Setting("relay.source_ipv4", IPV4, "", "Address to send from. Nothing: the system chooses.", live=False),
    Setting("relay.source_ipv6", IPV6, "", "Address to send from. Nothing: the system chooses.", live=False),
    Setting("relay.own_addresses", IPS, [], "Addresses by which others reach this server and which it does not have "
            "itself (behind NAT): mail for them would come back.", live=False),
    Setting("relay.port", _whole(1, 65535, ""), 25, "Port of hosts found in the DNS. Other servers listen on 25.",
            live=False),
    Setting("relay.connect_seconds", _number(1, 600, "seconds"), 30, "How long a host may take to answer a "
            "connection.", live=False),
    Setting("relay.command_seconds", _number(10, 3600, "seconds"), 300, "How long a server may think about a command. "
            "RFC 5321 4.5.3.2.", live=False),
    Setting("relay.final_seconds", _number(60, 3600, "seconds"), 600, "How long a server may think about a whole "
            "message. Less than the 10 minutes of RFC 5321 4.5.3.2.6 makes mail arrive twice.", live=False),
    Setting("relay.attempt_seconds", _number(10, 3600, "seconds"), 300, "After so long an attempt goes on to no "
            "further host.", live=False),
    Setting("relay.idle_seconds", _number(0, 60, "seconds"), 5, "How long a connection waits for the next message to "
            "the same destination.", live=False),
    Setting("relay.messages_per_connection", _whole(1, 10_000, ""), 100, "After so many a connection is made anew.",
            live=False),
    Setting("dns.nameservers", IPS, [], "Resolvers to ask. Nothing: those of /etc/resolv.conf.", live=False),
    Setting("dns.port", _whole(1, 65535, ""), 53, "Port of the resolvers.", live=False),
    Setting("dns.seconds", _number(1, 300, "seconds"), 20, "How long one lookup may take.", live=False),
    Setting("limits.connections", _whole(10, 1_000_000, ""), 10_000, "Connections of one worker, all services."),
    Setting("limits.connections_per_address", _whole(1, 1_000_000, ""), 50, "Connections from one IP address (of IPv6: "
            "from one /64), all services and workers. An office behind one address has many."),
    Setting("limits.connections_per_user", _whole(1, 1_000_000, ""), 50, "Connections of one user who has "
            "logged in, all services and workers. A mail program opens up to ten."),
    Setting("limits.login_failures", _whole(1, 1000, ""), 3, "Wrong passwords without a pause, from one network "
            "(/24, of IPv6 /64) and for one user. From then on each doubles the pause; the same one again does "
            "not count."),
    Setting("limits.login_pause_seconds", _number(1, 86_400, "seconds"), 900, "The longest such pause. A user's own "
            "addresses of the last 30 days never have one because of others."),
    Setting("limits.unknown_recipients", _whole(1, 1_000_000, ""), 100, "Recipients unknown here that one address may "
            "ask for in an hour, before its mail is put off: who guesses addresses learns little."),
    Setting("limits.errors", _whole(3, 1000, ""), 20, "Refused commands in a row after which a connection is ended; "
            "from half of them on, answers to mail clients slow down."),
    Setting("limits.commands_without_mail", _whole(10, 100_000, ""), 100, "Commands such as NOOP that an SMTP client "
            "may send in a row without a message."),
    Setting("limits.trusted_networks", NETWORKS, ["127.0.0.0/8", "::1/128"], "Where all users may come from at "
            "once, such as a webmail's host: no limit for one address there, and no pause for the network."),
    Setting("limits.write_seconds", _number(1, 600, "seconds"), 60, "A client that does not read for this long while "
            "something is sent to it is cut off."),
    Setting("metrics.listen", LISTEN, [], "Addresses for /metrics, /health and /ready, such as [\"127.0.0.1:9325\"]. "
            "Whoever can connect can read them. Nothing: they are not offered.", live=False),
    Setting("canary.seconds", _number(0, 86400, "seconds"), 60, "How often a message is put into a hidden mailbox of "
            "the server's own, and must be announced to every process. What fails is in `mailsrv status`. 0: never.",
            live=False),
    Setting("audit.days", _whole(1, 36_500, "days"), 365, "How long files of the audit trail are kept, once they are "
            "full.", live=False),
    Setting("log.level", _choice("debug", "info", "warning", "error"), "info", "What is logged: this and graver."),
    Setting("log.file", LOG_FILE, "", "File to append to, or syslog. Nothing: standard error, and syslog "
            "where the server runs in the background."),
    Setting("log.hub_delay", FLAG, False, "Log how late the event loop was in each second, and why.", live=False),
    Setting("log.format", _choice("logfmt", "json"), "logfmt", "How a line is written."),
)  # fmt: skip
