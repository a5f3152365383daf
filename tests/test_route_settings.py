"""`relay.routes`: what may stand there, and what is said of what may not."""

import pytest

from mailsrv import config
from mailsrv.smtp.routes import Route, Tls


def routes(text):
    return config.parse(f"relay:\n  routes:\n{text}")["relay.routes"]


def test_routes_have_sensible_defaults():
    assert routes(
        """
    - host: Smart.example.net
      user: me
      password_file: /etc/pw
    - host: "[2001:db8::1]"
      recipient: .Example.org
      protocol: lmtp
      source: [192.0.2.1, "2001:DB8::2"]
    - {host: 10.0.0.1, sender: [a@example.org, example.net], port: 465, tls: required}
"""
    ) == (
        Route("smart.example.net", 587, user="me", password_file="/etc/pw", tls=Tls.VERIFIED),
        Route("2001:db8::1", 24, recipients=frozenset({".example.org"}), protocol="lmtp", source_v4="192.0.2.1",
              source_v6="2001:db8::2"),
        Route("10.0.0.1", 465, senders=frozenset({"a@example.org", "example.net"}), tls=Tls.REQUIRED,
              implicit_tls=True),
    )  # fmt: skip
    assert config.parse("")["relay.routes"] == ()


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("{}", "host is"), ("{host: a.example, hots: b}", "hots is not one of"), ("{host: a b}", "host is"),
        ("{host: a.example, port: 0}", "port is"), ("{host: a.example, port: x}", "port is"),
        ("{host: a.example, protocol: http}", "protocol is"), ("{host: a.example, user: me}", "set together"),
        ("{host: a.example, user: me, password_file: pw}", "absolute path"),
        ("{host: a.example, user: me, password_file: /pw, tls: opportunistic}", "a password needs tls"),
        ("{host: a.example, tls: maybe}", "tls is none"), ("{host: a.example, sender: 'a b'}", "sender is an address"),
        ("{host: a.example, source: [192.0.2.1, 192.0.2.2]}", "at most one"),
        ("{host: a.example, source: x}", "source is"),
        ("just text", "expected `host"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_route_is_told_with_its_line(route, said):
    with pytest.raises(config.ConfigError) as caught:
        routes(f"    - host: good.example\n    - {route}")
    assert len(caught.value.problems) == 1
    assert "<text>:2: relay.routes: expected a list of routes" in caught.value.problems[0]
    assert "(route 2: " in caught.value.problems[0]
    assert said in caught.value.problems[0]
