"""TLS contexts from certificate files.

Imports: ssl.    RFC 8314 (implicit TLS), RFC 9325 (recommendations).
"""

from __future__ import annotations

import ssl

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2; 1.3 has its own


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and newer with forward secrecy. Raises OSError or ssl.SSLError for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    return context


def client_context(*, verify: bool, ca_file: str = "") -> ssl.SSLContext:
    """For connections to other servers: certificate and name are checked, or nothing is (opportunistic, RFC 7435).

    Reads the system's trusted certificates: off the hub. Raises OSError or ssl.SSLError for a file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
