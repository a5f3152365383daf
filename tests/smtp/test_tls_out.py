"""TLS on the way out: opportunistic, by route, DANE, MTA-STS, REQUIRETLS; and that no policy is got round in clear."""

import hashlib
import ssl
import time

import gevent
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mailsrv.net.https import FetchFailed, fetch
from mailsrv.net.tls import client_context
from mailsrv.smtp import mta_sts
from mailsrv.smtp.mta_sts import Policies, Policy, PolicyWrong, parse_id, parse_policy
from mailsrv.smtp.routes import Route, Tls
from mailsrv.store.files import offload
from mailsrv.store.policies import PolicyFiles
from mailsrv.values import Disposition
from tests.fakes.sink import DROP, EXTENSIONS, SILENCE, FakeSink
from tests.fakes.world import HASTY, World

SENT, LATER, NEVER = Disposition.SENT, Disposition.LATER, Disposition.NEVER
HOST = "mx.example.org"


@pytest.fixture
def world(tmp_path, authority_file):
    with World(tmp_path) as made:
        made.settings["ca_file"] = authority_file
        yield made


def is_policy_failure(outcome, sink):
    """Later, and not an octet of mail has been sent, in clear or otherwise."""
    said = [line for connection in sink.connections for line in connection.lines if line.startswith(("MAIL", "RCPT"))]
    return (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 0, "4.7.5") and said == []


# ------------------------------------------------------------------ opportunistic


def test_tls_is_used_where_it_is_offered_and_nobody_checks(world, tls_of):
    sink = world.domain("example.org", tls=tls_of("other.example", by=trustme.CA()))
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is SENT and outcome.tls.startswith("TLSv1.3 ") and sink.messages[0].tls


@pytest.mark.parametrize("how", [DROP, SILENCE])
def test_s18_without_a_policy_a_handshake_that_fails_is_followed_by_clear_text_on_a_new_connection(world, tls_of, how):
    world.settings["timeouts"] = world.settings["timeouts"].__class__(5, 5, 5, 5, 5, 0.3, 1)
    sink = world.domain("example.org", tls=tls_of(HOST))
    sink.on["tls"] = how
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.tls) == (SENT, "") and [m.connection for m in sink.messages] == [1]


def test_starttls_that_is_refused_leaves_the_connection_in_clear(world, tls_of):
    sink = world.domain("example.org", tls=tls_of(HOST))
    sink.on["STARTTLS"] = "454 4.7.0 not now"
    assert world.send("bo@example.org")[0].tls == "" and len(sink.connections) == 1


# ------------------------------------------------------------------ levels of a route


@pytest.mark.parametrize(
    ("level", "names", "own_authority", "works"),
    [
        (Tls.NONE, ["x.example"], True, True), (Tls.REQUIRED, ["x.example"], True, True),
        (Tls.VERIFIED, ["smart.example.net"], False, True), (Tls.VERIFIED, ["x.example"], False, False),
        (Tls.VERIFIED, ["smart.example.net"], True, False),
    ],
)  # fmt: skip
def test_s18_a_route_gets_the_protection_it_asks_for_or_waits(
    world, tls_of, authority, level, names, own_authority, works
):
    context = tls_of(*names, by=trustme.CA() if own_authority else authority)
    sink = world.host("smart.example.net", "127.0.0.2", tls=context)
    world.settings["routes"] = (Route("smart.example.net", world.port, tls=level),)
    [outcome] = world.send("bo@a.example")
    if works:
        assert outcome.disposition is SENT and sink.messages[0].tls is (level is not Tls.NONE)
    else:
        assert is_policy_failure(outcome, sink)


@pytest.mark.parametrize("trouble", ["not offered", "refused", "dropped"])
@pytest.mark.parametrize("level", [Tls.REQUIRED, Tls.VERIFIED])
def test_s18_required_tls_that_cannot_be_had_never_becomes_clear_text(world, tls_of, level, trouble):
    sink = world.domain("example.org", tls=None if trouble == "not offered" else tls_of(HOST))
    sink.on |= {"refused": {"STARTTLS": "454 4.7.0 no"}, "dropped": {"tls": DROP}}.get(trouble, {})
    world.settings["tls"] = level
    assert is_policy_failure(world.send("bo@example.org")[0], sink)


