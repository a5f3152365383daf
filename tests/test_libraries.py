"""Threads that need a library for the first time at once all get it, whole, and none of them waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 50

# Each needs a library that is imported late; together they were seen to wait for each other for ever.
PROGRAM = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent
from mailsrv.mail.passwords import hash_password
from mailsrv.mail.private_key import ED25519, PrivateKey
from mailsrv.metrics import exposition
from mailsrv.net.resolver import LookupFailed, Resolver, ResolverSettings
from mailsrv.smtp import dane
from mailsrv.store.files import offload

sys.setswitchinterval(0.0005)
resolver = Resolver(ResolverSettings(("127.0.0.1",), 1, try_seconds=0.2, seconds=0.5))

def look(number):
    try:
        resolver.lookup(f"{number}.example", "MX")
    except LookupFailed:
        return True

def sign(number):
    return offload(lambda: PrivateKey.generate(ED25519).sign(b"text"))

def match(number):
    record = dane.Tlsa(dane.END_ENTITY, 1, 1, b"x" * 32)
    return not offload(dane.is_authentic, [record], [b"no certificate"], ["mx.example.org"])

def login(number):
    return offload(hash_password, "a password")

def scrape(number):
    return offload(exposition, {}, "text/plain")

assert not {"argon2", "cryptography", "dns", "prometheus_client"} & set(sys.modules)
work = [gevent.spawn(one, number) for number in range(4) for one in (look, sign, match, login, scrape)]
gevent.joinall(work, timeout=20)
print(sum(bool(one.value) for one in work), "of", len(work))
sys.stdout.flush()
import os; os._exit(0)
"""


def test_libraries_that_come_late_come_for_everybody_at_once():
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (said.stdout, said.stderr) == ("20 of 20\n", "")
