"""Several clients, senders and another program at once on a real server, against one model of what each may be told.

MAILSRV_MODEL_SECONDS and MAILSRV_MODEL_SEED choose how long and what; bin/run-model does the same without pytest. A
failure names the seed and keeps what was said.
"""

import os
import random
import tempfile

import pytest

from tests.model.driver import Run
from tests.model.responses import Fault
from tests.model.serving import Served

SECONDS = float(os.environ.get("MAILSRV_MODEL_SECONDS", "60"))


@pytest.mark.timeout(SECONDS + 540)
def test_all_clients_agree_with_the_model(tmp_path, certificate, authority_file, password_hash):
    seed = int(os.environ.get("MAILSRV_MODEL_SEED", random.SystemRandom().randrange(1_000_000)))
    server = Served(tmp_path, certificate, authority_file, password_hash, **{"server.workers": 2})
    try:
        server.start()
        log = tempfile.mkdtemp(prefix="mailsrv-model-")
        run = Run(server, seed, log=log)
        try:
            run.go_on(SECONDS, phases=5)
        except Fault as fault:
            pytest.fail(f"seed {seed} (bin/run-model --seed {seed}), what was said is in {log}: {fault}")
        os.rmdir(log)
        assert run.phases > 1 and all(session.commands > 50 for session in run.sessions)
        server.stop()
    finally:
        server.close()
