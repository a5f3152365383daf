"""Which hosts get the mail for a domain: MX zoo and DNS faults, through a DNS of our own and hosts that answer."""

import time

import pytest

from mailsrv.net.resolver import Resolver, ResolverSettings
from mailsrv.smtp.next_hops import Ourselves, Unroutable, hosts_of_domain
from mailsrv.smtp.routes import Route
from mailsrv.values import Address, Disposition, Envelope
from tests.fakes.sink import DROP
from tests.fakes.world import HASTY, World, address

SENT, LATER, NEVER = Disposition.SENT, Disposition.LATER, Disposition.NEVER


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


def hosts(world, domain, ourselves=None, **more):
    return hosts_of_domain(domain, world.resolver, ourselves or Ourselves(), 25, time.monotonic() + 10, **more)


# ------------------------------------------------------------------ order


def test_hosts_are_tried_by_preference_and_equal_ones_in_any_order(world):
    for number in range(4):
        world.dns.add(f"mx{number}.example.org", "A", f"203.0.113.{number + 1}")
    world.dns.add(
        "example.org", "MX", "20 mx0.example.org.", "10 mx1.example.org.", "10 mx2.example.org.", "5 mx3.example.org."
    )
    seen = {tuple(host.name[2] for host in hosts(world, "example.org")) for _ in range(60)}
    assert seen == {("3", "1", "2", "0"), ("3", "2", "1", "0")}


def test_a_host_that_does_not_answer_or_refuses_leads_to_the_next(world):
    world.dns.add("mx1.example.org", "A", "127.0.0.66")  # nobody listens there
    refusing, dropping = world.host("mx2.example.org", "127.0.0.3"), world.host("mx3.example.org", "127.0.0.4")
    good = world.host("mx4.example.org", "127.0.0.5")
    refusing.on["connect"], dropping.on["EHLO"] = "554 5.7.1 go away", DROP
    world.dns.add("example.org", "MX", *(f"{n} mx{n}.example.org." for n in (1, 2, 3, 4)))
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is SENT and outcome.host == f"mx4.example.org[127.0.0.5]:{world.port}"
    assert len(refusing.connections) == len(dropping.connections) == len(good.connections) == 1


def test_b22_refusals_of_every_host_are_final_and_one_that_is_not_makes_it_later(world):
    one, two = world.host("mx1.example.org", "127.0.0.2"), world.host("mx2.example.org", "127.0.0.3")
    world.domain("example.org", "mx1.example.org", "mx2.example.org")
    one.on["connect"] = two.on["connect"] = "554 5.7.1 we do not talk to you"
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (NEVER, 554, "5.7.1")
    one.on["connect"] = "450 4.7.1 busy, not 554"
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 450, "4.7.1")


def test_no_further_host_is_begun_with_when_the_time_is_up(world):
    world.settings["attempt_seconds"] = 0.0
    sink = world.domain("example.org")
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is LATER and sink.connections == []


def test_both_families_of_a_host_are_tried(world):
    sink = world.domain("example.org")
    world.dns.add("mx.example.org", "AAAA", "::1")  # nobody listens there
    assert world.send("bo@example.org")[0].disposition is SENT
    assert len(sink.messages) == 1


# ------------------------------------------------------------------ no MX, null MX, literals, aliases


def test_f07_without_mx_the_domain_itself_is_the_host(world):
    sink = world.host("example.org", "127.0.0.2")
    assert world.send("bo@example.org")[0].host.startswith("example.org[127.0.0.2]") and len(sink.messages) == 1


def test_null_mx_is_final(world):
    world.dns.add("example.org", "MX", "0 .")
    world.dns.add("example.org", "A", "127.0.0.2")
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (NEVER, 0, "5.1.10")


def test_nxdomain_is_final_and_nothing_else_of_the_dns_is(world):
    world.dns_settings.update(HASTY)
    [outcome] = world.send("bo@nowhere.example")
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.1.2")
    for how in ("SERVFAIL", "TIMEOUT", "REFUSED"):
        world.dns.fail(f"{how}.example", "MX", how)
        [outcome] = world.send(f"bo@{how.lower()}.example")
        assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 0, "4.4.3")