def test_tls_from_the_first_octet(world, tls_of):
    sink = world.host("smart.example.net", "127.0.0.2", tls=tls_of("smart.example.net"), implicit_tls=True)
    world.settings["routes"] = (Route("smart.example.net", world.port, tls=Tls.VERIFIED, implicit_tls=True),)
    [outcome] = world.send("bo@a.example")
    assert outcome.disposition is SENT and outcome.tls.endswith(" verified") and sink.messages[0].tls


# ------------------------------------------------------------------ DANE


class Dane:
    """example.org, signed, with a host whose certificates are known."""

    def __init__(self, world, tls_of):
        self.world, self.authority = world, trustme.CA()
        issued = self.authority.issue_cert(HOST)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        context.load_cert_chain(*self._files(issued))
        self.sink = world.domain("example.org", tls=context)
        self.leaf = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        self.anchor = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        world.dns.secure |= {"example.org", HOST, self.name}

    def _files(self, issued):
        """The chain with the authority's own certificate, as servers with usage 2 records send it."""
        chain, key = self.world.directory / "chain.pem", self.world.directory / "key.pem"
        chain.write_bytes(issued.cert_chain_pems[0].bytes() + self.authority.cert_pem.bytes())
        issued.private_key_pem.write_to_path(str(key))
        return str(chain), str(key)

    @property
    def name(self):
        return f"_{self.world.port}._tcp.{HOST}"

    def publish(self, *records):
        self.world.dns.add(self.name, "TLSA", *records)

    def record(self, usage, selector, matching, of):
        der = of.public_bytes(Encoding.DER)
        if selector:
            der = of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = {0: lambda data: data.hex(), 1: lambda data: hashlib.sha256(data).hexdigest(),
                  2: lambda data: hashlib.sha512(data).hexdigest()}  # fmt: skip
        return f"{usage} {selector} {matching} {digest[matching](der)}"


@pytest.fixture
def dane(world, tls_of):
    return Dane(world, tls_of)


@pytest.mark.parametrize(("selector", "matching"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)])
def test_dane_the_servers_own_certificate(world, dane, selector, matching):
    dane.publish("3 1 1 " + "00" * 32, dane.record(3, selector, matching, dane.leaf))
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is SENT and outcome.tls.endswith(" DANE")


@pytest.mark.parametrize(("selector", "matching"), [(0, 0), (0, 1), (1, 1)])
def test_dane_a_trust_anchor_signs_for_the_name(world, dane, selector, matching):
    dane.publish(dane.record(2, selector, matching, dane.anchor))
    assert world.send("bo@example.org")[0].disposition is SENT


def test_dane_a_trust_anchor_does_not_vouch_for_another_name(world, tls_of):
    dane = Dane(world, tls_of)
    world.dns.add("example.org", "MX", "10 other.example.org.")
    world.dns.add("other.example.org", "A", "127.0.0.2")
    name = f"_{world.port}._tcp.other.example.org"
    world.dns.add(name, "TLSA", dane.record(2, 0, 1, dane.anchor))
    world.dns.secure |= {name, "other.example.org"}
    assert is_policy_failure(world.send("bo@example.org")[0], dane.sink)


def test_s18_dane_another_certificate_is_never_trusted_and_nothing_goes_in_clear(world, dane):
    dane.publish("3 1 1 " + "00" * 32)
    assert is_policy_failure(world.send("bo@example.org")[0], dane.sink)
    dane.sink.tls = None  # and STARTTLS stripped
    assert is_policy_failure(world.send("bo@example.org")[0], dane.sink)


@pytest.mark.parametrize("how", ["SERVFAIL", "TIMEOUT"])
def test_s18_dane_records_that_cannot_be_had_or_are_bogus_are_a_temporary_failure(world, dane, how):
    world.dns_settings.update(HASTY)
    world.dns.fail(dane.name, "TLSA", how)
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.4.3") and dane.sink.connections == []


