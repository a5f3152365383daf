"""Sees to it that no certificate ends unnoticed: in its last two weeks a line in the log each day, and a mail to the
postmaster.

When that was done last is the time stamp of a file beside the data, so that a server which is started again and again
does not write each time.

Imports: certificates, start, mail.intake, log, gevent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import gevent

from mailsrv import log
from mailsrv.certificates import Known, examine
from mailsrv.config import Config
from mailsrv.errors import MailError
from mailsrv.mail.intake import Intake
from mailsrv.start import certificate_files
from mailsrv.store.files import offload

WARN_DAYS = 14
DAY_SECONDS = 24 * 3600
FIRST_LOOK_SECONDS, LOOK_SECONDS = 10.0, 3600.0


class Expiry:
    """One greenlet of one process of all. `config` gives the settings of now."""

    def __init__(self, config: Callable[[], Config], intake: Intake) -> None:
        self._config, self._intake = config, intake
        self._stamp = f"{config()['server.data_dir']}/certificate-warning"
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        gevent.sleep(FIRST_LOOK_SECONDS)
        while True:
            self.look()
            gevent.sleep(LOOK_SECONDS)

    def look(self) -> bool:
        """Warn of what ends soon, if that is due; whether it was."""
        ending = offload(_ending, self._config(), self._stamp)
        if not ending:
            return False
        for one in ending:
            log.warning(
                "certificate ends", file=one.path, days_left=one.days_left, names=" ".join(one.names),
                problem=one.problem or None, advice="renew it; a changed file is used within a minute",
            )  # fmt: skip
        try:
            self._intake.write_postmaster(_subject(ending), _text(ending))
        except MailError as failure:
            log.warning("postmaster not told", about="certificate ends", reason=str(failure))
        return True


def _ending(config: Config, stamp: str) -> list[Known]:
    """Those with few days left, or that cannot be read; none if they were told of in the last day. Blocks."""
    try:
        if time.time() - os.stat(stamp).st_mtime < DAY_SECONDS:
            return []
    except FileNotFoundError:
        pass
    known = [examine(certificate) for certificate, _ in certificate_files(config)]
    ending = [one for one in known if one.days_left is None or one.days_left < WARN_DAYS]
    if ending:
        with open(stamp, "w", encoding="ascii"):
            os.utime(stamp)
    return ending


def _subject(ending: list[Known]) -> str:
    days = [one.days_left for one in ending if one.days_left is not None]
    if not days:
        return "A certificate of the mail server cannot be read"
    if min(days) < 0:
        return "A certificate of the mail server has ended"
    return f"A certificate of the mail server ends in {min(days)} days"


def _text(ending: list[Known]) -> str:
    lines = [
        "From the day it ends on, mail programs will warn of the connection or refuse it, and some servers",
        "will not send mail here any more. Renew it; the server notices a changed file within a minute.",
        "",
    ]
    for one in ending:
        when = one.problem or f"ends {one.ends:%Y-%m-%d %H:%M} UTC, in {one.days_left} days"
        lines += [f"{one.path}: {when}", *(f"  for {name}" for name in one.names)]
    lines += ["", "If certbot renews it: certbot renew --dry-run shows what is wrong.", "This is sent once a day."]
    return "\n".join(lines) + "\n"
