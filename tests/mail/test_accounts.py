"""Who a recipient is and who may send as whom: users, aliases, catch-alls, plus addresses, changed while it runs."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mailsrv.errors import (
    AccountExists,
    AccountNotFound,
    AddressInvalid,
    DomainExists,
    DomainNotFound,
    RecipientUnknown,
    RelayDenied,
    TemporaryFailure,
)
from mailsrv.mail.accounts import Accounts, home_of, parse_address, parse_domain
from mailsrv.values import Address

ROOT = str(Path(__file__).parent.parent.parent)


@pytest.fixture
def accounts(tmp_path):
    made = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    made.add_domain("example.com")
    for name in ("ann", "bo", "cy"):
        made.add_user(f"{name}@example.com", "{PLAIN}x")
    yield made
    made.close()


def names(accounts, address):
    return sorted(account.address.local for account in accounts.resolve(parse_address(address)))


def test_f05_recipients(accounts):
    accounts.add_alias("team@example.com", ["ann@example.com", "bo@example.com"])
    accounts.add_alias("everybody@example.com", ["team@example.com", "cy@example.com"])
    assert names(accounts, "ann@example.com") == ["ann"]
    assert names(accounts, "ANN+lists@Example.Com") == ["ann"]
    assert names(accounts, "team+x@example.com") == ["ann", "bo"]
    assert names(accounts, "everybody@example.com") == ["ann", "bo", "cy"]
    assert names(accounts, "postmaster@example.com") == ["ann"], "always somebody's"
    with pytest.raises(RecipientUnknown):
        names(accounts, "nobody@example.com")
    with pytest.raises(RelayDenied):
        names(accounts, "ann@elsewhere.org")
    accounts.set_catch_all("example.com", "cy@example.com")
    assert names(accounts, "nobody@example.com") == ["cy"]
    accounts.set_catch_all("example.com", None)
    with pytest.raises(RecipientUnknown):
        names(accounts, "nobody@example.com")


def test_without_any_domain_mail_is_put_off(tmp_path):
    """It was not set up yet, or the disk with the accounts is not mounted: mail must not be returned for that."""
    empty = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    with pytest.raises(TemporaryFailure):
        empty.expand(Address("ann", "example.com"))
    empty.add_domain("example.com")
    with pytest.raises(RecipientUnknown):
        empty.expand(Address("ann", "example.com"))
    with pytest.raises(RelayDenied):
        empty.expand(Address("ann", "example.org"))
    empty.close()


def test_f05_a_user_of_the_whole_name_comes_before_its_base(accounts):
    accounts.add_user("ann+work@example.com", "{PLAIN}x")
    assert names(accounts, "ann+work@example.com") == ["ann+work"]
    assert names(accounts, "ann+other@example.com") == ["ann"]


def test_f05_alias_loops_end(accounts):
    accounts.add_alias("a@example.com", ["b@example.com"])
    accounts.add_alias("b@example.com", ["a@example.com", "bo@example.com"])
    assert names(accounts, "a@example.com") == ["bo"]
    accounts.add_alias("self@example.com", ["self@example.com"])
    with pytest.raises(RecipientUnknown):
        names(accounts, "self@example.com")


def expanded(accounts, address):
    found = accounts.expand(parse_address(address))
    return sorted(account.address.local for account in found.local), sorted(map(str, found.remote))


def test_f05_aliases_and_catch_alls_lead_elsewhere(accounts):
    accounts.add_alias("info@example.com", ["Bo.Elsewhere@Gmail.Example"])
    accounts.add_alias("team@example.com", ["ann@example.com", "info@example.com", "x@other.example"])
    assert expanded(accounts, "INFO+x@example.com") == ([], ["Bo.Elsewhere@gmail.example"]), "case is theirs to know"
    assert expanded(accounts, "team@example.com") == (["ann"], ["Bo.Elsewhere@gmail.example", "x@other.example"])
    assert accounts.expand(Address("TEAM+y", "Example.Com")).via == Address("team+y", "example.com")
    assert expanded(accounts, "bo@example.com") == (["bo"], [])
    accounts.set_catch_all("example.com", "boss@gmail.example")
    assert expanded(accounts, "nobody@example.com") == ([], ["boss@gmail.example"])
    with pytest.raises(RelayDenied):
        accounts.expand(Address("bo.elsewhere", "gmail.example"))
    for address in ("info@example.com", "team@example.com"):
        with pytest.raises(RelayDenied):  # who cannot forward does not deliver half
            accounts.resolve(parse_address(address))


def test_s11_forwards_end(accounts):
    accounts.add_alias("a@example.com", ["b@example.com", "x@elsewhere.org"])
    accounts.add_alias("b@example.com", ["a@example.com", "x@elsewhere.org"])
    assert expanded(accounts, "a@example.com") == ([], ["x@elsewhere.org"])
    accounts.add_alias("deep9@example.com", ["x@elsewhere.org"])
    for number in range(8, 0, -1):
        accounts.add_alias(f"deep{number}@example.com", [f"deep{number + 1}@example.com"])
    assert expanded(accounts, "deep1@example.com") == ([], ["x@elsewhere.org"])
    with pytest.raises(TemporaryFailure, match="10 steps"):
        accounts.add_alias("deep0@example.com", ["deep1@example.com"])
    for number in range(2):
        accounts.add_alias(f"many{number}@example.com", [f"x{number}-{n}@elsewhere.org" for n in range(60)])
    accounts.add_alias("many@example.com", ["many0@example.com"])
    assert len(expanded(accounts, "many@example.com")[1]) == 60
    accounts.add_alias("many0@example.com", [f"more-{n}@elsewhere.org" for n in range(38)])
    assert len(expanded(accounts, "many@example.com")[1]) == 98, "a hundred addresses in all, ours among them"
    accounts.add_alias("many0@example.com", ["one@elsewhere.org"])
    with pytest.raises(TemporaryFailure, match="over 100 addresses"):  # not to some of them
        accounts.expand(parse_address("many@example.com"))


def test_f05_a_disabled_user_forwards_nothing(accounts):
    accounts.add_alias("info@example.com", ["ann@example.com"])
    accounts.set_catch_all("example.com", "boss@gmail.example")
    accounts.set_enabled("ann@example.com", False)
    for address in ("ann@example.com", "info@example.com"):
        with pytest.raises(RecipientUnknown):
            accounts.expand(parse_address(address))


def test_b20_a_domain_that_comes_or_goes_changes_what_is_elsewhere(accounts):
    accounts.add_alias("info@example.com", ["Dee@example.org"])
    assert expanded(accounts, "info@example.com") == ([], ["Dee@example.org"])
    accounts.add_domain("example.org")
    with pytest.raises(RecipientUnknown):
        accounts.expand(parse_address("info@example.com"))
    accounts.add_user("dee@example.org", "{PLAIN}x")
    assert expanded(accounts, "info@example.com") == (["dee"], [])
    accounts.remove_user("dee@example.org")
    accounts.set_catch_all("example.com", "dee@example.org")
    with pytest.raises(DomainExists, match=r"info@example\.com, example\.com \(catch-all\)|\(catch-all\), info@"):
        accounts.remove_domain("example.org")
    accounts.remove_alias("info@example.com")
    accounts.set_catch_all("example.com", None)
    accounts.add_alias("own@example.org", ["ann@example.com"])
    accounts.remove_domain("example.org")
    assert not accounts.aliases(), "its own aliases went with it"


def test_f05_one_target_is_removed(accounts):
    accounts.add_alias("info@example.com", ["Bo@Elsewhere.Org", "ann@example.com", "cy@example.com"])
    accounts.remove_alias("info@example.com", ["bo@elsewhere.org", "CY@example.com"])
    assert expanded(accounts, "info@example.com") == (["ann"], [])
    with pytest.raises(AccountNotFound):
        accounts.remove_alias("info@example.com", ["ann@example.com", "cy@example.com"])
    assert expanded(accounts, "info@example.com") == (["ann"], []), "all of it or nothing"


def test_f12_disabled_users_receive_nothing_and_do_not_log_in(accounts):
    accounts.set_enabled("ann@example.com", False)
    with pytest.raises(RecipientUnknown):
        names(accounts, "ann@example.com")
    assert not accounts.by_login("ann@example.com").enabled
    accounts.set_enabled("ann@example.com", True)
    assert names(accounts, "ann@example.com") == ["ann"]


def test_f12_login_names(accounts):
    accounts.add_domain("example.org")
    accounts.add_user("dee@example.org", "{PLAIN}x")
    accounts.add_user("ann@example.org", "{PLAIN}x")
    assert accounts.by_login(" Ann@EXAMPLE.com ").account.address == Address("ann", "example.com")
    assert accounts.by_login("dee").account.address == Address("dee", "example.org")
    assert accounts.by_login("ann") is None, "two have that name"
    assert accounts.by_login("nobody") is None and accounts.by_login("") is None


def test_b18_own_addresses(accounts):
    accounts.add_alias("team@example.com", ["ann@example.com", "bo@example.com"])
    ann = accounts.user(Address("ann", "example.com")).account
    own = ["ann@example.com", "Ann+x@example.com", "team@example.com"]
    others = ["bo@example.com", "cy@example.com", "ann@elsewhere.org", "nobody@example.com"]
    assert [accounts.may_send_as(ann, parse_address(one)) for one in own] == [True] * 3
    assert [accounts.may_send_as(ann, parse_address(one)) for one in others] == [False] * 4
    assert not accounts.may_send_as(ann, None)


def test_b20_every_domain_that_is_hosted_is_local(accounts):
    accounts.add_domain("example.org")
    assert accounts.is_local("example.org") and accounts.is_local("EXAMPLE.ORG") and accounts.is_local("example.com")
    assert not accounts.is_local("elsewhere.org")


CHANGE = """
import sys
from mailsrv.mail.accounts import Accounts
accounts = Accounts(sys.argv[1], sys.argv[2])
getattr(accounts, sys.argv[3])(*[False if value == "False" else value for value in sys.argv[4:]])
"""


def test_f12_changes_of_another_process_count_at_once(accounts, tmp_path):
    def elsewhere(*words):
        where = (str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
        subprocess.run([sys.executable, "-c", CHANGE, *where, *words], cwd=ROOT, check=True, timeout=120)

    assert names(accounts, "ann@example.com") == ["ann"]
    elsewhere("set_enabled", "ann@example.com", "False")
    with pytest.raises(RecipientUnknown):
        names(accounts, "ann@example.com")
    assert not accounts.by_login("ann@example.com").enabled
    with pytest.raises(RecipientUnknown):
        names(accounts, "new@example.com")
    elsewhere("add_user", "new@example.com", "{PLAIN}x")
    assert names(accounts, "new@example.com") == ["new"]


def test_answers_are_remembered_while_nothing_changes(accounts):
    names(accounts, "ann@example.com")
    asked = []
    real = accounts._ask
    accounts._ask = lambda sql, values=(): asked.append(sql) or real(sql, values)
    for _ in range(3):
        accounts._asked_at = 0.0  # as if FRESH_SECONDS had gone by
        names(accounts, "ann@example.com")
    assert set(asked) == {"PRAGMA data_version"}
    accounts._asked_at = float("inf")
    del asked[:]
    names(accounts, "ann@example.com")
    assert asked == []


@pytest.mark.parametrize(
    "text",
    [
        "", "ann", "@example.com", "ann@", "a b@example.com", "a@b@example.com", ".a@example.com", "a..b@example.com",
        "a@exa mple.com", "a@-example.com", "a@" + "x" * 64 + ".com", "x" * 65 + "@example.com", "a\n@example.com",
        '"a"@example.com', "a%b@example.com", "a@[127.0.0.1]",
    ],
)  # fmt: skip
def test_f12_addresses_that_cannot_be_users(accounts, text):
    with pytest.raises(AddressInvalid):
        accounts.add_user(text, "{PLAIN}x")


def test_f12_refusals_of_changes(accounts):
    for work, error in (
        (lambda: accounts.add_domain("EXAMPLE.com"), DomainExists),
        (lambda: accounts.remove_domain("example.com"), DomainExists),
        (lambda: accounts.remove_domain("elsewhere.org"), DomainNotFound),
        (lambda: accounts.add_user("x@elsewhere.org", "{PLAIN}x"), DomainNotFound),
        (lambda: accounts.add_user("Ann@example.com", "{PLAIN}x"), AccountExists),
        (lambda: accounts.remove_user("nobody@example.com"), AccountNotFound),
        (lambda: accounts.set_quota("nobody@example.com", 1), AccountNotFound),
        (lambda: accounts.remove_alias("nobody@example.com"), AccountNotFound),
        (lambda: accounts.add_alias("ann@example.com", ["bo@example.com"]), AccountExists),
        (lambda: accounts.add_alias("new@elsewhere.org", ["ann@example.com"]), DomainNotFound),
        (lambda: accounts.add_alias("new@example.com", ["x@elsewhere.org\r\nX: y"]), AddressInvalid),
        (lambda: accounts.add_alias("new@example.com", []), AddressInvalid),
        (lambda: accounts.remove_alias("nobody@example.com", ["ann@example.com"]), AccountNotFound),
        (lambda: accounts.add_domain("not a domain"), AddressInvalid),
    ):
        with pytest.raises(error):
            work()
    assert [domain.users for domain in accounts.domains()] == [3]


def test_international_domains_are_kept_in_ascii():
    assert parse_domain("Bücher.Example") == "xn--bcher-kva.example"
    assert str(parse_address("ann@Bücher.example")) == "ann@xn--bcher-kva.example"


@pytest.mark.parametrize("local", ["ann", "a/../b", "..", ".hidden", "ä", "a%b", "a~b", "'x'", "/etc/passwd"])
def test_s24_b11_homes_stay_below_the_mail_root(local):
    home = home_of(Address(local, "example.com"))
    domain, _, rest = home.partition("/")
    assert domain == "example.com" and rest and "/" not in rest and not rest.startswith(".") and "\0" not in rest


def test_s24_b11_different_users_have_different_homes():
    locals_ = ["a/b", "a%2fb", "a.b", "a_b", "ä", "%c3%a4", "A", "a"]
    homes = [home_of(Address(local, "example.com")) for local in locals_]
    assert len(set(homes)) == len(homes)


def test_f11_a_database_that_cannot_be_used_is_told(tmp_path):
    path = tmp_path / "accounts.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(TemporaryFailure, match=r"accounts\.sqlite3"):
        Accounts(str(path), str(tmp_path))
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(TemporaryFailure, match="version 99"):
        Accounts(str(path), str(tmp_path))
    assert path.exists(), "no cache: it is never thrown away"