@pytest.mark.parametrize("insecure", ["example.org", HOST, "records", "resolver"])
def test_dane_counts_only_where_all_of_it_is_signed(world, dane, insecure):
    dane.publish("3 1 1 " + "00" * 32)
    world.dns.secure.discard(dane.name if insecure == "records" else insecure)
    if insecure == "resolver":
        world.dns_settings["trusted"] = False
    assert world.send("bo@example.org")[0].disposition is SENT


def test_dane_without_usable_records_wants_tls_of_any_kind(world, dane):
    dane.publish("0 1 1 " + "00" * 32, "1 1 1 " + "00" * 32, "3 9 1 " + "00" * 32, "3 1 9 00")
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is SENT and outcome.tls.startswith("TLS")
    world.relay.close()
    dane.sink.tls = None
    dane.sink.connections.clear()
    assert is_policy_failure(world.send("bo@example.org")[0], dane.sink)


# ------------------------------------------------------------------ MTA-STS


class WebServer(FakeSink):
    """Answers every HTTPS request with `answer`."""

    def __init__(self, world, context):
        super().__init__(address="127.0.0.40", tls=context, implicit_tls=True)
        self.requests = []
        self.kind, self.status, self.body, self.more = "text/plain", "200 OK", b"", "Content-Length: {}"
        self.on["connect"] = self.serve
        world.dns.add("mta-sts.example.org", "A", "127.0.0.40")

    def serve(self, connection):
        self.requests.append(connection.read_until(b"\r\n\r\n").decode())
        head = f"HTTP/1.1 {self.status}\r\nContent-Type: {self.kind}\r\n{self.more.format(len(self.body))}\r\n\r\n"
        connection.send(head.encode() + self.body)
        return DROP

    def policy(self, mode="enforce", mx=HOST, max_age=86400):
        self.body = f"version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {max_age}\r\n".encode()


@pytest.fixture
def web(world, tls_of):
    with WebServer(world, tls_of("mta-sts.example.org")) as made:
        made.policy()
        yield made


class Sts:
    def __init__(self, world, web, authority_file):
        self.world, self.web, self.ahead = world, web, 0.0
        self.context = client_context(verify=True, ca_file=authority_file)
        self.announce("1")
        self.restart()
        world.settings["dane"] = True

    def announce(self, id):
        self.world.dns.add("_mta-sts.example.org", "TXT", f'"v=STSv1; id={id};"', ttl=5)

    def restart(self):
        """With nothing in memory."""
        self.policies = Policies(
            self.world.resolver, self.fetch, PolicyFiles(f"{self.world.directory}/sts"), offload,
            clock=lambda: time.time() + self.ahead,
        )  # fmt: skip
        self.world.more["sts"] = self.policies

    def fetch(self, host, path, until):
        return fetch(host, path, self.world.resolver, self.context, seconds=5, limit=65536, port=self.web.port)

    def find(self):
        self.world.resolver._known.clear()
        return self.policies.find("example.org", time.monotonic() + 60)


@pytest.fixture
def sts(world, web, authority_file):
    return Sts(world, web, authority_file)


def test_sts_enforced_with_the_right_certificate(world, sts, web, tls_of):
    sink = world.domain("example.org", tls=tls_of(HOST))
    [outcome] = world.send("bo@example.org")
    assert outcome.disposition is SENT and outcome.tls.endswith(" verified") and sink.messages[0].tls
    assert web.requests[0].startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.org\r\n")


@pytest.mark.parametrize("wrong", ["name", "authority", "no tls", "handshake"])
def test_s18_sts_enforced_and_not_met_is_later_and_never_in_clear(world, sts, tls_of, wrong):
    context = tls_of("x.example") if wrong == "name" else tls_of(HOST, by=trustme.CA())
    sink = world.domain("example.org", tls=None if wrong == "no tls" else context)
    if wrong == "handshake":
        sink.on["tls"] = DROP
    assert is_policy_failure(world.send("bo@example.org")[0], sink)


def test_s18_sts_wants_the_host_listed_and_not_only_a_good_certificate(world, sts, web, tls_of):
    web.policy(mx="*.mail.example.org")
    sink = world.domain("example.org", tls=tls_of(HOST))
    [outcome] = world.send("bo@example.org")
    assert is_policy_failure(outcome, sink) and sink.connections == [] and "does not list" in outcome.text


