"""Keys: made in pairs, private, replaced with overlap, and each state means what it says."""

import json
import os
import re
import stat
import threading
from base64 import b64decode

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mailsrv.mail.accounts import Accounts
from mailsrv.mail.dkim import ACTIVE, ED25519, NEW, OLD, RSA, Keys, KeysRefused
from mailsrv.mail.srs import Rewriter
from mailsrv.values import Address

NOW = 1_795_575_900.0  # 2026-11-25
DAY = 86400.0
WELL = {"selector": "x", "algorithm": "rsa-sha256", "state": "new", "since": "2026-11-25T03:00:00+00:00"}


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(tmp_path, clock):
    return Keys(str(tmp_path / "dkim"), now=clock)


def states(keys, domain="ours.example"):
    return {key.selector: key.state for key in keys.of(domain)}


def test_s31_keys_come_in_pairs_and_only_we_can_read_them(keys, tmp_path):
    made = keys.generate("ours.example")
    assert [(key.selector, key.algorithm, key.state) for key in made] == [
        ("20261125-rsa", RSA, ACTIVE), ("20261125-ed25519", ED25519, ACTIVE),
    ]  # fmt: skip
    directory = tmp_path / "dkim" / "ours.example"
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    rsa, ed25519 = (keys.record(key) for key in made)
    found = re.fullmatch(r"v=DKIM1; k=rsa; p=([A-Za-z0-9+/]+=*)", rsa)
    assert load_der_public_key(b64decode(found[1])).key_size == 2048  # RFC 8301 3.2
    assert len(b64decode(re.fullmatch(r"v=DKIM1; k=ed25519; p=([A-Za-z0-9+/]{43}=)", ed25519)[1])) == 32  # RFC 8463 4.2
    assert made[0].name == "20261125-rsa._domainkey.ours.example"
    assert Keys(str(tmp_path / "dkim")).of("ours.example") == tuple(made), "the same for every process"
    assert keys.domains() == ["ours.example"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_s27_what_root_makes_is_the_servers(tmp_path, umask):
    """As root, whoever owns the data directory owns what commands make in it; else nothing is given away."""
    data = tmp_path / "data"
    data.mkdir()
    expected = os.getuid()
    if os.getuid() == 0:
        os.chown(data, 65534, 65534)
        expected = 65534
    before = os.umask(umask)
    try:
        Keys(str(data / "dkim")).generate("ours.example")
        Rewriter(str(data / "srs")).forward(Address("x" * 60, "far.example"), "ours.example")
        Accounts(str(data / "accounts.sqlite3"), str(data / "mail")).close()
    finally:
        os.umask(before)
    made = list(data.rglob("*"))
    assert {"secret", "keys.json", "accounts.sqlite3"} < {path.name for path in made}
    assert {path.stat().st_uid for path in made} == {expected}
    private = [path for path in made if path.name != "accounts.sqlite3"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o700, 0o600}


def test_b21_rotation_overlaps(keys, clock):
    keys.generate("ours.example")
    clock.now += 3600
    keys.rotate("ours.example")
    first, second = {"20261125-rsa", "20261125-ed25519"}, {"20261125-2-rsa", "20261125-2-ed25519"}
    assert states(keys) == {**dict.fromkeys(first, ACTIVE), **dict.fromkeys(second, NEW)}, "the old ones sign on"
    with pytest.raises(KeysRefused, match="mailsrv dkim activate ours"):
        keys.rotate("ours.example")
    assert {key.selector for key in keys.activate("ours.example")} == second
    assert states(keys) == {**dict.fromkeys(first, OLD), **dict.fromkeys(second, ACTIVE)}
    with pytest.raises(KeysRefused, match="no new keys"):
        keys.activate("ours.example")
    with pytest.raises(KeysRefused, match="on its way"):
        keys.retire("ours.example")
    clock.now += 7 * DAY
    old = [keys._path(key) for key in keys.of("ours.example", OLD)]
    assert all(os.path.exists(path) for path in old)
    assert {key.selector for key in keys.retire("ours.example")} == first
    assert not any(os.path.exists(path) for path in old)
    assert states(keys) == dict.fromkeys(second, ACTIVE)
    keys.rotate("ours.example")
    assert set(states(keys)) == second | {"20261202-rsa", "20261202-ed25519"}
    keys.activate("ours.example")
    assert len(keys.retire("ours.example", at_once=True)) == 2


def test_what_cannot_be_done_is_refused_and_changes_nothing(keys):
    for work in (keys.rotate, keys.activate, keys.retire):
        with pytest.raises(KeysRefused):
            work("ours.example")
    assert keys.of("ours.example") == () and keys.domains() == []
    keys.generate("ours.example")
    before = states(keys)
    with pytest.raises(KeysRefused, match="mailsrv dkim rotate"):
        keys.generate("ours.example")
    with pytest.raises(KeysRefused, match="no old keys"):
        keys.retire("ours.example")
    assert states(keys) == before
    assert keys.of("other.example") == ()


def test_two_that_rotate_at_once_make_one_pair(keys, tmp_path):
    keys.generate("ours.example")
    refused = []

    def rotate():
        try:
            Keys(str(tmp_path / "dkim")).rotate("ours.example")
        except KeysRefused as refusal:
            refused.append(refusal)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 and len(keys.of("ours.example", NEW)) == 2
    listed = {f"{key.selector}.pem" for key in keys.of("ours.example")} | {"keys.json"}
    assert set(os.listdir(tmp_path / "dkim" / "ours.example")) == listed


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{}", b"[]", b"{", b'{"version": 9, "keys": []}', b'{"version": 1, "keys": [{}]}',
        *(
            json.dumps({"version": 1, "keys": [{**WELL, **wrong}]}).encode()
            for wrong in ({"selector": "../x"}, {"algorithm": "rsa-sha1"}, {"state": "gone"}, {"since": 5})
        ),
    ],
)  # fmt: skip
def test_damaged_lists_are_told_and_left_alone(keys, tmp_path, damage):
    keys.generate("ours.example")
    path = tmp_path / "dkim" / "ours.example" / "keys.json"
    assert json.loads(path.read_text())["version"] == 1
    path.unlink()
    path.write_bytes(damage)
    for work in (keys.of, keys.generate, keys.rotate, keys.activate, keys.retire):
        with pytest.raises(KeysRefused, match=r"ours\.example/keys\.json is damaged"):
            work("ours.example")
    assert path.read_bytes() == damage


def test_a_key_of_the_wrong_kind_is_told(keys, tmp_path):
    rsa, ed25519 = keys.generate("ours.example")
    os.replace(keys._path(rsa), keys._path(ed25519))
    with pytest.raises(ValueError, match="no key for ed25519"):
        keys.private(ed25519)
