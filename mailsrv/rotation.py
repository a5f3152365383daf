"""New DKIM keys begin to sign when their records are seen in the DNS, without anybody having to remember it.

Imports: dns_check, dns_records, mail.dkim, store.files, log; gevent.    docs/sending-identity.md
"""

from __future__ import annotations

import gevent

from mailsrv import log
from mailsrv.dns_check import Lookup, published
from mailsrv.dns_records import Record
from mailsrv.mail.dkim import NEW, Keys, KeysRefused
from mailsrv.store.files import offload

FIRST_SECONDS, ROUND_SECONDS = 60.0, 3600.0


class Rotation:
    """One greenlet of the process that sends mail."""

    def __init__(self, keys: Keys, lookup: Lookup) -> None:
        self._keys, self._lookup = keys, lookup
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn_later(FIRST_SECONDS, self._run)

    def close(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        while True:
            self.look()
            gevent.sleep(ROUND_SECONDS)

    def look(self) -> list[str]:
        """Activate what can be; the domains that have new keys now."""
        changed = []
        try:
            for domain in offload(self._keys.domains):
                new = offload(self._new, domain)
                if new and all(published(record, self._lookup) for record in new):
                    offload(self._keys.activate, domain)
                    changed.append(domain)
                    log.info("dkim keys activated", domain=domain, names=" ".join(record.name for record in new))
        except (OSError, ValueError, KeysRefused) as failure:
            log.warning("dkim keys not looked at", reason=str(failure))
        return changed

    def _new(self, domain: str) -> list[Record]:
        return [Record(key.name, "TXT", self._keys.record(key)) for key in self._keys.of(domain, NEW)]
