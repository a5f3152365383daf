"""DANE for SMTP: whether a server's certificates are those that its domain signed for in the DNS.

Certificates of the server itself (usage 3) count by their digest alone: no name, no date, no authority. A trust anchor
(usage 2) must be among the certificates the server sends, or stand in the record as a whole, and sign for the host's
name. Usages 0 and 1 mean nothing in SMTP (RFC 7672 3.1.3).

Limits: a usage 2 record of a key alone, unhashed, counts only if its certificate is sent; the chain below a trust
anchor is verified by `cryptography`, which wants certificates of version 3, names in subjectAltName, and signatures
and keys of today's strength.

Imports: libraries; cryptography, only where a certificate is looked into (decision 41).    RFC 6698, 7671, 7672.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509.verification import Policy

from mailsrv.libraries import load

TRUST_ANCHOR, END_ENTITY = 2, 3
_LIBRARY = (
    "cryptography.exceptions", "cryptography.hazmat.primitives.serialization", "cryptography.x509",
    "cryptography.x509.verification",
)  # fmt: skip
_DIGESTS = {1: hashlib.sha256, 2: hashlib.sha512}


class Tlsa(NamedTuple):
    usage: int
    selector: int
    matching: int
    data: bytes


def usable(records: Sequence[tuple[int, int, int, bytes]]) -> tuple[Tlsa, ...]:
    """Those that can be acted upon."""
    found = (Tlsa(*record) for record in records)
    return tuple(
        one for one in found
        if one.usage in (TRUST_ANCHOR, END_ENTITY) and one.selector in (0, 1)
        and ((one.matching == 0 and one.data)
             or (one.matching in _DIGESTS and len(one.data) == _DIGESTS[one.matching]().digest_size))
    )  # fmt: skip


def is_authentic(records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str]) -> bool:
    """Whether any record agrees with the certificates a server sent, its own first; `names` are what it may be.
    Blocks.
    """
    if not chain:
        return False
    if any(one.usage == END_ENTITY and _matches(one, chain[0]) for one in records):
        return True
    anchors = [one for one in records if one.usage == TRUST_ANCHOR]
    candidates = [der for der in chain if any(_matches(one, der) for one in anchors)]
    candidates += [one.data for one in anchors if one.selector == 0 and one.matching == 0]
    return any(_signs_for(der, chain, names) for der in candidates)


def _matches(record: Tlsa, der: bytes) -> bool:
    selected = der
    if record.selector == 1:
        load(*_LIBRARY)
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        try:
            key = x509.load_der_x509_certificate(der).public_key()
        except (ValueError, UnsupportedAlgorithm):
            return False
        selected = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = _DIGESTS.get(record.matching)
    return record.data == (digest(selected).digest() if digest else selected)


def _is_authority(policy: Policy, certificate: x509.Certificate, extension: x509.BasicConstraints) -> None:
    if not extension.ca:
        raise ValueError("not an authority")


def _signs_for(anchor: bytes, chain: Sequence[bytes], names: Sequence[str]) -> bool:
    load(*_LIBRARY)
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

    # Private authorities write what they like; what must hold is who may sign, and for which names (RFC 5280 4.2.1).
    anything = ExtensionPolicy.permit_all()
    authorities = anything.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    servers = anything.require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        builder = PolicyBuilder().store(Store([x509.load_der_x509_certificate(anchor)]))
        builder = builder.extension_policies(ca_policy=authorities, ee_policy=servers)
        for name in names:
            try:
                builder.build_server_verifier(x509.DNSName(name)).verify(certificates[0], certificates[1:])
                return True
            except VerificationError:
                continue
    except (ValueError, UnsupportedAlgorithm):
        pass
    return False
