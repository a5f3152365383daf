"""Metrics, health and readiness over HTTP, read as Prometheus and a load balancer read them."""

import http.client
import json
import os
import re
import signal
import smtplib
import socket
import time
from contextlib import closing
from pathlib import Path

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailsrv import metrics
from tests.conftest import PASSWORD, free_ports
from tests.daemon.conftest import ROOT, SECONDS, until
from tests.daemon.test_processes import deliver, smtp_connection
from tests.daemon.test_status import both_workers


@pytest.fixture
def probed(daemon):
    """`probed(**settings)`: a server with metrics, and `get(path)` -> (status, headers, body)."""

    def make(**changes):
        [port] = free_ports(1)
        server = daemon(**{"metrics.listen": [f"127.0.0.1:{port}"], **changes})

        def get(path, method="GET", seconds=SECONDS, **headers):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)) as client:
                client.request(method, path, headers=headers)
                answer = client.getresponse()
                return answer.status, answer.headers, answer.read().decode()

        server.probe_port = port
        return server, get

    return make


def samples(text):
    """{(name, frozen labels): value} of an exposition, by prometheus-client's own parser."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found, name, **labels):
    return sum(
        number for (one, its), number in found.items() if one == name and set(labels.items()) <= set(its)
    )  # fmt: skip


def test_f17_everything_that_happens_is_counted_over_all_workers(probed, imap):
    server, get = probed(**{"server.workers": 2})
    both_workers(server)
    idlers = [imap(server.connect("imaps")) for _ in range(6)]
    for one in idlers:
        one.idle()
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls) as sender:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            sender.login("ann@example.com", "wrong")
        sender.login("ann@example.com", PASSWORD)
        sender.sendmail("ann@example.com", ["bo@example.com"], "Subject: x\r\n\r\nText.\r\n")
    for number in range(1, 4):
        deliver(server)
        for one in idlers:
            one.until(b"* %d EXISTS" % number)
    sock = smtp_connection(server)
    sock.sendall(b"MAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<nobody@example.com>\r\n")
    replies = sock.makefile("rb")
    assert replies.readline().startswith(b"250")
    assert replies.readline().startswith(b"550")
    replies.close()
    asker = imap(server.connect("imap"))
    asker.send("SELECT Nowhere")
    asker.until(b"a3 NO")

    def complete():
        found = samples(get("/metrics")[2])
        return found if value(found, "mailsrv_push_seconds_count", who="last") >= 3 else None

    found = until(complete, "the pushes are counted")
    assert value(found, "mailsrv_smtp_messages_total", service="smtp", outcome="accepted") == 3
    assert value(found, "mailsrv_smtp_messages_total", service="submissions", outcome="accepted") == 1
    assert value(found, "mailsrv_smtp_replies_total", service="smtp", code="550") == 1
    assert value(found, "mailsrv_logins_total", service="submissions", result="ok") == 1
    assert value(found, "mailsrv_logins_total", service="submissions", result="failed") == 2  # PLAIN, then LOGIN
    assert value(found, "mailsrv_logins_total", service="imaps", result="ok") == 6
    assert value(found, "mailsrv_imap_commands_total", command="SELECT", result="NO") == 1
    assert value(found, "mailsrv_imap_commands_total", command="SELECT", result="OK") == 7
    assert value(found, "mailsrv_imap_command_seconds_count", command="SELECT") == 8
    assert value(found, "mailsrv_imap_command_seconds_count", command="IDLE") == 0
    for hop in ("durable", "committed", "answered"):
        assert value(found, "mailsrv_delivery_seconds_count", hop=hop) == 4
        assert value(found, "mailsrv_delivery_seconds_bucket", hop=hop, le="+Inf") == 4
    assert 0 < value(found, "mailsrv_delivery_seconds_sum", hop="durable") < 4 * SECONDS
    assert value(found, "mailsrv_connections", service="imaps") == 6
    assert value(found, "mailsrv_sessions_idling") == 6
    assert value(found, "mailsrv_connections_total", service="imaps") == 6
    assert value(found, "mailsrv_bytes_total", service="smtp", direction="received") > 300
    assert value(found, "mailsrv_queue_messages") == 0
    assert value(found, "mailsrv_up") == 3
    assert value(found, "mailsrv_disk_free_bytes") > 0
    assert value(found, "mailsrv_certificate_expiry_seconds") > time.time()
    assert value(found, "mailsrv_process_memory_bytes", process="worker-1") > 5_000_000
    sock.close()
    assert server.stop() == 0


def test_a_scrape_waits_for_no_look_at_the_memory_but_the_first(serve, monkeypatch):
    """Where that takes long: the threads are the disk's, too."""
    serving, looks = serve(), []
    monkeypatch.setattr("mailsrv.vitals.memory_of", lambda pid: looks.append(pid) or 1000 * len(looks))

    def told():
        return serving.server.vitals.metrics({})["process"]["mailsrv_process_memory_bytes"]

    assert [told(), told()] == [1000, 1000]
    with gevent.Timeout(SECONDS):
        while told() == 1000:
            gevent.sleep(0.001)


