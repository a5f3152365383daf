"""Percentiles, free ports, a certificate, and waiting for a server."""

import datetime
import math
import os
import random
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Address = tuple[str, int]


def pct(values: Sequence[float], p: float) -> float:
    """Nearest-rank percentile."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1))
    return ordered[rank]


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return float("nan")
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def free_ports(n: int, lo: int = 20000, hi: int = 32000) -> list[int]:
    """Free ports below the ephemeral range (client sockets must not take them during a restart)."""
    out: list[int] = []
    while len(out) < n:
        port = random.randrange(lo, hi)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in out:
            out.append(port)
    return out


def wait_port(address: Address, timeout: float = 20) -> None:
    """Wait until the server accepts and says something."""
    end = time.time() + timeout
    while True:
        try:
            with socket.create_connection(address, 1) as sock:
                sock.settimeout(5)
                if sock.recv(1):
                    return
        except OSError:
            pass
        if time.time() > end:
            raise RuntimeError(f"no answer from {address}")
        time.sleep(0.02)


def make_certificate(directory: str) -> tuple[str, str]:
    """A self-signed certificate with a P-256 key, what most sites have today. Returns the paths of both."""
    certificate, key_file = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    if not os.path.exists(certificate):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench.test")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        signed = builder.not_valid_after(now + datetime.timedelta(days=30)).sign(key, hashes.SHA256())
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.TraditionalOpenSSL
        with open(os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
            out.write(key.private_bytes(serialization.Encoding.PEM, form, plain))
        Path(certificate).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return certificate, key_file


def client_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def number(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}"


def quantity(value: str, unit: str) -> str:
    return f"{value}{unit}" if unit.startswith("/") else f"{value} {unit}".rstrip()
