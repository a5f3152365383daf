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