def test_sts_a_host_that_is_not_listed_is_passed_over(world, sts, web, tls_of):
    web.policy(mx="mx2.example.org")
    world.host("mx1.example.org", "127.0.0.2", tls=tls_of("mx1.example.org"))
    good = world.host("mx2.example.org", "127.0.0.3", tls=tls_of("mx2.example.org"))
    world.domain("example.org", "mx1.example.org", "mx2.example.org")
    assert world.send("bo@example.org")[0].disposition is SENT and len(good.messages) == 1


@pytest.mark.parametrize("mode", ["testing", "none"])
def test_s18_sts_in_testing_mode_enforces_nothing(world, sts, web, tls_of, mode):
    web.policy(mode=mode, mx="elsewhere.example")
    world.domain("example.org")
    assert world.send("bo@example.org")[0].disposition is SENT


def test_dane_comes_before_sts(world, sts, web, dane):
    dane.publish(dane.record(3, 1, 1, dane.leaf))  # its certificate would not do for MTA-STS
    web.policy(mx="elsewhere.example")
    assert world.send("bo@example.org")[0].tls.endswith(" DANE")
    assert web.requests == []


def test_a_policy_stays_when_it_can_no_longer_be_had_until_it_ends(sts, web, world):
    assert sts.find().mode == "enforce" and sts.find() and len(web.requests) == 1
    world.dns.add("_mta-sts.example.org", "TXT")  # suppressed
    assert sts.find().mode == "enforce"
    sts.announce("2")
    web.status = "500 broken"
    assert sts.find().id == "1"
    sts.restart()  # from disk
    assert sts.find().id == "1"
    world.dns.fail("_mta-sts.example.org", "TXT", "SERVFAIL")
    assert sts.find().id == "1"
    sts.ahead = 86401
    assert sts.find() is None


def test_a_new_id_fetches_a_new_policy_and_a_failed_fetch_waits(sts, web):
    assert sts.find().mode == "enforce"
    web.policy(mode="testing")
    sts.announce("2")
    assert (sts.find().mode, sts.find().id, len(web.requests)) == ("testing", "2", 2)
    sts.announce("3")
    web.status = "404 gone"
    for _ in range(3):
        assert sts.find().id == "2"
    assert len(web.requests) == 3
    sts.ahead, web.status = mta_sts.RETRY_SECONDS + 1, "200 OK"
    assert sts.find().id == "3"


def test_a_policy_that_is_sent_badly_is_none(sts, web, world):
    for change in (
        {"status": "302 Found"}, {"kind": "text/html"}, {"body": b"x" * 70_000}, {"body": b"version: STSv1\r\n"},
        {"body": b"\xff\xfe"}, {"body": b""},
    ):  # fmt: skip
        web.status, web.kind = "200 OK", "text/plain"
        web.policy()
        for name, value in change.items():
            setattr(web, name, value)
        sts.restart()
        assert sts.find() is None, change


@pytest.mark.parametrize(
    ("sent", "why"),
    [(b"-5\r\nabc", "ValueError"), (b"-1\r\n" + b"x" * 400_000, "too large"), (b"zz\r\n", "IncompleteRead")],
)
def test_s29_chunks_of_no_size_are_a_failure_within_bounds(world, web, authority_file, sent, why):
    """http.client reads a chunk of size -1 as all there is, however much that is (found by fuzzing)."""
    web.more, web.body = "Transfer-Encoding: chunked", sent
    with gevent.Timeout(60), pytest.raises(FetchFailed, match=why):
        fetch("mta-sts.example.org", "/", world.resolver, client_context(verify=True, ca_file=authority_file),
              seconds=5, limit=1000, port=web.port)  # fmt: skip


def test_the_web_servers_certificate_counts(world, tls_of, authority_file):
    with WebServer(world, tls_of("mta-sts.example.org", by=trustme.CA())) as web:
        web.policy()
        assert Sts(world, web, authority_file).find() is None and web.requests == []


def test_a_web_server_that_hangs_is_given_up(world, web, authority_file):
    web.on["connect"] = SILENCE
    with gevent.Timeout(60), pytest.raises(FetchFailed, match="too long"):
        fetch("mta-sts.example.org", "/", world.resolver, client_context(verify=True, ca_file=authority_file),
              seconds=0.3, limit=100, port=web.port)  # fmt: skip


