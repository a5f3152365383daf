"""The server that the model runs against; or a broken one, to see that the model can fail."""

import subprocess
import sys
from pathlib import Path

import trustme

from mailsrv.mail.passwords import hash_password
from tests.conftest import PASSWORD
from tests.daemon.conftest import ROOT, Daemon, until


class Served(Daemon):
    """`mailsrv serve`, or a program that starts it in its own way."""

    program = ("mailsrv",)

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.program, "serve", "--foreground", "--config", self.settings.path], cwd=ROOT,
        )  # fmt: skip
        until(lambda: self.answers("imap") and self.answers("smtp"), "the server answers")


def serving(directory, workers, program=("mailsrv",), **changes):
    """A started server in that directory."""
    directory = Path(directory)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key, ca = (directory / name for name in ("server.pem", "server.key", "ca.pem"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    server = Served(
        directory,
        (str(certificate), str(key)),
        str(ca),
        hash_password(PASSWORD),
        **{"server.workers": workers, **changes},
    )
    server.program = program
    server.start()
    return server