def test_a_domain_without_any_host_is_final_and_one_whose_hosts_are_not_found_now_is_not(world):
    world.dns.add("example.org", "TXT", '"x"')
    assert world.send("bo@example.org")[0].enhanced == "5.1.2"
    world.dns.add("dead.example", "MX", "10 mx.dead.example.")
    [outcome] = world.send("bo@dead.example")
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.4.4")
    world.dns.add("weak.example", "MX", "10 mx1.weak.example.", "20 mx2.weak.example.")
    world.dns.fail("mx2.weak.example", "A", "SERVFAIL")
    [outcome] = world.send("bo@weak.example")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.4.3")


def test_an_alias_for_the_domain_is_followed_and_the_recipient_stays(world):
    sink = world.domain("real.example")
    world.dns.add("alias.example", "CNAME", "real.example.")
    assert world.send("bo@alias.example")[0].disposition is SENT
    assert sink.recipients == ["bo@alias.example"]


def test_an_alias_that_leads_round_is_tried_again_later(world):
    world.dns.add("a.example", "CNAME", "b.example.")
    world.dns.add("b.example", "CNAME", "a.example.")
    assert world.send("bo@a.example")[0].disposition is LATER


def test_an_address_literal_is_the_host(world):
    sink = world.domain("example.org")
    assert world.send("bo@[127.0.0.2]")[0].disposition is SENT
    assert sink.recipients == ["bo@[127.0.0.2]"]
    assert hosts(world, "[IPv6:2001:db8::1]")[0].addresses == ("2001:db8::1",)


def test_200_hosts_are_not_all_asked_for(world):
    world.dns.add("example.org", "MX", *(f"{n} mx{n}.example.org." for n in range(200)))
    for number in range(200):
        world.dns.add(f"mx{number}.example.org", "A", *(f"198.18.{number}.{n}" for n in range(1, 40)))
    found = hosts(world, "example.org")
    assert [host.name for host in found] == [f"mx{n}.example.org" for n in range(10)]
    assert all(len(host.addresses) == 8 for host in found) and len(world.dns.queries) < 30


def test_hosts_without_meaning_are_left_out(world):
    world.dns.add("example.org", "MX", "1 a.example.org.", "2 b.example.org.", "3 c.example.org.")
    world.dns.add("a.example.org", "A", "0.0.0.0")
    world.dns.add("b.example.org", "A", "224.0.0.1", "255.255.255.255")
    world.dns.add("c.example.org", "A", "203.0.113.1")
    assert [host.name for host in hosts(world, "example.org")] == ["c.example.org"]


def test_a_slow_dns_is_waited_for_within_bounds(tmp_path):
    with World(tmp_path) as world:
        world.dns_settings = {"try_seconds": 10, "seconds": 20}
        world.settings["lookup_seconds"] = 0.3
        world.domain("example.org")
        world.dns.delay("example.org", "MX", 30)
        begun = time.monotonic()
        [outcome] = world.send("bo@example.org")
        assert (outcome.disposition, outcome.enhanced) == (LATER, "4.4.3") and time.monotonic() - begun < 9


# ------------------------------------------------------------------ ourselves


@pytest.mark.parametrize(
    "ourselves",
    [
        Ourselves(names=frozenset({"us.example.org"})),
        Ourselves(addresses=frozenset({"203.0.113.2"})),
    ],
)
def test_we_and_who_is_not_better_than_we_are_left_out(world, ourselves):
    world.dns.add(
        "example.org", "MX", "10 a.example.org.", "20 us.example.org.", "20 b.example.org.", "30 c.example.org."
    )
    for number, name in enumerate(("a", "us", "b", "c")):
        world.dns.add(f"{name}.example.org", "A", f"203.0.113.{number + 1}")
    assert [host.name for host in hosts(world, "example.org", ourselves)] == ["a.example.org"]