def test_many_at_once_fetch_once(sts, web):
    found = [gevent.spawn(sts.policies.find, "example.org", time.monotonic() + 60) for _ in range(20)]
    gevent.joinall(found, timeout=60)
    assert {one.get().mode for one in found} == {"enforce"} and len(web.requests) == 1


def test_the_grammar_of_sts():
    assert parse_id(("v=STSv1; id=20190429T010101;",)) == "20190429T010101" == parse_id(("v=STSv1;id=20190429T010101",))
    for texts in ((), ("v=STSv1; id=1", "v=STSv1; id=2"), ("v=STSv2; id=1",), ("v=STSv1; id=a-b",), ("id=1; v=STSv1",)):
        assert parse_id(texts) == ""
    assert parse_id(("other", "v=STSv1; id=1")) == "1"
    policy = parse_policy(
        "version: STSv1\nmode: enforce\nmx: a.example.org\nmx: *.Example.net\nmax_age: 9999999999\n", "x"
    )
    assert policy == Policy("x", "enforce", ("a.example.org", "*.example.net"), mta_sts.MOST_AGE)
    assert policy.allows("A.example.org") and policy.allows("mx.example.net")
    assert not any(map(policy.allows, ("b.a.example.org", "example.net", "x.mx.example.net", "a.example.org.evil")))
    for text in (
        "", "version: STSv2\nmode: none\nmax_age: 1", "version: STSv1\nmode: strict\nmax_age: 1\nmx: a",
        "version: STSv1\nmode: enforce\nmax_age: 1", "version: STSv1\nmode: enforce\nmx: a\nmax_age: -1",
    ):  # fmt: skip
        with pytest.raises(PolicyWrong):
            parse_policy(text, "x")


# ------------------------------------------------------------------ REQUIRETLS


@pytest.mark.parametrize("vouched", ["dnssec", "sts", "nobody"])
def test_requiretls_wants_the_host_vouched_for_and_its_certificate(world, request, tls_of, vouched):
    if vouched == "sts":
        request.getfixturevalue("sts")
    sink = world.domain("example.org", tls=tls_of(HOST), extensions=[*EXTENSIONS, "REQUIRETLS"])
    if vouched == "dnssec":
        world.dns.secure |= {"example.org"}
    [outcome] = world.send("bo@example.org", require_tls=True)
    if vouched == "nobody":
        assert is_policy_failure(outcome, sink)
    else:
        assert outcome.disposition is SENT and "REQUIRETLS" in sink.messages[0].mail.split()


def test_requiretls_is_not_sent_to_who_does_not_keep_it(world, tls_of):
    sink = world.domain("example.org", tls=tls_of(HOST))
    world.dns.secure |= {"example.org"}
    [outcome] = world.send("bo@example.org", require_tls=True)
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.7.30") and sink.messages == []
    sink.extensions.append("REQUIRETLS")
    sink.tls = tls_of("x.example")
    world.relay.close()
    sink.connections.clear()
    assert is_policy_failure(world.send("bo@example.org", require_tls=True)[0], sink)


@pytest.mark.parametrize("vouched", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_rfc8689_a_report_goes_with_requiretls_where_it_may_and_is_not_lost_for_it(
    world, request, tls_of, vouched, offered
):  # fmt: skip
    if vouched:
        request.getfixturevalue("sts")
    extensions = [*EXTENSIONS, "REQUIRETLS"] if offered else EXTENSIONS
    sink = world.domain("example.org", tls=tls_of(HOST), extensions=extensions)
    [outcome] = world.send("bo@example.org", sender=None, require_tls=True)
    assert outcome.disposition is SENT
    assert ("REQUIRETLS" in sink.messages[0].mail.split()) == (vouched and offered)


def test_a_connection_made_without_care_is_not_used_for_requiretls(world, tls_of):
    sink = world.domain("example.org", tls=tls_of("x.example"), extensions=[*EXTENSIONS, "REQUIRETLS"])
    assert world.send("bo@example.org")[0].disposition is SENT
    assert world.send("bo@example.org", require_tls=True)[0].disposition is LATER
    assert len(sink.messages) == 1
