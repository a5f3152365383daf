"""What the server reads of a certificate is what a library for certificates reads of it."""

import base64
import datetime
import ipaddress
import itertools

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from mailsrv.certificates import examine, names

KEY = ec.generate_private_key(ec.SECP256R1())
UTC = datetime.UTC


def issued(*alternative, ends=datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), issuer="a", subject="b", key=KEY,
           more=()):  # fmt: skip
    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1960, 1, 1, tzinfo=UTC)).not_valid_after(ends)
    )  # fmt: skip
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=subject == "")
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, hashed).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def written(tmp_path):
    def write(pem):
        path = tmp_path / "one.pem"
        path.write_bytes(pem)
        return str(path)

    return write


HOSTS = [x509.DNSName(f"host{number}.example.com") for number in range(90)]  # lengths of two octets
OTHERS = [
    x509.RFC822Name("ann@example.com"), x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
    x509.UniformResourceIdentifier("https://example.com/"), x509.DNSName("*.example.org"),
    x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)])),
    x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
]  # fmt: skip
MORE = [
    (x509.BasicConstraints(ca=True, path_length=3), True),
    (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\0" * 300), False),
]


@pytest.mark.parametrize(
    ("alternative", "ends"),
    list(itertools.product(
        ([], HOSTS[:1], HOSTS, OTHERS, OTHERS + HOSTS),
        (datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime.datetime(2050, 1, 1, tzinfo=UTC),
         datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime.datetime(1999, 2, 28, tzinfo=UTC)),
    )),
)  # fmt: skip
def test_as_a_library_reads_it(written, alternative, ends):
    for pem in (
        issued(*alternative, ends=ends), issued(*alternative, ends=ends, more=MORE, subject="a"),
        issued(*alternative, ends=ends, key=ed25519.Ed25519PrivateKey.generate(), subject="b" * 64),
    ):  # fmt: skip
        known, expected = examine(written(pem)), x509.load_pem_x509_certificate(pem)
        assert known.ends == expected.not_valid_after_utc == ends
        assert known.self_signed == (expected.issuer == expected.subject)
        hosts = [one.value for one in alternative if isinstance(one, x509.DNSName)]
        assert known.names == (*hosts, *(str(one.value) for one in alternative if isinstance(one, x509.IPAddress)))


def test_the_first_of_a_file_whatever_stands_around_it(written):
    first, second = issued(x509.DNSName("one.example.com")), issued(x509.DNSName("two.example.com"))
    text = b"Bag Attributes\r\n    friendlyName: mail\r\n" + first.replace(b"\n", b"\r\n") + second
    assert names(written(text)) == ("one.example.com",)
    assert names(written(first.replace(b"CERTIFICATE", b"X509 CERTIFICATE"))) == ("one.example.com",)


def test_of_damage_it_is_told_and_nothing_else_happens(written):
    whole = issued(*OTHERS)
    der = x509.load_pem_x509_certificate(whole).public_bytes(serialization.Encoding.DER)
    for cut in range(0, len(der), 7):
        for damaged in (der[:cut], der[:cut] + b"\xff\xff" + der[cut + 2 :], der[:cut] + b"\x84" + der[cut + 1 :]):
            known = examine(written(_pem(damaged)))
            assert bool(known.problem) == (known.ends is None)
    for text in (b"", b"no certificate here", whole[: len(whole) // 2], whole.replace(b"CERTIFICATE", b"PRIVATE KEY")):
        assert examine(written(text)).problem == "no certificate: no PEM block of one"
    assert examine(written(_pem(der[:50]))).problem.startswith("no certificate: it is damaged")


def _pem(der):
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
