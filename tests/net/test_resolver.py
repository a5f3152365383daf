"""DNS: what is final and what is not, bounds on answers, and that nobody else waits for a lookup."""

import time

import gevent
import pytest

from mailsrv.net import resolver as module
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver, ResolverSettings
from tests.fakes.dns import FakeDns


@pytest.fixture
def dns():
    with FakeDns() as made:
        yield made


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def resolver(dns, clock):
    return Resolver(ResolverSettings(("127.0.0.1",), dns.port, try_seconds=5.0, seconds=20.0), clock=clock)


@pytest.fixture
def hasty(dns, clock):
    """One that does not wait long for a DNS that says nothing."""
    return Resolver(ResolverSettings(("127.0.0.1",), dns.port, try_seconds=0.3, seconds=1.0), clock=clock)


def test_records_of_each_type(dns, resolver):
    dns.add("example.org", "MX", "10 MX1.example.org.", "5 mx2.example.org.")
    dns.add("example.org", "TXT", '"one" "two"', '"three"')
    dns.add("mx1.example.org", "A", "192.0.2.1")
    dns.add("mx1.example.org", "AAAA", "2001:db8::1")
    dns.add("_25._tcp.mx1.example.org", "TLSA", "3 1 1 " + "ab" * 32)
    dns.add("1.2.0.192.in-addr.arpa", "PTR", "mx1.example.org.")
    assert sorted(resolver.lookup("Example.ORG.", "MX").values) == [(5, "mx2.example.org"), (10, "mx1.example.org")]
    assert set(resolver.lookup("example.org", "TXT").values) == {"onetwo", "three"}
    assert resolver.addresses("mx1.example.org").values == ("2001:db8::1", "192.0.2.1")
    assert resolver.lookup("_25._tcp.mx1.example.org", "TLSA").values == ((3, 1, 1, b"\xab" * 32),)
    assert resolver.names_of("192.0.2.1").values == ("mx1.example.org",)
    assert resolver.lookup("mx1.example.org", "MX").values == ()


def test_only_nxdomain_says_that_a_name_does_not_exist(dns, resolver, hasty):
    with pytest.raises(NameNotFound):
        resolver.lookup("nowhere.example", "MX")
    for number, how in enumerate(("SERVFAIL", "REFUSED", "TIMEOUT", "GARBAGE", "OTHER_QUESTION")):
        dns.fail(f"f{number}.example", "MX", how)
        with pytest.raises(LookupFailed):
            hasty.lookup(f"f{number}.example", "MX")


@pytest.mark.parametrize("name", ["a..example", "x" * 64 + ".example", "y." * 130 + "example"])
def test_what_cannot_be_a_name_does_not_exist(resolver, name):
    with pytest.raises(NameNotFound):
        resolver.lookup(name, "MX")


def test_a_truncated_answer_is_asked_for_again_by_tcp(dns, resolver):
    dns.add("example.org", "MX", "10 mx.example.org.")
    dns.fail("example.org", "MX", "TRUNCATED")

    assert resolver.lookup("example.org", "MX").values == ((10, "mx.example.org"),)
    assert dns.queries == [("example.org", "MX", "udp"), ("example.org", "MX", "tcp")]


def test_s30_a_huge_answer_is_cut(dns, resolver):
    dns.add("example.org", "MX", *(f"{n} mx{n}.example.org." for n in range(200)))
    assert len(resolver.lookup("example.org", "MX").values) == 100
    assert dns.queries[-1][2] == "tcp"


def test_s30_an_alias_that_leads_round_and_round_ends(dns, resolver):
    dns.add("a.example", "CNAME", "b.example.")
    dns.add("b.example", "CNAME", "a.example.")
    with pytest.raises(LookupFailed):
        resolver.lookup("a.example", "A")
    assert len(dns.queries) < 20


def test_aliases_are_followed_and_the_name_they_lead_to_is_told(dns, resolver):
    dns.add("a.example", "CNAME", "b.example.")
    dns.add("b.example", "CNAME", "c.example.")
    dns.add("c.example", "A", "192.0.2.3")
    found = resolver.addresses("a.example")
    assert (found.values, found.name) == (("192.0.2.3",), "c.example")


def test_records_of_other_names_in_an_answer_are_not_believed(dns, resolver):
    dns.add("example.org", "A", "192.0.2.1")
    dns.add("victim.example", "A", "192.0.2.2")
    dns.poison("example.org", "A", "victim.example. 86400 IN A 192.0.2.66")
    assert resolver.lookup("example.org", "A").values == ("192.0.2.1",)
    assert resolver.lookup("victim.example", "A").values == ("192.0.2.2",)


