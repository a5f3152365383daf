"""Passwords: the schemes of other servers, equal cost for every wrong answer, what is remembered and for how long."""

import hashlib
import os
from contextlib import closing

import bcrypt
import gevent
import gevent.pool
import pytest

from mailsrv.errors import AddressInvalid, AuthenticationFailed
from mailsrv.mail import passwords, tickets
from mailsrv.mail.accounts import Accounts, parse_address
from mailsrv.mail.passwords import CURRENT, Passwords, check_strength, hash_password, is_known_scheme, verify
from mailsrv.mail.tickets import BUCKETS, WAYS, Tickets

SHA512 = "qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
# Known answers: the crypt forms are what `openssl passwd -salt saltsalt` prints, digests what `sha1sum` does.
VECTORS = [
    ("password", f"{{SHA512-CRYPT}}$6$saltsalt${SHA512}"),
    ("password", "{SHA256-CRYPT}$5$saltsalt$gOjOtoMpVhru2uyjeJSEc/JaLQWOXMNmlOnj6T4AtC."),
    ("password", "{MD5-CRYPT}$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"),
    ("password", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="),
    ("password", "{SHA256.HEX}5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"),
    ("password", "{PLAIN-MD5}5f4dcc3b5aa765d61d8327deb882cf99"),
    ("password", "{PLAIN}password"),
    ("pässwörd", "{CLEARTEXT}pässwörd"),
]  # fmt: skip


@pytest.fixture
def accounts(tmp_path):
    made = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    made.add_domain("example.com")
    yield made
    made.close()


@pytest.mark.parametrize("password,stored", VECTORS, ids=[stored.split("}")[0][1:] for _, stored in VECTORS])
def test_f12_schemes_of_other_servers(password, stored):
    assert verify(password, stored)
    assert not verify(password + "x", stored) and not verify("", stored)
    assert is_known_scheme(stored)


def test_f12_slow_schemes_in_a_login(accounts, events):
    """Computed in another process, waited for by the greenlet: all at once, and each gets its own answer."""
    for number, (_, stored) in enumerate(VECTORS[:3]):
        accounts.add_user(f"user{number}@example.com", stored)
    who = Passwords(accounts)
    right = [gevent.spawn(who.authenticate, f"user{number}@example.com", "password") for number in range(3)]
    wrong = [gevent.spawn(who.authenticate, f"user{number}@example.com", "passwore") for number in range(3)]
    gevent.joinall(right + wrong, timeout=60)
    assert [str(login.get(block=False).address) for login in right] == [f"user{n}@example.com" for n in range(3)]
    assert all(isinstance(login.exception, AuthenticationFailed) for login in wrong)
    assert not [event for event, _ in events if event == "stored password not usable"]


def test_f12_salted_digests_and_bcrypt():
    for scheme, name in (("SSHA", "sha1"), ("SSHA256", "sha256"), ("SSHA512", "sha512"), ("SMD5", "md5")):
        import base64

        raw = hashlib.new(name, b"password" + b"salt").digest() + b"salt"
        assert verify("password", f"{{{scheme}}}{base64.b64encode(raw).decode()}")
        assert not verify("passwore", f"{{{scheme}}}{base64.b64encode(raw).decode()}")
        assert verify("password", f"{{{scheme}.HEX}}{raw.hex()}")
    for start in ("$2b$", "$2y$"):
        made = bcrypt.hashpw(b"password", bcrypt.gensalt(4)).decode().replace("$2b$", start, 1)
        assert verify("password", f"{{BLF-CRYPT}}{made}") and not verify("other", f"{{CRYPT}}{made}")
    digest = hashlib.pbkdf2_hmac("sha1", b"password", b"salt", 5000).hex()
    assert verify("password", f"{{PBKDF2}}$1$salt$5000${digest}")
    assert not verify("password", f"{{PBKDF2}}$1$salt$99999999999${digest}"), "nobody chooses an endless computation"


@pytest.mark.parametrize(
    "stored",
    [
        "", "x", "{}", "{ARGON2ID}", "{ARGON2ID}$argon2id$x", "{SSHA}!", "{PBKDF2}$", "{BLF-CRYPT}$2b$", "{NEW}x",
        "{SHA512-CRYPT}", "{SHA512-CRYPT}$6$", "{SHA.HEX}zz", "{MD5-CRYPT}x",
    ],
)  # fmt: skip
def test_f12_malformed_hashes_match_nothing(stored):
    assert not verify("password", stored) and not verify("", stored)


@pytest.mark.parametrize("stored", ["{SHA512-CRYPT}$6$saltsalt$short", "{MD5-CRYPT}x"])
def test_f12_a_malformed_hash_of_a_slow_scheme_is_told_in_the_log(events, capfd, stored):
    assert not verify("password", stored)
    assert [event for event, _ in events] == ["stored password not usable"]
    assert "Traceback" not in capfd.readouterr().err


def test_f12_what_is_made_is_argon2id_and_matches():
    made = hash_password("correct horse")
    assert made.startswith("{ARGON2ID}$argon2id$v=19$m=19456,t=2,p=1$") and made != hash_password("correct horse")
    assert verify("correct horse", made) and not verify("correct horsf", made)


@pytest.mark.parametrize("length,fine", [(7, False), (8, True), (128, True), (129, False)])
def test_f12_length_of_new_passwords(length, fine):
    if fine:
        check_strength("x" * length)
    else:
        with pytest.raises(AddressInvalid):
            check_strength("x" * length)


def test_f12_every_wrong_answer_costs_one_verification(accounts, password_hash):
    accounts.add_user("ann@example.com", password_hash)
    accounts.add_user("bo@example.com", password_hash)
    accounts.set_enabled("bo@example.com", False)
    who = Passwords(accounts)
    messages = set()
    for name, password in (
        ("ann@example.com", "wrong"),
        ("nobody@example.com", "correct horse"),
        ("bo@example.com", "correct horse"),
        ("", ""),
        ("x" * 5000, "correct horse"),
        ("ann@example.com", "x" * 5000),
    ):
        before = who.verifications
        with pytest.raises(AuthenticationFailed) as failure:
            who.authenticate(name, password)
        messages.add(str(failure.value))
        assert who.verifications == before + 1, name
    assert len(messages) == 1, "the answer does not tell why"


def test_f12_success_is_remembered_until_anything_changes(accounts, password_hash, monkeypatch):
    accounts.add_user("ann@example.com", password_hash)
    who = Passwords(accounts)
    now = [1000.0]
    monkeypatch.setattr(tickets.time, "monotonic", lambda: now[0])
    for _ in range(3):
        assert str(who.authenticate("ann@example.com", "correct horse").address) == "ann@example.com"
    assert who.verifications == 1
    with pytest.raises(AuthenticationFailed):
        who.authenticate("ann@example.com", "correct horsf")
    now[0] += tickets.SECONDS + 1
    who.authenticate("ann@example.com", "correct horse")
    assert who.verifications == 3
    accounts.set_enabled("ann@example.com", False)
    with pytest.raises(AuthenticationFailed):
        who.authenticate("ann@example.com", "correct horse")
    accounts.set_enabled("ann@example.com", True)
    accounts.set_password_hash("ann@example.com", "{PLAIN}something else")
    with pytest.raises(AuthenticationFailed):
        who.authenticate("ann@example.com", "correct horse")


def test_f12_nothing_remembered_is_a_password(accounts, password_hash):
    accounts.add_user("ann@example.com", password_hash)
    who = Passwords(accounts)
    who.authenticate("ann@example.com", "correct horse")
    assert "correct horse" not in repr(vars(who))


def test_f12_what_one_worker_verified_the_others_need_not(accounts, password_hash):
    accounts.add_user("ann@example.com", password_hash)
    shared = Tickets()
    one, two = Passwords(accounts, tickets=shared), Passwords(accounts, tickets=shared)
    one.authenticate("ann@example.com", "correct horse")
    two.authenticate("ann@example.com", "correct horse")
    assert (one.verifications, two.verifications) == (1, 0)
    with pytest.raises(AuthenticationFailed):
        two.authenticate("ann@example.com", "correct horsf")
    Passwords(accounts).authenticate("ann@example.com", "correct horse")


def test_f12_tickets_are_seen_by_processes_that_were_forked():
    shared = Tickets()
    ticket = shared.make("7", "hash", "password")
    child = os.fork()
    if not child:
        shared.add(ticket)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ticket in shared and shared.make("7", "hash", "passwore") not in shared
    assert ticket not in Tickets() and Tickets().make("7", "hash", "password") != ticket
    assert b"password" not in bytes(shared._memory)


def test_f12_a_full_bucket_forgets_its_oldest_ticket(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(tickets.time, "monotonic", lambda: now[0])
    shared = Tickets()
    bucket = (5 * BUCKETS + 3).to_bytes(4, "little")
    many = [bucket + bytes([number]) * 28 for number in range(WAYS + 1)]
    for ticket in many:
        now[0] += 1
        shared.add(ticket)
        shared.add(ticket)
    assert [ticket in shared for ticket in many] == [False, *[True] * WAYS]
    start = shared._start(bucket)
    shared._memory[start + 20 : start + 24] = b"torn"
    assert sum(ticket in shared for ticket in many) == WAYS - 1
    now[0] += tickets.SECONDS
    assert not any(ticket in shared for ticket in many)


def test_f12_old_schemes_are_replaced_at_login(accounts, events):
    accounts.add_user("ann@example.com", VECTORS[0][1])
    who = Passwords(accounts)
    who.authenticate("ann@example.com", "password")
    stored = accounts.by_login("ann@example.com").hash
    assert stored.startswith(CURRENT) and verify("password", stored)
    assert ("password scheme upgraded", {"user": "ann@example.com"}) in events


def test_f12_many_whose_scheme_is_replaced_at_once_all_get_in(accounts):
    """Threads that change the accounts do not wait for each other by a lock of the hub's: it would lose them."""
    names = [f"u{number}@example.com" for number in range(200)]
    accounts.add_users([(name, "{PLAIN}correct horse") for name in names])
    who = Passwords(accounts)
    with gevent.Timeout(50):
        for done in gevent.pool.Pool(16).imap_unordered(lambda name: who.authenticate(name, "correct horse"), names):
            assert accounts.by_login(str(done.address)) is not None
    assert all(accounts.user(parse_address(name)).hash.startswith(CURRENT) for name in names)


def test_f12_a_password_that_was_changed_meanwhile_is_not_replaced(accounts, monkeypatch):
    accounts.add_user("ann@example.com", "{PLAIN}correct horse")
    who = Passwords(accounts)

    def slowly(password):
        accounts.set_password_hash("ann@example.com", "{PLAIN}battery staple")
        return hash_password(password)

    monkeypatch.setattr(passwords, "hash_password", slowly)
    who.authenticate("ann@example.com", "correct horse")
    assert accounts.user(parse_address("ann@example.com")).hash == "{PLAIN}battery staple"
    with closing(Accounts(accounts._path, "")) as fresh, pytest.raises(AuthenticationFailed):
        Passwords(fresh).authenticate("ann@example.com", "correct horse")


def test_f12_verification_does_not_hold_the_hub(accounts, password_hash):
    accounts.add_user("ann@example.com", password_hash)
    who = Passwords(accounts)
    turns = []
    ticker = gevent.spawn(lambda: [turns.append(gevent.sleep(0.001)) for _ in range(1000)])
    logins = [gevent.spawn(who.authenticate, "ann@example.com", "wrong") for _ in range(6)]
    gevent.joinall(logins)
    ticker.kill()
    assert len(turns) >= 6, "other greenlets ran meanwhile"
    assert all(isinstance(login.exception, AuthenticationFailed) for login in logins)