def test_if_we_are_the_best_the_mail_would_loop(world):
    world.dns.add("example.org", "MX", "10 here.example.org.", "20 b.example.org.")
    world.dns.add("here.example.org", "A", "127.0.0.1")
    world.dns.add("b.example.org", "A", "203.0.113.1")
    for domain in ("example.org", "[127.0.0.1]", "here.example.org"):
        with pytest.raises(Unroutable) as caught:
            hosts(world, domain)
        assert (caught.value.disposition, caught.value.enhanced) == (NEVER, "5.4.6")
    other_port = hosts_of_domain("example.org", world.resolver, Ourselves(), 2525, time.monotonic() + 60)
    assert other_port[0].name == "here.example.org"


# ------------------------------------------------------------------ routes


def test_routes_are_found_by_sender_and_by_recipient_domain(world):
    world.settings["routes"] = (
        Route("one.example", 587, senders=frozenset({"ann@example.com"}), recipients=frozenset({"example.org"})),
        Route("two.example", 25, recipients=frozenset({".example.org", "example.net"})),
        Route("three.example", 465, senders=frozenset({"example.com"}), user="me"),
    )
    envelope = Envelope(Address("Ann", "example.com"))
    for sender, recipient, expected in (
        (envelope, "bo@example.org", "smtp:[one.example]:587"),
        (Envelope(None), "bo@example.org", "smtp:[two.example]:25"),
        (Envelope(None), "bo@sub.sub.example.org", "smtp:[two.example]:25"),
        (Envelope(None), "bo@example.net", "smtp:[two.example]:25"),
        (Envelope(None), "bo@notexample.net", "notexample.net"),
        (Envelope(Address("x", "example.com")), "bo@other.example", "smtp:me@[three.example]:465"),
        (Envelope(Address("x", "other.example")), "bo@other.example", "other.example"),
    ):
        assert world.relay.destination(sender, address(recipient)) == expected


def test_recipients_of_many_domains_go_to_a_smarthost_together(world):
    sink = world.host("smart.example.net", "127.0.0.2")
    world.settings["routes"] = (Route("smart.example.net", world.port),)
    outcomes = world.send("bo@a.example", "cy@b.example")
    assert {one.disposition for one in outcomes} == {SENT} and sink.recipients == ["bo@a.example", "cy@b.example"]
    assert not any(name.endswith((".example", "a.example")) and kind == "MX" for name, kind, _ in world.dns.queries)


def test_routes_to_one_host_that_differ_are_different_destinations(world):
    sink = world.host("smart.example.net", "127.0.0.2")
    seen = []
    sink.on["connect"] = lambda c: seen.append(c.sock.getpeername()[0])
    world.settings["routes"] = tuple(
        Route("smart.example.net", world.port, recipients=frozenset({f"{name}.example"}), source_v4=f"127.0.0.5{name}")
        for name in "12"
    )
    assert [world.relay.destination(Envelope(None), address(f"x@{name}.example")) for name in "12"] == [
        f"smtp:[smart.example.net]:{world.port}", f"smtp:[smart.example.net]:{world.port}#2",
    ]  # fmt: skip
    for name in "1221":
        world.send(f"x@{name}.example")
    assert seen == ["127.0.0.51", "127.0.0.52"] and len(sink.messages) == 4


def test_trouble_with_the_host_of_a_route_is_never_final(world):
    world.settings["routes"] = (Route("nowhere.example.net", world.port),)
    [outcome] = world.send("bo@a.example")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.4.3")


def test_a_route_has_a_source_address_of_its_own(world):
    sink = world.host("smart.example.net", "127.0.0.2")
    world.settings["routes"] = (Route("127.0.0.2", world.port, source_v4="127.0.0.55"),)
    seen = []
    sink.on["connect"] = lambda c: seen.append(c.sock.getpeername()[0])
    assert world.send("bo@a.example")[0].disposition is SENT and seen == ["127.0.0.55"]


def test_nothing_is_raised_whatever_breaks(world):
    class Broken(Resolver):
        def lookup(self, *_args, **_more):
            raise RuntimeError("a bug")

    world._resolver = Broken(ResolverSettings(("127.0.0.1",)))
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 451, "4.3.0")
