"""Every other server, as a value that takes what it is given, and what tests of mail for it share."""

import re
from pathlib import Path

import gevent

from mailsrv import runner
from mailsrv.mail.wakeup import tell
from mailsrv.values import Disposition, Outcome

from ..conftest import until

TEXT = "From: ann@example.com\r\nTo: bo@elsewhere.org\r\nSubject: Hello out there\r\n\r\nText.\r\n."


class World:
    """Every other server: takes what it is given, unless told otherwise, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[tuple] = []
        self.replies: dict[str, tuple[int, str, str]] = {}
        self.open = True

    def destination(self, envelope, address):
        return address.domain

    def close(self):
        pass

    def __call__(self, job):
        while not self.open:
            gevent.sleep(0.01)
        self.taken.append((job, Path(job.path).read_bytes()))
        outcomes = []
        for address, _ in job.recipients:
            code, enhanced, text = self.replies.get(str(address), (250, "2.0.0", "Taken"))
            disposition = {2: Disposition.SENT, 4: Disposition.LATER, 5: Disposition.NEVER}[code // 100]
            outcomes.append(Outcome(address, disposition, code, enhanced, text, "mx.elsewhere.org[192.0.2.9]:25"))
        return outcomes


def send(client, *recipients: str, sender: str = "ann@example.com", mail: str = "", text: str = TEXT) -> str:
    """The id of the message; a recipient may have parameters behind a space."""
    assert client.say(f"MAIL FROM:<{sender}>{mail}").startswith(b"250 ")
    for one in recipients:
        address, _, parameters = one.partition(" ")
        assert client.say(f"RCPT TO:<{address}> {parameters}".strip()).startswith(b"250 "), one
    answer = client.say("DATA", text)
    return re.fullmatch(rb"250 2\.0\.0 Accepted as ([0-9a-f]{18})", answer)[1].decode()


def queue_files(serving) -> list[str]:
    root = serving.directory / "queue"
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "spare")
    return sorted(path.name for path in found if path.name != "lock")


def runner_tell(serving, *ids):
    until(lambda: tell(runner.socket_path(serving.settings), ids), "the runner listens")