def test_labels_are_ours_whatever_clients_send(probed):
    server, get = probed()
    before = set(samples(get("/metrics")[2]))
    for number in range(30):
        with socket.create_connection(("127.0.0.1", server.ports["imap"]), SECONDS) as sock:
            sock.sendall(b"a LOGIN x%d y\r\nb XATTACK%d\r\nc AUTHENTICATE M%d\r\n" % (number, number, number))
            sock.recv(4096)
        with socket.create_connection(("127.0.0.1", server.ports["smtp"]), SECONDS) as sock:
            sock.recv(4096)
            sock.sendall(b"XATTACK%d\r\n" % number)
            sock.recv(4096)
    text = get("/metrics")[2]
    assert "attack" not in text.lower()
    assert len(set(samples(text)) - before) < 100


def test_a_worker_that_hangs_is_down_and_the_others_figures_come_in_time(probed):
    server, get = probed(**{"server.workers": 2})
    hung = next(one["pid"] for one in both_workers(server)["processes"] if one["name"] == "worker-1")
    os.kill(hung, signal.SIGSTOP)
    try:
        found = {}
        for _ in range(20):  # whoever answers: a request that the hung one was given would wait for it
            try:
                found = samples(get("/metrics", seconds=20)[2])
                break
            except TimeoutError:
                continue
        assert value(found, "mailsrv_up", process="worker-1") == 0
        assert value(found, "mailsrv_up", process="worker-0") == 1
        status, _, body = get("/ready")
        assert status == 503
        assert "worker-1 does not answer" in body
    finally:
        os.kill(hung, signal.SIGKILL)


def test_health_and_ready(probed):
    server, get = probed()
    assert get("/health")[0] == 200
    status, headers, body = get("/ready")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"ready": True, "problems": []}
    assert get("/metrics")[1]["Content-Type"].startswith("text/plain")
    openmetrics = get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics[1]["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics[2].endswith("# EOF\n")
    path = Path(server.settings["server.data_dir"]) / "accounts.sqlite3"
    path.rename(path.with_name("away"))
    status, _, body = get("/ready")
    assert status == 503
    assert json.loads(body) == {"ready": False, "problems": [f"{path} is gone"]}
    path.with_name("away").rename(path)
    assert get("/ready")[0] == 200


def test_while_it_drains_it_is_not_ready(probed, imap):
    server, get = probed(**{"server.shutdown_seconds": 20})
    sock = smtp_connection(server)
    for line in (b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>", b"DATA"):
        sock.sendall(line + b"\r\n")
        sock.recv(4096)
    server.process.send_signal(signal.SIGTERM)

    def refused():
        try:
            return get("/ready")[0] == 503
        except OSError:
            return True

    until(refused, "neither ready nor there")
    sock.sendall(b".\r\n")
    assert sock.recv(4096).startswith(b"250")
    sock.close()
    assert server.process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"HEAD /health HTTP/1.1\r\n\r\n", 200),
        (b"GET /health?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"\x00\xff\xfe\r\n", 400),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
        (b"GET /health HTTP/1.1\r\n" + b"x" * 100_000, 0),
        (b"GET /health HTTP/1.1\r\nX: bare\n\r\n", 400),
    ],
)
def test_bad_requests_get_an_error_or_a_closed_connection(probed_once, request_, status):
    server = probed_once
    with socket.create_connection(("127.0.0.1", server.probe_port), SECONDS) as sock:
        sock.sendall(request_)
        try:
            said = sock.makefile("rb").read()
        except ConnectionResetError:
            said = b""
    if status:
        assert said.startswith(b"HTTP/1.1 %d " % status)
    else:
        assert said == b""
    if request_.startswith(b"HEAD"):
        assert said.endswith(b"\r\n\r\n")


@pytest.fixture(scope="module")
def probed_once(tmp_path_factory, certificate, authority_path, password_hash):
    from tests.daemon.conftest import Daemon

    [port] = free_ports(1)
    listen = {"metrics.listen": [f"127.0.0.1:{port}"]}
    server = Daemon(tmp_path_factory.mktemp("probed"), certificate, authority_path, password_hash, **listen)
    server.probe_port = port
    server.start()
    yield server
    server.close()


def test_dashboard_shows_only_what_is_exported():
    board = json.loads((ROOT / "etc/grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ()) if "expr" in target]
    used = {name for query in queries for name in re.findall(r"\bmailsrv_\w+", query)}
    assert len(used) > 20
    assert used <= metrics.names()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_names_follow_prometheus_rules():
    for name, text, labels, kind, _ in metrics._declared():
        assert re.fullmatch(r"mailsrv_[a-z_]+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert text.endswith(".")
        assert all(re.fullmatch(r"[a-z]+", label) for label in labels)
