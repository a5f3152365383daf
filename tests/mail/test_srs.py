"""Forwards carry a sender of ours that only we can make, and what is sent back to it reaches the original sender."""

import os
import re
import stat

import pytest

from mailsrv.errors import RecipientUnknown, RelayDenied, TemporaryFailure
from mailsrv.mail.accounts import Accounts, parse_address
from mailsrv.mail.srs import DAY_SECONDS, Rewriter, restore, rewrite
from mailsrv.values import Address
from mailsrv.wire.address import parse_path, written

SECRET, OLDER = b"s" * 32, b"o" * 32
TODAY = 20_782
BO = Address("Bo", "example.net")
LONG = Address("bounces+1234567-8f2c-ann=ours.example", "em.long-name.example.net")


class Clock:
    def __init__(self):
        self.days = float(TODAY)

    def __call__(self):
        return self.days * DAY_SECONDS


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rewriter(tmp_path, clock):
    return Rewriter(str(tmp_path / "srs"), now=clock)


@pytest.fixture
def accounts(tmp_path, rewriter):
    made = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"), rewriter)
    made.add_domain("ours.example")
    made.add_user("ann@ours.example", "{PLAIN}x")
    made.add_alias("info@ours.example", ["cy@elsewhere.example"])
    yield made
    made.close()


def test_an_original_sender_there_and_back():
    made = rewrite(BO, "ours.example", SECRET, TODAY)
    assert re.fullmatch(r"SRS0=[a-z2-7]{8}=[a-z2-7]{2}=example\.net=Bo", made.local) and made.domain == "ours.example"
    assert restore(made.local, [SECRET], TODAY) == (BO, TODAY)
    assert restore(made.local.upper(), [OLDER, SECRET], TODAY) == (Address("BO", "example.net"), TODAY), (
        "case on the way"
    )
    odd = Address("a=b=c+d-e", "example.net")
    assert restore(rewrite(odd, "ours.example", SECRET, TODAY).local, [SECRET], TODAY) == (odd, TODAY)


def test_b21_a_sender_is_valid_for_21_days():
    made = rewrite(BO, "ours.example", SECRET, TODAY).local
    assert restore(made, [SECRET], TODAY + 21) == (BO, TODAY)
    assert [restore(made, [SECRET], TODAY + later) for later in (22, 100, 1023, -1)] == [None] * 4
    for day in range(TODAY, TODAY + 1100, 7):  # over the end of the cycle
        assert restore(rewrite(BO, "x.example", SECRET, day).local, [SECRET], day + 21) == (BO, day)


def test_every_changed_octet_makes_it_invalid():
    made = rewrite(BO, "ours.example", SECRET, TODAY).local
    assert restore(made, [OLDER], TODAY) is None
    assert restore(made, [], TODAY) is None
    for place in range(len(made)):
        for other in "a2=@.-\0é":
            changed = made[:place] + other + made[place + 1 :]
            if changed.lower() != made.lower():
                assert restore(changed, [SECRET], TODAY) is None, changed
        assert restore(made[:place], [SECRET], TODAY) is None
        assert restore(made[:place] + made[place + 1 :], [SECRET], TODAY) is None
    assert restore(made + "x", [SECRET], TODAY) is None


def test_senders_that_others_rewrote_become_srs1_and_stay_short():
    first = Address("SRS0=HHH=TT=example.net=bo", "first.example")
    made = rewrite(first, "ours.example", SECRET, TODAY)
    assert re.fullmatch(r"SRS1=[a-z2-7]{8}=first\.example==HHH=TT=example\.net=bo", made.local)
    assert restore(made.local, [SECRET], TODAY)[0] == first
    again = Address("SRS1=XXXX=first.example==HHH=TT=example.net=bo", "second.example")
    made = rewrite(again, "ours.example", SECRET, TODAY)
    assert made.local.endswith("=first.example==HHH=TT=example.net=bo") and "second" not in made.local
    assert restore(made.local, [SECRET], TODAY)[0] == first, "the way back leads over the first server, not the second"
    plus = Address("srs0+HHH=TT=example.net=bo", "first.example")
    made = rewrite(plus, "ours.example", SECRET, TODAY)
    assert "=first.example=+HHH" in made.local
    assert restore(made.local, [SECRET], TODAY)[0] == Address("SRS0+HHH=TT=example.net=bo", "first.example")


@pytest.mark.parametrize(
    "sender",
    [
        LONG, Address("x" * 64, "example.net"), Address("two words", "example.net"), Address('qu"ote', "example.net"),
        Address("bücher", "example.net"), Address("bo", "[192.0.2.1]"), Address("SRS0=" + "h" * 50, "first.example"),
        Address("SRS1=nothing", "first.example"), Address("SRS0=", "first.example"), Address(".bo.", "example.net"),
    ],
    ids=lambda sender: sender.local[:12],
)  # fmt: skip
def test_every_sender_fits_into_a_local_part_and_comes_back(rewriter, clock, sender):
    made = rewriter.forward(sender, "ours.example")
    assert len(made.local) <= 64 and made.local.isascii()
    assert parse_path(f"<{written(made)}>")[0] == made, "it can stand in MAIL and RCPT"
    for local in (made.local, made.local.lower()):
        back = rewriter.back(local)
        assert back == sender or (back.domain == sender.domain and back.local.lower() == sender.local.lower())
    clock.days += 21
    assert rewriter.back(made.local) is not None
    clock.days += 1
    assert rewriter.back(made.local) is None