def test_the_ad_bit_counts_from_a_resolver_on_loopback_only(dns, clock):
    dns.add("example.org", "A", "192.0.2.1")
    dns.add("plain.example", "A", "192.0.2.1")
    dns.secure.add("example.org")
    assert Resolver(ResolverSettings(("127.0.0.1",), dns.port)).lookup("example.org", "A").secure
    assert not Resolver(ResolverSettings(("127.0.0.1",), dns.port)).lookup("plain.example", "A").secure
    assert not Resolver(ResolverSettings(("127.0.0.1",), dns.port, trusted=False)).lookup("example.org", "A").secure
    assert not Resolver(ResolverSettings(("127.0.0.1", "192.0.2.53"))).trusted


def test_answers_are_kept_for_their_time_to_live(dns, resolver, clock):
    dns.add("example.org", "A", "192.0.2.1", ttl=60)
    for ahead, asked in ((0, 1), (40, 1), (61, 2), (90, 2)):
        clock.ahead = ahead
        resolver.lookup("example.org", "A")
        assert dns.asked("example.org", "A") == asked


def test_failures_are_kept_for_a_moment_and_no_longer(dns, resolver, clock):
    dns.fail("example.org", "A", "SERVFAIL")
    for _ in range(5):
        with pytest.raises(LookupFailed):
            resolver.lookup("example.org", "A")
    assert dns.asked("example.org", "A") == 1
    dns.add("example.org", "A", "192.0.2.1")
    clock.ahead = module.FAILURE_TTL + 1
    assert resolver.lookup("example.org", "A").values == ("192.0.2.1",)


def test_what_is_kept_is_bounded(dns, resolver, monkeypatch):
    monkeypatch.setattr(module, "MOST_NAMES", 50)
    for number in range(200):
        with pytest.raises(NameNotFound):
            resolver.lookup(f"n{number}.example", "A")
    assert len(resolver._known) <= 50


def test_many_who_ask_the_same_ask_once_and_nobody_else_waits(dns, resolver):
    dns.add("slow.example", "A", "192.0.2.1")
    dns.add("quick.example", "A", "192.0.2.2")
    dns.delay("slow.example", "A", 2)
    slow = [gevent.spawn(resolver.lookup, "slow.example", "A") for _ in range(50)]
    gevent.sleep(0.02)
    assert resolver.lookup("quick.example", "A").values == ("192.0.2.2",)
    assert not any(one.ready() for one in slow)
    gevent.joinall(slow, timeout=60)
    assert {one.get().values for one in slow} == {("192.0.2.1",)} and dns.asked("slow.example", "A") == 1


def test_the_hub_goes_on_during_a_lookup_that_is_not_answered(dns, hasty):
    dns.fail("slow.example", "A", "TIMEOUT")

    def ask():
        with pytest.raises(LookupFailed):
            hasty.lookup("slow.example", "A")

    asking = gevent.spawn(ask)
    turns = 0
    while not asking.ready():
        gevent.sleep(0.001)
        turns += 1
    asking.get()
    assert turns > 50


def test_a_deadline_ends_a_lookup(dns, hasty, clock):
    took = []
    for name in ("one.example", "two.example", "three.example"):  # the machine may hold one of them up
        dns.fail(name, "A", "TIMEOUT")
        begun = time.monotonic()
        with pytest.raises(LookupFailed):
            hasty.lookup(name, "A", until=clock() + 0.1)
        took.append(time.monotonic() - begun)
    assert min(took) < 0.8
    with pytest.raises(LookupFailed):
        hasty.lookup("other.example", "A", until=clock() - 1)
    assert dns.asked("other.example", "A") == 0


def test_addresses_of_one_family_do_when_the_other_cannot_be_had(dns, resolver):
    dns.add("half.example", "A", "192.0.2.1")
    dns.fail("half.example", "AAAA", "SERVFAIL")
    assert resolver.addresses("half.example").values == ("192.0.2.1",)
    dns.fail("half.example", "A", "SERVFAIL")
    dns.add("empty.example", "TXT", '"x"')
    dns.fail("empty.example", "AAAA", "SERVFAIL")
    with pytest.raises(LookupFailed):
        resolver.addresses("empty.example")
    dns.add("none.example", "TXT", '"x"')
    assert resolver.addresses("none.example").values == ()
