"""A private key that mail is signed with: RSA or Ed25519.

`cryptography` is large, and a server without keys never needs it: it is imported at the first use, or by `preload`
(decision 41).

Imports: libraries; cryptography.    RFC 6376 3.3.1 and 3.6.1, RFC 8301 (sizes), RFC 8463 (Ed25519).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import TYPE_CHECKING

from mailsrv.libraries import load

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

RSA, ED25519 = "rsa-sha256", "ed25519-sha256"
RSA_BITS = 2048
_LIBRARY = "cryptography.hazmat.primitives"
_PARTS = (
    *(f"{_LIBRARY}.asymmetric.{name}" for name in ("ed25519", "padding", "rsa")),
    *(f"{_LIBRARY}.{name}" for name in ("hashes", "serialization")),
)


def preload() -> None:
    """Have the library now, some 30 ms; else at the first use, in a thread."""
    load(*_PARTS)


class PrivateKey:
    """One key. All that is done with it blocks; it may be used by several threads."""

    def __init__(self, algorithm: str, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
        self._algorithm, self._key = algorithm, key

    @classmethod
    def generate(cls, algorithm: str) -> PrivateKey:
        preload()
        from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

        if algorithm == ED25519:
            return cls(algorithm, ed25519.Ed25519PrivateKey.generate())
        return cls(algorithm, rsa.generate_private_key(65537, RSA_BITS))

    @classmethod
    def load(cls, algorithm: str, pem: bytes) -> PrivateKey:
        """ValueError for what is no key of this kind."""
        preload()
        from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(pem, None)
        if not isinstance(key, ed25519.Ed25519PrivateKey if algorithm == ED25519 else rsa.RSAPrivateKey):
            raise ValueError(f"no key for {algorithm}")
        return cls(algorithm, key)

    def pem(self) -> str:
        """PKCS #8, not encrypted."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def record(self) -> str:
        """The text of its TXT record."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._key.public_key()
        if self._algorithm == ED25519:  # RFC 8463 4: the 32 octets alone
            return f"v=DKIM1; k=ed25519; p={b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()}"
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={b64encode(der).decode()}"

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(hashlib.sha256(data).digest())  # RFC 8463 3: the hash is what is signed
        return self._key.sign(data, PKCS1v15(), SHA256())
