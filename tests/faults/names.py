"""A DNS that fails makes mail wait; it is not returned, and leaves when the DNS is well again."""

from __future__ import annotations

import smtplib

import gevent

from tests.fakes.dns import GARBAGE, REFUSED, SERVFAIL, TIMEOUT, FakeDns
from tests.fakes.sink import FakeSink
from tests.faults.checker import queued
from tests.faults.context import Context
from tests.faults.ledger import MARK, Ledger
from tests.faults.load import Elsewhere
from tests.faults.report import Result
from tests.faults.server import DOMAIN, SECONDS, Server, until

FAILURES = {"servfail.test": SERVFAIL, "refused.test": REFUSED, "timeout.test": TIMEOUT, "garbage.test": GARBAGE}
NOWHERE = "nowhere.test"  # the one that does not exist: its mail comes back, so that returned mail is seen to be seen


def run(context: Context) -> Result:

    result = Result("DNS failures")
    with FakeDns() as dns, FakeSink() as sink:
        for domain, how in FAILURES.items():
            dns.fail(domain, "MX", how)
            dns.fail(domain, "A", how)
        server = Server(context.place("dns"), **{
            "dns.nameservers": ["127.0.0.1"], "dns.port": dns.port, "dns.seconds": 1, "relay.port": sink.port,
            "relay.tls": "none", "relay.dane": False, "relay.mta_sts": False, "queue.retry_seconds": [1, 1],
            "queue.outbox": False,
        })  # fmt: skip
        ledger, elsewhere = Ledger(context.seed, "n"), Elsewhere(sink)
        try:
            server.start()
            for domain in (*FAILURES, NOWHERE):
                server.accounts.add_alias(f"{domain.partition('.')[0]}@{DOMAIN}", [f"x@{domain}"])
            with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "load.example", timeout=SECONDS) as client:
                for _ in range(context.of(1, 3, 10)):
                    for domain in (*FAILURES, NOWHERE):
                        token, text = ledger.message(500)
                        ledger.sending(token, [], [f"x@{domain}"])
                        client.sendmail(f"cy@{DOMAIN}", [f"{domain.partition('.')[0]}@{DOMAIN}"], text)
                        if domain != NOWHERE:
                            ledger.sent(token, [], [f"x@{domain}"])
                        result.counts["messages"] += 1
            for domain in FAILURES:
                until(lambda domain=domain: _attempts(server, domain) >= 2, f"{domain} was tried again")
            reports = until(lambda: _reports(server), "what cannot be delivered comes back")
            gevent.sleep(1)
            reports = _reports(server)
            wrong = [f"{address} came back" for address in FAILURES if any(address in text for text in reports)]
            result.counts["returned, as they must be"] = len(reports)
            result.counts["attempts seen"] = sum(_attempts(server, domain) for domain in FAILURES)
            for domain in FAILURES:
                dns.remove(domain)
                dns.add(domain, "MX", "10 mx.well.test.")
            dns.add("mx.well.test", "A", "127.0.0.1")
            server.kill()  # what it knows of the DNS for half a minute goes with it
            server.start()
            result.wrong += wrong + elsewhere.drained(ledger, server) + server.bugs()
            if elsewhere.doubled:
                result.wrong.append(f"{elsewhere.doubled} messages came twice")
        except AssertionError as failure:
            result.wrong.append(f"{failure}: {queued(server.data / 'queue')}")
        finally:
            server.close()
    return result


def _attempts(server: Server, domain: str) -> int:
    """How often mail to that domain was put off."""
    lines = server.log.read_text().splitlines()
    return sum(" deferred " in line and f"recipient=x@{domain} " in line for line in lines)


def _reports(server: Server) -> list[str]:
    """The reports in the sender's mailbox."""
    texts = [path.read_bytes() for path in server.files("cy")] if server.maildir("cy").exists() else []
    return [text.decode("utf-8", "replace") for text in texts if MARK in text]