def test_kept_senders_are_forgotten_when_they_are_no_longer_valid(rewriter, clock, tmp_path):
    rewriter.forward(LONG, "ours.example")
    assert rewriter.forward(LONG, "ours.example") == rewriter.forward(LONG, "ours.example")
    assert os.listdir(tmp_path / "srs" / str(TODAY)) != [] and len(os.listdir(tmp_path / "srs" / str(TODAY))) == 1
    for days in (1, 20, 2):
        clock.days += days
        rewriter.forward(LONG, "ours.example")
    kept = sorted(name for name in os.listdir(tmp_path / "srs") if name != "secret")
    assert kept == [str(TODAY + 1), str(TODAY + 21), str(TODAY + 23)]


def test_the_secret_is_made_once_and_only_ours_to_read(tmp_path, clock):
    made = Rewriter(str(tmp_path / "srs"), now=clock).forward(BO, "ours.example")
    path = tmp_path / "srs" / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(path.read_text().strip())) == 32
    assert Rewriter(str(tmp_path / "srs"), now=clock).back(made.local) == BO, "after a restart, in another process"
    path.write_text("ab" * 32 + "\n" + path.read_text())  # rotated: the new one first, the old one still accepted
    rotated = Rewriter(str(tmp_path / "srs"), now=clock)
    assert rotated.back(made.local) == BO
    assert rotated.forward(BO, "ours.example") != made
    for broken in ("", "zz\n", "ab\n"):
        path.write_text(broken)
        with pytest.raises(TemporaryFailure, match=r"srs/secret: expected lines"):
            Rewriter(str(tmp_path / "srs"), now=clock).forward(BO, "ours.example")


def test_c21_only_true_forwards_are_rewritten(accounts):
    """Complaint 21: what is no forward, or comes from ourselves, keeps its sender."""
    info = accounts.expand(parse_address("info@ours.example"))
    assert accounts.forward_sender(None, info.via) is None
    ann = Address("ann", "ours.example")
    assert accounts.forward_sender(ann, info.via) == ann
    made = accounts.forward_sender(BO, info.via)
    assert made.domain == "ours.example" and made.local.startswith("SRS0=")
    assert accounts.forward_sender(made, info.via) == made, "our own rewritten sender comes from ourselves"


def test_c14_reports_to_a_rewritten_sender_go_on_to_the_original_one(accounts, clock):
    made = accounts.forward_sender(BO, Address("info", "ours.example"))
    found = accounts.expand(made, null_sender=True)
    assert (found.local, found.remote, found.via) == ((), (BO,), made)
    for wrong in (
        lambda: accounts.expand(made),  # only what has the null sender may go back
        lambda: accounts.expand(Address(made.local.replace("Bo", "victim"), "ours.example"), null_sender=True),
        lambda: accounts.expand(Address("SRS0=" + "x" * 40, "ours.example"), null_sender=True),
        lambda: accounts.expand(Address("SRS1=", "ours.example"), null_sender=True),
    ):
        with pytest.raises(RecipientUnknown):
            wrong()
    with pytest.raises(RelayDenied):
        accounts.expand(Address(made.local, "elsewhere.example"), null_sender=True)
    accounts.set_catch_all("ours.example", "ann@ours.example")
    with pytest.raises(RecipientUnknown):
        accounts.expand(Address("srs0=guess=aa=victim.example=x", "ours.example"), null_sender=True)
    clock.days += 22
    with pytest.raises(RecipientUnknown):
        accounts.expand(made, null_sender=True)


def test_a_sender_whose_domain_became_ours_gets_its_reports_here(accounts):
    made = accounts.forward_sender(BO, Address("info", "ours.example"))
    accounts.add_domain("example.net")
    with pytest.raises(RecipientUnknown):
        accounts.expand(made, null_sender=True)
    accounts.add_user("bo@example.net", "{PLAIN}x")
    found = accounts.expand(made, null_sender=True)
    assert [str(account.address) for account in found.local] == ["bo@example.net"] and found.via == made


def test_without_rewriting_senders_stay_and_such_addresses_are_like_any_other(tmp_path, accounts):
    made = accounts.forward_sender(BO, Address("info", "ours.example"))
    plain = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    try:
        assert plain.forward_sender(BO, Address("info", "ours.example")) == BO
        with pytest.raises(RecipientUnknown):
            plain.expand(made, null_sender=True)
    finally:
        plain.close()
